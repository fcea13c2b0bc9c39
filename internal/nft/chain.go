package nft

import (
	"reflect"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
)

// Chain is a list of rules that the kernel asks at a hook.
type Chain struct {
	Name   string
	Hook   Hook
	Policy Policy
	Rules  []Rule
}

// Policy is what becomes of a packet that no rule of a chain decides on.
type Policy = nftables.ChainPolicy

// The policies.
const (
	PolicyDrop   = nftables.ChainPolicyDrop
	PolicyAccept = nftables.ChainPolicyAccept
)

// Hook is where, and in which order, the kernel asks a chain.
type Hook struct {
	kind     nftables.ChainType
	at       *nftables.ChainHook
	priority *nftables.ChainPriority
	device   string
}

func filterAt(hook *nftables.ChainHook) Hook {
	return Hook{kind: nftables.ChainTypeFilter, at: hook, priority: nftables.ChainPriorityFilter}
}

// Input is for packets to this host.
func Input() Hook { return filterAt(nftables.ChainHookInput) }

// Forward is for packets that this host forwards.
func Forward() Hook { return filterAt(nftables.ChainHookForward) }

// Output is for packets of this host.
func Output() Hook { return filterAt(nftables.ChainHookOutput) }

// SourceNAT is for the first packet of each connection that leaves.
func SourceNAT() Hook {
	return Hook{kind: nftables.ChainTypeNAT, at: nftables.ChainHookPostrouting, priority: nftables.ChainPriorityNATSource}
}

// Ingress is for frames that a device receives.
func Ingress(device string) Hook {
	h := filterAt(nftables.ChainHookIngress)
	h.device = device
	return h
}

// Egress is for frames that a device sends.
func Egress(device string) Hook {
	h := filterAt(nftables.ChainHookEgress)
	h.device = device
	return h
}

// Raw is the hook before all that tracks connections.
func (h Hook) Raw() Hook {
	h.priority = nftables.ChainPriorityRaw
	return h
}

func (c Chain) kernel(table *nftables.Table) *nftables.Chain {
	return &nftables.Chain{Name: c.Name, Table: table, Hooknum: c.Hook.at, Priority: c.Hook.priority, Type: c.Hook.kind,
		Policy: &c.Policy, Device: c.Hook.device}
}

// alike compares all but the rules. A chain goes with its device.
func (c Chain) alike(s *nftables.Chain) bool {
	return s.Hooknum != nil && *s.Hooknum == *c.Hook.at && s.Priority != nil && *s.Priority == *c.Hook.priority &&
		s.Type == c.Hook.kind && s.Policy != nil && *s.Policy == c.Policy
}

// kernel is the rule as the kernel takes it.
func (r Rule) kernel(table *nftables.Table, ch *nftables.Chain) *nftables.Rule {
	out := &nftables.Rule{Table: table, Chain: ch, UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment())}
	for _, t := range r {
		out.Exprs = append(out.Exprs, t.Exprs...)
	}
	return out
}

// alike compares a rule with what the kernel executes, as it says itself.
func (r Rule) alike(s *nftables.Rule) bool {
	comment, _ := userdata.GetString(s.UserData, userdata.TypeComment)
	if comment != r.comment() {
		return false
	}
	i := 0
	for _, t := range r {
		for _, e := range t.Exprs {
			if i == len(s.Exprs) || !reflect.DeepEqual(e, s.Exprs[i]) {
				return false
			}
			i++
		}
	}
	return i == len(s.Exprs)
}
