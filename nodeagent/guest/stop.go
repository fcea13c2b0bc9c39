package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
)

// beStopped stops the Guest.
func (g *guest) beStopped(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	if g.vm.running != nil {
		why := stopAsked
		if !alive(g.vm.running.state) {
			why = stopForced
		}
		return g.ladder.climb(ctx, why)
	}
	if g.ladder.stop != nil {
		g.ladder.stop = nil
		g.event(api.Normal, "Stopped", "it is stopped")
	}
	g.restarts.forget()
	return 0, g.record.doneRequest(part)
}

// Shutdown stops a Guest by its uid, as state Stopped does, and returns when
// its QEMU has ended. The Guest's unit calls it when the host shuts down, after
// the agent has ended.
func (h *Handler) Shutdown(ctx context.Context, uid string) error {
	process, err := newIdentity(h, uid, uid).process()
	if errors.Is(err, launch.ErrGone) { // the unit also runs this when its Guest has ended by itself
		return nil
	}
	if err != nil {
		return err
	}
	process.Close()
	r, err := readRecord(h.disks.GuestDir(uid))
	if err != nil {
		return fmt.Errorf("the record of Guest %s: %w", uid, err)
	}
	g := newGuest(h, r.Name, uid)
	g.record.record = &r
	// The agent may still be running and use the other monitor.
	g.vm.socket = "monitor.sock"
	g.ladder.stop = &stopping{why: stopAsked, began: time.Now()}
	defer g.vm.letGo()
	if err := g.adopt(ctx); g.vm.running == nil {
		return err
	} else if err != nil { // a full disk does not justify cutting the power
		g.log.Warn("cannot write its record", "error", err)
	}
	for {
		next, err := g.beStopped(ctx, &r.Part)
		if waits := pending(""); !errors.As(err, &waits) {
			return err
		}
		timer := time.NewTimer(next)
		select {
		case <-g.vm.ended():
			g.log.Info("stopped because its host shuts down", "after", time.Since(g.ladder.stop.began).Round(time.Second))
			return nil
		case e := <-g.vm.events:
			g.heed(e)
		case <-timer.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		timer.Stop()
		if err := g.vm.askState(ctx); err != nil {
			return err
		}
	}
}

// remove removes the Guest and everything that it has on disk, except what is
// retained.
func (g *guest) remove(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	if _, err := os.Stat(g.dir); os.IsNotExist(err) {
		return 0, os.RemoveAll(g.run)
	}
	if !g.record.known() {
		r, err := readRecord(g.dir)
		if os.IsNotExist(err) { // it is hardly begun or half removed
			r, err = record{Name: g.name}, nil
			if part != nil {
				r.Part = *part
			}
		}
		if err != nil {
			return 0, err
		}
		g.record.record = &r
	}
	if g.ladder.stop == nil {
		g.ladder.stop = &stopping{why: stopForced, began: time.Now()}
	}
	if err := g.find(ctx); err != nil {
		return 0, err
	}
	if g.vm.running != nil {
		return g.ladder.climb(ctx, stopForced)
	}
	lock, err := g.lock()
	if err != nil {
		return 0, err
	}
	if lock == nil {
		return g.timing.retry, pending("a QEMU of it is being started")
	}
	defer func() { _ = lock.Close() }()
	tpm, err := g.tpm.lockState(ctx) // its emulator may be about to end
	if err != nil {
		return 0, err
	}
	defer func() { _ = tpm.Close() }()
	g.reached("delete: QEMU is gone")
	g.snapshots.drop(ctx, lock)
	if err := g.h.disks.Remove(g.record.Part.Network, g.record.Name, g.uid, g.record.retained()); err != nil {
		return 0, err
	}
	g.reached("delete: disks are gone")
	g.event(api.Normal, "Removed", "removed with its disks")
	return 0, os.RemoveAll(g.run)
}
