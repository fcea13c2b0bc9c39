package nft

import (
	"reflect"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
)

// Chain is a list of rules that the kernel evaluates at a hook.
type Chain struct {
	Name   string
	Hook   Hook
	Policy Policy
	Rules  []Rule
}

// Policy is the verdict for packets that no rule of a chain decides on.
type Policy = nftables.ChainPolicy

// The policies.
const (
	PolicyDrop   = nftables.ChainPolicyDrop
	PolicyAccept = nftables.ChainPolicyAccept
)

// Hook is where, and in which order, the kernel evaluates a chain.
type Hook struct {
	kind     nftables.ChainType
	at       *nftables.ChainHook
	priority *nftables.ChainPriority
	device   string
}

func filterAt(hook *nftables.ChainHook) Hook {
	return Hook{kind: nftables.ChainTypeFilter, at: hook, priority: nftables.ChainPriorityFilter}
}

// Input is the hook of packets to this host.
func Input() Hook { return filterAt(nftables.ChainHookInput) }

// Forward is the hook of packets that this host forwards.
func Forward() Hook { return filterAt(nftables.ChainHookForward) }

// Output is the hook of packets that this host sends.
func Output() Hook { return filterAt(nftables.ChainHookOutput) }

// SourceNAT is the hook of the first packet of each outgoing connection.
func SourceNAT() Hook {
	return Hook{kind: nftables.ChainTypeNAT, at: nftables.ChainHookPostrouting, priority: nftables.ChainPriorityNATSource}
}

// Ingress is the hook of frames that a device receives.
func Ingress(device string) Hook {
	h := filterAt(nftables.ChainHookIngress)
	h.device = device
	return h
}

// Egress is the hook of frames that a device sends.
func Egress(device string) Hook {
	h := filterAt(nftables.ChainHookEgress)
	h.device = device
	return h
}

// Raw returns the hook before connection tracking.
func (h Hook) Raw() Hook {
	h.priority = nftables.ChainPriorityRaw
	return h
}

func (c Chain) kernel(table *nftables.Table) *nftables.Chain {
	return &nftables.Chain{Name: c.Name, Table: table, Hooknum: c.Hook.at, Priority: c.Hook.priority, Type: c.Hook.kind,
		Policy: &c.Policy, Device: c.Hook.device}
}

// alike compares everything but the rules. A chain is removed with its device.
func (c Chain) alike(s *nftables.Chain) bool {
	return s.Hooknum != nil && *s.Hooknum == *c.Hook.at && s.Priority != nil && *s.Priority == *c.Hook.priority &&
		s.Type == c.Hook.kind && s.Policy != nil && *s.Policy == c.Policy
}

// kernel returns the rule in the kernel's form.
func (r Rule) kernel(table *nftables.Table, ch *nftables.Chain) *nftables.Rule {
	out := &nftables.Rule{Table: table, Chain: ch, UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment())}
	for _, t := range r {
		out.Exprs = append(out.Exprs, t.Exprs...)
	}
	return out
}

// alike compares a rule with the expressions that the kernel lists.
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
