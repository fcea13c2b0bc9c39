package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

func digest(content string) api.SHA256 {
	sum := sha256.Sum256([]byte(content))
	return api.SHA256(hex.EncodeToString(sum[:]))
}

type bench struct {
	*testsite.Site
	t     *testing.T
	blobs *blob.Store
	c     *Controller

	blobDir string
}

func newBench(t *testing.T, reserve int64) *bench {
	t.Helper()
	b := &bench{Site: testsite.Open(t), t: t, blobDir: t.TempDir()}
	var err error
	if b.blobs, err = blob.Open(b.blobDir, blob.Options{Reserve: reserve}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.blobs.Close() })
	allow, err := ParseAllow([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	b.c = &Controller{Env: b.Env(), Blobs: b.blobs, Sources: Sources{Allow: allow}, Withhold: time.Nanosecond}
	b.c.forget()
	return b
}

// condition reconciles the Image and returns its condition.
func (b *bench) condition(name string) *api.Condition {
	b.t.Helper()
	b.Sync()
	cached, ok := store.Cached[api.Image](b.Cache, name)
	if !ok {
		b.t.Fatalf("there is no Image %s", name)
	}
	if _, err := b.c.step(b.t.Context(), cached); err != nil {
		b.t.Fatal(err)
	}
	img, err := store.Get[api.Image](b.t.Context(), b.Store, name)
	if err != nil {
		b.t.Fatal(err)
	}
	return img.Status.Conditions.Get(api.CondReady)
}

// nothing is all that is shown of a source that does not give what it should.
const nothing = "came from there; bootd's log says why"

func TestReady(t *testing.T) {
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch r.URL.Path {
		case "/kernel":
			_, _ = w.Write([]byte("kernel"))
		case "/cut":
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("kernel"))
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	for _, c := range []struct {
		name    string
		files   map[string]api.ImageFile
		reserve int64
		held    string
		status  api.ConditionStatus
		reason  string
		says    string
		asked   int64 // in three passes
	}{
		{name: "held", held: "kernel", files: map[string]api.ImageFile{"kernel": {SHA256: digest("kernel")}}, status: api.True, reason: "Complete"},
		{name: "missing", files: map[string]api.ImageFile{"kernel": {Source: "/srv/vmlinuz", SHA256: digest("kernel")}}, status: api.False, reason: "FileMissing", says: "weftctl image import"},
		{name: "two missing", files: map[string]api.ImageFile{"kernel": {SHA256: digest("kernel")}, "initrd": {SHA256: digest("initrd")}}, status: api.False, reason: "FileMissing", says: "; file kernel"},
		{name: "fetched", files: map[string]api.ImageFile{"kernel": {Source: server.URL + "/kernel", SHA256: digest("kernel")}}, status: api.True, reason: "Complete", asked: 1},
		{name: "wrong digest", files: map[string]api.ImageFile{"kernel": {Source: server.URL + "/kernel?sig=hush", SHA256: digest("other")}}, status: api.False, reason: "FetchFailed", says: nothing, asked: 1},
		{name: "not there", files: map[string]api.ImageFile{"kernel": {Source: server.URL + "/gone?sig=hush", SHA256: digest("other")}}, status: api.False, reason: "FetchFailed", says: nothing, asked: 1},
		{name: "cut short", files: map[string]api.ImageFile{"kernel": {Source: server.URL + "/cut?sig=hush", SHA256: digest("kernel")}}, status: api.False, reason: "FetchFailed", says: nothing, asked: 1},
		{name: "nobody listens", files: map[string]api.ImageFile{"kernel": {Source: "http://127.0.0.1:1/x?sig=hush", SHA256: digest("kernel")}}, status: api.False, reason: "FetchFailed", says: nothing},
		{name: "no space", reserve: 1 << 60, files: map[string]api.ImageFile{"kernel": {Source: server.URL + "/kernel", SHA256: digest("kernel")}}, status: api.False, reason: "NoSpace", says: "free", asked: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.reserve)
			if c.held != "" {
				if _, _, err := b.blobs.Put(t.Context(), strings.NewReader(c.held), ""); err != nil {
					t.Fatal(err)
				}
			}
			b.Create(&api.Image{Base: testsite.Named("img"), Spec: api.ImageSpec{Version: "1", Files: c.files}})
			asked.Store(0)
			var got *api.Condition
			for range 3 {
				got = b.condition("img")
			}
			if got.Status != c.status || got.Reason != c.reason || !strings.Contains(got.Message, c.says) {
				t.Errorf("%+v", got)
			}
			if strings.Contains(got.Message, "hush") || strings.ContainsRune(got.Message, '\n') {
				t.Errorf("what nobody should read: %q", got.Message)
			}
			if n := asked.Load(); n != c.asked {
				t.Errorf("the source was asked %d times", n)
			}
			if n := b.Happened(c.reason); n != 1 {
				t.Errorf("%d events: %+v", n, b.Events())
			}
		})
	}
}

