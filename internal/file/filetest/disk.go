// Package filetest provides disks that lose power, for tests of durability.
package filetest

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rackweft/rackweft/internal/nstest"
)

// Disk is a mounted ext4 file system whose journal is written only when
// something is synced, not periodically.
type Disk struct {
	t     *testing.T
	Dir   string
	image string
	cuts  int
}

// NewDisk returns a Disk, or skips the test when none can be mounted.
func NewDisk(t *testing.T) *Disk {
	t.Helper()
	nstest.Root(t, "it mounts a file system")
	base := t.TempDir()
	d := &Disk{t: t, Dir: filepath.Join(base, "disk"), image: filepath.Join(base, "disk.img")}
	f, err := os.Create(d.image)
	if err == nil {
		err = f.Truncate(16 << 20)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", d.image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	d.mount(d.image, d.Dir)
	return d
}

func (d *Disk) mount(image, dir string) {
	d.t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		d.t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop,commit=600", image, dir).CombinedOutput(); err != nil {
		d.t.Skipf("no loop device can be mounted here: %v\n%s", err, out)
	}
	d.t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			d.t.Errorf("umount: %v\n%s", err, out)
		}
	})
}

// Cut returns the disk as after a loss of power at this moment: with what had
// been written to it, without what was only in memory.
func (d *Disk) Cut() string {
	d.t.Helper()
	d.cuts++
	name := filepath.Join(filepath.Dir(d.image), "cut"+string(rune('a'+d.cuts)))
	from, err := os.Open(d.image)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = from.Close() }()
	to, err := os.Create(name + ".img")
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = to.Close() }()
	if _, err := io.Copy(to, from); err != nil {
		d.t.Fatal(err)
	}
	d.mount(name+".img", name)
	return name
}
