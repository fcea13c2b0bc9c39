package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
)

// storage handles disk errors: QEMU pauses the Guest at one, and storage
// resumes it at intervals.
type storage struct {
	*identity
	vm         *instance
	conditions *conditions
	ioFailed   time.Time // the last error, or the last time that it was resumed
}

// check returns an error when a running QEMU is prevented from running its
// Guest.
func (s *storage) check(ctx context.Context) error {
	if s.vm.running == nil {
		return nil
	}
	switch s.vm.running.state {
	case qemuSilent:
		return pending("QEMU does not answer: retrying; see its log " + filepath.Join(s.dir, "qemu.log"))
	case qemuIOError:
		return s.retry(ctx)
	case qemuRunning:
		c := s.conditions.get(conditionStorage)
		if c != nil && c.Status == api.False && time.Since(s.ioFailed) > s.timing.retry {
			s.event(api.Normal, "StorageRecovered", "its disks can be written again")
			s.conditions.set(conditionStorage, true, "Works", "")
		}
		if c != nil && c.Status == api.False {
			return pending(c.Message)
		}
		if c == nil {
			s.conditions.set(conditionStorage, true, "Works", "")
		}
	}
	return nil
}

// fail records a disk error.
func (s *storage) fail(raw json.RawMessage) {
	var data struct {
		Node      string `json:"node-name"`
		Operation string `json:"operation"`
		NoSpace   bool   `json:"nospace"`
		Reason    string `json:"reason"`
	}
	if json.Unmarshal(raw, &data) != nil {
		return
	}
	data.Node = strings.TrimPrefix(data.Node, mirrorNode("")) // during an export
	reason, message := "IOError", fmt.Sprintf("disk %s: %s fails: %s; the Guest is paused and tried again every %s", strings.TrimPrefix(data.Node, "disk-"), data.Operation, data.Reason, s.timing.retry)
	if data.NoSpace {
		reason = "NoSpace"
		message = fmt.Sprintf("disk %s: the host's file system is full: make room there; the Guest is paused and tried again every %s", strings.TrimPrefix(data.Node, "disk-"), s.timing.retry)
	}
	if old := s.conditions.get(conditionStorage); old == nil || old.Status != api.False || old.Reason != reason {
		s.event(api.Warning, reason, message)
	}
	s.ioFailed = time.Now()
	s.conditions.set(conditionStorage, false, reason, message)
}

// retry resumes a Guest that a disk error has paused.
func (s *storage) retry(ctx context.Context) error {
	if c := s.conditions.get(conditionStorage); c == nil || c.Status != api.False { // the event was missed while no agent ran
		s.fail([]byte(`{"node-name":"of it","operation":"I/O","reason":"see the log of its QEMU"}`))
	}
	if time.Since(s.ioFailed) >= s.timing.retry {
		s.ioFailed = time.Now()
		if err := s.vm.command(ctx, "cont", nil, nil); err != nil {
			return fmt.Errorf("resume it after a disk error: %w", err)
		}
	}
	return pending(s.conditions.get(conditionStorage).Message)
}
