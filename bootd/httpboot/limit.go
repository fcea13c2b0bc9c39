package httpboot

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// limitedListener closes connections beyond the limits as soon as they are accepted. It hands out plain
// *net.TCPConn: net/http needs that for sendfile(2). The end of a connection is told to connState.
type limitedListener struct {
	net.Listener
	total, perPeer int
	metrics        *metrics

	mu   sync.Mutex
	open map[net.Conn]netip.Addr
	of   map[netip.Addr]int
}

func newLimitedListener(l net.Listener, total, perPeer int, m *metrics) *limitedListener {
	return &limitedListener{
		Listener: l,
		total:    total,
		perPeer:  perPeer,
		metrics:  m,
		open:     make(map[net.Conn]netip.Addr),
		of:       make(map[netip.Addr]int),
	}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		limit := l.take(conn)
		if limit == "" {
			return conn, nil
		}
		l.metrics.refused.WithLabelValues(limit).Inc()
		_ = conn.Close() // nothing was sent; there is nobody to tell
	}
}

// take names the limit that is reached, or counts conn.
func (l *limitedListener) take(conn net.Conn) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var peer netip.Addr
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		peer = tcp.AddrPort().Addr().Unmap()
	}
	switch {
	case len(l.open) >= l.total:
		return "total"
	case l.of[peer] >= l.perPeer:
		return "peer"
	}
	l.open[conn] = peer
	l.of[peer]++
	l.metrics.conns.Set(float64(len(l.open)))
	return ""
}

func (l *limitedListener) connState(conn net.Conn, state http.ConnState) {
	if state != http.StateClosed && state != http.StateHijacked {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	peer, ok := l.open[conn]
	if !ok {
		return
	}
	delete(l.open, conn)
	if l.of[peer]--; l.of[peer] == 0 {
		delete(l.of, peer)
	}
	l.metrics.conns.Set(float64(len(l.open)))
}
