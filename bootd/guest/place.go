package guest

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
)

// QEMU's memory in addition to its guest's: its own code and heap, page tables and dirty bitmaps (in proportion),
// stacks and buffers of each processor's thread.
const (
	overheadFixed  = 64 << 20
	overheadPerCPU = 8 << 20
	overheadShare  = 64 // divisor of the guest's memory
)

// footprint is the memory that a Guest uses on its host, in bytes.
func footprint(s *api.GuestSpec) int64 {
	memory := s.Memory.Value()
	return memory + memory/overheadShare + overheadFixed + int64(s.CPUs)*overheadPerCPU
}

// candidate is a host as placement sees it.
type candidate struct {
	machine *api.Machine
	member  bool // it has a lease of the Guest's Network
	guests  []*api.Guest
}

// room is a host's capacity for Guests, and what its Guests use.
type room struct {
	cpus, usedCPUs     int // in percent of the host's
	memory, usedMemory int64
}

func (c candidate) room(h api.GuestHosting) room {
	var r room
	cpus, memory := capacity(c.machine)
	r.cpus = cpus * h.CPUOvercommit
	r.memory = max(0, memory-h.HostMemory.Value()) / 100 * int64(h.MemoryOvercommit)
	for _, g := range c.guests {
		r.usedCPUs += g.Spec.CPUs * 100
		r.usedMemory += footprint(&g.Spec)
	}
	return r
}

// Limits of what a host may report about itself: placement computes with it.
const (
	maxCPUs   = 1 << 13
	maxMemory = 1 << 50
)

// capacity is what the host's kernel has reported; before that, what its BMC has.
func capacity(m *api.Machine) (cpus int, memory int64) {
	if h := m.Status.Host; h != nil && h.CPUs > 0 {
		cpus, memory = h.CPUs, h.Memory.Value()
	} else if i := m.Status.Inventory; i != nil {
		cpus, memory = i.CPUs.Cores, min(i.MemoryMiB, maxMemory>>20)<<20
	}
	return max(0, min(cpus, maxCPUs)), max(0, min(memory, maxMemory))
}

// refusals collects why hosts are unfit, for the person who waits.
type refusals struct {
	order []string
	hosts map[string][]string
}

func (r *refusals) add(why, host string) {
	if r.hosts == nil {
		r.hosts = map[string][]string{}
	}
	if r.hosts[why] == nil {
		r.order = append(r.order, why)
	}
	r.hosts[why] = append(r.hosts[why], host)
}

func (r *refusals) String() string {
	var words []string
	for _, why := range r.order {
		words = append(words, fmt.Sprintf("%s (%s)", why, few(r.hosts[why])))
	}
	return strings.Join(words, "; ")
}

// few names some of a list.
func few(names []string) string {
	const most = 4
	if more := len(names) - most; more > 0 {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(names, ", ")
}

// choose picks a host for a Guest: a fit one, in the rack with the fewest of its anti-affinity group, with the
// largest share of free memory. Ties are broken by name, so that the result is deterministic.
func choose(g *api.Guest, hosting api.GuestHosting, all []candidate) (*api.Machine, *refusals) {
	refused := new(refusals)
	var fit []candidate
	racks := map[string]int{}
	for _, c := range all {
		if together(g, c.guests) {
			racks[c.machine.Spec.Location.Rack]++
		}
		if why := unfit(g, hosting, c); why != "" {
			refused.add(why, c.machine.Metadata.Name)
			continue
		}
		fit = append(fit, c)
	}
	if len(fit) == 0 {
		return nil, refused
	}
	free := func(c candidate) float64 {
		r := c.room(hosting)
		return 1 - float64(r.usedMemory+footprint(&g.Spec))/float64(r.memory)
	}
	best := slices.MinFunc(fit, func(a, b candidate) int {
		return cmp.Or(
			cmp.Compare(racks[a.machine.Spec.Location.Rack], racks[b.machine.Spec.Location.Rack]),
			cmp.Compare(free(b), free(a)),
			strings.Compare(a.machine.Metadata.Name, b.machine.Metadata.Name))
	})
	return best.machine, nil
}

// together reports whether one of the Guests is in g's anti-affinity group.
func together(g *api.Guest, guests []*api.Guest) bool {
	word := g.Spec.Placement.AntiAffinity
	return word != "" && slices.ContainsFunc(guests, func(o *api.Guest) bool {
		return o.Metadata.UID != g.Metadata.UID && o.Spec.Placement.AntiAffinity == word
	})
}

// unfit says why a host cannot run a Guest, or "".
func unfit(g *api.Guest, hosting api.GuestHosting, c candidate) string {
	m := c.machine
	for key, value := range g.Spec.Placement.Labels {
		if m.Metadata.Labels[key] != value {
			return fmt.Sprintf("label %s is not %q", key, value)
		}
	}
	r := c.room(hosting)
	switch {
	case m.Status.Phase != api.PhaseActive:
		return "not Active"
	case m.Draining():
		return "being drained"
	case !c.member:
		return "without a lease of Network " + g.Spec.Network
	case together(g, c.guests):
		return "has a Guest of anti-affinity " + g.Spec.Placement.AntiAffinity
	case r.memory == 0:
		return "has not reported its memory"
	case r.usedMemory+footprint(&g.Spec) > r.memory:
		return fmt.Sprintf("lacks %.1f GiB of memory", float64(footprint(&g.Spec))/(1<<30))
	case r.usedCPUs+g.Spec.CPUs*100 > r.cpus:
		return fmt.Sprintf("lacks %d processors", g.Spec.CPUs)
	}
	return ""
}

// address chooses a Guest's IPv4 address from its host's lease: always an even one, so that its /31 is its own.
// The lease's first pair belongs to the VTEP and the bridge.
func address(lease netip.Prefix, taken map[netip.Addr]bool) (netip.Addr, bool) {
	a := lease.Masked().Addr().Next().Next()
	for ; lease.Contains(a); a = a.Next().Next() {
		last := a.Next()
		if !lease.Contains(last) {
			return netip.Addr{}, false
		}
		if broadcast := !lease.Contains(last.Next()); broadcast {
			return netip.Addr{}, false // the last pair contains the lease's broadcast address
		}
		if !taken[a] {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// address6 is the IPv6 address for an IPv4 one: at the same offset in the lease.
func address6(lease6, lease netip.Prefix, v4 netip.Addr) (netip.Addr, bool) {
	if !lease6.IsValid() {
		return netip.Addr{}, false
	}
	first, own := lease.Masked().Addr().As4(), v4.As4()
	offset := uint32(own[0])<<24 | uint32(own[1])<<16 | uint32(own[2])<<8 | uint32(own[3])
	offset -= uint32(first[0])<<24 | uint32(first[1])<<16 | uint32(first[2])<<8 | uint32(first[3])
	raw := lease6.Masked().Addr().As16()
	for i, b := range []byte{byte(offset >> 24), byte(offset >> 16), byte(offset >> 8), byte(offset)} {
		raw[12+i] |= b
	}
	a := netip.AddrFrom16(raw)
	return a, lease6.Contains(a)
}
