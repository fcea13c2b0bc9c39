package nodeagent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
)

// baseHandler verifies the underlay and has it encrypted. The operating system
// configures it, by the network units that Ignition wrote.
type baseHandler struct {
	nics    func() ([]api.HostNIC, error)
	encrypt func(context.Context, api.Underlay) error
}

func (baseHandler) Kind() string { return api.PartBase }

func (h baseHandler) Reconcile(ctx context.Context, parts []Part) map[string]api.PartStatus {
	out := map[string]api.PartStatus{}
	for _, p := range parts {
		out[p.Key()] = h.status(ctx, p)
	}
	return out
}

func (h baseHandler) status(ctx context.Context, p Part) api.PartStatus {
	base, ok := p.Value.(*api.BasePart)
	if p.Want == Removed || !ok {
		return api.PartStatus{State: api.PartApplied}
	}
	unencrypted := h.encrypt(ctx, base.Underlay) // even if the checks below fail
	nics, err := h.nics()
	if err != nil {
		return api.PartStatus{State: api.PartPending, Message: err.Error()}
	}
	if fault := checkUnderlay(base.Underlay, nics); fault != "" {
		return api.PartStatus{State: api.PartPending, Message: fault}
	}
	if unencrypted != nil {
		return api.PartStatus{State: api.PartPending, Message: "underlay is not encrypted: " + unencrypted.Error()}
	}
	return api.PartStatus{State: api.PartApplied}
}

// checkUnderlay returns what the underlay lacks, or "".
func checkUnderlay(want api.Underlay, nics []api.HostNIC) string {
	if want.Interface == "" {
		return ""
	}
	i := slices.IndexFunc(nics, func(n api.HostNIC) bool { return n.Name == want.Interface })
	if i < 0 {
		var names []string
		for _, n := range nics {
			names = append(names, n.Name)
		}
		return fmt.Sprintf("underlay %s: no such interface (present: %s); see the Machine's links and the host's network units",
			want.Interface, strings.Join(names, ", "))
	}
	nic := nics[i]
	if !nic.Up {
		return fmt.Sprintf("underlay %s: the interface is down or has no carrier; see its cable and switch port", nic.Name)
	}
	var missing []string
	for _, addr := range want.Addresses {
		if !slices.ContainsFunc(nic.Addresses, func(p netip.Prefix) bool { return p.Addr() == addr }) {
			missing = append(missing, addr.String())
		}
	}
	if len(missing) > 0 {
		return fmt.Sprintf("underlay %s: the interface lacks %s; see the host's network units", nic.Name, strings.Join(missing, ", "))
	}
	if want.MTU > nic.MTU {
		return fmt.Sprintf("underlay %s: its MTU is %d, it needs %d", nic.Name, nic.MTU, want.MTU)
	}
	return ""
}
