package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	gobgp "github.com/osrg/gobgp/v3/api"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

// vtep is a host with VNI 100, and FRR that tells of it: a client of the Zone, or
// a border leaf.
type vtep struct {
	*host
	dir string // of FRR's sockets
}

// newVTEP has a host's VXLAN come from an address, its own or another's.
func (z *zone) newVTEP(h *host, asn int, password func(*host) string, local string, reflectors ...*host) *vtep {
	t := z.t
	t.Helper()
	for _, line := range []string{
		"link add vx100 type vxlan id 100 dstport 4789 nolearning local " + local,
		"link add br100 type bridge", "link set vx100 master br100", "link set vx100 up", "link set br100 up",
		"link add guest type veth peer name port", "link set port master br100", "link set port up", "link set guest up",
	} {
		h.in(append([]string{"ip"}, strings.Fields(line)...)...)
	}
	var conf strings.Builder
	_, _ = fmt.Fprintf(&conf, "router bgp %d\n bgp router-id %s\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n", asn, h.address)
	for _, r := range reflectors {
		_, _ = fmt.Fprintf(&conf, " neighbor %[1]s remote-as %[2]d\n neighbor %[1]s timers connect 3\n neighbor %[1]s ttl-security hops 1\n neighbor %[1]s password %[3]s\n",
			r.address, zoneASN, password(r))
	}
	_, _ = fmt.Fprintf(&conf, " address-family ipv4 unicast\n%[1]s exit-address-family\n address-family l2vpn evpn\n%[1]s  advertise-all-vni\n  vni 100\n   route-target both 100:100\n  exit-vni\n exit-address-family\n",
		each(reflectors, "  neighbor %s activate\n"))
	return &vtep{h, h.frr(conf.String())}
}

func each(hosts []*host, format string) string {
	var text strings.Builder
	for _, h := range hosts {
		_, _ = fmt.Fprintf(&text, format, h.address)
	}
	return text.String()
}

// show asks FRR.
func (v *vtep) show(command string) string {
	v.rig.t.Helper()
	return v.in("vtysh", "--vty_socket", v.dir, "-c", command)
}

// sends waits for the host's kernel to send to a remote VTEP: by MAC address, or
// what all are to have, which has the address of zeros.
func (v *vtep) sends(mac string, to *host) func() error {
	return func() error {
		got := v.in("bridge", "fdb", "show", "dev", "vx100")
		for _, line := range strings.Split(got, "\n") {
			if strings.HasPrefix(line, mac+" ") && strings.Contains(line, "dst "+to.address.String()+" ") {
				return nil
			}
		}
		return fmt.Errorf("%s does not send %s to %s:\n%s\n%s", v.name, mac, to.name, got, v.show("show bgp l2vpn evpn"))
	}
}

// knows looks for routes of a VTEP, by their RD.
func (v *vtep) knows(of *host) bool {
	v.rig.t.Helper()
	return strings.Contains(v.show("show bgp l2vpn evpn"), "Route Distinguisher: "+of.address.String()+":")
}

func (v *vtep) lacks(of *host) func() error {
	return func() error {
		if v.knows(of) {
			return fmt.Errorf("%s knows routes of %s:\n%s", v.name, of.name, v.show("show bgp l2vpn evpn"))
		}
		return nil
	}
}

// says waits for FRR to tell of an address as its VTEP's.
func (v *vtep) says(address string) func() error {
	return func() error {
		if got := v.show("show bgp l2vpn evpn"); !strings.Contains(got, "["+address+"]") {
			return fmt.Errorf("%s does not tell of %s:\n%s", v.name, address, got)
		}
		return nil
	}
}

func (h *host) told(name string, routes int) func() error {
	return func() error {
		if s := h.session(name); !s.Established() || s.EVPN < routes {
			return fmt.Errorf("%s has heard of %d EVPN routes from %s, not %d: %s", h.name, s.EVPN, name, routes, h.status().Line())
		}
		return nil
	}
}

