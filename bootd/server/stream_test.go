package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
)

// hostPair makes the Machine a host and returns its certificate.
func (r *rig) hostPair(name string) (certPEM, keyPEM []byte) {
	t := r.t
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	must(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	m, err := store.Get[api.Machine](context.Background(), r.store, name)
	must(t, err)
	certPEM, err = r.authority.SignHost(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), name, m.Metadata.UID, time.Hour)
	must(t, err)
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	_, err = store.Mutate(context.Background(), r.store, name, func(m *api.Machine) error {
		m.Status.HostKey = ca.CertificateKey(cert)
		m.Status.Host = &api.HostStatus{UID: m.Metadata.UID}
		return nil
	})
	must(t, err)
	return certPEM, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func (r *rig) hostClient(name string) *api.Client {
	cert, key := r.hostPair(name)
	base := filepath.Join(r.dir, "host-"+name)
	must(r.t, os.WriteFile(base+".crt", cert, 0o600))
	must(r.t, os.WriteFile(base+".key", key, 0o600))
	c, err := api.NewClient(api.ClientConfig{Server: r.base, CAFile: r.caFile(), CertFile: base + ".crt", KeyFile: base + ".key"})
	must(r.t, err)
	return c
}

// TestHostStream is a host that opens its stream, is sent its parts, pings, and
// is seen connected.
func TestHostStream(t *testing.T) {
	for _, version := range []string{"h2", "http/1.1"} {
		t.Run(version, func(t *testing.T) {
			r := newRig(t)
			put(t, r.root(), testsite.NewMachine("r1", "52:54:00:00:00:01"))
			cert, key := r.hostPair("r1")
			pair, err := tls.X509KeyPair(cert, key)
			must(t, err)
			transport := &http.Transport{
				TLSClientConfig:   &tls.Config{RootCAs: r.authority.Pool(), Certificates: []tls.Certificate{pair}, NextProtos: []string{version}},
				ForceAttemptHTTP2: version == "h2",
			}
			defer transport.CloseIdleConnections()
			body, pipe := io.Pipe()
			frames := json.NewEncoder(pipe)
			sent := make(chan error, 1)
			go func() {
				sent <- errors.Join(frames.Encode(api.HostFrame{Hello: &api.Hello{AgentVersion: "test", Time: time.Now()}}),
					frames.Encode(api.HostFrame{Ping: &api.Ping{Time: time.Now()}}))
			}()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.base+"/v1/hosts/r1/stream", body)
			must(t, err)
			resp, err := (&http.Client{Transport: transport}).Do(req)
			must(t, err)
			defer func() { _ = resp.Body.Close() }()
			if resp.StatusCode != http.StatusOK {
				raw, _ := io.ReadAll(resp.Body)
				t.Fatalf("%s: %s", resp.Status, raw)
			}
			var part, pong, bookmark bool
			lines := bufio.NewScanner(resp.Body)
			for !(part && pong && bookmark) && lines.Scan() {
				var f api.ServerFrame
				must(t, json.Unmarshal(lines.Bytes(), &f))
				part = part || f.Part != nil && f.Part.Name == api.PartBase
				pong = pong || f.Pong != nil
				bookmark = bookmark || f.Bookmark != nil
				if f.Refused != "" {
					t.Fatal(f.Refused)
				}
			}
			must(t, <-sent)
			m, err := api.Get[api.Machine](t.Context(), r.root(), "r1")
			must(t, err)
			if !m.Status.Host.Connected || m.Status.Host.LastHeartbeat.IsZero() {
				t.Errorf("not seen connected: %+v", m.Status.Host)
			}
			_ = pipe.Close()
		})
	}
}

// proxy stands between a client and the socket, and can cut every connection.
type proxy struct {
	path string
	mu   sync.Mutex
	open []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	p := &proxy{path: filepath.Join(t.TempDir(), "p.sock")}
	l, err := net.Listen("unix", p.path)
	must(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			p.mu.Lock()
			p.open = append(p.open, near, far)
			p.mu.Unlock()
			wg.Go(func() { _, _ = io.Copy(near, far); _ = near.Close() })
			wg.Go(func() { _, _ = io.Copy(far, near); _ = far.Close() })
		}
	})
	t.Cleanup(func() { _ = l.Close(); p.cut(); wg.Wait() })
	return p
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.open {
		_ = c.Close()
	}
	p.open = nil
}

