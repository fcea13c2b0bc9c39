package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
)

// Why a Guest is being stopped.
const (
	stopAsked   = "asked"   // State: Stopped
	stopRestart = "restart" // a request
	stopForced  = "forced"  // it has ended, or goes for good: no grace
)

// stopping is a stop under way: a ladder whose steps have their times.
type stopping struct {
	why      string
	began    time.Time
	asked    int       // how often the Guest was asked
	forced   int       // steps of force that were taken
	lastStep time.Time // of the last of either
}

// maxForce is how many steps of force there are: quit, SIGTERM, SIGKILL.
const maxForce = 3

// climb takes the next step of the ladder once it is due, and says when to look
// again: the Guest is asked again and again, since one that boots does not hear;
// after the deadline QEMU is told to quit, then gets SIGTERM, then SIGKILL.
func (g *guest) climb(ctx context.Context, why string) (time.Duration, error) {
	now, t := time.Now(), g.h.timing
	if g.stop == nil {
		if err := g.expect(false); err != nil {
			return 0, err
		}
		g.stop = &stopping{why: why, began: now}
	}
	s := g.stop
	if why == stopForced {
		s.why = stopForced
	}
	deadline := s.began.Add(g.record.Part.StopTimeout.Or(api.GuestStopTimeout))
	graceful := s.why != stopForced && (g.running.state == "running" || g.running.state == "paused" || g.running.state == "") && now.Before(deadline)
	switch {
	case graceful:
		if now.Sub(s.lastStep) >= t.again {
			s.asked++
			s.lastStep = now
			g.askToStop(ctx, s.asked)
		}
		return min(time.Until(deadline), t.again), pending(fmt.Sprintf("stopping: it has until %s to shut down", deadline.UTC().Format(time.RFC3339)))
	case s.forced == 0 || now.Sub(s.lastStep) >= t.force:
		s.forced++
		s.lastStep = now
		g.force(ctx, s)
	}
	return t.force, pending("stopping: QEMU has been told to end")
}

// askToStop asks through the guest agent where one runs, else presses the power
// button.
func (g *guest) askToStop(ctx context.Context, time int) {
	g.log.Info("asked to shut down", "time", time)
	if g.running.state == "paused" { // what does not run does not hear
		if err := g.command(ctx, "cont", nil, nil); err != nil {
			g.log.Warn("cannot resume it for its shutdown", "error", err)
		}
	}
	err := g.agentShutdown(ctx)
	if err == nil {
		return
	}
	g.log.Info("its power button is pressed", "instead", err)
	if err := g.command(ctx, "system_powerdown", nil, nil); err != nil {
		g.log.Warn("cannot press its power button", "error", err)
	}
}

// agentShutdown tells the guest agent to shut down, where one runs and answers soon.
func (g *guest) agentShutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, g.h.timing.agent)
	defer cancel()
	if err := g.agentListens(ctx); err != nil {
		return err
	}
	return g.agent.Tell(ctx, "guest-shutdown", map[string]string{"mode": "powerdown"})
}

// force takes the next step of force.
func (g *guest) force(ctx context.Context, s *stopping) {
	step := s.forced
	if step == 1 {
		if err := g.command(ctx, "quit", nil, nil); err == nil {
			return
		}
		s.forced, step = 2, 2 // it does not listen
	}
	signal := unix.SIGTERM
	if step > 2 {
		signal = unix.SIGKILL
	}
	g.log.Warn("QEMU is sent a signal", "signal", signal.String())
	if err := g.running.process.Signal(signal); err != nil {
		g.log.Error("cannot signal QEMU", "signal", signal.String(), "error", err)
	}
}

// beStopped stops the Guest.
func (g *guest) beStopped(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	if g.running != nil {
		why := stopAsked
		if !alive(g.running.state) {
			why = stopForced
		}
		return g.climb(ctx, why)
	}
	if g.stop != nil {
		g.stop = nil
		g.h.event(g, api.Normal, "Stopped", "it is stopped")
	}
	g.notBefore, g.backoff = time.Time{}, 0
	return 0, g.doneRequest(part)
}

// Shutdown stops a Guest by its uid, as State Stopped does, and returns when its
// QEMU has ended. It is what the Guest's unit does when its host goes down: the
// agent has gone by then.
func (h *Handler) Shutdown(ctx context.Context, uid string) error {
	g := newGuest(h, uid, uid)
	process, err := g.process()
	if errors.Is(err, launch.ErrGone) { // a unit does this also when its Guest has ended by itself
		return nil
	}
	if err != nil {
		return err
	}
	process.Close()
	r, err := readRecord(g.dir)
	if err != nil {
		return fmt.Errorf("the record of Guest %s: %w", uid, err)
	}
	g.name, g.record, g.log = r.Name, &r, h.o.Log.With("guest", r.Name)
	// An agent that lives all the same has the other monitor.
	g.socket = "monitor.sock"
	g.stop = &stopping{why: stopAsked, began: time.Now()}
	defer g.letGo()
	if err := g.adopt(ctx); g.running == nil {
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
		case <-g.ended():
			g.log.Info("it has ended, as its host goes down", "after", time.Since(g.stop.began).Round(time.Second))
			return nil
		case e := <-g.events:
			g.heed(e)
		case <-timer.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		timer.Stop()
		if err := g.askState(ctx); err != nil {
			return err
		}
	}
}

// alive says whether a Guest in this state may still be asked to shut down. One
// that does not answer is given its time, too.
func alive(state string) bool {
	switch state {
	case "running", "paused", "suspended", "":
		return true
	}
	return false
}

// remove takes the Guest away, and all it has on disk but for what is retained.
func (g *guest) remove(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	if _, err := os.Stat(g.dir); os.IsNotExist(err) {
		return 0, os.RemoveAll(g.run)
	}
	if g.record == nil {
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
		g.record = &r
	}
	if g.stop == nil {
		g.stop = &stopping{why: stopForced, began: time.Now()}
	}
	if err := g.find(ctx); err != nil {
		return 0, err
	}
	if g.running != nil {
		return g.climb(ctx, stopForced)
	}
	lock, err := g.lock()
	if err != nil {
		return 0, err
	}
	if lock == nil {
		return g.h.timing.retry, pending("a QEMU of it is just being started")
	}
	defer func() { _ = lock.Close() }()
	tpm, err := g.lockTPM(ctx) // its emulator may be just about to end
	if err != nil {
		return 0, err
	}
	defer func() { _ = tpm.Close() }()
	g.h.reached("delete: QEMU is gone")
	g.dropSnapshots(ctx, lock)
	if err := g.h.disks.Remove(g.record.Part.Network, g.record.Name, g.uid, g.record.retained()); err != nil {
		return 0, err
	}
	g.h.reached("delete: disks are gone")
	g.h.event(g, api.Normal, "Removed", "it is removed, and its disks")
	return 0, os.RemoveAll(g.run)
}
