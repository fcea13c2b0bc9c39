// Package transfer owns the protocol that moves a Guest's state between two
// hosts: TCP port 16514, mutual TLS with the hosts' certificates, one request
// per connection.
//
// A connection starts with a line of JSON each way, a Request and an Answer.
// What follows depends on the request. The target listens only while it waits
// for a Guest, and accepts only the host that the Guest comes from.
package transfer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/budget"
	"github.com/rackweft/rackweft/internal/text"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/nodeagent"
)

// Request is the source's request.
type Request struct {
	ID   string `json:"id"` // of the move
	Kind string `json:"kind"`
	// Bytes is the size of everything on the source's disk.
	Bytes int64 `json:"bytes,omitzero"`
	// Machine identifies the source's machine for a live move: the target must
	// have the same.
	Machine string `json:"machine,omitzero"`
	Disk    string `json:"disk,omitzero"` // its name
}

// Kinds of Request.
const (
	Ready = "ready" // would the target accept it; nothing follows
	Files = "files" // a tree follows, then the target's second Answer
	// Disk is followed by NBD with the target's QEMU, Memory by the migration
	// stream of the source's QEMU and the target's second Answer.
	Disk   = "disk"
	Memory = "memory"
)

// Answer is the target's answer.
type Answer struct {
	Error string `json:"error,omitzero"`
	// Received: the target already has the complete Guest.
	Received bool `json:"received,omitzero"`
	// Final: a retry would get the same answer.
	Final bool `json:"final,omitzero"`
}

// ErrFinal marks an error that a retry does not change.
var ErrFinal = errors.New("the hosts do not fit")

const (
	// maxLine bounds a line of JSON, maxError the text of an error, in bytes.
	maxLine  = 16 << 10
	maxError = 1024
)

// Credentials returns the host's own credentials.
type Credentials func(context.Context) (nodeagent.Credentials, error)

// Conn is a connection with an authenticated peer.
type Conn struct {
	*tls.Conn
	Peer api.HostIdentity
	in   *bufio.Reader
}

// Read reads what follows the lines of JSON.
func (c *Conn) Read(p []byte) (int, error) { return c.in.Read(p) }

// Limits for a silent peer: during the handshake and afterwards.
const (
	handshakePatience = 20 * time.Second
	silence           = 30 * time.Second
)

// Dial sends a request to the target, which must be peer. When it returns no
// error, the Answer has none either. The connection ends with ctx.
func Dial(ctx context.Context, own Credentials, address netip.Addr, peer api.HostIdentity, r Request) (*Conn, Answer, error) {
	c, err := dial(ctx, own, address, peer)
	if err != nil {
		return nil, Answer{}, fmt.Errorf("reach %s at %s: %w", peer.Host, netip.AddrPortFrom(address, api.MovePort), err)
	}
	if err := c.say(r); err != nil {
		_ = c.Close()
		return nil, Answer{}, fmt.Errorf("ask %s: %w", peer.Host, err)
	}
	a, err := c.Answer()
	if err != nil {
		_ = c.Close()
		return nil, Answer{}, err
	}
	return c, a, nil
}

func dial(ctx context.Context, own Credentials, address netip.Addr, peer api.HostIdentity) (*Conn, error) {
	if !address.IsValid() {
		return nil, errors.New("it has no address in the underlay")
	}
	credentials, err := own(ctx)
	if err != nil {
		return nil, err
	}
	raw, err := (&net.Dialer{Timeout: handshakePatience}).DialContext(ctx, "tcp", netip.AddrPortFrom(address, api.MovePort).String())
	if err != nil {
		return nil, err
	}
	c, err := handshake(ctx, raw, func(conn net.Conn, conf *tls.Config) *tls.Conn { return tls.Client(conn, conf) }, credentials)
	if err != nil {
		return nil, err
	}
	if err := Expect(peer, c.Peer); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// Expect checks the peer's identity. A want without a key is a host that is no
// longer joined; it matches no peer.
func Expect(want, got api.HostIdentity) error {
	if want.Key == "" || want != got {
		return fmt.Errorf("it is host %s (%s), and not host %s (%s) of this move, or has another key than that joined with", got.Host, got.UID, want.Host, want.UID)
	}
	return nil
}

// handshake authenticates both sides.
func handshake(ctx context.Context, raw net.Conn, side func(net.Conn, *tls.Config) *tls.Conn, own nodeagent.Credentials) (*Conn, error) {
	var peer api.HostIdentity
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own.Certificate}, ClientAuth: tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		// VerifyConnection verifies it, without using the host's clock.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) (err error) {
			peer, err = own.HostOf(s.PeerCertificates)
			return err
		},
	}
	conn := side(raw, conf)
	limited, cancel := context.WithTimeout(ctx, handshakePatience)
	defer cancel()
	err := errors.Join(mindful(raw), conn.HandshakeContext(limited))
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	budget.Trust(raw) // a peer without a certificate must not be able to end a move
	return &Conn{Conn: conn, Peer: peer, in: bufio.NewReaderSize(conn, maxLine)}, nil
}

