package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

// export has a Guest's disks exported to files of the test, by their names.
// each hears of every line.
func (h *host) export(uid string, e api.GuestExport, each func(api.ExportLine)) (map[string]string, error) {
	h.t.Helper()
	e.SetDefaults()
	end, err := h.handler.Open(h.t.Context(), api.Channel{Kind: api.ChannelExport, UID: uid, Guest: "web"})
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = end.Close() }()
	if err := json.NewEncoder(end).Encode(e); err != nil {
		h.t.Fatal(err)
	}
	files, dir := map[string]string{}, h.t.TempDir()
	var out *os.File
	defer func() { _ = out.Close() }()
	for in := bufio.NewReader(end); ; {
		raw, err := in.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		line, err := api.ReadExportLine(raw)
		if err != nil {
			h.t.Fatal(err)
		}
		each(line)
		switch {
		case line.Fault != "":
			return nil, errors.New(line.Fault)
		case line.End:
			return files, nil
		case line.Disk != nil:
			_ = out.Close()
			files[line.Disk.Name] = filepath.Join(dir, line.Disk.Name)
			if out, err = os.Create(files[line.Disk.Name]); err == nil {
				err = out.Truncate(line.Disk.Size)
			}
		case line.Data != nil:
			_, err = io.CopyN(io.NewOffsetWriter(out, line.Data.Offset), in, int64(line.Data.Length))
		}
		if err != nil {
			h.t.Fatal(err)
		}
	}
}

// clean reports whether nothing of an export is left, in QEMU and on disk.
func (h *host) clean(uid string) bool {
	if _, err := os.Stat(filepath.Join(h.guestDir(uid), "export")); !os.IsNotExist(err) {
		return false
	}
	if h.record(uid).Export != nil {
		return false
	}
	h.handler.mu.Lock()
	g := h.handler.guests[uid]
	h.handler.mu.Unlock()
	var jobs []job
	var nodes json.RawMessage
	for command, into := range map[string]any{"query-jobs": &jobs, "query-named-block-nodes": &nodes} {
		if err := g.vm.monitorCommand(h.t.Context(), command, nil, into); err != nil {
			return strings.Contains(err.Error(), "does not run")
		}
	}
	return len(jobs) == 0 && !strings.Contains(string(nodes), copyNode("")) && !strings.Contains(string(nodes), mirrorNode(""))
}

// copied reads the number that a pump wrote to a copy.
func copied(t *testing.T, path, format string) string {
	t.Helper()
	raw := path + ".raw"
	if out, err := exec.Command("qemu-img", "convert", "-f", format, "-O", "raw", path, raw).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img convert: %v: %s", err, out)
	}
	content, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	word, _, _ := bytes.Cut(content, []byte{0})
	return string(word)
}

// An export is of all disks at one moment, while the Guest goes on writing; a
// stopped Guest is exported, too; and nothing of it stays.
func TestExport(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	t.Parallel()
	h := newHost(t)
	g := linux(h)
	base := h.blob(append(bytes.Repeat([]byte{0}, 1<<20), []byte("from the image")...))
	g.Disks = []api.GuestDisk{{Name: "root", Size: quantity("8Mi"), Image: base}, {Name: "etcd", Size: quantity("8Mi"), Format: "raw"}}
	p := part("web", uid1, g)
	h.run()
	h.want(p)
	h.wait("it counts", func() bool { return strings.Contains(h.console(uid1), "@tick 3") })
	if got := h.tell(uid1, "pump root etcd"); got != "ok" {
		t.Fatalf("it writes: %s", got)
	}
	h.wait("it has written", func() bool { return h.tell(uid1, "read etcd") != "" })
	for _, format := range []string{"qcow2", "raw"} {
		before, err := strconv.Atoi(h.tell(uid1, "read etcd"))
		if err != nil {
			t.Fatal(err)
		}
		files, err := h.export(uid1, api.GuestExport{Format: format, Rate: quantity("4Mi")}, func(l api.ExportLine) {
			if l.Disk != nil && l.Disk.Consistency != api.ConsistentCrash {
				t.Errorf("disk %s is %s", l.Disk.Name, l.Disk.Consistency)
			}
		})
		if err != nil || len(files) != 2 {
			t.Fatalf("%s: %v: %v", format, files, err)
		}
		a, err := strconv.Atoi(copied(t, files["root"], format))
		b, err2 := strconv.Atoi(copied(t, files["etcd"], format))
		if err != nil || err2 != nil || a < before || b != a && b != a-1 {
			t.Errorf("%s: the copies hold %d and %d, %d was there before: %v, %v", format, a, b, before, err, err2)
		}
		if raw, err := os.ReadFile(files["root"] + ".raw"); err != nil || len(raw) != 8<<20 || string(raw[1<<20:1<<20+14]) != "from the image" {
			t.Errorf("%s: the Image is not in the copy: %d bytes, %v", format, len(raw), err)
		}
		h.wait("nothing is left", func() bool { return h.clean(uid1) })
	}
	after := h.tell(uid1, "read root")
	h.wait("it writes on", func() bool { return h.tell(uid1, "read root") != after })
	if _, err := h.export(uid1, api.GuestExport{Disk: "none"}, func(api.ExportLine) {}); err == nil || !strings.Contains(err.Error(), "no disk none") {
		t.Errorf("a disk that is not there: %v", err)
	}

	h.stopped(p)
	files, err := h.export(uid1, api.GuestExport{Disk: "root"}, func(l api.ExportLine) {
		if l.Disk != nil && l.Disk.Consistency != api.ConsistentStopped {
			t.Errorf("a stopped Guest's is %s", l.Disk.Consistency)
		}
	})
	if err != nil || len(files) != 1 {
		t.Fatalf("stopped: %v: %v", files, err)
	}
	last := copied(t, files["root"], "qcow2")
	if len(last) != 12 {
		t.Errorf("stopped, it holds %q", last)
	}
	// As an Image it makes another Guest.
	content, err := os.ReadFile(files["root"])
	if err != nil {
		t.Fatal(err)
	}
	another := linux(h)
	another.Disks[0] = api.GuestDisk{Name: "root", Size: quantity("9Mi"), Image: h.blob(content)}
	h.want(part("another", uid2, another))
	h.wait("the other counts", func() bool { return strings.Contains(h.console(uid2), "@tick 3") })
	if got := h.tell(uid2, "read root"); got != last {
		t.Errorf("the other reads %q, and should %q", got, last)
	}
}

