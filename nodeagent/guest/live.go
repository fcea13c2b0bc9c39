package guest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/disk"
	"github.com/rackweft/rackweft/nodeagent/guest/transfer"
)

// A live move: the target's QEMU waits with empty disks; the source's QEMU
// mirrors its disks into them (NBD) and then sends its memory. The QEMUs reach
// each other through their agents, because neither has a network. At the
// switch-over the source's QEMU stops the Guest and waits (pre-switchover).
// Only after the record says that the Guest is given up, the mirrors are
// completed and the rest is sent. A live move is tried once: an agent that ends
// closes its connections, and QEMU resumes its Guest. QEMU may also resume it
// after the record was written, when the rest does not arrive. That does no
// harm: Sent is reported only for a QEMU that has sent everything
// (postmigrate), and such a QEMU never resumes its Guest by itself.

// live moves the Guest while it runs.
func (src *moveSource) live(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	t := part.Transfer
	if src.record.Given == t.ID {
		if src.share.failed(t) {
			return 0, nil
		}
		if src.vm.running == nil || src.vm.running.state != qemuSent {
			src.share.fail(t, "its memory was not received")
			return 0, nil
		}
		src.share.set(t, api.TransferSent, src.howLive(ctx))
		return 0, nil
	}
	next, err := src.life.beAsWritten(ctx, part)
	if src.share.failed(t) || err != nil || next != 0 {
		return next, err
	}
	if src.vm.running == nil {
		src.share.fail(t, "it does not run")
		return 0, nil
	}
	if list, err := src.snapshots.read(); err != nil || len(list) > 0 {
		src.share.fail(t, "it has snapshots, which a mirror does not copy")
		return 0, err
	}
	if d, err := src.overAnother(part); err != nil || d != "" {
		src.share.fail(t, "disk "+d+" is not based on the current version of its Image, and a mirror copies only what is above the base")
		return 0, err
	}
	if src.exporter.active {
		src.share.fail(t, "its disks are being exported: move it when the export has ended")
		return 0, nil
	}
	if err := src.callOff(ctx); err != nil { // left by an earlier agent
		return 0, err
	}
	machine, err := src.vm.facts(ctx)
	if err != nil {
		return 0, err
	}
	c, _, err := src.reachFor(ctx, t, transfer.Request{Kind: transfer.Ready, Machine: machine})
	switch {
	case errors.Is(err, transfer.ErrFinal):
		src.share.fail(t, err.Error())
		return 0, nil
	case err != nil:
		src.share.working(t, err.Error())
		return src.timing.retry, nil
	}
	_ = c.Close() // it has answered
	if err := src.migrate(ctx, part); err != nil {
		src.share.fail(t, err.Error())
		return time.Millisecond, errors.Join(err, src.callOff(context.WithoutCancel(ctx)))
	}
	src.vm.running.state = qemuSent
	src.share.set(t, api.TransferSent, src.howLive(ctx))
	return 0, nil
}

// overAnother names a disk that would be based on another image at the target.
func (src *moveSource) overAnother(part *api.GuestPart) (string, error) {
	for _, d := range part.Disks {
		if d.Format == disk.Raw {
			continue
		}
		base, err := src.disks.Base(src.snapshots.wanted(d.Name))
		if err != nil || base != d.Image {
			return d.Name, err
		}
	}
	return "", nil
}

// howLive returns the statistics of the migration.
func (src *moveSource) howLive(ctx context.Context) string {
	var s migrated
	if err := src.vm.command(ctx, "query-migrate", nil, &s); err != nil {
		return "" // only informational
	}
	return fmt.Sprintf("%d MiB of memory sent, the last of it in %d ms", s.RAM.Transferred>>20, s.Downtime)
}