// TestEVPN has FRR on VTEPs hear of each other by two reflectors.
func TestEVPN(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	z := newZone(t, 4)
	r1, r2 := z.reflectors[0], z.reflectors[1]
	own := func(h *host) func(*host) string { return func(r *host) string { return key(r, h) } }
	c4, l1 := z.clients[3], z.host("l1", 201)
	uplink := leaf(l1, "leaf")
	uplink.Families = []string{api.FamilyIPv4, api.FamilyEVPN}
	z.uplinks["r1"] = []api.BGPNeighbor{uplink}
	on := false
	z.extra = func(h *host, p *api.BGPPart) {
		p.EVPN = on
		for i := range p.Neighbors {
			if !on && p.Neighbors[i].Role == api.BGPUplink {
				p.Neighbors[i].Families = nil
			}
		}
		if h == r1 || h == r2 { // which peer, as bootd has them
			other := r1
			if h == r1 {
				other = r2
			}
			p.Neighbors = append(p.Neighbors, api.BGPNeighbor{Name: other.name, Address: other.address, ASN: zoneASN, Role: api.BGPReflector,
				Passive: h == r2, Password: key(r1, r2), Import: []api.PrefixFilter{{Prefix: prefixes("198.19.0.0/16")[0], LE: 32}}})
		}
	}
	z.tell()
	for _, h := range []*host{r1, r2, c4} {
		h.speak()
	}
	c1 := z.newVTEP(z.clients[0], zoneASN, own(z.clients[0]), "198.18.9.11", r1)
	c2 := z.newVTEP(z.clients[1], zoneASN, own(z.clients[1]), "198.18.9.12", r2)
	liar := z.newVTEP(z.clients[2], zoneASN, own(z.clients[2]), "198.18.9.99", r1, r2)
	l := z.newVTEP(l1, 64600, func(*host) string { return "leaf" }, l1.address.String(), r1)
	// What r1 had been told before, and had let in, comes to c1 before the address
	// of a guest of c2's does.
	fence := func(guest byte) {
		t.Helper()
		mac := fmt.Sprintf("02:00:00:00:00:%02x", guest)
		eventually(t, func() error {
			c2.in("bridge", "fdb", "replace", mac, "dev", "port", "master", "dynamic")
			return c1.sends(mac, c2.host)()
		})
	}

	t.Run("off unless set", func(t *testing.T) {
		eventually(t, up(r1, "c1"), up(r1, "r2"), up(r1, "l1"), up(r2, "c2"), up(c4, "r1"))
		got := c1.show("show bgp neighbors " + r1.address.String())
		if !strings.Contains(got, "Address Family L2VPN EVPN: advertised\n") {
			t.Errorf("FRR is not to have EVPN agreed on, and says:\n%s", got)
		}
		for _, h := range []*host{r1, r2} {
			for _, s := range h.status().Sessions {
				if s.EVPN != 0 {
					t.Errorf("%s: %+v", h.name, s)
				}
			}
		}
	})
	on = true
	for _, h := range []*host{r1, r2, c4} {
		h.kill()
	}
	z.tell()
	for _, h := range []*host{r1, r2, c4} {
		h.speak()
	}
	const all = "00:00:00:00:00:00"
	t.Run("routes", func(t *testing.T) {
		eventually(t, c1.sends(all, c2.host), c2.sends(all, c1.host))
		fence(1)
	})
	t.Run("uplink", func(t *testing.T) {
		eventually(t, l.sends(all, c1.host), l.sends(all, c2.host), c2.sends(all, l1), c1.sends(all, l1))
		got := l.show("show bgp l2vpn evpn json")
		if !strings.Contains(got, c2.address.String()) || strings.Contains(got, "64601:1:7") {
			t.Errorf("the leaf is told, with the Zone's community or without c2's address:\n%s", got)
		}
	})
	t.Run("a next hop that is not its own", func(t *testing.T) {
		eventually(t, r1.told("c3", 1), r2.told("c3", 1))
		fence(2)
		for _, v := range []*vtep{c1, c2, l} {
			must(t, v.lacks(liar.host)())
		}
		liar.in("ip", "link", "set", "vx100", "type", "vxlan", "local", liar.address.String())
		eventually(t, c1.sends(all, liar.host), l.sends(all, liar.host)) // nothing else was wrong with it
		liar.in("ip", "link", "set", "vx100", "type", "vxlan", "local", "198.18.9.99")
		eventually(t, liar.says("198.18.9.99"), c1.lacks(liar.host), c2.lacks(liar.host), l.lacks(liar.host), r1.told("c3", 1))
	})
	t.Run("an uplink's next hop that is not its own", func(t *testing.T) {
		l.in("ip", "link", "set", "vx100", "type", "vxlan", "local", "198.18.9.99")
		eventually(t, l.says("198.18.9.99"), c1.lacks(l1), c2.lacks(l1), r1.told("l1", 1))
		fence(3)
		eventually(t, c1.lacks(l1), c2.lacks(l1))
	})
	t.Run("another Zone's community", func(t *testing.T) {
		z.extra = func(next func(*host, *api.BGPPart)) func(*host, *api.BGPPart) {
			return func(h *host, p *api.BGPPart) {
				next(h, p)
				if h == r2 {
					p.Community = "64602:1:7"
				}
			}
		}(z.extra)
		z.tell()
		eventually(t, c1.lacks(c2.host), c2.lacks(c1.host), l.lacks(c2.host), r1.told("r2", 1), r2.told("c2", 1))
	})
	t.Run("a host that speaks is not confused by it", func(t *testing.T) {
		eventually(t, c4.told("r1", 1), func() error {
			s, got := c4.session("r1"), c4.in("ip", "route")
			told, err := c4.client().Routes(t.Context(), "in", "r1")
			if err != nil {
				return err
			}
			if s.Received != len(told) || s.Accepted > s.Received || c4.status().FIB.Unsettled > 0 || strings.Contains(got, c1.address.String()) {
				return fmt.Errorf("%d routes, and %+v; %s\n%s", len(told), s, c4.status().Line(), got)
			}
			return nil
		})
		eventually(t, func() error {
			for _, n := range r1.status().Sessions {
				told, err := r1.client().Routes(t.Context(), "out", n.Name)
				if err != nil {
					return err
				}
				if n.Established() && n.Role == api.BGPClient && n.Advertised != len(told) {
					return fmt.Errorf("r1 tells %s of %d routes, and counts %d", n.Name, len(told), n.Advertised)
				}
			}
			return nil
		})
	})
}

