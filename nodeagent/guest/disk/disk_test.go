package disk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
	"github.com/rackweft/rackweft/internal/nstest"
)

// blobs stand for bootd's store, and count.
type blobs struct {
	mu      sync.Mutex
	held    map[api.SHA256][]byte
	fetched int
}

func (b *blobs) put(content []byte) api.SHA256 {
	sum := sha256.Sum256(content)
	digest := api.SHA256(hex.EncodeToString(sum[:]))
	if b.held == nil {
		b.held = map[api.SHA256][]byte{}
	}
	b.held[digest] = content
	return digest
}

func (b *blobs) fetch(_ context.Context, digest api.SHA256) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fetched++
	content, ok := b.held[digest]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(content)), nil
}

func wanted(name string, size string, edit ...func(*Wanted)) Wanted {
	q, err := api.ParseQuantity(size)
	if err != nil {
		panic(err)
	}
	w := Wanted{Network: "red", Guest: "web", UID: "u1", GuestDisk: api.GuestDisk{Name: name, Size: q}}
	for _, f := range edit {
		f(&w)
	}
	return w
}

func qcow2Image(t *testing.T, args ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("qemu-img", append([]string{"create", "-q", "-f", "qcow2"}, append(args, path, "8M")...)...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func info(t *testing.T, path string) (i struct {
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual-size"`
	Backing     string `json:"backing-filename"`
}) {
	t.Helper()
	out, err := exec.Command("qemu-img", "info", "--output=json", path).Output()
	if err != nil {
		t.Fatalf("qemu-img info %s: %v", path, err)
	}
	if err := json.Unmarshal(out, &i); err != nil {
		t.Fatal(err)
	}
	return i
}

func open(t *testing.T, s *Store, w Wanted) Opened {
	t.Helper()
	o, err := s.Open(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	return o
}

func TestOpen(t *testing.T) {
	var b blobs
	s := NewStore(t.TempDir(), b.fetch)
	raw := bytes.Repeat([]byte("rackweft"), 1<<17)
	base, q := b.put(raw), b.put(qcow2Image(t))

	o := open(t, s, wanted("root", "4Mi", func(w *Wanted) { w.Image = base }))
	if i := info(t, o.File.Name()); i.Format != QCOW2 || i.VirtualSize != 4<<20 || i.Backing != "base" || o.BaseFormat != Raw || o.Base == nil {
		t.Errorf("over a raw image: %+v, %+v", i, o)
	}
	if st, err := o.Base.Stat(); err != nil || st.Mode() != 0o444 {
		t.Errorf("the image is %v: %v", st.Mode(), err)
	}
	o = open(t, s, wanted("other", "8Mi", func(w *Wanted) { w.Image = q }))
	if o.BaseFormat != QCOW2 {
		t.Errorf("over a qcow2 image: %+v", o)
	}
	o = open(t, s, wanted("empty", "3Mi"))
	if i := info(t, o.File.Name()); i.VirtualSize != 3<<20 || i.Backing != "" || o.Base != nil {
		t.Errorf("an empty one: %+v", i)
	}
	o = open(t, s, wanted("copy", "2Mi", func(w *Wanted) { w.Image, w.Format = base, Raw }))
	if got, err := os.ReadFile(o.File.Name()); err != nil || len(got) != 2<<20 || !bytes.HasPrefix(got, raw) || o.Base != nil {
		t.Errorf("a copy of a raw image: %d bytes, %+v: %v", len(got), o, err)
	}
	if b.fetched != 2 {
		t.Errorf("2 images were fetched %d times", b.fetched)
	}
	// What is written stays.
	if _, err := o.File.WriteAt([]byte("mine"), 100); err != nil {
		t.Fatal(err)
	}
	again := open(t, s, wanted("copy", "2Mi", func(w *Wanted) { w.Image, w.Format = base, Raw }))
	got := make([]byte, 4)
	if _, err := again.File.ReadAt(got, 100); err != nil || string(got) != "mine" {
		t.Errorf("opened again it holds %q: %v", got, err)
	}
}

func TestRefused(t *testing.T) {
	var b blobs
	s := NewStore(t.TempDir(), b.fetch)
	changed := b.put([]byte("what was meant"))
	b.held[changed] = []byte("what came")
	backed := b.put(qcow2Image(t, "-u", "-b", "/etc/shadow", "-F", "raw"))
	external := b.put(qcow2Image(t, "-o", "data_file="+filepath.Join(t.TempDir(), "data")))
	large := b.put(make([]byte, 2<<20))
	q := b.put(qcow2Image(t))
	for what, c := range map[string]struct {
		w     Wanted
		wants string
	}{
		"another digest":  {wanted("a", "1Mi", func(w *Wanted) { w.Image = changed }), "changed it"},
		"not there":       {wanted("a", "1Mi", func(w *Wanted) { w.Image = api.SHA256(strings.Repeat("0", 64)) }), "not exist"},
		"a path":          {wanted("a", "1Mi", func(w *Wanted) { w.Image = "../../etc/shadow" }), "invalid digest"},
		"a backing file":  {wanted("a", "1Mi", func(w *Wanted) { w.Image = backed }), "backing file"},
		"an outside file": {wanted("a", "1Mi", func(w *Wanted) { w.Image = external }), "another file"},
		"too small":       {wanted("a", "1Mi", func(w *Wanted) { w.Image = large }), "want at least the image's 2097152"},
		"raw over qcow2":  {wanted("a", "8Mi", func(w *Wanted) { w.Image, w.Format = q, Raw }), "format: qcow2"},
		"a name":          {wanted("../a", "1Mi"), "RFC 1123"},
	} {
		if _, err := s.Open(t.Context(), c.w); err == nil || !strings.Contains(err.Error(), c.wants) {
			t.Errorf("%s: %v", what, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(s.dir, "*", file.Preparing+"*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
	if disks, _ := filepath.Glob(filepath.Join(s.GuestDir("u1"), "disks", "*")); len(disks) > 0 {
		t.Errorf("disks were made: %q", disks)
	}
}

func TestRetain(t *testing.T) {
	s := NewStore(t.TempDir(), nil)
	keep := func(w *Wanted) { w.Retain = true }
	o := open(t, s, wanted("etcd", "1Mi", keep, func(w *Wanted) { w.Format = Raw }))
	if _, err := o.File.WriteAt([]byte("members"), 0); err != nil {
		t.Fatal(err)
	}
	open(t, s, wanted("root", "1Mi"))
	for range 2 { // as after a crash
		if err := s.Remove("red", "web", "u1", []string{"etcd"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(s.GuestDir("u1")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the Guest's directory is there: %v", err)
	}
	read := func(w Wanted) string {
		o := open(t, s, w)
		got := make([]byte, 7)
		if _, err := o.File.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	raw := func(w *Wanted) { w.Format = Raw }
	// Neither a namesake in another Network nor one that does not ask for it gets the disk.
	if got := read(wanted("etcd", "1Mi", keep, raw, func(w *Wanted) { w.Network, w.UID = "blue", "u2" })); got == "members" {
		t.Error("another tenant's Guest has the disk")
	}
	if got := read(wanted("etcd", "1Mi", raw, func(w *Wanted) { w.UID = "u3" })); got == "members" {
		t.Error("a Guest that does not retain has the disk")
	}
	if got := read(wanted("etcd", "1Mi", keep, raw, func(w *Wanted) { w.UID = "u4" })); got != "members" {
		t.Errorf("the successor reads %q", got)
	}
	// What waits already is never overwritten.
	if err := s.Remove("red", "web", "u4", []string{"etcd"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("red", "web", "u3", []string{"etcd"}); err == nil || !strings.Contains(err.Error(), "move one of the two away") {
		t.Errorf("a second disk to retain: %v", err)
	}
	if _, err := os.Stat(s.GuestDir("u3")); err != nil {
		t.Errorf("the disk that could not be retained is gone: %v", err)
	}
	for _, uid := range []string{"", "..", "a/b"} {
		if err := s.Remove("red", "web", uid, nil); err == nil {
			t.Errorf("a Guest with the uid %q is removed", uid)
		}
	}
}

// TestBaseStays: a disk lies over the image that it was made over, whatever its
// Image has become since, and wherever it goes.
func TestBaseStays(t *testing.T) {
	var b blobs
	s := NewStore(t.TempDir(), b.fetch)
	older, newer := b.put(bytes.Repeat([]byte("older"), 1<<10)), b.put(bytes.Repeat([]byte("newer"), 1<<10))
	over := func(uid string, image api.SHA256) Wanted {
		return wanted("root", "1Mi", func(w *Wanted) { w.UID, w.Image, w.Retain = uid, image, true })
	}
	wants := func(when string, w Wanted, want string) {
		t.Helper()
		o := open(t, s, w)
		got := make([]byte, 5)
		if o.Base == nil {
			t.Fatalf("%s: over nothing", when)
		}
		if _, err := o.Base.ReadAt(got, 0); err != nil || string(got) != want {
			t.Errorf("%s: over %q, want %q: %v", when, got, want, err)
		}
	}
	wants("new", over("u1", older), "older")
	wants("its Image has changed", over("u1", newer), "older")
	if got, err := s.Base(over("u1", newer)); got != older || err != nil {
		t.Errorf("its base is %s: %v", got, err)
	}
	if err := s.Remove("red", "web", "u1", []string{"root"}); err != nil {
		t.Fatal(err)
	}
	if removed, err := s.Collect(nil); err != nil || len(removed) > 0 && removed[0] == string(older) {
		t.Errorf("removed %q, %v", removed, err)
	}
	wants("taken over", over("u2", newer), "older")
	wants("another's", over("u3", newer), "newer")

	// An agent that ended in mid-move, before the disk itself was moved.
	w := over("u2", newer)
	if err := os.Link(s.path(w)+baseSuffix, s.retainedPath(w)+baseSuffix); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("red", "web", "u2", []string{"root"}); err != nil {
		t.Fatal(err)
	}
	wants("after a crash", over("u4", newer), "older")
	if removed, err := s.Collect(nil); err != nil || len(removed) != 0 {
		t.Errorf("removed %q of images that disks lie over, %v", removed, err)
	}

	// One without a base does not get what was written for another.
	empty := wanted("data", "1Mi")
	if err := os.WriteFile(s.path(wanted("data", "1Mi", func(w *Wanted) { w.UID = "u4" }))+baseSuffix, []byte(older), 0o600); err != nil {
		t.Fatal(err)
	}
	empty.UID = "u4"
	if o := open(t, s, empty); o.Base != nil {
		t.Error("an empty disk lies over an image")
	}
}

func TestCollect(t *testing.T) {
	var b blobs
	s := NewStore(t.TempDir(), b.fetch)
	if removed, err := s.Collect(nil); err != nil || removed != nil {
		t.Errorf("an empty store: %q, %v", removed, err)
	}
	a, c := b.put([]byte("aaaa")), b.put([]byte("cccc"))
	for _, digest := range []api.SHA256{a, c} {
		f, err := s.Image(t.Context(), digest)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	if err := os.WriteFile(filepath.Join(s.dir, "images", file.Preparing+string(a)), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if removed, err := s.Collect([]api.SHA256{c}); err != nil || len(removed) != 2 {
		t.Errorf("removed %q, %v", removed, err)
	}
	if _, err := os.Stat(s.imagePath(c)); err != nil {
		t.Errorf("an image in use is gone: %v", err)
	}
}

func TestFull(t *testing.T) {
	nstest.Root(t, "it mounts a tmpfs")
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("needs mount(2): %v", err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	var b blobs
	s := NewStore(dir, b.fetch)
	large := b.put(make([]byte, 2<<20))
	if _, err := s.Image(t.Context(), large); !errors.Is(err, ErrFull) {
		t.Errorf("an image without room: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 1<<20-3*4096), 0o600); err != nil {
		t.Logf("filler: %v", err)
	}
	if _, err := s.Open(t.Context(), wanted("root", "1Mi")); !errors.Is(err, ErrFull) {
		t.Errorf("a disk without room: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
		t.Fatal(err)
	}
	open(t, s, wanted("root", "1Mi"))
}

func TestGiveUp(t *testing.T) {
	digest := new(blobs).put([]byte("x"))
	r, w := io.Pipe()
	defer func() { _ = w.Close() }()
	s := NewStore(t.TempDir(), func(context.Context, api.SHA256) (io.ReadCloser, error) { return r, nil })
	ctx, cancel := context.WithCancel(t.Context())
	go func() { _, _ = w.Write([]byte("x")); cancel() }()
	if _, err := s.Image(ctx, digest); !errors.Is(err, context.Canceled) {
		t.Errorf("a download that is given up: %v", err)
	}
}

func FuzzHeader(f *testing.F) {
	h := make([]byte, headV3)
	copy(h, qcow2Magic)
	h[7] = 3
	f.Add(h)
	f.Add([]byte("QFI"))
	f.Add([]byte(qcow2Magic))
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := readHeader(bytes.NewReader(raw))
		if err == nil && h.size < 0 {
			t.Errorf("a size of %d", h.size)
		}
		if size, err := virtualSize(bytes.NewReader(raw)); err == nil && size < 0 {
			t.Errorf("a virtual size of %d", size)
		}
	})
}
