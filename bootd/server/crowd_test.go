package server

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

// TestCrowdOfStrangers opens more connections to the API than strangers may have, says nothing on them, and looks
// who still gets in: a registered machine's address, the unix socket, and who was known before.
func TestCrowdOfStrangers(t *testing.T) {
	const machine = "127.9.9.9"
	r := newRig(t, func(c *Config) {
		c.Known = func(a netip.Addr) bool { return a == netip.MustParseAddr(machine) }
	})
	client := func(from string) *http.Client {
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		transport := &http.Transport{TLSClientConfig: r.server.conf.TLS.Clone(), DialContext: dialer.DialContext, TLSHandshakeTimeout: 20 * time.Second}
		transport.TLSClientConfig.RootCAs, transport.TLSClientConfig.GetConfigForClient = r.authority.Pool(), nil
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport, Timeout: 30 * time.Second}
	}
	ask := func(c *http.Client) error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.base+"/v1/machines", nil)
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+viewerToken)
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body) // so that the connection stays
		return errors.Join(err, resp.Body.Close())
	}
	person := client("127.8.8.8")
	must(t, ask(person))
	for n := range maxStrangers + 400 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(n/64), 1)}}
		c, err := d.Dial("tcp4", r.server.Addr().String())
		must(t, err)
		t.Cleanup(func() { _ = c.Close() })
	}
	if err := ask(client(machine)); err != nil {
		t.Errorf("a registered machine: %v", err)
	}
	if err := ask(person); err != nil {
		t.Errorf("a person whose connection was open before: %v", err)
	}
	put(t, r.root(), testsite.NewMachine("r1", "52:54:00:00:00:01"))
	var err error
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = ask(client("127.7.7.7")); err == nil {
			break
		}
	}
	if err != nil {
		t.Errorf("a person from an address that nobody knows: %v", err)
	}
}
