// Package transfer owns the way between two hosts by which what a Guest has goes
// from one to the other: TCP port 16514, mutual TLS by the hosts' certificates,
// one request per connection.
//
// A connection begins with a line of JSON each way, a Request and an Answer.
// Whatever follows is the request's own. The target listens only while it waits
// for a Guest, and talks to the host alone that the Guest comes from.
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

// Request is what the source asks for.
type Request struct {
	ID   string `json:"id"` // of the move
	Kind string `json:"kind"`
	// Bytes is how much room all of it takes on the source.
	Bytes int64 `json:"bytes,omitzero"`
	// Machine is what the source runs, for a Guest that runs meanwhile: the
	// target must have the same.
	Machine string `json:"machine,omitzero"`
	Disk    string `json:"disk,omitzero"` // its name
}

// Kinds of Request.
const (
	Ready = "ready" // whether the target would take it; nothing follows
	Files = "files" // a tree follows, then the target's second Answer
	// Disk is followed by NBD with the target's QEMU, Memory by the state of the
	// source's, then the target's second Answer.
	Disk   = "disk"
	Memory = "memory"
)

// Answer is what the target says to it.
type Answer struct {
	Error string `json:"error,omitzero"`
	// Received says that the target has all of the Guest already.
	Received bool `json:"received,omitzero"`
	// Final says that the same would be answered again.
	Final bool `json:"final,omitzero"`
}

// ErrFinal is an error that trying again does not change.
var ErrFinal = errors.New("the hosts do not fit")

const (
	// maxLine bounds a line of JSON, maxError what is told of an error, in bytes.
	maxLine  = 16 << 10
	maxError = 1024
)

// Credentials are the host's own.
type Credentials func(context.Context) (nodeagent.Credentials, error)

// Conn is a connection whose other side has proved who it is.
type Conn struct {
	*tls.Conn
	Peer api.HostIdentity
	in   *bufio.Reader
}

// Read reads what follows the lines.
func (c *Conn) Read(p []byte) (int, error) { return c.in.Read(p) }

// Patience with a side that says nothing: while it begins, and ever after.
const (
	handshakePatience = 20 * time.Second
	silence           = 30 * time.Second
)

// Dial asks the target, which must be peer, for something. The Answer has no
// Error when the error is nil. The connection ends with ctx.
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

// Expect says what is wrong with who the other side is. A want without a key is
// a host that has joined no more; it is nobody.
func Expect(want, got api.HostIdentity) error {
	if want.Key == "" || want != got {
		return fmt.Errorf("it is host %s (%s), and not host %s (%s) of this move, or has another key than that joined with", got.Host, got.UID, want.Host, want.UID)
	}
	return nil
}

// handshake proves to each side who the other is.
func handshake(ctx context.Context, raw net.Conn, side func(net.Conn, *tls.Config) *tls.Conn, own nodeagent.Credentials) (*Conn, error) {
	var peer api.HostIdentity
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own.Certificate}, ClientAuth: tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		// VerifyConnection does it, without asking the host's clock.
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
	budget.Trust(raw) // a move is not ended by who has no certificate
	return &Conn{Conn: conn, Peer: peer, in: bufio.NewReaderSize(conn, maxLine)}, nil
}

// mindful has the kernel notice a side that is gone, whether it waits for that
// side or sends to it.
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

// say writes a line.
func (c *Conn) say(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = c.Write(append(raw, '\n'))
	return err
}

// Reply answers the other side; err is told to it.
func (c *Conn) Reply(a Answer, err error) error {
	if err != nil {
		a.Error, a.Final = text.Clip(err.Error(), maxError), errors.Is(err, ErrFinal)
	}
	return c.say(a)
}

// Answer reads the target's answer, and returns its error as one.
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

// final is an ErrFinal that the other side has put into words.
type final struct{}

func (final) Error() string        { return "" }
func (final) Is(target error) bool { return target == ErrFinal }

// Join carries bytes both ways until both have ended or one has failed, and
// closes both.
func (c *Conn) Join(ctx context.Context, other net.Conn) {
	stop := context.AfterFunc(ctx, func() { _, _ = c.NetConn().Close(), other.Close() })
	defer stop()
	var group sync.WaitGroup
	group.Go(func() {
		_, err := io.Copy(other, c)
		if half, ok := other.(*net.UnixConn); err == nil && ok {
			_ = half.CloseWrite() // whoever reads there ends, too
		} else {
			_ = other.Close()
		}
	})
	if _, err := io.Copy(c.Conn, other); err != nil {
		_ = c.NetConn().Close()
	}
	_ = c.CloseWrite() // the other side ends, too
	group.Wait()
	_, _ = c.Close(), other.Close()
}

// Push carries all that comes from other, waits for the target's answer, and
// closes both.
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

// Serve takes connections until ctx ends; serve is called for each, and waited
// for. Whoever is no host of the site gets no further than its handshake.
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
		if err != nil { // out of files, for one
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

// maxConns bounds those that have not proved anything yet, too.
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
		return nil, r, fmt.Errorf("host %s asks for nothing: %w", c.Peer.Host, err)
	}
	return c, r, nil
}

// CloseWith closes the connection when ctx ends; the caller stops that.
func (c *Conn) CloseWith(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = c.NetConn().Close() })
}
