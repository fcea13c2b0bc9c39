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

// heedState reports what keeps a QEMU that lives from running its Guest.
func (g *guest) heedState(ctx context.Context) error {
	if g.vm.running == nil {
		return nil
	}
	switch g.vm.running.state {
	case "":
		return pending("QEMU does not answer: it is asked again; see its log " + filepath.Join(g.dir, "qemu.log"))
	case "io-error":
		return g.retryStorage(ctx)
	case "running":
		c := g.conditions.get(conditionStorage)
		if c != nil && c.Status == api.False && time.Since(g.ioFailed) > g.timing.retry {
			g.event(api.Normal, "StorageRecovered", "its disks can be written again")
			g.conditions.set(conditionStorage, true, "Works", "")
		}
		if c != nil && c.Status == api.False {
			return pending(c.Message)
		}
		if c == nil {
			g.conditions.set(conditionStorage, true, "Works", "")
		}
	}
	return nil
}

// storageFailed notes what a disk failed of.
func (g *guest) storageFailed(raw json.RawMessage) {
	var data struct {
		Node      string `json:"node-name"`
		Operation string `json:"operation"`
		NoSpace   bool   `json:"nospace"`
		Reason    string `json:"reason"`
	}
	if json.Unmarshal(raw, &data) != nil {
		return
	}
	data.Node = strings.TrimPrefix(data.Node, mirrorNode("")) // while it is exported
	reason, message := "IOError", fmt.Sprintf("disk %s: %s fails: %s; the Guest is paused and tried again every %s", strings.TrimPrefix(data.Node, "disk-"), data.Operation, data.Reason, g.timing.retry)
	if data.NoSpace {
		reason = "NoSpace"
		message = fmt.Sprintf("disk %s: the host's file system is full: make room there; the Guest is paused and tried again every %s", strings.TrimPrefix(data.Node, "disk-"), g.timing.retry)
	}
	if old := g.conditions.get(conditionStorage); old == nil || old.Status != api.False || old.Reason != reason {
		g.event(api.Warning, reason, message)
	}
	g.ioFailed = time.Now()
	g.conditions.set(conditionStorage, false, reason, message)
}

// retryStorage lets a Guest that a disk error holds try again.
func (g *guest) retryStorage(ctx context.Context) error {
	if c := g.conditions.get(conditionStorage); c == nil || c.Status != api.False { // the event came while nobody listened
		g.storageFailed([]byte(`{"node-name":"of it","operation":"I/O","reason":"see the log of its QEMU"}`))
	}
	if time.Since(g.ioFailed) >= g.timing.retry {
		g.ioFailed = time.Now()
		if err := g.vm.command(ctx, "cont", nil, nil); err != nil {
			return fmt.Errorf("let it try its disk again: %w", err)
		}
	}
	return pending(g.conditions.get(conditionStorage).Message)
}
