package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
	"github.com/rackweft/rackweft/nodeagent/guest/qmp"
	"github.com/rackweft/rackweft/nodeagent/guest/transfer"
)

// migrate sends the Guest to the target. When it returns without an error the
// Guest is given up and sent completely.
func (src *moveSource) migrate(ctx context.Context, part *api.GuestPart) error {
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := &migration{src: src, t: part.Transfer, group: &group, shown: time.Now()}
	for _, d := range part.Disks {
		if err := m.mirror(ctx, d); err != nil {
			return fmt.Errorf("mirror disk %s: %w", d.Name, err)
		}
	}
	if err := m.until(ctx, m.mirrored); err != nil {
		return err
	}
	src.reached("live source: mirrored")
	if err := m.sendMemory(ctx); err != nil {
		return fmt.Errorf("send its memory: %w", err)
	}
	if err := m.until(ctx, func(ctx context.Context) (bool, string, error) { return m.migrating(ctx, "pre-switchover") }); err != nil {
		return err
	}
	src.reached("live source: stopped, not given up")
	if err := src.record.give(m.t.ID); err != nil {
		return err
	}
	src.reached("live source: given up")
	if err := m.endMirrors(ctx); err != nil {
		return err
	}
	if err := src.vm.command(ctx, "migrate-continue", map[string]any{"state": "pre-switchover"}, nil); err != nil {
		return err
	}
	if err := m.until(ctx, func(ctx context.Context) (bool, string, error) { return m.migrating(ctx, "completed") }); err != nil {
		return err
	}
	src.reached("live source: completed")
	select { // QEMU has sent the rest, but only the target knows whether it has received it
	case <-m.loaded:
	case <-time.After(loadPatience):
	case <-ctx.Done():
	}
	return nil
}

// loadPatience bounds how long a source waits for the target to report that it
// has loaded everything. Afterwards the Guest either belongs to the target or
// bootd calls it back.
const loadPatience = 10 * time.Second

// migration is one attempt to move a running Guest.
type migration struct {
	src    *moveSource
	t      *api.GuestTransfer
	group  *sync.WaitGroup // of the goroutines that copy bytes
	shown  time.Time
	loaded chan struct{} // closed when the target has answered for the memory or has disconnected
}

func moveNode(disk string) string { return "move-" + disk }

// plug connects QEMU to the target under a name.
func (m *migration) plug(ctx context.Context, name string, r transfer.Request) (*transfer.Conn, net.Conn, error) {
	c, _, err := m.src.reachFor(ctx, m.t, r)
	if err != nil {
		return nil, nil, err
	}
	end, err := m.src.vm.newSocket(ctx, name)
	if err != nil {
		_ = c.Close()
		return nil, nil, err
	}
	return c, end, nil
}

// mirror starts to copy a disk, including writes meanwhile.
func (m *migration) mirror(ctx context.Context, d api.GuestDisk) error {
	node := moveNode(d.Name)
	c, end, err := m.plug(ctx, node, transfer.Request{Kind: transfer.Disk, Disk: d.Name})
	if err != nil {
		return err
	}
	m.group.Go(func() { c.Join(ctx, end) })
	for _, x := range []struct {
		command   string
		arguments map[string]any
	}{
		{"blockdev-add", map[string]any{"driver": "nbd", "node-name": node, "export": d.Name, "server": map[string]any{"type": "fd", "str": node}}},
		// The target already has the base (top). Once everything else is
		// copied, each write of the Guest goes to both sides (write-blocking).
		{"blockdev-mirror", map[string]any{"job-id": node, "device": qemu.DiskNode(d.Name), "target": node, "sync": "top",
			"copy-mode": "write-blocking", "auto-dismiss": false}},
	} {
		if err := m.src.vm.command(ctx, x.command, x.arguments, nil); err != nil {
			return err
		}
	}
	return nil
}