func TestBecomesReadyAndNotAgain(t *testing.T) {
	b := newBench(t, 0)
	b.Create(&api.Image{Base: testsite.Named("img"), Spec: api.ImageSpec{Version: "1", Files: map[string]api.ImageFile{"kernel": {SHA256: digest("kernel")}}}})
	if c := b.condition("img"); c.Status != api.False {
		t.Fatalf("%+v", c)
	}
	d, _, err := b.blobs.Put(t.Context(), strings.NewReader("kernel"), "")
	if err != nil {
		t.Fatal(err)
	}
	if c := b.condition("img"); c.Status != api.True {
		t.Fatalf("%+v", c)
	}
	if err := b.blobs.Delete(d); err != nil {
		t.Fatal(err)
	}
	if c := b.condition("img"); c.Status != api.False {
		t.Errorf("a deleted blob goes unnoticed: %+v", c)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	b := newBench(t, 0)
	b.Create(&api.Image{Base: testsite.Named("img"), Spec: api.ImageSpec{Version: "1", Files: map[string]api.ImageFile{"kernel": {SHA256: digest("kernel")}}}})
	stalled := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer stalled.Close()
	b.Create(&api.Image{Base: testsite.Named("slow"), Spec: api.ImageSpec{Version: "1", Files: map[string]api.ImageFile{"kernel": {Source: stalled.URL, SHA256: digest("x")}}}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.c.Control().Run(ctx) }()
	for b.Happened("FileMissing") == 0 {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}

// TestDamagedFile: an Image whose file is found damaged on the disk says so, and
// is Ready again once it was imported again.
func TestDamagedFile(t *testing.T) {
	b := newBench(t, 0)
	kernel := strings.Repeat("kernel", 1000)
	d, _, err := b.blobs.Put(t.Context(), strings.NewReader(kernel), "")
	if err != nil {
		t.Fatal(err)
	}
	b.Create(&api.Image{Base: testsite.Named("lab"), Spec: api.ImageSpec{Version: "1", Files: map[string]api.ImageFile{"kernel": {SHA256: digest(kernel)}}}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.c.Control().Run(ctx) }()
	defer func() { cancel(); <-done }()
	until := func(status api.ConditionStatus, reason string) {
		t.Helper()
		var last *api.Condition
		is := func() bool {
			img, err := store.Get[api.Image](t.Context(), b.Store, "lab")
			if err != nil {
				t.Fatal(err)
			}
			last = img.Status.Conditions.Get(api.CondReady)
			return last != nil && last.Status == status && last.Reason == reason
		}
		if !waittest.Soon(time.Minute, is) {
			t.Fatalf("it stays %+v, want %s %s", last, status, reason)
		}
	}
	until(api.True, "Complete")
	path, err := filepath.Glob(filepath.Join(b.blobDir, "sha256", "*"))
	if err != nil || len(path) != 1 {
		t.Fatal(path, err)
	}
	if err := os.Truncate(path[0], 10); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.blobs.Get(d); !errors.Is(err, blob.ErrDamaged) {
		t.Errorf("it is served: %v", err)
	}
	until(api.False, "Damaged")
	if _, _, err := b.blobs.Put(t.Context(), strings.NewReader(kernel), d); err != nil {
		t.Fatal(err)
	}
	until(api.True, "Complete")
}