// While there is no room, an export fails with the reason; the Guest writes on.
func TestExportFull(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	t.Parallel()
	h := newHost(t)
	state := filepath.Join(h.dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", state, "tmpfs", 0, "size=200m"); err != nil {
		t.Skipf("needs mount(2): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(state, unix.MNT_DETACH) })
	g := packed(h)
	g.Disks[0].Size = quantity("64Mi")
	h.run()
	h.want(part("web", uid1, g))
	h.wait("it counts", func() bool { return strings.Contains(h.console(uid1), "@tick 3") })
	// It takes no time, unlike writing: meanwhile an export might end.
	resize := func(size int64) {
		t.Helper()
		if err := unix.Mount("tmpfs", state, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", size)); err != nil {
			t.Fatal(err)
		}
	}
	fill := func(left int64) {
		t.Helper()
		var is unix.Statfs_t
		if err := unix.Statfs(state, &is); err != nil {
			t.Fatal(err)
		}
		resize(int64(is.Blocks-is.Bfree)*is.Bsize + left)
	}
	fill(spare - 1<<20)
	if _, err := h.export(uid1, api.GuestExport{}, func(api.ExportLine) {}); err == nil || !strings.Contains(err.Error(), "full") {
		t.Errorf("without room: %v", err)
	}
	h.wait("nothing is left", func() bool { return h.clean(uid1) })

	// It begins, and then the room goes.
	resize(200 << 20)
	if got := h.tell(uid1, "fill root"); got != "ok" {
		t.Fatalf("fill: %s", got)
	}
	var told bool
	_, err := h.export(uid1, api.GuestExport{Rate: quantity("1Mi")}, func(api.ExportLine) {
		if !told {
			told = true
			fill(spare/2 - 1<<20)
		}
	})
	if err == nil || !strings.Contains(err.Error(), "are left for the Guests") {
		t.Errorf("full: %v", err)
	}
	if got := h.tell(uid1, "fill root"); got != "ok" { // there is still room for the Guest
		t.Errorf("it writes: %s", got)
	}
	h.wait("nothing is left", func() bool { return h.clean(uid1) })
	h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	if h.saw("NoSpace")() || h.saw("IOError")() {
		t.Error("the Guest was told of a failure")
	}
	h.stopped(part("web", uid1, g))
	h.sound(uid1, "root")
}

// Wherever an agent is killed while it exports, its successor takes all of it
// away, and the Guest runs on.
func TestExportCrashPoints(t *testing.T) {
	if testing.Short() {
		t.Skip("kills many agents")
	}
	t.Parallel()
	h := newHost(t)
	g := bare(h)
	g.Disks = append(g.Disks, api.GuestDisk{Name: "data", Size: quantity("4Mi"), Format: "raw"})
	p := part("web", "exported", g)
	h.run()
	h.want(p)
	h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	h.stop()
	for _, point := range []string{"export: a job has begun", "export: begun", "export: paused", "export: copied", "export: a job is gone", "export: out of QEMU"} {
		h.write(p)
		cmd := h.exporter(point, "exported")
		if err := cmd.Wait(); err == nil {
			t.Fatalf("no agent came to %q", point)
		}
		h.run()
		h.want(p)
		h.wait("it runs after "+point, h.is("guest/web", api.PartApplied, "Running"))
		h.wait("nothing is left after "+point, func() bool { return h.clean("exported") })
		if n := h.qemus("exported"); n != 1 {
			t.Errorf("%s: %d QEMUs", point, n)
		}
		files, err := h.export("exported", api.GuestExport{}, func(api.ExportLine) {})
		if err != nil || len(files) != 2 {
			t.Errorf("another export after %s: %v, %v", point, files, err)
		}
		h.stop()
	}
}

// exporter is an agent that exports a Guest, and kills itself at a point.
func (h *host) exporter(point, uid string) *exec.Cmd {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	cmd := exec.Command(self, "agent", h.dir)
	cmd.Env = append(os.Environ(), crashAt+"="+point, exportOf+"="+uid)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	end := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Signal(unix.SIGTERM) })
	h.t.Cleanup(func() { end.Stop() })
	return cmd
}

// exportOf is the variable that has an agent export a Guest as soon as it can.
const exportOf = "GUEST_TEST_EXPORT"

// exportAsTold exports what the variable says, again and again.
func exportAsTold(ctx context.Context, h *Handler) {
	for wait.For(ctx, 20*time.Millisecond) == nil {
		end, err := h.Open(ctx, api.Channel{Kind: api.ChannelExport, UID: os.Getenv(exportOf), Guest: "web"})
		if err != nil {
			continue // it is not there yet
		}
		e := api.GuestExport{}
		e.SetDefaults()
		if json.NewEncoder(end).Encode(e) == nil {
			_, _ = io.Copy(io.Discard, end)
		}
		_ = end.Close()
	}
}
