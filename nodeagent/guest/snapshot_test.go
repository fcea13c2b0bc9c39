package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/nodeagent"
)

// request has a Guest's host do something with a snapshot, and returns what came of it.
func (h *host) request(p nodeagent.Part, id, verb, snapshot string) api.GuestResult {
	h.t.Helper()
	value := *p.Value.(*api.GuestPart)
	value.Request = &api.GuestRequest{ID: id, Verb: verb, Snapshot: snapshot}
	name := api.PartObject(p.Name)
	h.want(part(name, p.UID, &value))
	var r api.GuestResult
	h.wait(verb+" "+snapshot, func() bool {
		s := h.status(p.Name)
		if s.Guest == nil || s.Guest.Result == nil {
			return false
		}
		r = *s.Guest.Result
		return r.ID == id && s.State == api.PartApplied
	})
	return r
}

// diskFile is a disk as qemu-img takes it, without what is below it.
func (h *host) diskFile(uid, disk string) string {
	return fmt.Sprintf(`json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":%q}}`, filepath.Join(h.guestDir(uid), "disks", disk+".qcow2"))
}

// inside lists the snapshots of a disk, by qemu-img.
func (h *host) inside(uid, disk string) []string {
	h.t.Helper()
	out, err := exec.Command("qemu-img", "info", "-U", "--output=json", h.diskFile(uid, disk)).Output()
	if err != nil {
		h.t.Fatalf("qemu-img info: %v", err)
	}
	var info struct{ Snapshots []struct{ Name string } }
	if err := json.Unmarshal(out, &info); err != nil {
		h.t.Fatal(err)
	}
	names := []string{}
	for _, s := range info.Snapshots {
		names = append(names, s.Name)
	}
	return names
}

// sound fails the test unless qemu-img finds a disk without a fault.
func (h *host) sound(uid string, disks ...string) {
	h.t.Helper()
	for _, disk := range disks {
		if out, err := exec.Command("qemu-img", "check", "-r", "leaks", h.diskFile(uid, disk)).CombinedOutput(); err != nil { // what is not referenced any more is no fault
			h.t.Errorf("disk %s: %v: %s", disk, err, out)
		}
	}
}

func (h *host) stopped(p nodeagent.Part) nodeagent.Part {
	h.t.Helper()
	value := *p.Value.(*api.GuestPart)
	value.State, value.Request = "Stopped", nil
	next := part(api.PartObject(p.Name), p.UID, &value)
	h.want(next)
	h.wait("it is stopped", h.is(p.Name, api.PartApplied, "Stopped"))
	return next
}

