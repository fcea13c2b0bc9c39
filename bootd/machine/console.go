package machine

import (
	"context"
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
)

// LearnConsole writes down how a Machine's serial console is reached, and pins the host key that the BMC's SSH server
// showed (empty: it was not asked) where none is pinned yet.
func LearnConsole(ctx context.Context, e control.Env, m *api.Machine, kind api.ConsoleKind, hostKey api.HostKey) error {
	return mutate(ctx, e, m, func(fresh *api.Machine) {
		if fresh.Spec.BMC == nil || fresh.Spec.BMC.Address != m.Spec.BMC.Address {
			return
		}
		if hostKey != "" {
			fresh.LearnBMC(m.Spec.BMC.Address, "", hostKey, time.Now())
		}
		fresh.Status.BMC.Console = kind
	})
}

// lookAt says where a person sees what a Machine shows.
func lookAt(m *api.Machine) string {
	if m.HasConsole() {
		return "read its console (weftctl console " + m.Metadata.Name + ")"
	}
	return "look at its screen (no serial console of it is known)"
}

// saidLast is the end of a message about a boot that failed: what its console has shown last.
func saidLast(line string) string {
	if line == "" {
		return ""
	}
	return fmt.Sprintf("; the last on its console: %q", line)
}
