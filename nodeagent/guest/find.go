package guest

import (
	"context"
	"encoding/json"
	"path/filepath"

	"github.com/rackweft/rackweft/api"
)

// find updates running: it adopts a QEMU that is alive, forgets one that has
// ended, and queries its state.
func (g *guest) find(ctx context.Context) error {
	if r := g.vm.running; r != nil {
		select {
		case <-r.exited:
			g.died()
		default:
			return g.vm.askState(ctx)
		}
	}
	lock, err := g.lock()
	if err != nil {
		return err
	}
	if lock != nil {
		g.noteVanished()
		return lock.Close()
	}
	return g.adopt(ctx)
}

// heed records an event; the next look acts on it.
func (g *guest) heed(e event) {
	if e.run != g.vm.running {
		return
	}
	switch e.Name {
	case "RESET":
		g.grant.renew()
		var data struct{ Guest bool }
		if json.Unmarshal(e.Data, &data) == nil && data.Guest {
			g.event(api.Normal, "Rebooted", "rebooted by itself")
		}
	case "SHUTDOWN":
		var data struct{ Reason string }
		if json.Unmarshal(e.Data, &data) == nil {
			g.log.Info("shut down", "reason", data.Reason)
		}
	case "BLOCK_IO_ERROR":
		g.storage.fail(e.Data)
	}
}

// adopt attaches to the QEMU that holds the lock.
func (g *guest) adopt(ctx context.Context) error {
	if err := g.vm.adopt(ctx); err != nil {
		return err
	}
	return g.record.expect(g.ladder.stop == nil)
}

// died handles the end of a process that the agent watched.
func (g *guest) died() {
	for { // its last events
		select {
		case e := <-g.vm.events:
			g.heed(e)
			continue
		default:
		}
		break
	}
	g.vm.letGo()
	g.conditions.clear()
}

// noteVanished finds out how a run ended that the record still has as running.
func (g *guest) noteVanished() {
	r := g.record
	if elsewhere(&r.Part) { // it never ran here
		return
	}
	if r.Launched == nil || r.Ended != nil || !r.Expected || g.ladder.stop != nil {
		return
	}
	if bootID() != r.Launched.BootID {
		return // the host has rebooted: it is restarted whatever its restart policy
	}
	g.restarts.noteEnd(ended{Word: "Crashed", Failed: true, Reason: "its QEMU ended unexpectedly: see " + filepath.Join(g.dir, "qemu.log")})
}
