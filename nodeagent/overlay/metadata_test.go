package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rackweft/rackweft/nodeagent"
)

// get asks at the metadata address, from one of the guest's own or another.
func (g *testGuest) get(from netip.Addr) (string, error) {
	dial := func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = within(g.ns, func() error {
			c, err = (&net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 2 * time.Second}
	resp, err := client.Get("http://169.254.169.254/ignition")
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// setConfig says whether the guest has a config to fetch.
func (g *testGuest) setConfig(has bool) {
	for i := range g.host.ports {
		if p := &g.host.ports[i]; p.UID == g.port.UID {
			p.Config = has
		}
	}
	g.host.overlay.SetPorts(g.host.ports)
}

// Guests that have a config to fetch are told from each other by their
// addresses, on each of two Networks that have the same; nobody else is.
func TestConfigsAreServed(t *testing.T) {
	f := newFabric(t, 2, false)
	h := f.hosts[0]
	serve := func(w http.ResponseWriter, r *http.Request, uid string) {
		_, _ = fmt.Fprintf(w, "%s of %q", r.URL.Path, uid)
	}
	h.overlay.serving.config = serve
	stop := h.run()
	green, blue := tenant{name: "green", uid: "uid-green", vni: 7101, second: 7}, tenant{name: "blue", uid: "uid-blue", vni: 7102, second: 7}
	f.reconcile(green, blue)
	a, b, c := f.plugIn(green, 1, 8), f.plugIn(green, 1, 10), f.plugIn(blue, 1, 8)
	if _, err := a.get(a.addr); err == nil {
		t.Error("a Network is served although no guest has a config to fetch")
	}
	a.setConfig(true)
	c.setConfig(true)
	for _, g := range []*testGuest{a, b, c} {
		got, err := g.get(g.addr)
		if want := fmt.Sprintf("/ignition of %q", g.port.UID); err != nil || got != want {
			t.Errorf("%s gets %q, %v; want %q", g.port.UID, got, err, want)
		}
	}

	// With another guest's address it gets no answer: its tap lets it send nothing.
	l, err := b.LinkByName("eth0")
	must(t, err)
	must(t, b.AddrAdd(l, toAddress(whole(a.addr))))
	if got, err := b.get(a.addr); err == nil {
		t.Errorf("a guest with another's address gets %q", got)
	}
	// A guest on another host of the Network has a server of its own host, or none.
	far := f.plugIn(green, 2, 8)
	if got, err := far.get(far.addr); err == nil {
		t.Errorf("a guest of another host gets %q", got)
	}

	a.setConfig(false)
	if _, err := a.get(a.addr); err == nil {
		t.Error("a Network is served although no guest has a config to fetch any more")
	}
	if _, err := c.get(c.addr); err != nil {
		t.Errorf("the other Network is served no more: %v", err)
	}

	a.setConfig(true)
	stop()
	if _, err := a.get(a.addr); err == nil {
		t.Error("guests are served by an agent that has ended")
	}
	h.restart()
	h.overlay.serving.config = serve
	h.run()
	h.overlay.SetPorts(h.ports)
	h.reconcile(f.part(green, 1), f.part(blue, 1))
	if _, err := a.get(a.addr); err != nil {
		t.Errorf("the next agent does not serve: %v", err)
	}
	h.reconcile(nodeagent.Part{Name: f.part(blue, 1).Name, UID: blue.uid, Want: nodeagent.Removed}, f.part(green, 1))
}

// Requests that take long end with their server, and leave nothing behind; a
// guest has but so many.
func TestConfigsEnd(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	inside := make(chan struct{}, 2*metadataConns)
	var left atomic.Int32
	h.overlay.serving.config = func(_ http.ResponseWriter, r *http.Request, _ string) {
		inside <- struct{}{}
		<-r.Context().Done()
		left.Add(1)
		panic(http.ErrAbortHandler) // or what it has not written might be taken for an answer
	}
	stop := h.run()
	green := tenant{name: "green", uid: "uid-green", vni: 7103, second: 7}
	f.reconcile(green)
	g, other := f.plugIn(green, 1, 8), f.plugIn(green, 1, 10)
	g.setConfig(true)
	answers := make(chan error, metadataConns+1)
	ask := func(g *testGuest) {
		_, err := g.get(g.addr)
		answers <- err
	}
	for range metadataConns {
		go ask(g)
		<-inside
	}
	go ask(g)
	if err := <-answers; err == nil || errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "Timeout") {
		t.Errorf("one connection too many: %v", err)
	}
	go ask(other)
	<-inside
	stop()
	if n := left.Load(); n != metadataConns+1 {
		t.Errorf("%d requests have ended with the server", n)
	}
	for range metadataConns + 1 {
		if err := <-answers; err == nil {
			t.Error("a request was answered")
		}
	}
}
