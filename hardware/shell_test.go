package hardware

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// shell is an SSH server that takes one password, and notes each that it is sent.
type shell struct {
	address string
	hostKey string
	mu      sync.Mutex
	sent    []string
}

// methods are how a shell takes a password.
type methods int

const (
	byPassword methods = iota
	byQuestion
	byBoth
)

// serveShell starts one whose host key is made of seed.
func serveShell(t *testing.T, seed byte, by methods) *shell {
	t.Helper()
	signer, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &shell{address: l.Addr().String(), hostKey: ssh.FingerprintSHA256(signer.PublicKey())}
	config := &ssh.ServerConfig{}
	if by != byPassword {
		config.KeyboardInteractiveCallback = func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			for range 3 { // a wrong one leads to the same question
				answers, err := ask("", "", []string{"Password: "}, []bool{false})
				if err != nil {
					return nil, err
				}
				if s.judge(answers[0]) == nil {
					return nil, nil
				}
			}
			return nil, errors.New("three wrong passwords")
		}
	}
	if by != byQuestion {
		config.PasswordCallback = func(_ ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			return nil, s.judge(string(password))
		}
	}
	config.AddHostKey(signer)
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer func() { _ = conn.Close() }()
				if client, _, _, err := ssh.NewServerConn(conn, config); err == nil {
					_ = client.Wait()
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		served.Wait()
	})
	return s
}

func (s *shell) judge(password string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, password)
	if password != "secret" {
		return errors.New("wrong password")
	}
	return nil
}

func (s *shell) passwords() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sent)
}

func TestNoPasswordIsSentToAnotherHostKey(t *testing.T) {
	const other = "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8"
	for name, test := range map[string]struct {
		pinned  func(*shell) string
		only    bool
		by      methods
		entered bool
	}{
		"pinned":                {pinned: func(s *shell) string { return s.hostKey }, only: true, entered: true},
		"pinned, by a question": {pinned: func(s *shell) string { return s.hostKey }, by: byQuestion, entered: true},
		"changed":               {pinned: func(*shell) string { return other }},
		"first contact":         {pinned: func(*shell) string { return "" }, entered: true},
		"not trusted yet":       {pinned: func(*shell) string { return "" }, only: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := serveShell(t, 1, test.by)
			var seen []HostKey
			e := Endpoint{Address: "https://bmc", Username: "admin", Password: "secret", HostKey: test.pinned(s), PinnedOnly: test.only}
			client, err := ssh.Dial("tcp", s.address, ShellConfig(e, func(k HostKey) { seen = append(seen, k) }))
			if err == nil {
				_ = client.Close()
			}
			sent := s.passwords()
			if test.entered {
				if err != nil || !slices.Equal(sent, []string{"secret"}) || !slices.Equal(seen, []HostKey{{Type: "ssh-ed25519", Fingerprint: s.hostKey}}) {
					t.Errorf("error %v, sent %q, seen %v", err, sent, seen)
				}
				return
			}
			if len(sent) > 0 || len(seen) > 0 {
				t.Errorf("sent %q to a host key that is not pinned; seen %v", sent, seen)
			}
			var mismatch *HostKeyMismatchError
			if changed := errors.As(err, &mismatch); !Distrusted(err) || changed != (e.HostKey != "") {
				t.Errorf("refused with %v", err)
			} else if changed && (mismatch.Want != other || mismatch.Got != s.hostKey) {
				t.Errorf("the error names %s and %s", mismatch.Want, mismatch.Got)
			}
		})
	}
}

// An SSH server that accepts connections and stays silent must not be waited for longer than a look may take.
func TestHostKeyIsMissingWhereNoSSHServerAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if key := hostKey(ctx, l.Addr().String()); key != nil {
		t.Errorf("a silent server shows %v", *key)
	}
	_ = l.Close()
	if key := hostKey(t.Context(), l.Addr().String()); key != nil {
		t.Errorf("a closed port shows %v", *key)
	}
}

// Each wrong password that is sent counts towards locking the account.
func TestPasswordIsSentOncePerLogin(t *testing.T) {
	for _, by := range []methods{byPassword, byQuestion, byBoth} {
		s := serveShell(t, 1, by)
		e := Endpoint{Address: "https://bmc", Username: "admin", Password: "wrong", HostKey: s.hostKey}
		client, err := ssh.Dial("tcp", s.address, ShellConfig(e, func(HostKey) {}))
		if err == nil {
			_ = client.Close()
			t.Fatal("a wrong password is taken")
		}
		if sent := s.passwords(); !slices.Equal(sent, []string{"wrong"}) {
			t.Errorf("method %d: the server was sent %q (%v)", by, sent, err)
		}
		if !errors.Is(err, ErrUnauthorized) && !strings.Contains(err.Error(), "unable to authenticate") {
			t.Errorf("method %d: %v", by, err)
		}
	}
}
