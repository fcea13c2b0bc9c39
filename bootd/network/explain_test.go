package network

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

func explainSite() *Paths {
	network := func(name string, vni uint32, spec api.NetworkSpec) *api.Network {
		n := &api.Network{Spec: spec, Status: api.NetworkStatus{VNI: vni}}
		n.Metadata.Name = name
		n.SetDefaults()
		return n
	}
	guest := func(name, network, host, addr string, state api.GuestState) *api.Guest {
		g := &api.Guest{Spec: api.GuestSpec{Network: network}, Status: api.GuestStatus{Host: host, State: state}}
		g.Metadata.Name = name
		if addr != "" {
			g.Status.Addresses = []netip.Addr{netip.MustParseAddr(addr)}
		}
		return g
	}
	member := func(kind api.MemberKind, host, lease, vtep string, state api.PartState) api.NetworkMember {
		m := api.NetworkMember{Kind: kind, Host: host, Lease: netip.MustParsePrefix(lease), State: state}
		if vtep != "" {
			m.VTEP, m.MAC = netip.MustParseAddr(vtep), api.MAC("02:00:00:00:00:"+vtep[len(vtep)-2:])
		}
		return m
	}
	broken := member(api.MemberHost, "r1u09", "10.5.9.0/24", "198.18.8.19", api.PartFailed)
	broken.Message = "the underlay is down"
	members := map[string][]api.NetworkMember{
		"blue": {
			member(api.MemberHost, "r1u07", "10.5.7.0/24", "198.18.8.17", api.PartApplied),
			member(api.MemberHost, "r1u08", "10.5.8.0/24", "198.18.8.18", api.PartApplied),
			member(api.MemberGuest, "r1u08", "10.5.7.8/31", "198.18.8.18", api.PartApplied),
			broken,
			member(api.MemberHost, "r1u10", "10.5.10.0/24", "198.18.8.20", ""),
			member(api.MemberFlanneld, "198.18.8.99", "10.5.99.0/24", "198.18.8.99", ""),
			member(api.MemberReservation, "", "10.5.200.0/24", "", ""),
		},
		"red":  {member(api.MemberHost, "r1u08", "10.6.8.0/24", "198.18.8.18", api.PartApplied)},
		"open": {member(api.MemberHost, "r1u07", "10.7.7.0/24", "198.18.8.17", api.PartApplied), member(api.MemberHost, "r1u08", "10.7.8.0/24", "198.18.8.18", api.PartApplied)},
	}
	return &Paths{
		Networks: []*api.Network{
			network("blue", 10017, api.NetworkSpec{CIDRs: testsite.Prefixes("10.5.0.0/16")}),
			network("red", 10018, api.NetworkSpec{CIDRs: testsite.Prefixes("10.6.0.0/16"), Allow: []string{"blue"}}),
			network("open", 10019, api.NetworkSpec{CIDRs: testsite.Prefixes("10.7.0.0/16"), Egress: "masquerade", Allow: []string{"blue"}}),
			network("shut", 10020, api.NetworkSpec{CIDRs: testsite.Prefixes("10.8.0.0/16")}),
		},
		Guests: []*api.Guest{
			guest("web", "blue", "r1u07", "10.5.7.4", "Running"),
			guest("near", "blue", "r1u07", "10.5.7.6", "Running"),
			guest("far", "blue", "r1u08", "10.5.8.4", "Running"),
			guest("moved", "blue", "r1u08", "10.5.7.8", "Running"),
			guest("lost", "blue", "r1u08", "10.5.7.10", "Running"),
			guest("off", "blue", "r1u08", "10.5.8.6", "Stopped"),
			guest("fresh", "blue", "", "", ""),
			guest("db", "open", "r1u08", "10.7.8.4", "Running"),
			guest("cache", "shut", "r1u08", "10.8.8.4", "Running"),
		},
		Members: func(network string) []api.NetworkMember { return members[network] },
		Closed:  testsite.Prefixes("198.18.0.0/24"),
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		name, network, from, to string
		delivered               bool
		want                    []string // in the steps, in this order
	}{
		{"same host", "blue", "web", "near", true, []string{"guest web (10.5.7.4) sends it", "delivered to guest near (10.5.7.6) on br-10017"}},
		{"another host", "blue", "web", "far", true, []string{
			"routed to r1u08", "10.5.8.0/24 via 10.5.8.0 dev flannel.10017 onlink; neighbour 10.5.8.0 lladdr 02:00:00:00:00:18; fdb 02:00:00:00:00:18 dst 198.18.8.18",
			"accepts VNI 10017 from VTEP 198.18.8.17", "delivered to guest far"}},
		{"by address", "blue", "10.5.7.4", "10.5.8.4", true, []string{"guest web", "guest far"}},
		{"a moved guest has the longer lease", "blue", "web", "moved", true, []string{"routed to r1u08", "10.5.7.8/31 via 10.5.7.8"}},
		{"its lease has not followed", "blue", "web", "lost", false, []string{"on r1u08, but its address is in the lease 10.5.7.0/24 of r1u07", "has not followed"}},
		{"it is stopped", "blue", "web", "off", false, []string{"guest off (10.5.8.6) is not running", `"Stopped"`}},
		{"no Guest has the address", "blue", "web", "10.5.8.200", true, []string{"bootd knows no Guest that has it", "delivered to 10.5.8.200"}},
		{"nobody has a lease", "blue", "web", "10.5.77.1", false, []string{"no host has a lease", "weftctl network peers blue"}},
		{"a broken host", "blue", "web", "10.5.9.4", false, []string{"Failed on r1u09", "the underlay is down"}},
		{"a host that says nothing", "blue", "web", "10.5.10.4", false, []string{"r1u10 has not reported on"}},
		{"a stock flanneld", "blue", "web", "10.5.99.4", true, []string{"sent to its VTEP 198.18.8.99"}},
		{"a reservation", "blue", "web", "10.5.200.4", false, []string{"reserved"}},
		{"the gateway", "blue", "web", "169.254.1.1", true, []string{"every guest's gateway"}},
		{"an allowed Network", "blue", "web", "open/db", true, []string{"crosses into Network open", "routed to r1u08", "VNI 10019", "delivered to guest db"}},
		{"an allowed Network, by address", "blue", "web", "10.7.8.4", true, []string{"crosses into Network open"}},
		{"not allowed the other way", "open", "db", "blue/far", false, []string{"does not admit open", "to that address outside"}},
		{"a Network that the host is not on", "blue", "web", "10.6.8.4", false, []string{"r1u07 has no lease of", "must be a member of both"}},
		{"a Network that admits no other", "blue", "web", "shut/cache", false, []string{"does not admit blue", "add blue to spec.allow of Network shut"}},
		{"no egress", "blue", "web", "203.0.113.9", false, []string{"outside of Network blue", "spec.egress of Network blue is none"}},
		{"egress", "open", "db", "203.0.113.9", true, []string{"leaves by the host's default route"}},
		{"egress to a Subnet of the Site", "open", "db", "198.18.0.7", false, []string{"198.18.0.0/24 is a Subnet of the Site"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path, err := explainSite().Explain(c.network, c.from, c.to)
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			for _, s := range path.Steps {
				text.WriteString(s.Host + ": " + s.What + " | " + s.Entry + " | " + s.Problem + "\n")
			}
			rest := text.String()
			for _, want := range c.want {
				_, after, found := strings.Cut(rest, want)
				if !found {
					t.Errorf("%q does not follow in\n%s", want, text.String())
					break
				}
				rest = after
			}
			if last := path.Steps[len(path.Steps)-1]; path.Delivered != c.delivered || path.Delivered != (last.Problem == "") {
				t.Errorf("delivered is %v, and the last step is %+v", path.Delivered, last)
			}
		})
	}
}

func TestExplainRefuses(t *testing.T) {
	for _, c := range []struct{ network, from, to, want string }{
		{"green", "web", "far", "no Network green"},
		{"blue", "nobody", "far", "neither an address nor a Guest"},
		{"blue", "open/db", "far", "is not on Network blue"},
		{"blue", "fresh", "far", "no address yet"},
		{"blue", "web", "fd00::1", "of different families"},
	} {
		if _, err := explainSite().Explain(c.network, c.from, c.to); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %s to %s: %v, want one with %q", c.network, c.from, c.to, err, c.want)
		}
	}
}
