package boot

import (
	"net/netip"
	"testing"

	"github.com/rackweft/rackweft/api"
)

func TestReservesOther(t *testing.T) {
	machine := func(change func(*api.Machine)) *api.Machine {
		m := &api.Machine{Spec: api.MachineSpec{Links: []api.Link{{Name: "pxe0", MAC: "52:54:00:00:00:01", Subnet: "pxe", Addresses: []netip.Addr{netip.MustParseAddr("198.18.0.7")}}}}}
		m.Metadata.Name = "r1"
		change(m)
		return m
	}
	same := func(*api.Machine) {}
	without := machine(func(m *api.Machine) { m.Spec.Links[0].Addresses = nil })
	for name, x := range map[string]struct {
		old, now api.Object
		want     bool
	}{
		"a label":     {machine(same), machine(func(m *api.Machine) { m.Metadata.Labels = map[string]string{"a": "b"} }), false},
		"the Profile": {machine(same), machine(func(m *api.Machine) { m.Spec.Profile = "worker" }), false},
		"IPv6 too": {machine(same), machine(func(m *api.Machine) {
			m.Spec.Links[0].Addresses = append(m.Spec.Links[0].Addresses, netip.MustParseAddr("fd00::1"))
		}), false},
		"the address":  {machine(same), machine(func(m *api.Machine) { m.Spec.Links[0].Addresses[0] = netip.MustParseAddr("198.18.0.8") }), true},
		"the MAC":      {machine(same), machine(func(m *api.Machine) { m.Spec.Links[0].MAC = "52:54:00:00:00:02" }), true},
		"the Subnet":   {machine(same), machine(func(m *api.Machine) { m.Spec.Links[0].Subnet = "other" }), true},
		"new":          {nil, machine(same), true},
		"gone":         {machine(same), nil, true},
		"new, dynamic": {nil, without, false},
		"the bond's first member": {
			machine(func(m *api.Machine) {
				m.Spec.Links[0].Bond = &api.Bond{Members: []api.MAC{"52:54:00:00:00:01", "52:54:00:00:00:02"}}
			}),
			machine(func(m *api.Machine) {
				m.Spec.Links[0].Bond = &api.Bond{Members: []api.MAC{"52:54:00:00:00:02", "52:54:00:00:00:01"}}
			}), true},
	} {
		if got := ReservesOther(x.old, x.now); got != x.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
