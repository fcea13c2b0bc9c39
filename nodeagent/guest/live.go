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

// A live move: the target's QEMU waits with empty disks, the source's mirrors its
// disks into them (NBD) and then sends its memory. QEMUs reach each other through
// their agents; neither has a network. At the switch-over the source's QEMU stops
// the Guest and asks (pre-switchover): only then, and once the record says that
// the Guest is given up, the mirrors end and the rest is sent. It is tried once
// for a move: an agent that ends takes its connections with it, and QEMU goes on
// with its Guest. After the record was written QEMU may do so, too, when the rest
// does not get through; that is no harm, since Sent is said of a QEMU alone that
// has sent all (postmigrate), which runs its Guest no more by itself.

// live moves the Guest while it runs.
func (src *moveSource) live(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	t := part.Transfer
	if src.record.Given == t.ID {
		if src.share.failed(t) {
			return 0, nil
		}
		if src.vm.running == nil || src.vm.running.state != postmigrate {
			src.share.fail(t, "its memory has not got through")
			return 0, nil
		}
		src.share.tell(t, api.TransferSent, src.howLive(ctx))
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
		src.share.fail(t, "it has snapshots, which a mirror leaves behind")
		return 0, err
	}
	if d, err := src.overAnother(part); err != nil || d != "" {
		src.share.fail(t, "disk "+d+" does not lie over its Image as that is now, and a mirror is of what lies above")
		return 0, err
	}
	if src.exporter.active {
		src.share.fail(t, "its disks are being exported: move it when that is over")
		return 0, nil
	}
	if err := src.callOff(ctx); err != nil { // what an agent before this one has left
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
	src.vm.running.state = postmigrate
	src.share.tell(t, api.TransferSent, src.howLive(ctx))
	return 0, nil
}

// overAnother names a disk that the target would make over another image.
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

// howLive tells what a migration has taken.
func (src *moveSource) howLive(ctx context.Context) string {
	var s migrated
	if err := src.vm.command(ctx, "query-migrate", nil, &s); err != nil {
		return "" // nobody depends on it
	}
	return fmt.Sprintf("%d MiB of memory sent, the last of it in %d ms", s.RAM.Transferred>>20, s.Downtime)
}
