package media

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/internal/command"
)

// some are files of every length at which something might be off by one.
func some(t *testing.T) []File {
	t.Helper()
	rng := rand.NewChaCha8([32]byte{7})
	var files []File
	for i, size := range []int{0, 1, 511, 2047, 2048, 2049, 4096, 3_000_001} {
		content := make([]byte, size)
		_, _ = rng.Read(content)
		path := fmt.Sprintf("EFI/BOOT/FILE%d.BIN", i)
		if i%2 == 1 {
			path = fmt.Sprintf("FILE_%d", i)
		}
		files = append(files, File{Path: path, Size: int64(size), Content: bytes.NewReader(content)})
	}
	return files
}

// written is an image as a sparse file.
func written(t *testing.T, image *Image) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.iso")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, 1<<20)
	for at := int64(0); at < image.Size(); at += int64(len(b)) {
		n, err := image.ReadAt(b, at)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if bytes.Count(b[:n], []byte{0}) == n {
			continue
		}
		if _, err := f.WriteAt(b[:n], at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(image.Size()); err != nil {
		t.Fatal(err)
	}
	return path
}

func tool(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + name); err != nil {
			t.Skipf("needs %s", name)
		}
	}
	out, err := command.Output(exec.CommandContext(t.Context(), path, args...))
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

// TestOthersReadIt: the tools of others find no fault, and the files as they are, in both file systems.
func TestOthersReadIt(t *testing.T) {
	files := some(t)
	image, err := New(files)
	if err != nil {
		t.Fatal(err)
	}
	path := written(t, image)
	part := filepath.Join(t.TempDir(), "fat.img")
	root, err := tree(files)
	if err != nil {
		t.Fatal(err)
	}
	at := newISO(root, newFAT(root)).start
	tool(t, "dd", "if="+path, "of="+part, "bs=2048", fmt.Sprintf("skip=%d", at/block), "conv=sparse", "status=none")
	if err := os.Truncate(part, image.Size()-at); err != nil {
		t.Fatal(err)
	}
	tool(t, "fsck.fat", "-n", "-v", part)
	for _, f := range files {
		want, err := io.ReadAll(io.NewSectionReader(f.Content, 0, f.Size))
		if err != nil {
			t.Fatal(err)
		}
		if got := tool(t, "mtype", "-i", part, "::/"+f.Path); !bytes.Equal(got, want) {
			t.Errorf("the FAT has another %s", f.Path)
		}
		name := f.Path
		if !strings.Contains(name, ".") {
			name += "."
		}
		if got := tool(t, "isoinfo", "-i", path, "-x", "/"+name+";1"); !bytes.Equal(got, want) {
			t.Errorf("the ISO has another %s", f.Path)
		}
		if got := tool(t, "grub-fstest", path, "cat", "(loop0)/"+strings.ToLower(f.Path)); !bytes.Equal(got, want) {
			t.Errorf("GRUB reads another %s", f.Path)
		}
	}
	if said := string(tool(t, "isoinfo", "-d", "-i", path)); !strings.Contains(said, "Eltorito defaultboot header") || !strings.Contains(said, "Arch 239") {
		t.Errorf("isoinfo sees no boot entry for EFI:\n%s", said)
	}
}

// TestReadAnywhere: a BMC reads ranges, in any order.
func TestReadAnywhere(t *testing.T) {
	image, err := New(some(t))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := io.ReadAll(io.NewSectionReader(image, 0, image.Size()))
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		at := rng.Int64N(image.Size())
		if rng.IntN(2) == 0 {
			at %= 8 << 20
		}
		b := make([]byte, rng.IntN(70_000))
		n, err := image.ReadAt(b, at)
		if n < len(b) && (err != io.EOF || at+int64(n) != image.Size()) || n == len(b) && err != nil && err != io.EOF {
			t.Fatalf("%d bytes at %d: %d, %v", len(b), at, n, err)
		}
		if !bytes.Equal(b[:n], whole[at:at+int64(n)]) {
			t.Fatalf("%d bytes at %d differ", n, at)
		}
	}
	if n, err := image.ReadAt(make([]byte, 1), image.Size()); n != 0 || err != io.EOF {
		t.Errorf("behind the end: %d, %v", n, err)
	}
}

type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errors.New("the disk is broken") }

func TestUnreadableFile(t *testing.T) {
	image, err := New([]File{{Path: "KERNEL", Size: 5000, Content: broken{}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(io.NewSectionReader(image, 0, image.Size())); err == nil || !strings.Contains(err.Error(), "the disk is broken") {
		t.Errorf("it was read: %v", err)
	}
}

func TestInvalidFiles(t *testing.T) {
	for _, paths := range [][]string{{""}, {"kernel"}, {"TOOLONGNAME"}, {"A.LONG"}, {"A."}, {".A"}, {"A.B.C"}, {"/A"}, {"A/"}, {"A//B"}, {"A", "A"}, {"A", "A/B"}, {"A/B", "A"}, {"../A"}} {
		var files []File
		for _, path := range paths {
			files = append(files, File{Path: path, Content: bytes.NewReader(nil)})
		}
		if _, err := New(files); err == nil {
			t.Errorf("%q are taken", paths)
		}
	}
	if _, err := New([]File{{Path: "A", Size: 4 << 30}}); err == nil {
		t.Error("a file of 4 GiB is taken")
	}
	if _, err := New([]File{{Path: "A", Size: 3 << 30}, {Path: "B", Size: 2 << 30}}); err == nil {
		t.Error("5 GiB are taken")
	}
}
