package guest

import (
	"context"
	"fmt"

	"github.com/rackweft/rackweft/api"
)

// agentListens says whether something inside the Guest has the agent's channel
// open: whoever writes there otherwise waits for nothing.
func (g *guest) agentListens(ctx context.Context) error {
	var devices []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if err := g.vm.monitorCommand(ctx, "query-chardev", nil, &devices); err != nil {
		return err
	}
	for _, d := range devices {
		if d.Label == "agent" && d.Open {
			return nil
		}
	}
	return fmt.Errorf("no guest agent runs in Guest %s: install qemu-guest-agent (qemu-ga) there", g.name)
}

// agentShutdown tells the guest agent to shut down, where one runs and answers soon.
func (g *guest) agentShutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, g.timing.agent)
	defer cancel()
	if err := g.agentListens(ctx); err != nil {
		return err
	}
	return g.agent.Tell(ctx, "guest-shutdown", map[string]string{"mode": "powerdown"})
}

// freeze brings the Guest's file systems to rest, if an agent in it does that.
// thaw follows, whatever comes of it.
func (g *guest) freeze(ctx context.Context) api.Consistency {
	if g.vm.running.state != "running" || g.agentListens(ctx) != nil {
		return api.ConsistentCrash
	}
	if err := g.record.change(func(r *record) { r.Frozen = true }); err != nil {
		return api.ConsistentCrash
	}
	var count int
	if err := g.agent.Execute(ctx, "guest-fsfreeze-freeze", nil, &count); err != nil || count < 1 {
		g.log.Warn("its file systems do not come to rest", "count", count, "error", err)
		return api.ConsistentCrash
	}
	return api.ConsistentFrozen
}

// thaw lets the Guest's file systems go on. It is repeated until it succeeds or
// QEMU has ended.
func (g *guest) thaw(ctx context.Context) error {
	if !g.record.Frozen || g.vm.running == nil || g.vm.running.state != "running" {
		return nil
	}
	err := g.agentListens(ctx)
	if err == nil {
		err = g.agent.Execute(ctx, "guest-fsfreeze-thaw", nil, nil)
	}
	if err != nil {
		return fmt.Errorf("let its file systems go on: %w", err)
	}
	return g.record.change(func(r *record) { r.Frozen = false })
}
