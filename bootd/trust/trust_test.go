package trust

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
)

func TestRequired(t *testing.T) {
	for _, c := range []struct {
		site, profile, machine, want api.TrustLevel
		of                           string
	}{
		{"", "", "", api.TrustToken, "the Site"},
		{api.TrustMAC, "", "", api.TrustMAC, "the Site"},
		{api.TrustToken, api.TrustMAC, "", api.TrustToken, "the Site"},
		{api.TrustMAC, api.TrustNonce, api.TrustAddress, api.TrustNonce, "Profile worker"},
		{api.TrustToken, api.TrustAddress, api.TrustBMC, api.TrustBMC, "Machine r1u07"},
		{api.TrustTPM, api.TrustAddress, api.TrustBMC, api.TrustTPM, "the Site"},
	} {
		p, m := new(api.Profile), new(api.Machine)
		p.Metadata.Name, p.Spec.Trust.Minimum = "worker", c.profile
		m.Metadata.Name, m.Spec.Trust.Minimum = "r1u07", c.machine
		got := Required(api.SiteSpec{Trust: api.SiteTrust{Minimum: c.site}}, p, m)
		if got.Level != c.want || got.Of != c.of {
			t.Errorf("%+v: %+v", c, got)
		}
	}
	if got := Required(api.SiteSpec{}, nil, new(api.Machine)); got.Level != api.TrustToken {
		t.Errorf("without a Profile: %+v", got)
	}
}

// TestJudge goes through every level that can be required, against every
// evidence, at every step.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name    string
		e       Evidence
		reached api.TrustLevel
		ok      []api.TrustLevel
	}{
		{"MAC at the script", Evidence{Step: Script, Chain: api.TrustMAC}, api.TrustMAC, []api.TrustLevel{api.TrustMAC, api.TrustToken}},
		{"MAC at the pointer", Evidence{Step: Pointer, Chain: api.TrustMAC}, api.TrustMAC, []api.TrustLevel{api.TrustMAC, api.TrustToken}},
		{"token", Evidence{Step: Config, Chain: api.TrustMAC}, api.TrustToken, []api.TrustLevel{api.TrustMAC, api.TrustToken}},
		{"port at the script", Evidence{Step: Script, Chain: api.TrustMAC, Port: true}, api.TrustAddress, []api.TrustLevel{api.TrustMAC, api.TrustToken, api.TrustAddress}},
		{"port", Evidence{Step: Config, Chain: api.TrustMAC, Port: true}, api.TrustAddress, []api.TrustLevel{api.TrustMAC, api.TrustToken, api.TrustAddress}},
		{"nonce", Evidence{Step: Script, Chain: api.TrustNonce}, api.TrustNonce, []api.TrustLevel{api.TrustMAC, api.TrustToken, api.TrustAddress, api.TrustNonce}},
		{"secrets of a script that the nonce got", Evidence{Step: Config, Chain: api.TrustNonce}, api.TrustNonce, []api.TrustLevel{api.TrustMAC, api.TrustToken, api.TrustAddress, api.TrustNonce}},
		{"boot URL", Evidence{Step: Config, Chain: api.TrustBMC, Port: true}, api.TrustBMC, []api.TrustLevel{api.TrustMAC, api.TrustToken, api.TrustAddress, api.TrustNonce, api.TrustBMC}},
		{"no evidence at all", Evidence{}, api.TrustMAC, []api.TrustLevel{api.TrustMAC, api.TrustToken}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for i, required := range api.TrustLevels() {
				v := Judge(c.e, Requirement{required, "the Site"})
				if want := i < len(c.ok); v.OK() != want || v.Reached != c.reached || v.Why == "" {
					t.Errorf("%s required: %+v", required, v)
				}
				if !v.OK() && !strings.Contains(v.Missing, string(required)+" is required (by the Site)") {
					t.Errorf("%s required: %q", required, v.Missing)
				}
			}
		})
	}
}

