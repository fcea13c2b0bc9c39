package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/nodeagent/guest/disk"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
	"github.com/rackweft/rackweft/nodeagent/guest/qmp"
)

// exporter sends point-in-time copies of a Guest's disks, which are created
// next to the disks.
//
// While QEMU runs, a job (copy-NAME) mirrors each disk to a file until both are
// equal; then all jobs are completed at one moment, which is the moment of the
// copy. A mirror that cannot write fails alone and does not block the Guest's
// writes, as a backup job would. A filter inserted by hand above a disk in an
// iothread (copy-before-write) makes QEMU 7.2 abort under load. The record
// names the disks from before the first of these steps until everything is
// cleaned up.
type exporter struct {
	*identity
	record *ledger
	vm     *instance
	ladder *ladder
	agent  *guestAgent
	limits *limits
	disks  *disk.Store

	tasks  chan task     // run by the Guest's goroutine
	left   chan struct{} // closed when that goroutine has ended
	active bool          // this agent has an export in progress
}

// task is a function that the Guest's goroutine runs for another goroutine.
type task struct {
	ctx  context.Context
	run  func(context.Context) error
	done chan error
}

// do makes the Guest's goroutine run fn between two looks.
func (ex *exporter) do(ctx context.Context, fn func(context.Context) error) error {
	t := task{ctx, fn, make(chan error, 1)}
	select {
	case ex.tasks <- t:
		return <-t.done
	case <-ex.left:
		return errors.New("nodeagent ends")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// open returns a channel that reads a GuestExport and writes ExportLines.
func (ex *exporter) open(ctx context.Context) (io.ReadWriteCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	near, far := net.Pipe()
	x := &execution{Conn: near, cancel: cancel, done: make(chan struct{})}
	go func() { // Close waits for it
		defer close(x.done)
		defer func() { _ = far.Close() }()
		stop := context.AfterFunc(ctx, func() { _ = far.Close() })
		defer stop()
		if err := ex.serve(ctx, far); err != nil {
			ex.log.Warn("an export failed", "error", err)
		}
	}()
	return x, nil
}

// serve reads what to export and sends it. It reports a failure to the client
// if that is still connected.
func (ex *exporter) serve(ctx context.Context, conn net.Conn) error {
	var e api.GuestExport
	if err := json.NewDecoder(io.LimitReader(conn, 1<<16)).Decode(&e); err != nil {
		return err
	}
	out := bufio.NewWriterSize(conn, 64<<10)
	say := json.NewEncoder(out)
	err := e.Check()
	if err == nil {
		err = ex.export(ctx, e, out, say)
	}
	last := api.ExportLine{End: true}
	if err != nil {
		last = api.ExportLine{Fault: err.Error()}
	}
	return errors.Join(err, say.Encode(last), out.Flush())
}

// exported is a disk of an export in progress.
type exported struct {
	name        string
	copy        *os.File
	format      string
	size        int64 // of the disk
	consistency api.Consistency
	source      disk.Opened // of a Guest that is stopped
}

func (ex *exporter) export(ctx context.Context, e api.GuestExport, out *bufio.Writer, say *json.Encoder) (err error) {
	var disks []exported
	running := false
	err = ex.do(ctx, func(ctx context.Context) error {
		running = ex.vm.running != nil
		disks, err = ex.begin(ctx, e)
		return err
	})
	defer func() {
		for _, d := range disks {
			d.source.Close()
			_ = d.copy.Close() // the file is already unlinked
		}
	}()
	if err != nil {
		return err
	}
	defer func() {
		// Every look retries what fails here.
		_ = ex.do(context.WithoutCancel(ctx), func(ctx context.Context) error {
			ex.active = false
			return ex.end(ctx)
		})
	}()
	ex.reached("export: begun")
	report := func(progress string) error {
		return errors.Join(say.Encode(api.ExportLine{Progress: progress}), out.Flush())
	}
	if running {
		err = ex.followJobs(ctx, disks, report)
		if err == nil {
			err = ex.do(ctx, func(ctx context.Context) error { return ex.finishJobs(ctx, disks) })
		}
	} else {
		err = ex.copyStopped(ctx, disks, e.Rate.Value(), report)
	}
	if err != nil {
		return err
	}
	ex.reached("export: copied")
	for _, d := range disks {
		if err := sendExported(ctx, d, out, say); err != nil {
			return fmt.Errorf("send disk %s: %w", d.name, err)
		}
	}
	ex.event(api.Normal, "Exported", fmt.Sprintf("%d of its disks were exported: %s", len(disks), worth(disks[0].consistency)))
	return nil
}

func (ex *exporter) root() string { return filepath.Join(ex.dir, "export") }

// begin creates the files and, if QEMU runs, starts to fill them.
func (ex *exporter) begin(ctx context.Context, e api.GuestExport) (disks []exported, err error) {
	switch {
	case !ex.record.known() || ex.record.Given != "" || ex.record.Part.Transfer != nil:
		return nil, errors.New("the Guest is being moved or has not arrived yet")
	case ex.record.Export != nil:
		return nil, errors.New("its disks are being exported already")
	case ex.record.Begun != nil || !ex.ladder.atRest():
		return nil, errors.New("the Guest is starting, stopping, or held by a disk error: try again")
	}
	var names []string
	for _, d := range ex.record.Part.Disks {
		if e.Disk == "" || e.Disk == d.Name {
			names = append(names, d.Name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("the Guest has no disk %s", e.Disk)
	}
	if err := ex.record.change(func(r *record) { r.Export = names }); err != nil {
		return nil, err
	}
	ex.active = true
	disks, err = ex.makeCopies(ctx, e, names)
	if err == nil && ex.vm.running != nil {
		err = ex.beginJobs(ctx, disks, e.Rate.Value())
	}
	if err != nil {
		ex.active = false
		err = errors.Join(err, ex.end(context.WithoutCancel(ctx)))
	}
	return disks, err
}

// makeCopies creates empty files for the copies if there is enough room.
func (ex *exporter) makeCopies(ctx context.Context, e api.GuestExport, names []string) (disks []exported, err error) {
	if err := os.MkdirAll(ex.root(), 0o700); err != nil {
		return nil, err
	}
	var need int64
	for _, want := range ex.record.Part.Disks {
		if !slices.Contains(names, want.Name) {
			continue
		}
		w := disk.Wanted{Network: ex.record.Part.Network, Guest: ex.name, UID: ex.uid, GuestDisk: want}
		source, err := ex.disks.Existing(ctx, w)
		if err != nil {
			return disks, err
		}
		d := exported{name: want.Name, format: e.Format, source: source, consistency: api.ConsistentStopped}
		need += source.Room()
		if d.size, err = source.Size(); err == nil {
			d.copy, err = disk.NewFile(ctx, ex.copyPath(d.name), e.Format, d.size)
		}
		disks = append(disks, d)
		if err != nil {
			return disks, fmt.Errorf("disk %s: %w", d.name, err)
		}
	}
	free, err := freeBytes(ex.dir)
	if err == nil && need+spare > free {
		err = fmt.Errorf("%w: a copy needs up to %d MiB, %d are free", disk.ErrFull, need>>20, free>>20)
	}
	return disks, err
}

func (ex *exporter) copyPath(name string) string { return filepath.Join(ex.root(), name+".part") }

func freeBytes(dir string) (int64, error) {
	var fs unix.Statfs_t
	err := unix.Statfs(dir, &fs)
	return int64(fs.Bavail) * fs.Bsize, err
}

// copyStopped copies the disks of a stopped Guest, which cannot start
// meanwhile.
func (ex *exporter) copyStopped(ctx context.Context, disks []exported, rate int64, report func(string) error) error {
	for _, d := range disks {
		if err := report("copying disk " + d.name); err != nil {
			return err
		}
		if err := d.source.CopyTo(ctx, disk.Tool{User: ex.record.User}, d.copy, d.format, rate); err != nil {
			return fmt.Errorf("disk %s: %w", d.name, err)
		}
	}
	return nil
}

// copyNode is the name of a disk's export job and of the node that it writes
// to.
func copyNode(name string) string { return "copy-" + name }

// mirrorNode is the name of the filter above a disk that is being exported.
func mirrorNode(name string) string { return "mirror-" + name }

// exportSet is the fdset of the files passed to QEMU for an export.
const exportSet = "export"

// beginJobs starts the mirror jobs.
func (ex *exporter) beginJobs(ctx context.Context, disks []exported, rate int64) error {
	for _, d := range disks {
		if err := ex.beginJob(ctx, d, rate/int64(len(disks))); err != nil {
			return fmt.Errorf("disk %s: %w", d.name, err)
		}
		ex.reached("export: a job has begun")
	}
	return nil
}

func (ex *exporter) beginJob(ctx context.Context, d exported, rate int64) error {
	var set struct {
		ID int `json:"fdset-id"`
	}
	err := ex.vm.withMonitor(ctx, func(ctx context.Context, m *qmp.Client) error {
		return m.ExecuteWith(ctx, d.copy, "add-fd", map[string]string{"opaque": exportSet}, &set)
	})
	if err != nil {
		return err
	}
	file := map[string]any{"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", set.ID), "discard": "unmap"}
	err = ex.vm.command(ctx, "blockdev-add", map[string]any{"driver": d.format, "node-name": copyNode(d.name), "discard": "unmap", "file": file}, nil)
	if err != nil {
		return err
	}
	return ex.vm.command(ctx, "blockdev-mirror", map[string]any{"job-id": copyNode(d.name), "device": qemu.DiskNode(d.name), "target": copyNode(d.name),
		"filter-node-name": mirrorNode(d.name), "sync": "full", "speed": rate, "on-source-error": "report", "on-target-error": "report", "auto-dismiss": false}, nil)
}

// finishTime bounds how long a Guest is paused for the last bytes of its
// copies.
const finishTime = 10 * time.Second

// finishJobs completes all jobs while the Guest is paused, so that nothing is
// written between two of them: the copies are of that moment.
func (ex *exporter) finishJobs(ctx context.Context, disks []exported) (err error) {
	if !ex.ladder.atRest() || ex.vm.running == nil {
		return errors.New("the Guest is being stopped")
	}
	consistency := ex.agent.freeze(ctx)
	defer func() {
		if thaw := ex.agent.thaw(context.WithoutCancel(ctx)); thaw != nil {
			ex.event(api.Warning, "NotThawed", thaw.Error()+"; it will be retried")
		}
	}()
	if ex.vm.running.state == qemuRunning && len(disks) > 1 {
		if err := ex.vm.command(ctx, "stop", nil, nil); err != nil {
			return err
		}
		defer func() { // when the agent dies before this, its successor does it
			err = errors.Join(err, ex.vm.command(context.WithoutCancel(ctx), "cont", nil, nil))
		}()
		ex.reached("export: paused")
	}
	for i, d := range disks {
		disks[i].consistency = consistency
		if err := ex.vm.command(ctx, "block-job-cancel", map[string]string{"device": copyNode(d.name)}, nil); err != nil {
			return fmt.Errorf("disk %s: %w", d.name, err)
		}
	}
	return ex.awaitJobs(ctx, disks)
}

// awaitJobs waits until the last bytes are copied.
func (ex *exporter) awaitJobs(ctx context.Context, disks []exported) error {
	ctx, cancel := context.WithTimeout(ctx, finishTime)
	defer cancel()
	for {
		var all []job
		if err := ex.vm.command(ctx, "query-jobs", nil, &all); err != nil {
			return err
		}
		jobs, done := exportJobs(all), 0
		for _, d := range disks {
			j, there := jobs[d.name]
			if !there || j.Error != "" {
				return fmt.Errorf("disk %s: the copy failed: %s", d.name, j.Error)
			}
			if j.Status == "concluded" {
				done++
			}
		}
		if done == len(disks) {
			return nil
		}
		if wait.For(ctx, 5*time.Millisecond) != nil {
			return fmt.Errorf("the last bytes were not copied within %s", finishTime)
		}
	}
}

// exportJobs returns the export jobs by disk.
func exportJobs(all []job) map[string]job {
	mine := map[string]job{}
	for _, j := range all {
		if name, ok := strings.CutPrefix(j.ID, copyNode("")); ok {
			mine[name] = j
		}
	}
	return mine
}

// followJobs waits until the copies equal the disks. Writes of the Guest
// meanwhile are mirrored without a rate limit, or the jobs might never
// converge.
func (ex *exporter) followJobs(ctx context.Context, disks []exported, report func(string) error) error {
	tick := time.NewTicker(ex.timing.export)
	defer tick.Stop()
	hurried := map[string]bool{}
	for {
		var all []job
		if err := ex.vm.monitorCommand(ctx, "query-jobs", nil, &all); err != nil {
			return err
		}
		jobs, ready, current, total := exportJobs(all), 0, int64(0), int64(0)
		for _, d := range disks {
			j, there := jobs[d.name]
			switch {
			case !there:
				return fmt.Errorf("disk %s is no longer being copied: the Guest was restarted", d.name)
			case j.Error != "" || j.Status == "concluded":
				return fmt.Errorf("disk %s: %s", d.name, j.Error)
			case j.Status == "ready":
				ready++
			case j.Current >= d.size && !hurried[d.name]:
				hurried[d.name] = true
				if err := ex.vm.monitorCommand(ctx, "block-job-set-speed", map[string]any{"device": j.ID, "speed": 0}, nil); err != nil {
					return err
				}
			}
			current, total = current+j.Current, total+j.Total
		}
		if ready == len(disks) {
			return nil
		}
		free, err := freeBytes(ex.dir)
		if err == nil && free < spare/2 {
			err = fmt.Errorf("%w: only %d MiB are left for the Guests", disk.ErrFull, free>>20)
		}
		if err == nil {
			err = report(fmt.Sprintf("copying: %d of %d MiB", current>>20, total>>20))
		}
		if err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// end cleans up after an export, in QEMU if it runs and on disk. Each step may
// already be done.
func (ex *exporter) end(ctx context.Context) error {
	if !ex.record.known() || ex.record.Export == nil {
		return nil
	}
	if ex.vm.running != nil {
		for _, name := range ex.record.Export {
			if err := ex.endJob(ctx, name); err != nil {
				return fmt.Errorf("end the export of disk %s: %w", name, err)
			}
		}
		if err := ex.takeBack(ctx); err != nil {
			return fmt.Errorf("end the export: %w", err)
		}
	}
	ex.reached("export: out of QEMU")
	copies, err := filepath.Glob(filepath.Join(ex.root(), "*.part"))
	if err != nil {
		return err
	}
	for _, path := range copies { // QEMU may keep a file open for some time: it closes removed fds only while its Guest runs (monitor/fds.c)
		if err := os.Truncate(path, 0); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(ex.root()); err != nil {
		return err
	}
	ex.limits.configured = "" // limits that were deferred during the export
	return ex.record.change(func(r *record) { r.Export = nil })
}

func (ex *exporter) endJob(ctx context.Context, name string) error {
	if err := ex.cancelJob(ctx, name); err != nil {
		return err
	}
	ex.reached("export: a job is gone")
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := ex.vm.command(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Name == copyNode(name) {
			return ex.vm.command(ctx, "blockdev-del", map[string]string{"node-name": n.Name}, nil)
		}
	}
	return nil
}

// cancelJob cancels a disk's job and dismisses it.
func (ex *exporter) cancelJob(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, ex.timing.answer)
	defer cancel()
	for {
		var all []job
		if err := ex.vm.command(ctx, "query-jobs", nil, &all); err != nil {
			return err
		}
		switch j, there := exportJobs(all)[name]; {
		case !there:
			return nil
		case j.Status == "concluded":
			return ex.vm.command(ctx, "job-dismiss", map[string]string{"id": j.ID}, nil)
		case slices.Contains([]string{"running", "paused", "ready", "standby"}, j.Status):
			if err := ex.vm.command(ctx, "block-job-cancel", map[string]any{"device": j.ID, "force": true}, nil); err != nil {
				return err
			}
		}
		if wait.For(ctx, 20*time.Millisecond) != nil {
			return errors.New("its job does not end")
		}
	}
}

// takeBack closes the files that were passed to QEMU.
func (ex *exporter) takeBack(ctx context.Context) error {
	var sets []struct {
		ID  int `json:"fdset-id"`
		FDs []struct {
			Opaque string `json:"opaque"`
		} `json:"fds"`
	}
	if err := ex.vm.command(ctx, "query-fdsets", nil, &sets); err != nil {
		return err
	}
	for _, s := range sets {
		if len(s.FDs) == 0 || s.FDs[0].Opaque != exportSet {
			continue
		}
		if err := ex.vm.command(ctx, "remove-fd", map[string]int{"fdset-id": s.ID}, nil); err != nil {
			return err
		}
	}
	return nil
}

// sendExported sends a copy and skips its holes.
func sendExported(ctx context.Context, d exported, out *bufio.Writer, say *json.Encoder) error {
	size, err := d.copy.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := say.Encode(api.ExportLine{Disk: &api.ExportDisk{Name: d.name, Format: d.format, Size: size, Consistency: d.consistency}}); err != nil {
		return err
	}
	buffer := make([]byte, api.MaxExportData)
	for at := int64(0); at < size; {
		from, err := unix.Seek(int(d.copy.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole up to the end of the file
		}
		if err != nil {
			return err
		}
		if at, err = unix.Seek(int(d.copy.Fd()), from, unix.SEEK_HOLE); err != nil {
			return err
		}
		for from < at {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			n, err := d.copy.ReadAt(buffer[:min(int64(len(buffer)), at-from)], from)
			if n == 0 {
				return fmt.Errorf("read the copy: %w", err)
			}
			if err := say.Encode(api.ExportLine{Data: &api.ExportData{Offset: from, Length: n}}); err != nil {
				return err
			}
			if _, err := out.Write(buffer[:n]); err != nil {
				return err
			}
			from += int64(n)
		}
	}
	return nil
}
