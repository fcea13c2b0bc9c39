package server

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
)

// hostHTTP is a host's client without anything open.
func (r *rig) hostHTTP(name string) *http.Client {
	cert, key := r.hostPair(name)
	pair, err := tls.X509KeyPair(cert, key)
	must(r.t, err)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.authority.Pool(), Certificates: []tls.Certificate{pair}}, ForceAttemptHTTP2: true}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// revocations are the ways in which a host's certificate comes to be good for nothing.
func (r *rig) revocations() map[string]func(name string) {
	key := func(name, key string) {
		_, err := store.Mutate(r.t.Context(), r.store, name, func(m *api.Machine) error { m.Status.HostKey = key; return nil })
		must(r.t, err)
	}
	remove := func(name string) { must(r.t, r.root().Delete(r.t.Context(), kindOf(r.t, "machine"), name)) }
	return map[string]func(string){
		"another key joined": func(name string) { key(name, strings.Repeat("0", 64)) },
		"failed attempt":     func(name string) { key(name, "") },
		"deleted":            remove,
		"deleted and made again": func(name string) {
			remove(name)
			put(r.t, r.root(), testsite.NewMachine(name, "52:54:00:00:00:01"))
			_ = r.hostHTTP(name) // and it has joined again, with another key
		},
	}
}

// named puts an Image that names a blob of the content.
func (r *rig) named(content string) (path string) {
	digest := testsite.Digest(content)
	must(r.t, r.root().PutBlob(r.t.Context(), digest, strings.NewReader(content)))
	image := testsite.Objects()[4].(*api.Image)
	image.Spec.Files = map[string]api.ImageFile{"kernel": {SHA256: digest}}
	put(r.t, r.root(), image)
	return "/v1/blobs/sha256:" + string(digest)
}

// TestRevokedHosts calls every route that hosts may call, with certificates that are revoked.
func TestRevokedHosts(t *testing.T) {
	r := newRig(t)
	blobPath := r.named("a kernel")
	fill := strings.NewReplacer("{name}", "r1", "{id}", "none", "{guest}", "none", "{share}", "none", "/v1/blobs/{digest}", blobPath)
	call := func(c *http.Client, rt route) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), rt.method, r.base+fill.Replace(rt.path), http.NoBody)
		must(t, err)
		resp, err := c.Do(req)
		if err != nil { // a revocation ends what runs at that moment; the next call is answered
			resp, err = c.Do(req)
		}
		must(t, err)
		raw, err := io.ReadAll(resp.Body)
		must(t, err)
		must(t, resp.Body.Close())
		return resp.StatusCode, string(raw)
	}
	var hosts []route
	for _, rt := range r.server.routes() {
		if rt.host != nil {
			hosts = append(hosts, rt)
		}
	}
	if len(hosts) < 5 {
		t.Fatalf("only %d routes for hosts are found", len(hosts))
	}
	for name, revoke := range r.revocations() {
		put(t, r.root(), testsite.NewMachine("r1", "52:54:00:00:00:01"))
		c := r.hostHTTP("r1")
		for _, rt := range hosts {
			if status, body := call(c, rt); status == http.StatusForbidden {
				t.Fatalf("%s: a host that has joined is refused: %s", rt, body)
			}
		}
		revoke("r1")
		for _, rt := range hosts {
			status, body := call(c, rt)
			if status != http.StatusForbidden || !strings.Contains(body, "r1") {
				t.Errorf("%s: %s: %d %s", name, rt, status, body)
			}
		}
		_ = r.root().Delete(t.Context(), kindOf(t, "machine"), "r1")
	}
}

// TestRevocationEndsWhatRuns revokes hosts while they read a blob, hold a channel and their stream.
func TestRevocationEndsWhatRuns(t *testing.T) {
	r := newRig(t)
	content := make([]byte, 64<<20) // more than the sockets' buffers hold
	_, _ = rand.Read(content)
	blobPath := r.named(string(content))
	for name, revoke := range r.revocations() {
		t.Run(name, func(t *testing.T) {
			put(t, r.root(), testsite.NewMachine("r1", "52:54:00:00:00:01"))
			c := r.hostHTTP("r1")
			get, err := c.Get(r.base + blobPath)
			must(t, err)
			defer func() { _ = get.Body.Close() }()

			body, pipe := io.Pipe()
			defer func() { _ = pipe.Close() }()
			go func() {
				_ = json.NewEncoder(pipe).Encode(api.HostFrame{Hello: &api.Hello{AgentVersion: "test", Time: time.Now()}})
			}()
			stream, err := c.Post(r.base+"/v1/hosts/r1/stream", "application/x-ndjson", body)
			must(t, err)
			defer func() { _ = stream.Body.Close() }()
			refused := make(chan string, 1)
			go func() {
				defer close(refused)
				for lines := bufio.NewScanner(stream.Body); lines.Scan(); {
					var f api.ServerFrame
					if json.Unmarshal(lines.Bytes(), &f) == nil && f.Refused != "" {
						refused <- f.Refused
					}
				}
			}()

			m, err := api.Get[api.Machine](t.Context(), r.root(), "r1")
			must(t, err)
			id, w := r.server.channels.expect(m.Metadata.UID)
			defer r.server.channels.forget(id, w)
			up, upPipe := io.Pipe()
			defer func() { _ = upPipe.Close() }()
			held := make(chan *http.Response, 1)
			go func() {
				resp, err := c.Post(r.base+"/v1/hosts/r1/channels/"+id, "application/octet-stream", up)
				if err != nil {
					t.Error(err)
				}
				held <- resp
			}()
			far := <-w.opened
			defer close(far.done)
			channel := <-held
			defer func() { _ = channel.Body.Close() }()

			revoke("r1")
			if _, err := io.ReadAll(far); err == nil {
				t.Error("the person's end of the channel has no error")
			}
			if why := <-refused; !strings.Contains(why, "r1") {
				t.Errorf("the stream is refused with %q", why)
			}
			if n, err := io.Copy(io.Discard, get.Body); err == nil {
				t.Errorf("the blob was sent whole, %d bytes", n)
			}
			_ = r.root().Delete(t.Context(), kindOf(t, "machine"), "r1")
		})
	}
}