// TestWatchResumes cuts the connection: nothing is lost and nothing told twice.
// Then it compacts the store behind the client's back: it lists again.
func TestWatchResumes(t *testing.T) {
	r := newRig(t)
	c := r.root()
	put(t, c, testsite.NewMachine("m0", "52:54:00:00:00:00"))
	p := newProxy(t, r.socket)
	through, err := api.NewClient(api.ClientConfig{Server: "unix://" + p.path})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan string, 100)
	done := make(chan error, 1)
	go func() {
		done <- through.Watch(ctx, machineKind(), func(e api.WatchEvent) error {
			name := ""
			if e.Object != nil {
				name = " " + e.Object.Meta().Name
			}
			seen <- string(e.Type) + name
			return nil
		})
	}()
	expect := func(want ...string) {
		t.Helper()
		for _, w := range want {
			if got := <-seen; got != w {
				t.Fatalf("got %s, want %s", got, w)
			}
		}
	}
	expect("ADDED m0", "BOOKMARK")
	put(t, c, testsite.NewMachine("m1", "52:54:00:00:00:01"))
	expect("ADDED m1")
	p.cut()
	put(t, c, testsite.NewMachine("m2", "52:54:00:00:00:02"))
	must(t, c.Delete(ctx, machineKind(), "m1"))
	expect("ADDED m2", "DELETED m1")

	// Writes that the watch cannot see, until the door opens again behind the
	// compaction.
	must(t, os.Rename(p.path, p.path+".away"))
	p.cut()
	put(t, c, testsite.NewMachine("m3", "52:54:00:00:00:03"))
	must(t, c.Delete(ctx, machineKind(), "m0"))
	_, now, err := r.store.List(ctx, machineKind())
	must(t, err)
	_, err = r.store.Client().Compact(ctx, now)
	must(t, err)
	r.cache.KeepTail(0) // as after more changes than it keeps
	must(t, os.Rename(p.path+".away", p.path))
	expect("ADDED m2", "ADDED m3", "DELETED m0", "BOOKMARK")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestWatchOfACompactedRevision(t *testing.T) {
	r := newRig(t)
	put(t, r.root(), testsite.NewMachine("m0", "52:54:00:00:00:00"), testsite.NewMachine("m1", "52:54:00:00:00:01"))
	_, now, err := r.store.List(t.Context(), machineKind())
	must(t, err)
	_, err = r.store.Client().Compact(t.Context(), now)
	must(t, err)
	r.cache.KeepTail(0)
	status, _, body := r.do("GET", "/v1/machines?watch=true&resourceVersion=1", "")
	var f api.WatchFrame
	must(t, json.Unmarshal([]byte(body), &f))
	if status != 200 || f.Type != api.Expired || f.Problem == nil || f.Problem.Status != http.StatusGone {
		t.Errorf("%d %s", status, body)
	}
}

func TestBlobs(t *testing.T) {
	r := newRig(t)
	c := r.person("oli", "operator")
	content := strings.Repeat("kernel ", 1<<18)
	digest := testsite.Digest(content)
	has, err := c.HasBlob(t.Context(), digest)
	must(t, err)
	if has {
		t.Error("it is there before")
	}
	wantStatus(t, c.PutBlob(t.Context(), digest, strings.NewReader("another")), http.StatusUnprocessableEntity, "has digest sha256:"+string(testsite.Digest("another")))
	must(t, c.PutBlob(t.Context(), digest, strings.NewReader(content)))
	must(t, c.PutBlob(t.Context(), digest, strings.NewReader(content))) // again: it is not even read
	has, err = c.HasBlob(t.Context(), digest)
	must(t, err)
	if !has {
		t.Error("it is not there after")
	}
	path := "/v1/blobs/sha256:" + string(digest)
	resp, err := c.Do(t.Context(), http.MethodGet, path, nil)
	must(t, err)
	raw, err := io.ReadAll(resp.Body)
	must(t, errors.Join(err, resp.Body.Close()))
	if string(raw) != content {
		t.Errorf("read %d of %d bytes", len(raw), len(content))
	}
	image := testsite.Objects()[4].(*api.Image)
	image.Spec.Files = map[string]api.ImageFile{"kernel": {SHA256: digest}}
	put(t, c, image)
	_, err = c.Do(t.Context(), http.MethodDelete, path, nil)
	wantStatus(t, err, http.StatusConflict, "Image debian")
	if status, _, body := r.do("GET", "/v1/blobs", ""); status != 200 || !strings.Contains(body, `"images":["debian"]`) {
		t.Errorf("%d %s", status, body)
	}
	must(t, c.Delete(t.Context(), kindOf(t, "image"), "debian"))
	resp, err = c.Do(t.Context(), http.MethodDelete, path, nil)
	must(t, err)
	must(t, resp.Body.Close())
	_, err = c.Do(t.Context(), http.MethodDelete, path, nil)
	wantStatus(t, err, http.StatusNotFound)
	_, err = c.Do(t.Context(), http.MethodGet, "/v1/blobs/sha256:../../etc/passwd", nil)
	wantStatus(t, err, http.StatusNotFound)
	_, err = c.Do(t.Context(), http.MethodGet, "/v1/blobs/md5:00", nil)
	wantStatus(t, err, http.StatusBadRequest, "sha256:")
}