// What is not of IPv4 and IPv6 unicast is neither a route for the kernel nor the
// end of a neighbour's routes.
func TestNoteEVPN(t *testing.T) {
	e := events{wake: wait.NewSignal(), dirty: map[netip.Prefix]bool{}}
	e.note(&gobgp.WatchEventResponse{Event: &gobgp.WatchEventResponse_Table{Table: &gobgp.WatchEventResponse_TableEvent{
		Paths: []*gobgp.Path{{Family: evpn(), NeighborIp: "198.18.9.1"}}}}})
	if dirty, complete, _ := e.take(); len(dirty) > 0 || len(complete) > 0 {
		t.Errorf("EVPN alone has %v complete, %v dirty", complete, dirty)
	}
	e.note(&gobgp.WatchEventResponse{Event: &gobgp.WatchEventResponse_Table{Table: &gobgp.WatchEventResponse_TableEvent{
		Paths: []*gobgp.Path{{Family: toFamily(true), NeighborIp: "198.18.9.1"}}}}})
	if _, complete, _ := e.take(); len(complete) != 1 {
		t.Errorf("the end of IPv4 routes has %v complete", complete)
	}
}

// Where EVPN is off nothing has to do with it, and where it is on each family has
// its limit, and no client is let in without a next hop of its own.
func TestEVPNPart(t *testing.T) {
	off, err := parsePart([]byte(reflectorPart))
	must(t, err)
	part := off
	part.EVPN = true
	part.Neighbors = slices.Clone(off.Neighbors)
	for i := range part.Neighbors {
		part.Neighbors[i].Families = nil
	}
	part.Neighbors = append(part.Neighbors, api.BGPNeighbor{Name: "nobody", Address: part.Neighbors[0].Address.Next(), ASN: part.ASN, Role: api.BGPClient})
	setDefaults(&part)
	must(t, validate(part))
	if !needsRestart(off, part) || len(globalFamilies(off)) != 2 || len(globalFamilies(part)) != 3 {
		t.Error("GoBGP is not started anew with the family")
	}
	count := func(c *policy) (n int) {
		for _, s := range slices.Concat(c.imports, c.exports) {
			for _, f := range s.Conditions.AfiSafiIn {
				if f.Safi == gobgp.Family_SAFI_EVPN {
					n++
				}
				if s.Conditions.NeighborSet == nil {
					t.Errorf("%s is for anybody", s.Name)
				}
			}
			if slices.Contains(s.Conditions.NextHopInList, "") || strings.HasPrefix(s.Name, "in-evpn") && len(s.Conditions.NextHopInList) == 0 {
				t.Errorf("%s has no next hops", s.Name)
			}
		}
		return n
	}
	if a, b := count(compilePolicy(off)), count(compilePolicy(part)); a != 0 || b != 1 { // of c1 alone
		t.Errorf("%d statements, and %d where it is off", b, a)
	}
	for name, want := range map[string][]uint32{"c1": {512, 512, 10000}, "leaf": {10000, 10000}} {
		n := part.Neighbors[slices.IndexFunc(part.Neighbors, func(n api.BGPNeighbor) bool { return n.Name == name })]
		var got []uint32
		for _, f := range (&bgpServer{}).peer(part, n).AfiSafis {
			got = append(got, f.PrefixLimits.MaxPrefixes)
			if f.Config.Family.Safi == gobgp.Family_SAFI_EVPN && (f.AddPaths.Config.Receive || f.AddPaths.Config.SendMax > 0) {
				t.Errorf("%s is told all EVPN paths", name)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("limits of %s: %v, want %v", name, got, want)
		}
	}
}