func TestAtPort(t *testing.T) {
	leased := netip.MustParseAddr("198.18.3.100")
	relay := netip.MustParseAddr("198.18.3.1")
	for _, c := range []struct {
		name, toSwitch, port, circuit, remote string
		peer                                  netip.Addr
		ok                                    bool
	}{
		{name: "text", toSwitch: "leaf1", port: "Ethernet7", circuit: "Ethernet7", remote: "leaf1", ok: true},
		{name: "with a VLAN", toSwitch: "leaf1", port: "Ethernet7", circuit: "Ethernet7:Vlan100", remote: "leaf1", ok: true},
		{name: "the relay is the switch", toSwitch: "198.18.3.1", port: "Ethernet7", circuit: "Ethernet7", ok: true},
		{name: "bytes", toSwitch: "198.18.3.1", port: "0x000400640107", circuit: "\x00\x04\x00\x64\x01\x07", ok: true},
		{name: "a switch's MAC", toSwitch: "52:54:00:aa:bb:cc", port: "p", circuit: "p", remote: "\x52\x54\x00\xaa\xbb\xcc", ok: true},
		{name: "a switch's MAC as Cisco sends it", toSwitch: "52:54:00:aa:bb:cc", port: "p", circuit: "p", remote: "\x00\x06\x52\x54\x00\xaa\xbb\xcc", ok: true},
		{name: "another port", toSwitch: "leaf1", port: "Ethernet7", circuit: "Ethernet8", remote: "leaf1"},
		{name: "a longer number", toSwitch: "leaf1", port: "Ethernet7", circuit: "Ethernet71", remote: "leaf1"},
		{name: "a breakout of the port", toSwitch: "leaf1", port: "Ethernet7", circuit: "Ethernet7/1", remote: "leaf1"},
		{name: "a unit of the port", toSwitch: "leaf1", port: "ge-0/0/1", circuit: "ge-0/0/1.0:v", remote: "leaf1"},
		{name: "nothing after the colon", toSwitch: "leaf1", port: "Ethernet7", circuit: "Ethernet7:", remote: "leaf1"},
		{name: "no circuit ID", toSwitch: "leaf1", port: "Ethernet7", remote: "leaf1"},
		{name: "another switch", toSwitch: "leaf1", port: "Ethernet7", circuit: "Ethernet7", remote: "leaf2"},
		{name: "another relay", toSwitch: "198.18.3.2", port: "Ethernet7", circuit: "Ethernet7", remote: "leaf1"},
		{name: "no remote ID", toSwitch: "leaf1", port: "Ethernet7", circuit: "Ethernet7"},
		{name: "no port planned", toSwitch: "leaf1", circuit: "Ethernet7", remote: "leaf1"},
		{name: "no switch planned", port: "Ethernet7", circuit: "Ethernet7", remote: "leaf1"},
		{name: "text that looks like bytes", toSwitch: "198.18.3.1", port: "0x000400640107", circuit: "0x000400640107"},
		{name: "another address", toSwitch: "leaf1", port: "Ethernet7", circuit: "Ethernet7", remote: "leaf1", peer: netip.MustParseAddr("198.18.3.101")},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &api.Machine{Spec: api.MachineSpec{Location: api.Location{Switch: c.toSwitch, Port: c.port}}}
			a := &api.BootAttempt{Port: &api.BootPort{Address: leased, Relay: relay, CircuitID: ID(c.circuit), RemoteID: ID(c.remote)}}
			peer := leased
			if c.peer.IsValid() {
				peer = c.peer
			}
			if ok, why := AtPort(m, a, peer); ok != c.ok || ok == (why != "") {
				t.Errorf("%v: %s", ok, why)
			}
		})
	}
	m := &api.Machine{Spec: api.MachineSpec{Location: api.Location{Switch: "leaf1", Port: "Ethernet7"}}}
	for _, a := range []*api.BootAttempt{nil, {}} {
		if ok, why := AtPort(m, a, leased); ok || !strings.Contains(why, "no relay") {
			t.Errorf("without a relay's word: %v, %q", ok, why)
		}
	}
}

// FuzzPort: no two circuit IDs are written alike, and what matches a port is that
// port, with or without a VLAN.
func FuzzPort(f *testing.F) {
	f.Add("Ethernet7", "Ethernet7:Vlan100", "Ethernet7")
	f.Add("\x00\x04\x00\x64\x01\x07", "0x000400640107", "0x000400640107")
	f.Add("", ":", "")
	f.Fuzz(func(t *testing.T, a, b, planned string) {
		if a != b && ID(a) == ID(b) {
			t.Errorf("%q and %q are both written %q", a, b, ID(a))
		}
		for _, r := range ID(a) {
			if r < ' ' || r > '~' {
				t.Errorf("%q is written %q", a, ID(a))
			}
		}
		circuit := ID(a)
		if matchesPort(planned, circuit) && planned != circuit && !strings.HasPrefix(circuit, planned+":") && !strings.EqualFold(planned, circuit) {
			t.Errorf("%q is taken for port %q", circuit, planned)
		}
		if planned == "" && matchesPort(planned, circuit) {
			t.Errorf("%q is taken for a port without a name", circuit)
		}
	})
}

func TestLowers(t *testing.T) {
	profiles := map[string]*api.Profile{}
	profile := func(name string, minimum api.TrustLevel) *api.Profile {
		p := &api.Profile{}
		p.Metadata.Name, p.Spec.Trust.Minimum = name, minimum
		profiles[name] = p
		return p
	}
	machine := func(minimum api.TrustLevel, of string) *api.Machine {
		return &api.Machine{Spec: api.MachineSpec{Profile: of, Trust: api.Trust{Minimum: minimum}}}
	}
	strict, plain := profile("strict", api.TrustNonce), profile("plain", "")
	for _, c := range []struct {
		name          string
		next, current api.Object
		lowers        bool
	}{
		{"created", strict, nil, false},
		{"unchanged", strict, strict, false},
		{"a Profile that asks for less", profile("x", api.TrustAddress), strict, true},
		{"a Profile that asks for nothing", plain, strict, true},
		{"a Profile that asks for more", strict, plain, false},
		{"a strict Profile deleted", nil, strict, true},
		{"a plain Profile deleted", nil, plain, false},
		{"a Machine that asks for less", machine(api.TrustToken, ""), machine(api.TrustBMC, ""), true},
		{"a Machine that asks for less than its Profile does", machine("", "strict"), machine(api.TrustAddress, "strict"), true},
		{"a Machine that asks for more", machine(api.TrustTPM, ""), machine(api.TrustBMC, ""), false},
		{"a strict Machine deleted", nil, machine(api.TrustAddress, ""), true},
		{"a Machine of a strict Profile deleted", nil, machine("", "strict"), false},
		{"a Machine that leaves a strict Profile", machine("", "plain"), machine("", "strict"), true},
		{"a Machine that leaves a strict Profile and stays strict", machine(api.TrustBMC, "plain"), machine(api.TrustBMC, "strict"), false},
		{"a Machine that comes to a strict Profile", machine("", "strict"), machine("", "plain"), false},
		{"another kind", new(api.Zone), new(api.Zone), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if why := Lowers(c.next, c.current, func(name string) *api.Profile { return profiles[name] }); (why != "") != c.lowers {
				t.Errorf("%q", why)
			}
		})
	}
}