// TestDamagedBlob: what the disk has changed is not given to anyone, is asked for
// again by who uploads, and is mended by that.
func TestDamagedBlob(t *testing.T) {
	r := newRig(t)
	c := r.person("oli", "operator")
	content := strings.Repeat("kernel ", 1<<10)
	digest := testsite.Digest(content)
	path := "/v1/blobs/sha256:" + string(digest)
	must(t, c.PutBlob(t.Context(), digest, strings.NewReader(content)))
	image := testsite.Objects()[4].(*api.Image)
	image.Spec.Files = map[string]api.ImageFile{"kernel": {SHA256: digest}}
	put(t, c, image)
	damage := func() {
		t.Helper()
		must(t, os.Truncate(filepath.Join(r.dir, "blobs", "sha256", string(digest)), 100))
		_, err := c.Do(t.Context(), http.MethodGet, path, nil)
		wantStatus(t, err, http.StatusNotFound, "is damaged", "import it again")
		has, err := c.HasBlob(t.Context(), digest)
		must(t, err)
		if has {
			t.Error("bootd says that it has it")
		}
	}
	damage()
	must(t, c.PutBlob(t.Context(), digest, strings.NewReader(content)))
	resp, err := c.Do(t.Context(), http.MethodGet, path, nil)
	must(t, err)
	raw, err := io.ReadAll(resp.Body)
	must(t, errors.Join(err, resp.Body.Close()))
	if string(raw) != content {
		t.Errorf("%d bytes are mended", len(raw))
	}
	damage()
	_, err = c.Do(t.Context(), http.MethodDelete, path, nil)
	wantStatus(t, err, http.StatusConflict, "Image debian")
	must(t, c.Delete(t.Context(), kindOf(t, "image"), "debian"))
	resp, err = c.Do(t.Context(), http.MethodDelete, path, nil)
	must(t, err)
	must(t, resp.Body.Close())
	if n := r.blobs.Damaged(); n != 0 {
		t.Errorf("%d blobs are damaged", n)
	}
}

func TestBlobNoSpace(t *testing.T) {
	full, err := blob.Open(t.TempDir(), blob.Options{Reserve: 1 << 60})
	must(t, err)
	t.Cleanup(func() { must(t, full.Close()) })
	r := newRig(t, func(c *Config) { c.Blobs = full })
	for name, c := range map[string]*api.Client{"unix": r.root(), "tls": r.bearer(operatorToken)} {
		// More than the kernel buffers: the answer comes before it is all sent.
		err = c.PutBlob(t.Context(), testsite.Digest(name), io.LimitReader(rand.Reader, 64<<20))
		wantStatus(t, err, http.StatusInsufficientStorage, "delete Images that no Profile uses")
	}
}

func TestConsole(t *testing.T) {
	r := newRig(t)
	put(t, r.root(), testsite.NewMachine("r1", "52:54:00:00:00:01"))
	for name, c := range map[string]*api.Client{"unix": r.root(), "tls": r.bearer(operatorToken)} {
		t.Run(name, func(t *testing.T) {
			con, err := c.Console(t.Context(), "r1")
			must(t, err)
			far := <-r.consoles
			go func() { _, _ = io.Copy(far, far) }() // a Machine that echoes
			big := bytes.Repeat([]byte("0123456789abcdef"), 1<<12)
			go func() { _, _ = con.Write(big) }()
			got := make([]byte, len(big))
			if _, err := io.ReadFull(con, got); err != nil || !bytes.Equal(got, big) {
				t.Errorf("echo: %v", err)
			}
			must(t, far.Close())
			if n, err := con.Read(got); err == nil {
				t.Errorf("%d bytes after the Machine's end has closed", n)
			}
			_ = con.Close()
		})
	}
	if _, err := r.root().Console(t.Context(), "r2"); !api.IsStatus(err, http.StatusNotFound) {
		t.Errorf("of no Machine: %v", err)
	}
	if status, _, body := r.do("GET", "/v1/machines/r1/console", ""); status != http.StatusUpgradeRequired {
		t.Errorf("without Upgrade: %d %s", status, body)
	}
}

