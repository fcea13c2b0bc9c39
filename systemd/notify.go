package systemd

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Notifier reports the daemon's state to systemd (sd_notify(3)). Outside
// systemd it does nothing. It is safe for concurrent use.
type Notifier struct {
	log      *slog.Logger
	interval time.Duration // of the watchdog; 0 when there is none

	mu   sync.Mutex
	last string // status line sent last
}

// NewNotifier reads NOTIFY_SOCKET and WATCHDOG_USEC from the environment.
func NewNotifier(log *slog.Logger) *Notifier {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd: no watchdog: WATCHDOG_USEC cannot be read", "error", err)
	}
	return &Notifier{log: log, interval: interval}
}

// Ready reports that start-up is complete.
func (n *Notifier) Ready() { n.send(daemon.SdNotifyReady) }

// Stopping reports that shutdown has begun.
func (n *Notifier) Stopping() { n.send(daemon.SdNotifyStopping) }

// Status sets the line that `systemctl status` shows; an unchanged line is not
// sent.
func (n *Notifier) Status(line string) {
	line = strings.Join(strings.Fields(line), " ") // a line break would begin another assignment
	n.mu.Lock()
	defer n.mu.Unlock()
	if line == n.last {
		return
	}
	n.last = line
	n.send("STATUS=" + line)
}

// Watchdog feeds the watchdog while healthy returns true, at least twice per
// WatchdogSec. It returns when ctx is done, or at once when there is no
// watchdog.
func (n *Notifier) Watchdog(ctx context.Context, healthy func() bool) {
	if n.interval <= 0 {
		return
	}
	tick := time.NewTicker(n.interval / 3)
	defer tick.Stop()
	for {
		if healthy() {
			n.send(daemon.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			n.log.Error("systemd: the watchdog is not fed: the daemon is not healthy")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// send is sd_notify(3), but never blocks for long: systemd's queue is short
// (net.unix.max_dgram_qlen), and a daemon must not hang because pid 1 does.
func (n *Notifier) send(state string) {
	const patience = 500 * time.Millisecond
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		n.log.Warn("systemd: cannot notify", "state", state, "error", err)
		return
	}
	defer func() { _ = conn.Close() }()
	err = conn.SetWriteDeadline(time.Now().Add(patience))
	if err == nil {
		_, err = conn.Write([]byte(state))
	}
	if err != nil {
		n.log.Warn("systemd: cannot notify", "state", state, "error", err)
	}
}
