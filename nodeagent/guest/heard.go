package guest

import (
	"context"
	"fmt"
	"os"
	"time"
)

// conditionHeard is False of a Guest that runs and of which nothing was heard but
// the first words of its firmware and its kernel: it may hang in its boot, and
// QEMU answers all the same.
const conditionHeard = "Heard"

// hearing knows the last start of a Guest of which something was heard.
type hearing struct{ start time.Time }

// note looks once the Guest has had time to say something.
func (h *hearing) note(ctx context.Context, g *guest) {
	start := g.record.Launched.Time
	switch {
	case h.start.Equal(start) || g.record.Launched.Moved:
		g.conditions.set(conditionHeard, true, "Heard", "")
	case time.Since(start) < g.timing.silence || g.vm.running.state != "running":
	case says(ctx, g, start):
		h.start = start
		g.conditions.set(conditionHeard, true, "Heard", "")
	default:
		g.conditions.set(conditionHeard, false, "Silent", fmt.Sprintf("since its start at %s it has sent no packet and written to no disk, nor to its serial port after the first %s: it may hang in its boot", start.Format(time.RFC3339), g.timing.words))
	}
}

// says reports whether there is a sign of life of the Guest since its start.
func says(ctx context.Context, g *guest, start time.Time) bool {
	if info, err := os.Stat(g.consoleLog()); err == nil && info.ModTime().After(start.Add(g.timing.words)) {
		return true
	}
	if g.h.o.Network != nil && g.h.o.Network.Traffic()[g.uid].SentBytes > 0 {
		return true
	}
	limited, cancel := context.WithTimeout(ctx, g.timing.answer)
	defer cancel()
	seen := g.vm.glimpse()
	if seen.monitor == nil {
		return false
	}
	disks, err := measureDisks(limited, seen)
	for _, d := range disks {
		if d.Writes > 0 {
			return true
		}
	}
	return err != nil // whether it hangs is then said elsewhere
}
