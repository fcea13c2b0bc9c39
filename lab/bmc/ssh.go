package bmc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// loadHostKey reads ssh_host_key in dir, or creates it.
func loadHostKey(dir string) (ssh.Signer, error) {
	encoded, err := os.ReadFile(filepath.Join(dir, "ssh_host_key"))
	if errors.Is(err, fs.ErrNotExist) {
		return makeHostKey(dir)
	}
	if err != nil {
		return nil, err
	}
	return ssh.ParsePrivateKey(encoded)
}

func makeHostKey(dir string) (ssh.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	encoded := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, "ssh_host_key"), encoded, 0o600); err != nil {
		return nil, err
	}
	return ssh.NewSignerFromKey(key)
}

// hostKey returns the BMC's SSH host key, which it makes at the first use.
func (s *Server) hostKey() (ssh.Signer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.signer != nil {
		return s.signer, nil
	}
	signer, err := loadHostKey(s.config.Dir)
	if err != nil {
		return nil, fmt.Errorf("SSH host key of the BMC %s: %w", s.config.Address, err)
	}
	s.signer = signer
	return signer, nil
}

// HostKey returns the BMC's SSH host key for a client to pin.
func (s *Server) HostKey() (ssh.PublicKey, error) {
	signer, err := s.hostKey()
	if err != nil {
		return nil, err
	}
	return signer.PublicKey(), nil
}

// ConsolePort is the port of a system's console over SSH; zero: it has none.
func (s *Server) ConsolePort(system string) int {
	one := s.system(system)
	if one == nil || one.console == nil || !one.console.SSH() {
		return 0
	}
	return one.console.Style.port(one.console.number)
}

// ServeConsole answers SSH on l, with the console of a system, until Close; it
// closes l.
func (s *Server) ServeConsole(system string, l net.Listener) error {
	if s.ConsolePort(system) == 0 {
		return errors.Join(fmt.Errorf("BMC %s: system %q has no console over SSH", s.config.Address, system), l.Close())
	}
	if _, err := s.hostKey(); err != nil {
		return errors.Join(err, l.Close())
	}
	gate := s.addGate(l)
	defer context.AfterFunc(s.base, func() { _ = gate.Close() })()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		conn, err := gate.Accept()
		if err != nil && s.base.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("BMC %s: SSH: %w", s.config.Address, err)
		}
		conns.Go(func() { s.serveSSH(conn, s.system(system).console) })
	}
}

// loginTime bounds an SSH handshake and its authentication.
const loginTime = 30 * time.Second

func (s *Server) serveSSH(raw net.Conn, c *console) {
	defer func() { _ = raw.Close() }()
	defer context.AfterFunc(s.base, func() { _ = raw.Close() })()
	signer, err := s.hostKey()
	if err != nil {
		return
	}
	config := &ssh.ServerConfig{
		ServerVersion: "SSH-2.0-rackweft_lab_BMC",
		PasswordCallback: func(meta ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			if !s.sessions.credentialsMatch(meta.User(), string(password)) {
				s.log.Warn("login refused", "bmc", s.config.Address.String(), "client", raw.RemoteAddr().String(), "protocol", "ssh")
				return nil, errors.New("wrong user name or password")
			}
			return nil, nil
		},
	}
	config.AddHostKey(signer)
	_ = raw.SetDeadline(time.Now().Add(loginTime)) // a closed connection fails below
	conn, channels, requests, err := ssh.NewServerConn(raw, config)
	if err != nil {
		return
	}
	_ = raw.SetDeadline(time.Time{})
	var served sync.WaitGroup
	defer served.Wait()
	defer func() { _ = conn.Close() }()
	served.Go(func() { ssh.DiscardRequests(requests) })
	for one := range channels {
		if one.ChannelType() != "session" {
			_ = one.Reject(ssh.UnknownChannelType, "only sessions are served")
			continue
		}
		channel, requests, err := one.Accept()
		if err != nil {
			return
		}
		served.Go(func() { serveSession(s.base, channel, requests, c) })
	}
}

// serveSession serves one shell or one command (RFC 4254 §6.5).
func serveSession(ctx context.Context, channel ssh.Channel, requests <-chan *ssh.Request, c *console) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	defer running.Wait()
	defer func() { _ = channel.Close() }() // ends what is running
	started := false
	for request := range requests {
		var command struct{ Line string }
		accepted := false
		switch request.Type {
		case "pty-req", "window-change":
			accepted = true
		case "shell", "exec":
			accepted = !started && (request.Type == "shell" || ssh.Unmarshal(request.Payload, &command) == nil)
		}
		if request.WantReply && request.Reply(accepted, nil) != nil {
			return
		}
		if accepted && (request.Type == "shell" || request.Type == "exec") {
			started = true
			running.Go(func() { runShell(ctx, channel, c, command.Line) })
		}
	}
	cancel()
}

// runShell serves one shell on the channel, and closes it.
func runShell(ctx context.Context, channel ssh.Channel, c *console, command string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	typed := make(chan []byte)
	var reader sync.WaitGroup
	defer reader.Wait()
	defer func() { _ = channel.Close() }() // ends the reader, and a write that blocks
	reader.Go(func() {
		defer close(typed)
		for {
			buffer := make([]byte, 4096)
			n, err := channel.Read(buffer)
			if err != nil {
				return
			}
			select {
			case typed <- buffer[:n]:
			case <-ctx.Done():
				return
			}
		}
	})
	h := &shell{console: c, output: channel, typed: typed}
	h.run(ctx, command)
	_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{})) // the client may be gone
	cancel()
}
