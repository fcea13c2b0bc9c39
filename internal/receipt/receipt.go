// Package receipt reports whether data written to a TCP connection was
// acknowledged by the peer's kernel, and numbers connections so that two
// requests on one can be distinguished from requests on two.
package receipt

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conns numbers the connections of a server. The zero value is ready.
type Conns struct{ last atomic.Uint64 }

// Conn is one connection of a server.
type Conn struct {
	id   string
	conn net.Conn
}

type key struct{}

// Context is for http.Server.ConnContext.
func (c *Conns) Context(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, key{}, &Conn{strconv.FormatUint(c.last.Add(1), 36), conn})
}

// Of returns the connection of a request's context; nil when the server does
// not use Conns.
func Of(ctx context.Context) *Conn {
	c, _ := ctx.Value(key{}).(*Conn)
	return c
}

// ID identifies the connection among those of its Conns; empty for nil.
func (c *Conn) ID() string {
	if c == nil {
		return ""
	}
	return c.id
}

const (
	patience = 10 * time.Second
	pause    = 2 * time.Millisecond
)

// Mark is a position in the data written to a connection.
type Mark struct {
	conn   *Conn
	behind int64 // bytes written before it, as counted by the kernel
	err    error
}

// Mark returns the current position.
func (c *Conn) Mark() Mark {
	if c == nil {
		return Mark{err: errNoSocket}
	}
	acked, left, err := progress(c.conn)
	return Mark{c, acked + left, err}
}

// Arrived waits until the peer has acknowledged data written after the mark. It
// returns false when the connection ended before, when nothing could be
// written, or when nothing was acknowledged for ten seconds; true when the
// kernel cannot tell.
func (m Mark) Arrived(ctx context.Context) bool {
	deadline := time.Now().Add(patience)
	for m.err == nil {
		// A connection that has ended receives no further acknowledgement.
		ended := ctx.Err() != nil || time.Now().After(deadline)
		acked, left, err := progress(m.conn.conn)
		if err != nil || acked > m.behind {
			return true
		}
		if ended || left == 0 {
			return false
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return true
}

// errNoSocket is returned for a connection without a kernel socket.
var errNoSocket = errors.New("the connection has no socket")

// progress returns how many written bytes the peer has acknowledged, and how
// many it has not.
func progress(conn net.Conn) (acked, left int64, err error) {
	for {
		inner, wrapped := conn.(interface{ NetConn() net.Conn })
		if !wrapped {
			break
		}
		conn = inner.NetConn()
	}
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return 0, 0, errNoSocket
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	cerr := raw.Control(func(fd uintptr) { acked, left, err = snapshot(int(fd)) })
	return acked, left, errors.Join(cerr, err)
}

// snapshot reads both numbers at one moment.
func snapshot(fd int) (acked, left int64, err error) {
	for {
		before, err := acknowledged(fd)
		if err != nil {
			return 0, 0, err
		}
		queued, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		if err != nil {
			return 0, 0, err
		}
		after, err := acknowledged(fd)
		if err != nil || before == after {
			return after, int64(queued), err
		}
	}
}

func acknowledged(fd int) (int64, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, err
	}
	return int64(info.Bytes_acked), nil //nolint:gosec // no connection lives for 2^63 bytes
}
