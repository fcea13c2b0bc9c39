package guest

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
)

// limits applies the limits of disks and processors to a running QEMU that are
// not set at its start.
type limits struct {
	*identity
	vm         *instance
	configured string // digest of the applied settings, "" to apply them again
}

// configure applies settings through the monitor: size and limits of disks, and
// processor pinning.
func (l *limits) configure(ctx context.Context, part *api.GuestPart) error {
	limits := diskLimits(part)
	wanted := digest([]any{part.Disks, limits})
	if l.configured == wanted {
		return nil
	}
	disks, err := l.queryDisks(ctx)
	if err != nil {
		return err
	}
	for _, d := range part.Disks {
		seen, ok := disks[d.Name]
		if !ok {
			continue // attached at the next start
		}
		if err := l.growDisk(ctx, d, seen.Image.Size); err != nil {
			return err
		}
		if seen.throttle == limits {
			continue
		}
		args := throttleArguments{ID: seen.device, Group: "guest", throttle: limits}
		if err := l.vm.command(ctx, "block_set_io_throttle", args, nil); err != nil {
			return fmt.Errorf("limit disk %s: %w", d.Name, err)
		}
	}
	if err := l.pin(ctx, part); err != nil {
		return err
	}
	l.configured = wanted
	return nil
}

// throttle holds a disk's limits by QEMU's names. The separate limits for reads
// and writes are not used.
type throttle struct {
	Bytes           int64 `json:"bps"`
	ReadBytes       int64 `json:"bps_rd"`
	WriteBytes      int64 `json:"bps_wr"`
	Operations      int64 `json:"iops"`
	ReadOperations  int64 `json:"iops_rd"`
	WriteOperations int64 `json:"iops_wr"`
}

// throttleArguments are the arguments of block_set_io_throttle. The disks of a
// group share its limits.
type throttleArguments struct {
	ID    string `json:"id"`
	Group string `json:"group"`
	throttle
}

func diskLimits(part *api.GuestPart) throttle {
	return throttle{Bytes: part.Limits.DiskBytes.Value(), Operations: int64(part.Limits.DiskOperations)}
}

// attachedDisk is a disk as reported by QEMU.
type attachedDisk struct {
	Node  string `json:"node-name"`
	Image struct {
		Size int64 `json:"virtual-size"`
	} `json:"image"`
	throttle
	device string // QOM path of its device
}

// queryDisks returns QEMU's disks by name.
func (l *limits) queryDisks(ctx context.Context) (map[string]attachedDisk, error) {
	var blocks []struct {
		Device   string        `json:"qdev"`
		Inserted *attachedDisk `json:"inserted"`
	}
	if err := l.vm.command(ctx, "query-block", nil, &blocks); err != nil {
		return nil, err
	}
	disks := map[string]attachedDisk{}
	for _, b := range blocks {
		if b.Inserted == nil {
			continue
		}
		if name, ok := strings.CutPrefix(b.Inserted.Node, qemu.DiskNode("")); ok {
			b.Inserted.device = b.Device
			disks[name] = *b.Inserted
		}
	}
	return disks, nil
}

// growDisk grows a disk to its wanted size.
func (l *limits) growDisk(ctx context.Context, d api.GuestDisk, size int64) error {
	if size > d.Size.Value() {
		l.log.Warn("a disk is larger than wanted and is not shrunk", "disk", d.Name, "bytes", size)
	}
	if size >= d.Size.Value() {
		return nil
	}
	args := map[string]any{"node-name": qemu.DiskNode(d.Name), "size": d.Size.Value()}
	if err := l.vm.command(ctx, "block_resize", args, nil); err != nil {
		return fmt.Errorf("grow disk %s: %w", d.Name, err)
	}
	l.event(api.Normal, "DiskGrown", fmt.Sprintf("disk %s has grown to %d bytes", d.Name, d.Size.Value()))
	return nil
}

// pin binds each virtual processor to a processor of the host if the set has as
// many.
func (l *limits) pin(ctx context.Context, part *api.GuestPart) error {
	cpus, err := api.ParseCPUSet(part.Tuning.CPUSet)
	if err != nil || len(cpus) != part.CPUs {
		return err
	}
	var threads []struct {
		Index  int `json:"cpu-index"`
		Thread int `json:"thread-id"`
	}
	if err := l.vm.command(ctx, "query-cpus-fast", nil, &threads); err != nil {
		return err
	}
	for _, t := range threads {
		if t.Index >= len(cpus) || t.Thread <= 0 {
			continue
		}
		var set unix.CPUSet
		set.Set(cpus[t.Index])
		if err := unix.SchedSetaffinity(t.Thread, &set); err != nil {
			return fmt.Errorf("bind processor %d to the host's %d: %w", t.Index, cpus[t.Index], err)
		}
	}
	return nil
}
