package guest

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
)

// onDisk is the room that a disk's file takes.
func (h *host) onDisk(uid, file string) int64 {
	h.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(h.guestDir(uid), "disks", file), &st); err != nil {
		h.t.Fatal(err)
	}
	return st.Blocks * 512
}

// On either bus, and in either format, a disk is found by its name, grows while its
// Guest runs, and gives back what that discards. What is retained is found again.
func TestDisks(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	t.Parallel()
	h := newHost(t)
	g := linux(h)
	names := []string{"blkraw", "scsi"}
	for _, name := range names {
		d := api.GuestDisk{Name: name, Size: quantity("16Mi"), Retain: true}
		if strings.HasSuffix(name, "raw") {
			d.Format = "raw"
		}
		if strings.HasPrefix(name, "scsi") {
			d.Bus = api.DiskVirtioSCSI
		}
		g.Disks = append(g.Disks, d)
	}
	g.Disks = g.Disks[1:] // without root
	h.run()
	h.want(part("web", uid1, g))
	h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	h.wait("it counts", func() bool { return strings.Contains(h.console(uid1), "@tick 3") })
	load := func(uid string) {
		t.Helper()
		if got := h.tell(uid, "load scsi_common scsi_mod virtio_scsi crc64 crc64-rocksoft crct10dif_common crc-t10dif t10-pi sd_mod"); got != "ok" {
			t.Fatalf("the modules: %s", got)
		}
	}
	load(uid1)
	for i, name := range names {
		h.wait("it has "+name, func() bool { return h.tell(uid1, "disk "+name) == "32768" })
		file := name + ".qcow2"
		if g.Disks[i].Format == "raw" {
			file = name + ".raw"
		}
		if got := h.tell(uid1, "fill "+name); got != "ok" {
			t.Errorf("fill %s: %s", name, got)
		}
		full := h.onDisk(uid1, file)
		if got := h.tell(uid1, "discard "+name); got != "ok" {
			t.Errorf("discard %s: %s", name, got)
		}
		if left := h.onDisk(uid1, file); full < 8<<20 || left > full-7<<20 {
			t.Errorf("%s took %d bytes, and takes %d after it was discarded", name, full, left)
		}
		if got := h.tell(uid1, "write "+name+" mine-"+name); got != "ok" {
			t.Errorf("write %s: %s", name, got)
		}
		g.Disks[i].Size = quantity("24Mi")
	}
	h.want(part("web", uid1, g))
	for _, name := range names {
		h.wait(name+" has grown", func() bool {
			return strings.Contains(h.tell(uid1, "disk "+name), "49152")
		})
	}
	h.want(removed("web", uid1))
	h.wait("it is removed", func() bool { return h.status("guest/web@"+uid1).State == api.PartApplied })

	h.want(part("web", uid2, g))
	h.wait("its successor counts", func() bool { return strings.Contains(h.console(uid2), "@tick 3") })
	load(uid2)
	for _, name := range names {
		h.wait("the successor has "+name, func() bool { return h.tell(uid2, "disk "+name) == "49152" })
		if got := h.tell(uid2, "read "+name); got != "mine-"+name {
			t.Errorf("the successor reads %q from %s", got, name)
		}
	}
}
