package guest

import (
	"context"
	"fmt"
	"os"
	"time"
)

// conditionHeard is False when a running Guest has shown no sign of life after
// the first output of its firmware and kernel: it may hang in its boot although
// QEMU answers.
const conditionHeard = "Heard"

// hearing looks for signs of life of a running Guest.
type hearing struct {
	*identity
	record     *ledger
	conditions *conditions
	vm         *instance
	network    Plugger   // nil on a host without Networks
	start      time.Time // of the last run with a sign of life
}

// note checks once the Guest has run long enough.
func (h *hearing) note(ctx context.Context) {
	start := h.record.Launched.Time
	switch {
	case h.start.Equal(start) || h.record.Launched.Moved:
		h.conditions.set(conditionHeard, true, "Heard", "")
	case time.Since(start) < h.timing.silence || h.vm.running.state != qemuRunning:
	case h.says(ctx, start):
		h.start = start
		h.conditions.set(conditionHeard, true, "Heard", "")
	default:
		h.conditions.set(conditionHeard, false, "Silent", fmt.Sprintf("since its start at %s it has sent no packet and written to no disk, nor to its serial port after the first %s: it may hang in its boot", start.Format(time.RFC3339), h.timing.words))
	}
}

// says reports whether the Guest has shown a sign of life since its start.
func (h *hearing) says(ctx context.Context, start time.Time) bool {
	if info, err := os.Stat(h.consoleLog()); err == nil && info.ModTime().After(start.Add(h.timing.words)) {
		return true
	}
	if h.network != nil && h.network.Traffic()[h.uid].SentBytes > 0 {
		return true
	}
	limited, cancel := context.WithTimeout(ctx, h.timing.answer)
	defer cancel()
	seen := h.vm.glimpse()
	if seen.monitor == nil {
		return false
	}
	disks, err := measureDisks(limited, seen)
	for _, d := range disks {
		if d.Writes > 0 {
			return true
		}
	}
	return err != nil // another condition reports that QEMU does not answer
}
