package budget

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// Listener accepts within its Limits. What it accepts is a *Conn.
type Listener struct {
	net.Listener
	slots *Slots
	conns map[*Conn]struct{} // guarded by slots.mu
}

// Listen applies limits to a TCP listener.
func Listen(l net.Listener, limits Limits) *Listener {
	if limits.Idle <= 0 {
		limits.Idle = defaultIdle
	}
	return &Listener{Listener: l, slots: NewSlots(limits), conns: map[*Conn]struct{}{}}
}

// Accept implements net.Listener. It closes connections beyond the limits
// unless an idle one can be closed instead.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			return nil, errors.Join(errors.New("budget: not a TCP connection"), c.Close())
		}
		if conn := l.admit(tcp); conn != nil {
			return conn, nil
		}
		_ = tcp.Close() // nothing was sent, so there is nothing to report
	}
}

func (l *Listener) admit(tcp *net.TCPConn) *Conn {
	var peer netip.Addr
	if a, ok := tcp.RemoteAddr().(*net.TCPAddr); ok {
		peer = a.AddrPort().Addr()
	}
	c := &Conn{TCPConn: tcp, listener: l, slot: l.slots.slot(peer)}
	c.touch()
	l.slots.mu.Lock()
	limit := l.slots.full(c.slot)
	var old *Conn
	if limit != "" {
		if old = l.idlest(c.slot, limit); old != nil {
			l.drop(old)
			limit = l.slots.full(c.slot) // a second limit may be reached, too
		}
	}
	if limit == "" {
		l.slots.take(c.slot)
		l.conns[c] = struct{}{}
	} else {
		l.slots.refuse(limit)
	}
	l.slots.mu.Unlock()
	if old != nil {
		_ = old.TCPConn.Close()
	}
	if limit != "" {
		return nil
	}
	return c
}

// idlest returns the connection to close for a new one: of the same address
// when that has reached its limit, else the unknown peer's that has been idle
// for longest. For a known peer, an active connection of an unknown one is
// closed if none is idle.
func (l *Listener) idlest(s *Slot, limit string) *Conn {
	var found *Conn
	for c := range l.conns {
		if limit == "peer" && c.slot.peer != s.peer || limit != "peer" && c.slot.known {
			continue
		}
		if found == nil || c.moved.Load() < found.moved.Load() {
			found = c
		}
	}
	if found == nil {
		return nil
	}
	idle := time.Since(time.Unix(0, found.moved.Load())) >= l.slots.limits.Idle
	if !idle && (!s.known || limit == "peer") {
		return nil
	}
	if l.slots.limits.Closed != nil {
		l.slots.limits.Closed(limit)
	}
	return found
}

// drop forgets a connection. The caller holds the lock of the Slots.
func (l *Listener) drop(c *Conn) {
	if _, open := l.conns[c]; open {
		delete(l.conns, c)
		l.slots.release(c.slot)
	}
}

// Conn is a counted connection. To net/http it is a *net.TCPConn, which sends
// files with sendfile(2) through its ReadFrom.
type Conn struct {
	*net.TCPConn
	listener *Listener
	slot     *Slot        // guarded by listener.slots.mu
	moved    atomic.Int64 // when a byte last moved, in ns of Unix time
}

func (c *Conn) touch() { c.moved.Store(time.Now().UnixNano()) }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if n > 0 {
		c.touch()
	}
	return n, err
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	if n > 0 {
		c.touch()
	}
	return n, err
}

// piece is how much ReadFrom sends between two updates of moved.
const piece = 128 << 10

// ReadFrom implements io.ReaderFrom. It passes on an *io.LimitedReader directly
// over the content, because package net looks for an *os.File exactly there.
func (c *Conn) ReadFrom(r io.Reader) (total int64, err error) {
	limited, ok := r.(*io.LimitedReader)
	if !ok {
		defer c.touch()
		return c.TCPConn.ReadFrom(r)
	}
	for limited.N > 0 {
		want := min(piece, limited.N)
		n, err := c.TCPConn.ReadFrom(&io.LimitedReader{R: limited.R, N: want})
		total += n
		limited.N -= n
		c.touch()
		if err != nil || n < want {
			return total, err
		}
	}
	return total, nil
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.listener.slots.mu.Lock()
	c.listener.drop(c)
	c.listener.slots.mu.Unlock()
	return c.TCPConn.Close()
}

// Trust marks a connection's peer as known, after it has authenticated: it no
// longer counts as unknown. A connection that is neither a Conn nor TLS over
// one is left alone.
func Trust(conn net.Conn) {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	c, ok := conn.(*Conn)
	if !ok {
		return
	}
	c.listener.slots.mu.Lock()
	defer c.listener.slots.mu.Unlock()
	if _, open := c.listener.conns[c]; open {
		c.listener.slots.trust(c.slot)
	}
}
