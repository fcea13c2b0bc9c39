package guest

import (
	"context"
	"fmt"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/qga"
)

// guestAgent sends requests to the guest agent (qemu-ga) of a Guest that runs
// one: shut down, freeze the file systems, run a command.
type guestAgent struct {
	*identity
	record *ledger
	vm     *instance
	client *qga.Client
}

// listens reports an error when nothing inside the Guest has the agent's
// channel open: a request would then wait for a reply that never comes.
func (a *guestAgent) listens(ctx context.Context) error {
	var devices []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if err := a.vm.monitorCommand(ctx, "query-chardev", nil, &devices); err != nil {
		return err
	}
	for _, d := range devices {
		if d.Label == "agent" && d.Open {
			return nil
		}
	}
	return fmt.Errorf("no guest agent runs in Guest %s: install qemu-guest-agent (qemu-ga) there", a.name)
}

// shutdown asks the guest agent to shut down, if one runs and answers soon.
func (a *guestAgent) shutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, a.timing.agent)
	defer cancel()
	if err := a.listens(ctx); err != nil {
		return err
	}
	return a.client.Tell(ctx, "guest-shutdown", map[string]string{"mode": "powerdown"})
}

// freeze freezes the Guest's file systems if its agent supports that. The
// caller calls thaw whatever the result.
func (a *guestAgent) freeze(ctx context.Context) api.Consistency {
	if a.vm.running.state != qemuRunning || a.listens(ctx) != nil {
		return api.ConsistentCrash
	}
	if err := a.record.change(func(r *record) { r.Frozen = true }); err != nil {
		return api.ConsistentCrash
	}
	var count int
	if err := a.client.Execute(ctx, "guest-fsfreeze-freeze", nil, &count); err != nil || count < 1 {
		a.log.Warn("cannot freeze the Guest's file systems", "count", count, "error", err)
		return api.ConsistentCrash
	}
	return api.ConsistentFrozen
}

// thaw thaws the Guest's file systems. It is repeated until it succeeds or QEMU
// has ended.
func (a *guestAgent) thaw(ctx context.Context) error {
	if !a.record.Frozen || a.vm.running == nil || a.vm.running.state != qemuRunning {
		return nil
	}
	err := a.listens(ctx)
	if err == nil {
		err = a.client.Execute(ctx, "guest-fsfreeze-thaw", nil, nil)
	}
	if err != nil {
		return fmt.Errorf("thaw its file systems: %w", err)
	}
	return a.record.change(func(r *record) { r.Frozen = false })
}