// fileSystem is an ext4 of 16 MiB.
func fileSystem(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ext4")
	if out, err := exec.Command("mkfs.ext4", "-q", path, "16M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4, of Debian's package e2fsprogs: %v: %s", err, out)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// journal reports whether the ext4 in a snapshot is to be recovered by its journal.
func (h *host) journal(uid, disk, tag string) bool {
	h.t.Helper()
	base := ""
	for _, d := range h.record(uid).Part.Disks {
		if d.Name == disk {
			base = fmt.Sprintf(`,"backing":{"driver":"raw","file":{"driver":"file","filename":%q}}`, filepath.Join(h.dir, "blobs", string(d.Image)))
		}
	}
	out := filepath.Join(h.t.TempDir(), "copy")
	file := fmt.Sprintf(`json:{"driver":"qcow2","file":{"driver":"file","filename":%q}%s}`, filepath.Join(h.guestDir(uid), "disks", disk+".qcow2"), base)
	if _, err := command.Output(exec.Command("qemu-img", "convert", "-l", tag, "-O", "raw", file, out)); err != nil {
		h.t.Fatalf("qemu-img convert: %v", err)
	}
	said, err := command.Output(exec.Command("dumpe2fs", "-h", out))
	if err != nil || !strings.Contains(string(said), "has_journal") {
		h.t.Fatalf("dumpe2fs: %v: %s", err, said)
	}
	return strings.Contains(string(said), "needs_recovery")
}

// Snapshots of a Guest that runs are of all its disks at one moment; it goes back
// to them when it is stopped.
func TestSnapshots(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	t.Parallel()
	h := newHost(t)
	g := withAgent(h)
	base := h.blob(fileSystem(t))
	g.Disks = []api.GuestDisk{{Name: "data", Size: quantity("16Mi"), Image: base}, {Name: "root", Size: quantity("2Mi")}, {Name: "etcd", Size: quantity("2Mi"), Retain: true}}
	p := part("web", uid1, g)
	h.run()
	h.want(p)
	h.wait("it counts", func() bool { return strings.Contains(h.console(uid1), "@tick 3") })
	for _, order := range []string{"load crc32c_generic crc16 mbcache jbd2 ext4", "mount ext4 /dev/vda /data", "touch /data/before", "pump root etcd"} {
		if got := h.tell(uid1, order); got != "ok" {
			t.Fatalf("%s: %s", order, got)
		}
	}
	if r := h.request(p, "r1", api.GuestSnapshotCreate, "first"); r.Failed || !strings.Contains(r.Message, "frozen") {
		t.Errorf("the result is %+v", r)
	}
	if got := h.tell(uid1, "touch /data/after"); got != "ok" { // it was let go
		t.Fatalf("after the snapshot: %s", got)
	}
	if r := h.request(p, "r2", api.GuestSnapshotCreate, "first"); !r.Failed || !strings.Contains(r.Message, "choose another name") {
		t.Errorf("the same name again: %+v", r)
	}
	if r := h.request(p, "r3", api.GuestSnapshotRevert, "first"); !r.Failed || !strings.Contains(r.Message, "stop it first") {
		t.Errorf("revert while it runs: %+v", r)
	}
	if r := h.request(p, "r4", api.GuestSnapshotDelete, "other"); !r.Failed || !strings.Contains(r.Message, "no snapshot other") {
		t.Errorf("delete what is not there: %+v", r)
	}
	paused := part("web", uid1, g, func(p *api.GuestPart) { p.State = "Paused" })
	h.want(paused)
	h.wait("it is paused", h.is("guest/web", api.PartApplied, "Paused"))
	if r := h.request(paused, "r5", api.GuestSnapshotCreate, "second"); r.Failed || !strings.Contains(r.Message, "crash-consistent") {
		t.Errorf("of a paused one: %+v", r)
	}
	p = h.stopped(p)
	if r := h.request(p, "r6", api.GuestSnapshotCreate, "third"); r.Failed || !strings.Contains(r.Message, "did not run") {
		t.Errorf("of a stopped Guest: %+v", r)
	}
	var listed []string
	for _, s := range h.status("guest/web").Guest.Snapshots {
		listed = append(listed, fmt.Sprint(s.Name, " ", s.Consistency, " ", s.Disks))
	}
	if want := []string{"first Frozen [data root etcd]", "second Crash [data root etcd]", "third Stopped [data root etcd]"}; !slices.Equal(listed, want) {
		t.Errorf("there are %q", listed)
	}
	for _, disk := range []string{"data", "root", "etcd"} {
		if got := h.inside(uid1, disk); !slices.Equal(got, []string{"first@r1", "second@r5", "third@r6"}) {
			t.Errorf("disk %s holds %q", disk, got)
		}
	}

	if h.journal(uid1, "data", "first@r1") || !h.journal(uid1, "data", "second@r5") {
		t.Error("the file system that was at rest needs its journal, or the one that was not does not")
	}

	// The disks as they were, and at one moment.
	number := func() int {
		t.Helper()
		a, err := strconv.Atoi(h.tell(uid1, "read root"))
		b, err2 := strconv.Atoi(h.tell(uid1, "read etcd"))
		if err != nil || err2 != nil || b != a && b != a-1 {
			t.Errorf("the disks hold %d and %d: %v, %v", a, b, err, err2)
		}
		return a
	}
	run := func() {
		t.Helper()
		value := *p.Value.(*api.GuestPart)
		value.State = "Running"
		boots := strings.Count(h.console(uid1), "@up ")
		h.want(part("web", uid1, &value))
		h.wait("it boots", func() bool { return strings.Count(h.console(uid1), "@up ") == boots+1 })
		h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	}
	if r := h.request(p, "r7", api.GuestSnapshotRevert, "second"); r.Failed {
		t.Errorf("revert: %+v", r)
	}
	run()
	second := number()
	p = h.stopped(p)
	if r := h.request(p, "r8", api.GuestSnapshotRevert, "first"); r.Failed {
		t.Errorf("revert: %+v", r)
	}
	run()
	for _, order := range []string{"load crc32c_generic crc16 mbcache jbd2 ext4", "mount ext4 /dev/vda /data"} {
		if got := h.tell(uid1, order); got != "ok" {
			t.Fatalf("%s: %s", order, got)
		}
	}
	if got := h.tell(uid1, "list /data"); !strings.Contains(got, "before") || strings.Contains(got, "after") {
		t.Errorf("the file system holds %q", got)
	}
	if first := number(); first >= second {
		t.Errorf("first has %d, second has %d", first, second)
	}
	if r := h.request(part("web", uid1, p.Value.(*api.GuestPart), func(p *api.GuestPart) { p.State = "Running" }), "r9", api.GuestSnapshotDelete, "first"); r.Failed {
		t.Errorf("delete while it runs: %+v", r)
	}
	p = h.stopped(p)
	if r := h.request(p, "r10", api.GuestSnapshotDelete, "second"); r.Failed {
		t.Errorf("delete: %+v", r)
	}
	for _, disk := range []string{"data", "root", "etcd"} {
		if got := h.inside(uid1, disk); !slices.Equal(got, []string{"third@r6"}) {
			t.Errorf("disk %s holds %q", disk, got)
		}
	}
	h.sound(uid1, "data", "root", "etcd")

	// A disk that came later has nothing to go back to.
	more := part("web", uid1, p.Value.(*api.GuestPart), func(p *api.GuestPart) {
		p.Disks = append(slices.Clone(p.Disks), api.GuestDisk{Name: "late", Size: quantity("1Mi")})
	})
	if r := h.request(more, "r11", api.GuestSnapshotRevert, "third"); !r.Failed || !strings.Contains(r.Message, "disk late is newer than") {
		t.Errorf("revert with another disk: %+v", r)
	}
	if r := h.request(more, "r12", api.GuestSnapshotCreate, "fourth"); !r.Failed || !strings.Contains(r.Message, "disk late does not exist yet") {
		t.Errorf("of a disk that is yet to be made: %+v", r)
	}
	// What outlives the Guest does so without its snapshots.
	h.want(removed("web", uid1))
	h.wait("it is removed", func() bool { return h.status("guest/web@"+uid1).State == api.PartApplied })
	out, err := command.Output(exec.Command("qemu-img", "snapshot", "-l", filepath.Join(h.dir, "state", "retained", "-", "web", "etcd.qcow2")))
	if err != nil || strings.Contains(string(out), "third") {
		t.Errorf("the retained disk: %v: %s", err, out)
	}
}

// What cannot be is refused, with the reason, and the Guest runs on.
func TestNoSnapshots(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	g := bare(h)
	g.Disks = append(g.Disks, api.GuestDisk{Name: "fast", Size: quantity("1Mi"), Format: "raw"})
	p := part("web", uid1, g)
	h.run()
	h.want(p)
	h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	if r := h.request(p, "r1", api.GuestSnapshotCreate, "first"); !r.Failed || !strings.Contains(r.Message, "disk fast is raw") {
		t.Errorf("of a raw disk: %+v", r)
	}
	if got := h.inside(uid1, "root"); len(got) > 0 {
		t.Errorf("the other disk holds %q", got)
	}
	h.wait("its failure is told", h.saw("SnapshotFailed"))

	g = bare(h)
	p = part("other", uid2, g)
	h.want(p)
	h.wait("it runs", h.is("guest/other", api.PartApplied, "Running"))
	if r := h.request(p, "r1", api.GuestSnapshotCreate, "../x"); !r.Failed || !strings.Contains(r.Message, "RFC 1123") {
		t.Errorf("of a name that is none: %+v", r)
	}
	for i := range api.MaxSnapshots {
		if r := h.request(p, fmt.Sprint("m", i), api.GuestSnapshotCreate, fmt.Sprint("s", i)); r.Failed || !strings.Contains(r.Message, "crash-consistent") {
			t.Fatalf("%d: %+v", i, r)
		}
	}
	if r := h.request(p, "r2", api.GuestSnapshotCreate, "more"); !r.Failed || !strings.Contains(r.Message, "delete one") {
		t.Errorf("one too many: %+v", r)
	}
	if _, err := os.Stat(h.guestDir(uid2)); err != nil {
		t.Error(err)
	}
}
