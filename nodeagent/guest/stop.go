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

// Shutdown stops a Guest by its uid, as State Stopped does, and returns when its
// QEMU has ended. It is what the Guest's unit does when its host goes down: the
// agent has gone by then.
func (h *Handler) Shutdown(ctx context.Context, uid string) error {
	process, err := newIdentity(h, uid, uid).process()
	if errors.Is(err, launch.ErrGone) { // a unit does this also when its Guest has ended by itself
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
	// An agent that lives all the same has the other monitor.
	g.vm.socket = "monitor.sock"
	g.ladder.stop = &stopping{why: stopAsked, began: time.Now()}
	defer g.vm.letGo()
	if err := g.adopt(ctx); g.vm.running == nil {
		return err
	} else if err != nil { // a disk that is full is no reason to cut its power
		g.log.Warn("its record is not on disk", "error", err)
	}
	for {
		next, err := g.beStopped(ctx, &r.Part)
		if waits := pending(""); !errors.As(err, &waits) {
			return err
		}
		timer := time.NewTimer(next)
		select {
		case <-g.vm.ended():
			g.log.Info("it has ended, as its host goes down", "after", time.Since(g.ladder.stop.began).Round(time.Second))
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

// remove takes the Guest away, and all it has on disk but for what is retained.
func (g *guest) remove(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	if _, err := os.Stat(g.dir); os.IsNotExist(err) {
		return 0, os.RemoveAll(g.run)
	}
	if !g.record.known() {
		r, err := readRecord(g.dir)
		if os.IsNotExist(err) { // it was hardly begun, or is half removed
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
		return g.timing.retry, pending("a QEMU of it is just being started")
	}
	defer func() { _ = lock.Close() }()
	tpm, err := g.tpm.lockState(ctx) // its emulator may be just about to end
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
	g.event(api.Normal, "Removed", "it is removed, and its disks")
	return 0, os.RemoveAll(g.run)
}
