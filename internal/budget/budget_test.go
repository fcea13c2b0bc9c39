package budget

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// desk is a Listener whose accepted connections the test holds.
type desk struct {
	*Listener
	t        *testing.T
	accepted chan net.Conn

	mu      sync.Mutex
	refused map[string]int // by limit, and "closed"
	known   map[netip.Addr]bool
}

func newDesk(t *testing.T, limits Limits, known ...string) *desk {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{t: t, accepted: make(chan net.Conn, 100), refused: map[string]int{}, known: map[netip.Addr]bool{}}
	for _, k := range known {
		d.known[netip.MustParseAddr(k)] = true
	}
	limits.Known = func(a netip.Addr) bool { return d.known[a] }
	limits.Refused = func(limit string) { d.mu.Lock(); d.refused[limit]++; d.mu.Unlock() }
	limits.Closed = func(string) { d.mu.Lock(); d.refused["closed"]++; d.mu.Unlock() }
	d.Listener = Listen(l, limits)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := d.Accept()
			if err != nil {
				return
			}
			d.accepted <- c
		}
	})
	t.Cleanup(func() { _ = d.Close(); accepting.Wait() })
	return d
}

// dial connects from an address, and returns the server's end: nil when it was refused.
func (d *desk) dial(from string) (client net.Conn, server *Conn) {
	d.t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	client, err := dialer.Dial("tcp4", d.Addr().String())
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = client.Close() })
	gone := make(chan struct{})
	go func() { defer close(gone); _, _ = client.Read(make([]byte, 1)) }()
	select {
	case c := <-d.accepted:
		d.t.Cleanup(func() { _ = c.Close() })
		return client, c.(*Conn)
	case <-gone:
		return client, nil
	}
}

func (d *desk) times(limit string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.refused[limit]
}

func (d *desk) open() int {
	d.slots.mu.Lock()
	defer d.slots.mu.Unlock()
	return d.slots.open
}

func TestStrangersLeaveTheReserve(t *testing.T) {
	d := newDesk(t, Limits{Total: 8, PerPeer: 3, Reserve: 3, Idle: time.Hour}, "127.0.9.1", "127.0.9.2")
	in := 0
	for _, from := range []string{"127.0.1.1", "127.0.1.1", "127.0.1.1", "127.0.1.1", "127.0.1.2", "127.0.1.3", "127.0.1.4"} {
		if _, c := d.dial(from); c != nil {
			in++
		}
	}
	if in != 5 || d.times("peer") != 1 || d.times("strangers") != 1 {
		t.Errorf("%d strangers are in, refused %d and %d", in, d.times("peer"), d.times("strangers"))
	}
	for range 3 {
		if _, c := d.dial("127.0.9.1"); c == nil {
			t.Error("a known address is refused")
		}
	}
	// Full. Somebody known takes the place of a stranger, even one that is at work.
	if _, c := d.dial("127.0.9.2"); c == nil || d.times("closed") != 1 || d.open() != 8 {
		t.Errorf("conn %v, %d closed, %d open", c, d.times("closed"), d.open())
	}
}

func TestTheIdlestMakesRoom(t *testing.T) {
	d := newDesk(t, Limits{Total: 3, PerPeer: 3, Idle: time.Millisecond})
	var clients []net.Conn
	var servers []*Conn
	for _, from := range []string{"127.0.1.1", "127.0.1.2", "127.0.1.3"} {
		c, s := d.dial(from)
		clients, servers = append(clients, c), append(servers, s)
		time.Sleep(10 * time.Millisecond)
	}
	// The first says something: so the second has been idle for longest.
	if _, err := clients[0].Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := servers[0].Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	if _, c := d.dial("127.0.1.4"); c == nil {
		t.Fatal("nobody made room")
	}
	for i, s := range servers {
		_, err := s.Write([]byte("y"))
		if (err != nil) != (i == 1) {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	if d.open() != 3 {
		t.Errorf("%d are open", d.open())
	}
}

func TestTrust(t *testing.T) {
	d := newDesk(t, Limits{Total: 4, Reserve: 2, Idle: time.Millisecond})
	_, first := d.dial("127.0.1.1")
	Trust(first)
	Trust(first)
	time.Sleep(10 * time.Millisecond)
	for range 6 {
		if _, c := d.dial("127.0.1.2"); c == nil {
			t.Error("a stranger is refused while strangers are idle")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := first.Write([]byte("x")); err != nil {
		t.Errorf("who has proved who it is was closed for strangers: %v", err)
	}
	Trust(nil)
	near, far := net.Pipe()
	Trust(near)
	_, _ = near.Close(), far.Close()
}

func TestCloseGivesBack(t *testing.T) {
	d := newDesk(t, Limits{Total: 1, Idle: time.Hour})
	for range 5 {
		_, c := d.dial("127.0.1.1")
		if c == nil {
			t.Fatal("refused")
		}
		_, _ = c.Close(), c.Close()
	}
	if d.open() != 0 || len(d.slots.peers) != 0 || d.slots.strangers != 0 {
		t.Errorf("left: %d, %v, %d strangers", d.open(), d.slots.peers, d.slots.strangers)
	}
}

func TestSlots(t *testing.T) {
	b := NewSlots(Limits{Total: 4, PerPeer: 2, Reserve: 1, Known: func(a netip.Addr) bool { return a.Is4() }})
	take := func(a, want string) *Slot {
		t.Helper()
		s, limit := b.Take(netip.MustParseAddr(a))
		if limit != want {
			t.Errorf("%s: limit %q, want %q", a, limit, want)
		}
		return s
	}
	one := take("2001:db8:0:1::1", "")
	take("2001:db8:0:1::2", "")
	take("2001:db8:0:1::3", "peer") // a /64 is one
	take("2001:db8:0:2::1", "")
	take("2001:db8:0:3::1", "strangers")
	if s := take("::ffff:192.0.2.1", ""); !s.Known() {
		t.Error("an IPv4 address in IPv6's form is another")
	}
	take("192.0.2.2", "total")
	b.Release(one)
	take("192.0.2.2", "")
}

// TestFilesAreSent sends a file through net/http: what it does for sendfile must come through whole.
func TestFilesAreSent(t *testing.T) {
	content := make([]byte, 5*piece+7)
	for i := range content {
		content[i] = byte(i * 7)
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) }))
	server.Listener = Listen(server.Listener, Limits{Total: 2})
	server.Start()
	defer server.Close()
	resp, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil || string(got) != string(content) {
		t.Errorf("%d of %d bytes, %v", len(got), len(content), err)
	}
	_ = resp.Body.Close()
}
