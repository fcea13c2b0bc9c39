package httpboot

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"
)

// from connects from an address and asks /healthz; the connection stays open, as a client's that may ask again.
func (b *bench) from(t *testing.T, address string) error {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: 20 * time.Second}
	conn, err := d.Dial("tcp4", b.Addr().String())
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// TestIdleCrowd has 4,200 connections of 140 addresses idle after one small GET. Registered machines still
// get in at once, and so do others once the crowd has been idle for a while.
func TestIdleCrowd(t *testing.T) {
	const machine = "127.9.9.9"
	b := start(t, Config{Known: func(a netip.Addr) bool { return a == netip.MustParseAddr(machine) }})
	in := 0
	for n := range 4200 {
		if b.from(t, fmt.Sprintf("127.1.%d.1", n%140)) == nil {
			in++
		}
	}
	if in < 3000 {
		t.Fatalf("only %d of the crowd got in: nothing is shown", in)
	}
	for range 32 {
		if err := b.from(t, machine); err != nil {
			t.Fatalf("a registered machine: %v", err)
		}
	}
	var err error
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = b.from(t, "127.2.0.1"); err == nil {
			break
		}
	}
	if err != nil {
		t.Errorf("a machine that is not registered, while the crowd is idle: %v", err)
	}
	t.Logf("%d of 4200 got in", in)
}
