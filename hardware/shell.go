package hardware

import (
	"context"
	"fmt"
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
// one without a pin (*UntrustedError). A key that is accepted goes to seen, before the password is sent. The config is for one
// login, in which the password is sent at most once: a server that refuses it counts each time towards locking the account.
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
	password := passwordOnce(e.Password)
	config.Auth = []ssh.AuthMethod{ssh.PasswordCallback(password), ssh.KeyboardInteractive(answerWith(password))}
	return config
}

// passwordOnce gives the password once, whichever method asks for it.
func passwordOnce(password string) func() (string, error) {
	given := false
	return func() (string, error) {
		if given {
			return "", fmt.Errorf("%w: the SSH server asks for the password again", ErrUnauthorized)
		}
		given = true
		return password, nil
	}
}

// answerWith answers the one hidden question of servers that take a password only as such an answer.
func answerWith(password func() (string, error)) ssh.KeyboardInteractiveChallenge {
	return func(_, _ string, questions []string, echos []bool) (answers []string, err error) {
		answers = make([]string, len(questions))
		for i := range questions {
			if echos[i] {
				continue
			}
			if answers[i], err = password(); err != nil {
				return nil, err
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
