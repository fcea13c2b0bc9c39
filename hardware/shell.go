package hardware

import (
	"context"
	"net"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	sshConnect  = 3 * time.Second  // of connecting, to look whether there is a server
	sshExchange = 15 * time.Second // of the key exchange: a BMC's processor may need seconds for it
)

// HostKey is what a BMC's SSH server presents.
type HostKey struct {
	Type        string // such as ssh-ed25519
	Fingerprint string // as ssh-keygen -l prints it
}

// ShellConfig is how the SSH server of a BMC is logged in to with the endpoint's user and password. No password is sent to
// one that presents another host key than is pinned (*HostKeyMismatchError), nor, where only pinned ones are entered, to
// one without a pin (*UntrustedError). A key that is accepted goes to seen, before the password is sent.
func ShellConfig(e Endpoint, seen func(HostKey)) *ssh.ClientConfig {
	config := anyShell(func(_ string, _ net.Addr, key ssh.PublicKey) error {
		got := hostKeyOf(key)
		if e.HostKey == "" && e.PinnedOnly {
			return &UntrustedError{Address: e.Address, What: "SSH host key", Got: got.Fingerprint}
		}
		if e.HostKey != "" && e.HostKey != got.Fingerprint {
			return &HostKeyMismatchError{Address: e.Address, Want: e.HostKey, Got: got.Fingerprint}
		}
		seen(got)
		return nil
	})
	config.User = e.Username
	config.Auth = []ssh.AuthMethod{ssh.Password(e.Password), ssh.KeyboardInteractive(answerWith(e.Password))}
	return config
}

// answerWith answers the one hidden question of servers that take a password only as such an answer.
func answerWith(password string) ssh.KeyboardInteractiveChallenge {
	return func(_, _ string, questions []string, echos []bool) ([]string, error) {
		answers := make([]string, len(questions))
		for i := range questions {
			if !echos[i] {
				answers[i] = password
			}
		}
		return answers, nil
	}
}

func hostKeyOf(key ssh.PublicKey) HostKey {
	return HostKey{Type: key.Type(), Fingerprint: ssh.FingerprintSHA256(key)}
}

// anyShell speaks to any SSH server whose host key verify accepts. The order of host key algorithms decides which key a
// server with several of them shows, so it must not change: keys are pinned. Old algorithms come last, since iLO 4 and
// older know no others; DSA, which not even those need, stays out.
func anyShell(verify ssh.HostKeyCallback) *ssh.ClientConfig {
	modern, old := ssh.SupportedAlgorithms(), ssh.InsecureAlgorithms()
	return &ssh.ClientConfig{
		Config: ssh.Config{
			KeyExchanges: slices.Concat(modern.KeyExchanges, old.KeyExchanges),
			Ciphers:      slices.Concat(modern.Ciphers, old.Ciphers),
			MACs:         slices.Concat(modern.MACs, old.MACs),
		},
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
			ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA},
		HostKeyCallback: verify,
		Timeout:         sshExchange,
	}
}

// hostKey is nil when no SSH server answers. The server has proved that it holds the key.
func hostKey(ctx context.Context, address string) *HostKey {
	ctx, cancel := context.WithTimeout(ctx, sshExchange)
	defer cancel()
	conn, err := (&net.Dialer{Timeout: sshConnect}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var seen *HostKey
	client, _, _, err := ssh.NewClientConn(conn, address, anyShell(func(_ string, _ net.Addr, key ssh.PublicKey) error {
		got := hostKeyOf(key)
		seen = &got
		return errSeen
	}))
	if err == nil {
		_ = client.Close()
	}
	_ = conn.Close()
	return seen
}
