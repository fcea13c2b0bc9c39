package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/rackweft/rackweft/internal/wait/waittest"
	"github.com/rackweft/rackweft/lab/rig"
)

func newKey(t *testing.T) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// login is a Layer that lets root in with a key.
func login(key ssh.Signer) string {
	return fmt.Sprintf(`apiVersion: rackweft/v1alpha1
kind: Layer
metadata: {name: login}
spec:
  butane: |
    passwd:
      users:
        - name: root
          ssh_authorized_keys: [%q]
`, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey()))))
}

// withLogin changes the rack's manifests: every host has the Layer login.
func withLogin(key ssh.Signer) func(name string, content []byte) []byte {
	return func(name string, content []byte) []byte {
		switch name {
		case "profile.yaml":
			return bytes.Replace(content, []byte("layers: [site,"), []byte("layers: [login, site,"), 1)
		case "layers.yaml":
			return append(append(content, "\n---\n"...), login(key)...)
		}
		return content
	}
}

// host is a shell on one of the rack's machines.
type host struct {
	name   string
	t      *testing.T
	client *ssh.Client
}

// For is the same host for a subtest, which then is the one to fail.
func (h *host) For(t *testing.T) *host { return &host{h.name, t, h.client} }

// dialHost logs in to a machine from bootd's server, as soon as that is possible.
func dialHost(t *testing.T, r *rig.Rig, name string, key ssh.Signer) *host {
	t.Helper()
	address := net.JoinHostPort(r.Rack.Machine(name).Config().ProductionAddress().String(), "22")
	config := &ssh.ClientConfig{User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey()} //nolint:gosec // the host makes its key at the first connection
	for deadline := time.Now().Add(rig.Patience); ; time.Sleep(time.Second) {
		client, err := dialSSH(t.Context(), r, address, config)
		if err == nil {
			t.Cleanup(func() { _ = client.Close() })
			return &host{name, t, client}
		}
		if time.Now().After(deadline) {
			t.Fatal(r.Rack.Explain(name, fmt.Errorf("log in to %s: %w", name, err)))
		}
	}
}

func dialSSH(ctx context.Context, r *rig.Rig, address string, config *ssh.ClientConfig) (*ssh.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := r.Rack.DialContext(ctx, "tcp4", address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	c, channels, requests, err := ssh.NewClientConn(conn, address, config)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return ssh.NewClient(c, channels, requests), nil
}

// run runs a shell's command and returns its standard output.
func (h *host) run(command string) string {
	h.t.Helper()
	session, err := h.client.NewSession()
	if err != nil {
		h.t.Fatalf("%s: %v", h.name, err)
	}
	defer func() { _ = session.Close() }()
	var complaints bytes.Buffer
	session.Stderr = &complaints
	out, err := session.Output(command)
	if err != nil {
		h.t.Fatalf("%s: %s: %v\n%s%s", h.name, command, err, out, &complaints)
	}
	return strings.TrimSpace(string(out))
}

// wait waits until is says yes.
func (h *host) wait(what string, is func() bool) {
	h.t.Helper()
	waittest.Until(h.t, rig.Patience, h.name+": "+what, is)
}