// TestConsoleLog: operators read what was heard, and explain shows the end of it to them; viewers do not.
func TestConsoleLog(t *testing.T) {
	r := newRig(t)
	put(t, r.root(), testsite.NewMachine("r1", "52:54:00:00:00:01"))
	none, err := r.bearer(operatorToken).ConsoleLog(t.Context(), "r1")
	if err != nil || none.Lines == nil || len(none.Lines) > 0 {
		t.Errorf("nothing heard: %+v, %v", none, err)
	}
	for n := range 100 {
		r.lines = append(r.lines, api.ConsoleLine{Time: time.Unix(int64(n), 0).UTC(), Attempt: 1, Text: fmt.Sprintf("line %d", n)})
	}
	heard, err := r.bearer(operatorToken).ConsoleLog(t.Context(), "r1")
	if err != nil || len(heard.Lines) != 100 || heard.Lines[99] != r.lines[99] {
		t.Errorf("%+v, %v", heard, err)
	}
	_, err = r.bearer(viewerToken).ConsoleLog(t.Context(), "r1")
	wantStatus(t, err, http.StatusForbidden, "role operator is needed")
	x, err := r.bearer(operatorToken).Explain(t.Context(), "r1")
	if err != nil || len(x.Console) != explainLines || x.Console[explainLines-1].Text != "line 99" {
		t.Errorf("explain shows %+v, %v", x, err)
	}
	if x, err = r.bearer(viewerToken).Explain(t.Context(), "r1"); err != nil || len(x.Console) > 0 {
		t.Errorf("explain shows a viewer %+v, %v", x.Console, err)
	}
}

// TestAdviceToOpenTheConsole is given only where there is one.
func TestAdviceToOpenTheConsole(t *testing.T) {
	for kind, want := range map[api.ConsoleKind]bool{"": false, api.NoConsole: false, "ssh": true, "websocket": true} {
		for _, phase := range []api.Phase{api.PhaseProvisioning, api.PhaseFailed} {
			m := testsite.NewMachine("r1", "52:54:00:00:00:01")
			m.Spec.Profile, m.Spec.BMC = "worker", &api.BMC{Address: "https://198.18.0.7"}
			m.Status.Phase, m.Status.BMC.Console = phase, kind
			if text := strings.Join(advice(m), "\n"); strings.Contains(text, "weftctl console r1") != want {
				t.Errorf("console %q, %s: %q", kind, phase, text)
			}
		}
	}
}

// TestStop ends Run while a watch, an event stream and a console are open: they
// end by themselves, and nothing is cut off.
func TestStop(t *testing.T) {
	r := newRig(t)
	put(t, r.root(), testsite.NewMachine("r1", "52:54:00:00:00:01"))
	watch, err := r.bearer(viewerToken).Do(t.Context(), http.MethodGet, "/v1/machines?watch=true", nil)
	must(t, err)
	events, err := r.root().Do(t.Context(), http.MethodGet, "/v1/events?follow=true", nil)
	must(t, err)
	con, err := r.root().Console(t.Context(), "r1")
	must(t, err)
	ended := make(chan error, 3)
	for _, body := range []io.ReadCloser{watch.Body, events.Body, con} {
		go func() { _, err := io.Copy(io.Discard, body); ended <- err }()
	}
	r.stop()
	for range 3 {
		<-ended
	}
	if strings.Contains(r.logs.String(), "cut off") {
		t.Error(r.logs.String())
	}
}

func TestListenErrors(t *testing.T) {
	r := newRig(t)
	conf := r.server.conf
	conf.Registerer, conf.Socket, conf.Listen = nil, "", r.server.Addr().String()
	s, err := New(conf)
	must(t, err)
	_, port, _ := net.SplitHostPort(conf.Listen)
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("ss -tlnp sport = :%s", port)) {
		t.Errorf("a taken port: %v", err)
	}
	conf.Listen, conf.Socket = "", r.socket
	s, err = New(conf)
	must(t, err)
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another bootd") {
		t.Errorf("a taken socket: %v", err)
	}
	info, err := os.Stat(r.socket)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v", info.Mode())
	}
}

// TestStaleSocket is a socket that a killed bootd has left.
func TestStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bootd.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	must(t, err)
	l.SetUnlinkOnClose(false)
	must(t, l.Close())
	r := newRig(t, func(c *Config) { c.Socket = path })
	r.socket = path
	put(t, r.root(), testsite.NewMachine("r1", "52:54:00:00:00:01"))
}