// until polls until something is done, and reports the progress.
func (m *migration) until(ctx context.Context, done func(context.Context) (bool, string, error)) error {
	for {
		ok, far, err := done(ctx)
		if ok || err != nil {
			return err
		}
		if time.Since(m.shown) >= m.src.timing.progress {
			m.shown = time.Now()
			m.src.share.working(m.t, far)
		}
		select {
		case <-time.After(poll):
		case <-m.src.vm.ended():
			return errors.New("its QEMU has ended")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// poll is the interval of queries; it may add to the time that the Guest is
// paused.
const poll = 10 * time.Millisecond

type job struct {
	ID      string
	Status  string
	Current int64  `json:"current-progress"`
	Total   int64  `json:"total-progress"`
	Error   string `json:"error"`
}

// mirrors returns the jobs of a move that QEMU has.
func (src *moveSource) mirrors(ctx context.Context) ([]job, error) {
	var all, ours []job
	if err := src.vm.command(ctx, "query-jobs", nil, &all); err != nil {
		return nil, err
	}
	for _, j := range all {
		if strings.HasPrefix(j.ID, moveNode("")) {
			ours = append(ours, j)
		}
	}
	return ours, nil
}

func (m *migration) mirrored(ctx context.Context) (bool, string, error) {
	jobs, err := m.src.mirrors(ctx)
	if err != nil {
		return false, "", err
	}
	ready := true
	var current, total int64
	for _, j := range jobs {
		if j.Error != "" || j.Status == "concluded" {
			return false, "", fmt.Errorf("%s: %s", j.ID, j.Error)
		}
		ready = ready && j.Status == "ready"
		current, total = current+j.Current, total+j.Total
	}
	return ready, fmt.Sprintf("copying its disks while it runs: %d of %d MiB", current>>20, total>>20), nil
}

// sendMemory starts the migration of the memory.
func (m *migration) sendMemory(ctx context.Context) error {
	c, end, err := m.plug(ctx, "move-memory", transfer.Request{Kind: transfer.Memory})
	if err != nil {
		return err
	}
	m.loaded = make(chan struct{})
	m.group.Go(func() {
		defer close(m.loaded)
		if err := c.Push(ctx, end); err != nil && ctx.Err() == nil {
			m.src.log.Warn("the memory of a Guest that moves", "error", err)
		}
	})
	for _, x := range []struct {
		command   string
		arguments map[string]any
	}{
		{"migrate-set-capabilities", map[string]any{"capabilities": []map[string]any{
			{"capability": "pause-before-switchover", "state": true}, {"capability": "auto-converge", "state": true}}}},
		{"migrate-set-parameters", map[string]any{"max-bandwidth": int64(1) << 40, "downtime-limit": downtime.Milliseconds()}},
		{"migrate", map[string]any{"uri": "fd:move-memory"}},
	} {
		if err := m.src.vm.command(ctx, x.command, x.arguments, nil); err != nil {
			return err
		}
	}
	return nil
}

// downtime is how long sending the rest of the memory may pause the Guest.
const downtime = 200 * time.Millisecond

type migrated struct {
	Status   string
	Desc     string `json:"error-desc"`
	RAM      struct{ Transferred, Remaining, Total int64 }
	Downtime int64 // milliseconds that the Guest was paused until everything was sent
}

// migrating reports whether the migration has reached a state.
func (m *migration) migrating(ctx context.Context, until string) (bool, string, error) {
	var s migrated
	if err := m.src.vm.command(ctx, "query-migrate", nil, &s); err != nil {
		return false, "", err
	}
	switch s.Status {
	case until:
		return true, "", nil
	case "failed", "cancelled", "completed":
		return false, "", fmt.Errorf("QEMU's migration has %s %s", s.Status, s.Desc)
	}
	return false, fmt.Sprintf("copying its memory while it runs: %d MiB sent, %d of %d left", s.RAM.Transferred>>20, s.RAM.Remaining>>20, s.RAM.Total>>20), nil
}

// endMirrors completes the mirrors with equal disks on both sides: the Guest no
// longer writes.
func (m *migration) endMirrors(ctx context.Context) error {
	jobs, err := m.src.mirrors(ctx)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if err := m.src.vm.command(ctx, "block-job-cancel", map[string]any{"device": j.ID}, nil); err != nil {
			return err
		}
	}
	if err := m.until(ctx, func(ctx context.Context) (bool, string, error) {
		left, err := m.src.mirrors(ctx)
		for _, j := range left {
			if j.Error != "" {
				return false, "", fmt.Errorf("%s: %s", j.ID, j.Error)
			}
			if j.Status != "concluded" {
				return false, "", err
			}
		}
		return true, "", err
	}); err != nil {
		return err
	}
	for _, j := range jobs {
		if err := m.src.vm.command(ctx, "job-dismiss", map[string]any{"id": j.ID}, nil); err != nil {
			return err
		}
		// From here on only the target's QEMU uses its disks.
		if err := m.src.vm.command(ctx, "blockdev-del", map[string]any{"node-name": j.ID}, nil); err != nil {
			return err
		}
	}
	return nil
}

// callOff cancels what a move has begun in QEMU, if anything. It resumes the
// Guest if the migration had paused it.
func (src *moveSource) callOff(ctx context.Context) error {
	if src.vm.running == nil || src.vm.running.monitor == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callOffPatience)
	defer cancel()
	for {
		var s migrated
		if err := src.vm.command(ctx, "query-migrate", nil, &s); err != nil {
			return err
		}
		jobs, err := src.mirrors(ctx)
		if err != nil {
			return err
		}
		under := s.Status != "" && s.Status != "none" && s.Status != "failed" && s.Status != "cancelled" && s.Status != "completed"
		if !under && len(jobs) == 0 {
			return src.dropNodes(ctx)
		}
		if under && s.Status != "cancelling" {
			if err := src.vm.command(ctx, "migrate_cancel", nil, nil); err != nil {
				return err
			}
		}
		for _, j := range jobs {
			command, arguments := "block-job-cancel", map[string]any{"device": j.ID, "force": true}
			if j.Status == "concluded" {
				command, arguments = "job-dismiss", map[string]any{"id": j.ID}
			}
			var refused *qmp.Error // the migration may have reached its next state
			if err := src.vm.command(ctx, command, arguments, nil); err != nil && !errors.As(err, &refused) {
				return err
			}
		}
		if wait.For(ctx, poll) != nil {
			return fmt.Errorf("cancel a move: %w", context.Cause(ctx))
		}
	}
}

const callOffPatience = 30 * time.Second

// dropNodes closes QEMU's connections to the target's disks.
func (src *moveSource) dropNodes(ctx context.Context) error {
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := src.vm.command(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return err
	}
	for _, n := range nodes {
		if strings.HasPrefix(n.Name, moveNode("")) {
			if err := src.vm.command(ctx, "blockdev-del", map[string]any{"node-name": n.Name}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}
