package guest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
)

// Why a Guest is being stopped.
const (
	stopAsked   = "asked"   // State: Stopped
	stopRestart = "restart" // a request
	stopForced  = "forced"  // it has ended or is removed: without grace
)

// stopping is a stop in progress.
type stopping struct {
	why      string
	began    time.Time
	asked    int       // number of shutdown requests
	forced   int       // number of forced steps
	lastStep time.Time // time of the last request or step
}

// maxForce is the number of forced steps: quit, SIGTERM, SIGKILL.
const maxForce = 3

// ladder stops a Guest step by step: it requests a shutdown, and after the
// deadline forces it.
type ladder struct {
	*identity
	record *ledger
	vm     *instance
	agent  *guestAgent
	stop   *stopping // nil when the Guest is not being stopped
}

// climb takes the next step if it is due, and returns when to look again. The
// request to shut down is repeated because a Guest that is booting ignores it.
// After the deadline QEMU gets quit, then SIGTERM, then SIGKILL.
func (l *ladder) climb(ctx context.Context, why string) (time.Duration, error) {
	now, t := time.Now(), l.timing
	if l.stop == nil {
		if err := l.record.expect(false); err != nil {
			return 0, err
		}
		l.stop = &stopping{why: why, began: now}
	}
	s := l.stop
	if why == stopForced {
		s.why = stopForced
	}
	deadline := s.began.Add(l.record.Part.StopTimeout.Or(api.GuestStopTimeout))
	graceful := s.why != stopForced && slices.Contains([]string{qemuRunning, qemuPaused, qemuSilent}, l.vm.running.state) && now.Before(deadline)
	switch {
	case graceful:
		if now.Sub(s.lastStep) >= t.again {
			s.asked++
			s.lastStep = now
			l.askToStop(ctx, s.asked)
		}
		return min(time.Until(deadline), t.again), pending(fmt.Sprintf("stopping: it has until %s to shut down", deadline.UTC().Format(time.RFC3339)))
	case s.forced == 0 || now.Sub(s.lastStep) >= t.force:
		s.forced++
		s.lastStep = now
		l.force(ctx, s)
	}
	return t.force, pending("stopping: QEMU was asked to quit")
}

// askToStop requests a shutdown from the guest agent if one runs, else by the
// power button.
func (l *ladder) askToStop(ctx context.Context, time int) {
	l.log.Info("asked to shut down", "time", time)
	if l.vm.running.state == qemuPaused { // a paused Guest cannot react
		if err := l.vm.command(ctx, "cont", nil, nil); err != nil {
			l.log.Warn("cannot resume it for its shutdown", "error", err)
		}
	}
	err := l.agent.shutdown(ctx)
	if err == nil {
		return
	}
	l.log.Info("its power button is pressed", "instead", err)
	if err := l.vm.command(ctx, "system_powerdown", nil, nil); err != nil {
		l.log.Warn("cannot press its power button", "error", err)
	}
}

// force takes the next forced step.
func (l *ladder) force(ctx context.Context, s *stopping) {
	step := s.forced
	if step == 1 {
		if err := l.vm.command(ctx, "quit", nil, nil); err == nil {
			return
		}
		s.forced, step = 2, 2 // QEMU does not answer its monitor
	}
	signal := unix.SIGTERM
	if step > 2 {
		signal = unix.SIGKILL
	}
	l.log.Warn("sent a signal to QEMU", "signal", signal.String())
	if err := l.vm.running.process.Signal(signal); err != nil {
		l.log.Error("cannot signal QEMU", "signal", signal.String(), "error", err)
	}
}

// alive reports whether a Guest in this state may still react to a shutdown
// request. A QEMU that does not answer counts as alive.
func alive(state string) bool {
	switch state {
	case qemuRunning, qemuPaused, qemuSuspended, qemuSilent:
		return true
	}
	return false
}
