package server

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
)

// streamingHost is a host with its stream open, as nodeagent has it.
type streamingHost struct {
	t      testing.TB
	base   string
	name   string
	client *http.Client
	opens  chan api.Channel
	close  func()
}

func (r *rig) streamingHost(name string) *streamingHost {
	t := r.t
	cert, key := r.hostPair(name)
	pair, err := tls.X509KeyPair(cert, key)
	must(t, err)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.authority.Pool(), Certificates: []tls.Certificate{pair}}, ForceAttemptHTTP2: true}
	h := &streamingHost{t: t, base: r.base + "/v1/hosts/" + name, name: name, client: &http.Client{Transport: transport}, opens: make(chan api.Channel, 8)}
	body, pipe := io.Pipe()
	go func() {
		_ = json.NewEncoder(pipe).Encode(api.HostFrame{Hello: &api.Hello{AgentVersion: "test", Time: time.Now()}})
	}()
	resp, err := h.client.Post(h.base+"/stream", "application/x-ndjson", body)
	must(t, err)
	greeted := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			var f api.ServerFrame
			if json.Unmarshal(lines.Bytes(), &f) != nil {
				return
			}
			if f.Bookmark != nil {
				select {
				case <-greeted:
				default:
					close(greeted)
				}
			}
			if f.Open != nil {
				h.opens <- *f.Open
			}
		}
	})
	h.close = sync.OnceFunc(func() { _, _ = pipe.Close(), resp.Body.Close(); reading.Wait(); transport.CloseIdleConnections() })
	t.Cleanup(h.close)
	<-greeted
	return h
}

// open answers a channel; what is written to the pipe goes to the person.
func (h *streamingHost) open(id string) (to *io.PipeWriter, from *http.Response) {
	h.t.Helper()
	body, to := io.Pipe()
	h.t.Cleanup(func() { _ = body.Close() })
	resp, err := h.client.Post(h.base+"/channels/"+id, "application/octet-stream", body)
	must(h.t, err)
	h.t.Cleanup(func() { _ = resp.Body.Close() })
	return to, resp
}

// A person's console and the request that a Guest's host opens are one stream of
// bytes, for one person at a time.
func TestGuestConsole(t *testing.T) {
	r := newRig(t)
	c := r.root()
	put(t, c, testsite.NewMachine("r1", "52:54:00:00:00:01"), testsite.NewMachine("r2", "52:54:00:00:00:02"))
	n := &api.Network{Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes("10.5.0.0/16")}}
	n.Metadata.Name = "net"
	g := &api.Guest{Spec: api.GuestSpec{Network: "net", Image: "debian", CPUs: 1, Memory: api.Bytes(1 << 30)}}
	g.Metadata.Name = "web"
	put(t, c, n, g)
	console := func() (io.ReadWriteCloser, error) { return r.bearer(operatorToken).GuestConsole(t.Context(), "web") }
	_, err := console()
	wantStatus(t, err, http.StatusConflict, "has no host")
	m, err := api.Get[api.Machine](t.Context(), c, "r1")
	must(t, err)
	_, err = store.Mutate(t.Context(), r.store, "web", func(g *api.Guest) error {
		g.Status.Host, g.Status.HostUID = "r1", m.Metadata.UID
		return nil
	})
	must(t, err)
	_, err = console()
	wantStatus(t, err, http.StatusBadGateway, "host r1 is not connected to this bootd")

	h, other := r.streamingHost("r1"), r.streamingHost("r2")
	type joined struct {
		con io.ReadWriteCloser
		err error
	}
	attach := func() (chan joined, api.Channel) {
		t.Helper()
		done := make(chan joined, 1)
		go func() { con, err := console(); done <- joined{con, err} }()
		asked := <-h.opens
		if asked.Guest != "web" || asked.Kind != api.ChannelConsole || asked.UID == "" || asked.ID == "" {
			t.Errorf("the host is asked for %+v", asked)
		}
		return done, asked
	}
	for range 2 { // attach, detach, attach
		done, asked := attach()
		if resp, err := other.client.Post(other.base+"/channels/"+asked.ID, "", http.NoBody); err != nil || resp.StatusCode != http.StatusNotFound {
			t.Errorf("another host may have the channel: %v, %v", resp, err)
		}
		to, from := h.open(asked.ID)
		got := <-done
		must(t, got.err)
		_, err := console()
		wantStatus(t, err, http.StatusConflict, "has the console of Guest web open")
		if resp, err := h.client.Post(h.base+"/channels/"+asked.ID, "", http.NoBody); err != nil || resp.StatusCode != http.StatusNotFound {
			t.Errorf("an id is good twice: %v, %v", resp, err)
		}
		big := bytes.Repeat([]byte("0123456789abcdef"), 1<<12)
		go func() { _, _ = io.Copy(to, from.Body); _ = to.Close() }() // a Guest that echoes
		go func() { _, _ = got.con.Write(big) }()
		echo := make([]byte, len(big))
		if _, err := io.ReadFull(got.con, echo); err != nil || !bytes.Equal(echo, big) {
			t.Errorf("echo: %v", err)
		}
		must(t, got.con.Close())
		if n, err := from.Body.Read(echo); err == nil {
			t.Errorf("%d bytes after the person has left", n)
		}
		r.freeConsole(t)
	}

	// The Guest's end closes: what it said last arrives.
	done, asked := attach()
	to, _ := h.open(asked.ID)
	got := <-done
	must(t, got.err)
	_, _ = io.WriteString(to, "bye")
	must(t, to.Close())
	if said, err := io.ReadAll(got.con); string(said) != "bye" {
		t.Errorf("it said %q, %v", said, err)
	}
	r.freeConsole(t)

	// The host has nothing to open, and says why.
	done, asked = attach()
	resp, err := h.client.Post(h.base+"/channels/"+asked.ID+"?refused="+url.QueryEscape("guest web does not run"), "", http.NoBody)
	must(t, err)
	_ = resp.Body.Close()
	got = <-done
	wantStatus(t, got.err, http.StatusBadGateway, "host r1: guest web does not run")
	r.freeConsole(t)

	// The host goes away while it is asked, and while a console is open.
	done, asked = attach()
	_, from := h.open(asked.ID)
	got = <-done
	must(t, got.err)
	_ = from.Body.Close()
	if _, err := io.ReadAll(got.con); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the console of a host that is gone ends with %v", err)
	}
	r.freeConsole(t)
	if resp, err := h.client.Post(h.base+"/channels/guessed", "", http.NoBody); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("a guessed id: %v, %v", resp, err)
	}
	_, err = r.bearer(viewerToken).GuestConsole(t.Context(), "web")
	wantStatus(t, err, http.StatusForbidden, "role")
	if status, _, body := r.do("GET", "/v1/guests/web/console", ""); status != http.StatusUpgradeRequired || !strings.Contains(body, "weftctl guest console web") {
		t.Errorf("without Upgrade: %d %s", status, body)
	}
	if n := len(r.auditsOf("/v1/guests/web/console")); n < 4 {
		t.Errorf("%d consoles were audited", n)
	}
}

// freeConsole waits until nobody has a console open.
func (r *rig) freeConsole(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		r.server.channels.mu.Lock()
		users, waiting := len(r.server.channels.users), len(r.server.channels.waiting)
		r.server.channels.mu.Unlock()
		if users+waiting == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d consoles are still open, %d hosts are waited for", users, waiting)
		}
	}
}