func TestOpenAPI(t *testing.T) {
	r := newRig(t)
	_, _, body := r.do("GET", "/openapi.json", "")
	var doc struct {
		OpenAPI    string                    `json:"openapi"`
		Paths      map[string]map[string]any `json:"paths"`
		Components struct {
			Schemas map[string]map[string]any `json:"schemas"`
		} `json:"components"`
	}
	must(t, json.Unmarshal([]byte(body), &doc))
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("openapi %q", doc.OpenAPI)
	}
	for _, k := range api.Kinds() {
		if doc.Paths["/v1/"+k.Plural+"/{name}"]["get"] == nil || doc.Components.Schemas[k.Name] == nil {
			t.Errorf("%s is missing", k.Name)
		}
		if put := doc.Paths["/v1/"+k.Plural+"/{name}"]["put"]; (put == nil) != k.Computed {
			t.Errorf("%s: put is %v", k.Name, put)
		}
	}
	ids := map[string]string{}
	for path, item := range doc.Paths {
		for method, op := range item {
			id := op.(map[string]any)["operationId"].(string)
			if other := ids[id]; other != "" {
				t.Errorf("%s %s and %s have one operationId: %s", method, path, other, id)
			}
			ids[id] = method + " " + path
		}
	}
	var all any
	must(t, json.Unmarshal([]byte(body), &all))
	refs := 0
	walk(all, func(m map[string]any) {
		ref, ok := m["$ref"].(string)
		if !ok {
			return
		}
		refs++
		name, ok := strings.CutPrefix(ref, "#/components/schemas/")
		if !ok || doc.Components.Schemas[name] == nil {
			t.Errorf("%s leads nowhere", ref)
		}
	})
	if refs < 100 {
		t.Errorf("only %d references", refs)
	}
	property := func(schema, name string) map[string]any {
		p, _ := doc.Components.Schemas[schema]["properties"].(map[string]any)
		v, _ := p[name].(map[string]any)
		return v
	}
	for schema, name := range map[string]string{"Link": "mac", "GuestSpec": "memory", "SubnetSpec": "range", "PrefixFilter": "prefix", "SiteSpec": "attemptWindow", "ImageFile": "sha256"} {
		if p := property(schema, name); p["type"] != "string" {
			t.Errorf("%s.%s is %v, want a string", schema, name, p)
		}
	}
	if p := property("SubnetSpec", "gateway"); p["type"] != "string" || p["format"] == "ipv4" {
		t.Errorf("an address is %v", p)
	}
}

func walk(v any, fn func(map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		fn(v)
		for _, x := range v {
			walk(x, fn)
		}
	case []any:
		for _, x := range v {
			walk(x, fn)
		}
	}
}

// FuzzPut sends any body to any kind: it is stored whole and readable again, or
// refused with a problem.
func FuzzPut(f *testing.F) {
	f.Add("machines", []byte(`{"metadata":{"name":"a"},"spec":{"links":[{"name":"eth0","mac":"52:54:00:00:00:09"}]}}`))
	f.Add("subnets", []byte(`{"spec":{"purpose":"provisioning","prefixes":["198.18.0.0/24"],"range":"198.18.0.1-198.18.0.9"}}`))
	f.Add("secrets", []byte(`{"spec":{"data":{"a":"b"}},"status":{"digests":{"a":"x"}}}`))
	f.Add("guests", []byte(`{"metadata":{"finalizers":["x"],"deletionTimestamp":"2026-01-01T00:00:00Z"},"spec":{"memory":"4Gi"}}`))
	f.Add("networks", []byte(`{"spec":{"zone":"a","cidrs":["10.0.0.0/8"]}}{}`))
	f.Add("hostspecs", []byte(`null`))
	r := newRig(f)
	f.Fuzz(func(t *testing.T, plural string, body []byte) {
		k, err := api.LookupKind(plural)
		if err != nil {
			return
		}
		r.t = t
		r.bodies.Reset()
		path := "/v1/" + k.Plural + "/a"
		status, header, answer := r.do("PUT", path, string(body))
		switch {
		case status == http.StatusOK || status == http.StatusCreated:
			if status, _, answer := r.do("GET", path, ""); status != http.StatusOK {
				t.Fatalf("stored, but: %d %s", status, answer)
			}
		case status >= 500 || status < 400 || header.Get("Content-Type") != "application/problem+json":
			t.Fatalf("%d %s", status, answer)
		}
	})
}
