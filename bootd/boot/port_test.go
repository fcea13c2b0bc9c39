package boot

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/dhcp"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
)

// through changes a client into one whose packet a relay of Subnet far has sent.
func through(circuit string, change ...func(*dhcp.Client)) func(*dhcp.Client) {
	return func(c *dhcp.Client) {
		c.Interface, c.Local, c.Unicast = "eth0", addr("198.18.9.1"), true
		c.Relay, c.Link, c.Source = addr("198.18.3.1"), addr("198.18.3.1"), addr("198.18.3.1")
		c.CircuitID = circuit
		for _, f := range change {
			f(c)
		}
	}
}

// leaseBy gets an address for the Machine's MAC with packets of that sort.
func (b *bench) leaseBy(change func(*dhcp.Client)) netip.Addr {
	b.t.Helper()
	a, err := b.d.Offer(b.t.Context(), client(hostMAC, change))
	if err == nil {
		a, err = b.d.Request(b.t.Context(), client(hostMAC, change), a.Address)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.Sync()
	return a.Address
}

// planned has the Machine boot at a port of a relay, with trust level address
// required, in a fresh attempt.
func (b *bench) planned() {
	b.t.Helper()
	if _, err := store.Mutate(b.t.Context(), b.Store, "far", func(s *api.Subnet) error {
		s.Spec.Relays = []netip.Addr{addr("198.18.3.1"), addr("198.18.3.2")}
		return nil
	}); err != nil {
		b.t.Fatal(err)
	}
	b.d.attempts.takes = newTakes()
	b.Change(host, func(m *api.Machine) {
		m.Spec.Location.Switch, m.Spec.Location.Port = "198.18.3.1", "Ethernet7"
		m.Spec.Trust.Minimum = api.TrustAddress
		m.Status.Attempt, m.Status.Conditions = testsite.Attempt("try-1", api.StageDHCP), nil
	})
}

func TestAddressLevel(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		name    string
		packets func(*dhcp.Client)
		missing string // "" when the level is reached
	}{
		{"the planned port", through("Ethernet7:Vlan100"), ""},
		{"another port", through("Ethernet8"), `spec.location.port is "Ethernet7"`},
		{"no option 82", through(""), `spec.location.port is "Ethernet7"`},
		{"another relay that the Subnet names", through("Ethernet7", func(c *dhcp.Client) {
			c.Relay, c.Link, c.Source = addr("198.18.3.2"), addr("198.18.3.2"), addr("198.18.3.2")
		}), "came through relay 198.18.3.2"},
		{"sent by something else than a relay", through("Ethernet7", func(c *dhcp.Client) { c.Source = addr("198.18.3.77") }), "no relay"},
		{"sent to everybody", through("Ethernet7", func(c *dhcp.Client) { c.Unicast = false }), "no relay"},
		{"on a segment that bootd serves itself, in the relay's name", through("Ethernet7", func(c *dhcp.Client) { c.Interface = "eth1" }), "no relay"},
		{"on a segment that bootd serves itself", func(c *dhcp.Client) { c.CircuitID, c.Unicast, c.Source = "Ethernet7", true, addr("198.18.3.1") }, "no relay"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.planned()
			at := b.leaseBy(c.packets).String()
			_, err := b.d.Script(t.Context(), boots(hostMAC, at))
			b.Sync()
			m := b.Machine(host)
			cond := m.Status.Conditions.Get(api.CondTrust)
			if c.missing != "" {
				if err == nil || !strings.Contains(err.Error(), c.missing) || !strings.Contains(err.Error(), "trust level address is required (by Machine r1u07)") {
					t.Errorf("the script: %v", err)
				}
				if cond == nil || cond.Reason != "LevelNotReached" || cond.Message == "" || b.Happened("LevelNotReached") == 0 {
					t.Errorf("condition %+v", cond)
				}
				if _, err := b.pointer(b.asks(at)); err == nil {
					t.Error("the pointer is given")
				}
				if _, err := b.config(b.fetches(at)); testsite.Status(err) != 503 {
					t.Errorf("the config: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.pointer(b.asks(at)); err != nil {
				t.Fatal(err)
			}
			if _, err := b.config(b.fetches(at)); err != nil {
				t.Fatal(err)
			}
			if a := b.Machine(host).Status.Attempt; a.Trust != api.TrustAddress || !strings.Contains(a.TrustWhy, "planned switch port") {
				t.Errorf("%s: %s", a.Trust, a.TrustWhy)
			}
		})
	}
}

// TestPortIsTheLastLease: what counts of an address is where it was leased last,
// and leases of other addresses take nothing away.
func TestPortIsTheLastLease(t *testing.T) {
	b := newBench(t)
	b.planned()
	at := b.leaseBy(through("Ethernet7"))
	served := func(want bool) {
		t.Helper()
		_, err := b.d.Script(t.Context(), boots(hostMAC, at.String()))
		b.Sync()
		if (err == nil) != want {
			t.Errorf("the script: %v, want it served: %v", err, want)
		}
	}
	served(true)
	local := b.leaseBy(func(*dhcp.Client) {}) // the same MAC, on the segment that bootd serves
	served(true)
	if _, err := b.d.Script(t.Context(), boots(hostMAC, local.String())); err == nil {
		t.Error("the script is served there too")
	}
	if again := b.leaseBy(through("Ethernet8")); again != at {
		t.Fatalf("another address: %s", again)
	}
	served(false)
	b.leaseBy(through("Ethernet7"))
	served(true)
	b.leaseBy(through("Ethernet7", func(c *dhcp.Client) { c.Source = addr("198.18.3.77") }))
	served(false)
}
