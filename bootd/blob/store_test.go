package blob

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
)

func open(t *testing.T, dir string, opts Options) *Store {
	t.Helper()
	s, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func digestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

func temps(t *testing.T, dir string) int {
	t.Helper()
	left, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	return len(left)
}

func TestPutGetDelete(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	content := make([]byte, 1<<20+7)
	rand.Read(content)
	want := digestOf(content)

	for name, w := range map[string]Digest{"digest known": want, "digest unknown": ""} {
		d, n, err := s.Put(t.Context(), bytes.NewReader(content), w)
		if err != nil || d != want || n != int64(len(content)) {
			t.Fatalf("%s: Put = %s, %d, %v", name, d, n, err)
		}
	}
	f, info, err := s.Get(want)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Delete(want); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f) // deleted, but open
	if err != nil || !bytes.Equal(got, content) || info.Size != int64(len(content)) {
		t.Fatalf("read %d of %d bytes, %v", len(got), info.Size, err)
	}
	if has, err := s.Has(want); has || err != nil {
		t.Fatalf("Has after Delete = %v, %v", has, err)
	}
	if _, _, err := s.Get(want); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Get after Delete: %v", err)
	}
	if err := s.Delete(want); err != nil {
		t.Fatalf("second Delete: %v", err)
	}
	if n := temps(t, dir); n != 0 {
		t.Fatalf("%d temporary files left", n)
	}
}

func TestPutKnownDoesNotRead(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	d, _, err := s.Put(t.Context(), strings.NewReader("kernel"), "")
	if err != nil {
		t.Fatal(err)
	}
	again, n, err := s.Put(t.Context(), iotest.ErrReader(errors.New("must not be read")), d)
	if err != nil || again != d || n != 6 {
		t.Fatalf("Put = %s, %d, %v", again, n, err)
	}
}

func TestList(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	for _, text := range []string{"a", "b", "c"} {
		if _, _, err := s.Put(t.Context(), strings.NewReader(text), ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "sha256", "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	infos, err := s.List()
	if err != nil || len(infos) != 3 {
		t.Fatalf("List = %v, %v", infos, err)
	}
	if infos[0].Digest >= infos[1].Digest || infos[1].Digest >= infos[2].Digest || infos[0].Size != 1 {
		t.Fatalf("List = %v", infos)
	}
}

func TestPutFailureLeavesNothing(t *testing.T) {
	other := digestOf([]byte("another"))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	cases := map[string]struct {
		ctx   context.Context
		r     io.Reader
		want  Digest
		check func(error) bool
	}{
		"wrong digest": {t.Context(), strings.NewReader("content"), other, func(err error) bool {
			var m *MismatchError
			return errors.As(err, &m) && m.Want == other && m.Got == digestOf([]byte("content")) &&
				strings.Contains(err.Error(), string(m.Want)) && strings.Contains(err.Error(), string(m.Got))
		}},
		"reader fails": {t.Context(), io.MultiReader(strings.NewReader("half"), iotest.ErrReader(io.ErrUnexpectedEOF)), "", func(err error) bool {
			return errors.Is(err, io.ErrUnexpectedEOF)
		}},
		"cancelled":  {cancelled, strings.NewReader("content"), "", func(err error) bool { return errors.Is(err, context.Canceled) }},
		"bad digest": {t.Context(), strings.NewReader("content"), "sha256:../../etc/passwd", func(err error) bool { return err != nil }},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, Options{})
			if _, _, err := s.Put(c.ctx, c.r, c.want); !c.check(err) {
				t.Errorf("Put: %v", err)
			}
			infos, err := s.List()
			if len(infos) != 0 || err != nil || temps(t, dir) != 0 {
				t.Errorf("left: %v blobs, %d temporary files, %v", infos, temps(t, dir), err)
			}
		})
	}
}

func TestReserve(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{Reserve: 1 << 30})
	free := int64(1<<30 + 10<<20)
	s.free = func(string) (int64, error) { free -= 4 << 20; return free, nil } // each look finds less
	_, _, err := s.Put(t.Context(), io.LimitReader(rand.Reader, 64<<20), "")
	var full *NoSpaceError
	if !errors.Is(err, ErrNoSpace) || !errors.As(err, &full) {
		t.Fatalf("Put: %v", err)
	}
	for _, part := range []string{dir, "free", "1.0 GiB must stay free", "delete Images"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in: %v", part, err)
		}
	}
	if n := temps(t, dir); n != 0 {
		t.Errorf("%d temporary files left", n)
	}
}

// TestFullDisk fills a real, small file system.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("cannot mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	kept := []byte("kept")
	for name, reserve := range map[string]int64{"kernel refuses": 0, "reserve": 3 << 20} {
		t.Run(name, func(t *testing.T) {
			s := open(t, dir, Options{Reserve: reserve})
			if _, _, err := s.Put(t.Context(), bytes.NewReader(kept), ""); err != nil {
				t.Fatal(err)
			}
			_, _, err := s.Put(t.Context(), io.LimitReader(rand.Reader, 20<<20), "")
			if !errors.Is(err, ErrNoSpace) || errors.Is(err, syscall.ENOSPC) != (reserve == 0) {
				t.Fatalf("Put: %v", err)
			}
			if has, err := s.Has(digestOf(kept)); !has || err != nil {
				t.Errorf("the earlier blob: %v, %v", has, err)
			}
			if _, _, err := s.Put(t.Context(), strings.NewReader("small "+name), ""); err != nil {
				t.Errorf("space did not come back: %v", err)
			}
		})
	}
}

func TestOpenSweepsAndLocks(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(dir, "tmp", "put-123")
	if err := os.WriteFile(half, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Fatalf("second Open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, Options{})
	if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the leftover is still there: %v", err)
	}
}

func TestConcurrentPuts(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	content := make([]byte, 3<<20)
	rand.Read(content)
	want := digestOf(content)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			w := want
			if i%2 == 0 {
				w = ""
			}
			if d, _, err := s.Put(context.Background(), bytes.NewReader(content), w); err != nil || d != want {
				t.Errorf("Put = %s, %v", d, err)
			}
		})
	}
	wg.Wait()
	f, _, err := s.Get(want)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("content differs, %v", err)
	}
	if n := temps(t, dir); n != 0 {
		t.Errorf("%d temporary files left", n)
	}
}

func FuzzParseDigest(f *testing.F) {
	f.Add("sha256:" + strings.Repeat("0", 64))
	f.Add("sha256:" + strings.Repeat("G", 64))
	f.Add("sha512:" + strings.Repeat("a", 64))
	f.Add("sha256:../../../../../../../../../../../../../../../etc/passwd12345678")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseDigest(text)
		if err != nil {
			if d != "" {
				t.Fatalf("an error, and yet %q", d)
			}
			return
		}
		raw, err := hex.DecodeString(d.Hex())
		if err != nil || len(raw) != sha256.Size || string(d) != text || "sha256:"+hex.EncodeToString(raw) != text {
			t.Fatalf("accepted %q", text)
		}
	})
}

func BenchmarkPut(b *testing.B) {
	s, err := Open(b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	content := make([]byte, 64<<20)
	rand.Read(content)
	b.SetBytes(int64(len(content)))
	b.ReportAllocs()
	for b.Loop() {
		d, _, err := s.Put(b.Context(), bytes.NewReader(content), "")
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Delete(d); err != nil {
			b.Fatal(err)
		}
	}
}