// mindful makes the kernel detect a dead peer, both while waiting for it and
// while sending to it.
func mindful(c net.Conn) error {
	t, ok := c.(interface {
		syscall.Conn
		SetKeepAliveConfig(net.KeepAliveConfig) error
	})
	if !ok {
		return nil
	}
	if err := t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: silence / 3, Interval: silence / 6, Count: 4}); err != nil {
		return err
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
	})
	return errors.Join(err, set)
}

// say writes a line of JSON.
func (c *Conn) say(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = c.Write(append(raw, '\n'))
	return err
}

// Reply sends an answer; err is its error.
func (c *Conn) Reply(a Answer, err error) error {
	if err != nil {
		a.Error, a.Final = text.Clip(err.Error(), maxError), errors.Is(err, ErrFinal)
	}
	return c.say(a)
}

// Answer reads the target's answer, and returns the error in it as an error.
func (c *Conn) Answer() (Answer, error) {
	var a Answer
	if err := line(c.in, &a); err != nil {
		return a, fmt.Errorf("%s does not answer: %w", c.Peer.Host, err)
	}
	if a.Final {
		return a, fmt.Errorf("%s: %s%w", c.Peer.Host, text.Clip(a.Error, maxError), final{})
	}
	if a.Error != "" {
		return a, fmt.Errorf("%s: %s", c.Peer.Host, text.Clip(a.Error, maxError))
	}
	return a, nil
}

// line reads a line of JSON.
func line(in *bufio.Reader, into any) error {
	raw, err := in.ReadSlice('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(bytes.TrimSpace(raw), into)
}

// final is an ErrFinal with the peer's text.
type final struct{}

func (final) Error() string        { return "" }
func (final) Is(target error) bool { return target == ErrFinal }

// Join copies bytes both ways until both directions have ended or one has
// failed, and closes both.
func (c *Conn) Join(ctx context.Context, other net.Conn) {
	stop := context.AfterFunc(ctx, func() { _, _ = c.NetConn().Close(), other.Close() })
	defer stop()
	var group sync.WaitGroup
	group.Go(func() {
		_, err := io.Copy(other, c)
		if half, ok := other.(*net.UnixConn); err == nil && ok {
			_ = half.CloseWrite() // the reader there sees the end
		} else {
			_ = other.Close()
		}
	})
	if _, err := io.Copy(c.Conn, other); err != nil {
		_ = c.NetConn().Close()
	}
	_ = c.CloseWrite() // the peer sees the end
	group.Wait()
	_, _ = c.Close(), other.Close()
}

// Push copies everything from other to the target, waits for the target's
// answer, and closes both.
func (c *Conn) Push(ctx context.Context, other net.Conn) error {
	stop := context.AfterFunc(ctx, func() { _, _ = c.NetConn().Close(), other.Close() })
	defer stop()
	defer func() { _, _ = c.Close(), other.Close() }()
	if _, err := io.Copy(c.Conn, other); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	_, err := c.Answer()
	return err
}

// Serve accepts connections until ctx ends, calls serve for each and waits for
// them. A peer that is not a host of the site fails in its handshake.
func Serve(ctx context.Context, l net.Listener, own Credentials, refused func(from net.Addr, err error), serve func(context.Context, *Conn, Request)) {
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	slots := make(chan struct{}, maxConns)
	for {
		raw, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // such as out of descriptors
			_ = wait.For(ctx, 100*time.Millisecond)
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = raw.Close()
			continue
		}
		group.Go(func() {
			defer func() { <-slots }()
			c, r, err := accept(ctx, raw, own)
			if err != nil {
				refused(raw.RemoteAddr(), err)
				return
			}
			defer func() { _ = c.Close() }()
			unblock := context.AfterFunc(ctx, func() { _ = c.NetConn().Close() })
			defer unblock()
			serve(ctx, c, r)
		})
	}
}

// maxConns also bounds connections that are not authenticated yet.
const maxConns = 256

func accept(ctx context.Context, raw net.Conn, own Credentials) (*Conn, Request, error) {
	var r Request
	credentials, err := own(ctx)
	if err != nil {
		_ = raw.Close()
		return nil, r, err
	}
	c, err := handshake(ctx, raw, func(conn net.Conn, conf *tls.Config) *tls.Conn { return tls.Server(conn, conf) }, credentials)
	if err != nil {
		return nil, r, err
	}
	err = c.SetReadDeadline(time.Now().Add(handshakePatience))
	if err == nil {
		err = line(c.in, &r)
	}
	if err = errors.Join(err, c.SetReadDeadline(time.Time{})); err != nil {
		_ = c.Close()
		return nil, r, fmt.Errorf("host %s sent no valid request: %w", c.Peer.Host, err)
	}
	return c, r, nil
}

// CloseWith closes the connection when ctx ends; the caller calls stop to
// cancel that.
func (c *Conn) CloseWith(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = c.NetConn().Close() })
}
