package boot

import (
	"errors"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/dhcp"
)

// TestNotYet has a restored bootd give no address away that somebody may have
// been leased since the backup.
func TestNotYet(t *testing.T) {
	b := newBench(t)
	if err := b.d.ApplySubnets(t.Context()); err != nil {
		t.Fatal(err)
	}
	site := &api.Site{}
	site.Metadata.Name = api.SiteName
	site.SetDefaults()
	site.Status.Recovery = &api.Recovery{Restored: time.Now(), Held: true}
	d := withSite(b, site)
	s := &api.Subnet{}
	s.Metadata.Name = "pxe"
	s.Spec.LeaseTime = api.Duration(time.Hour)
	a := addr("198.18.0.150")
	stranger := asker{mac: "52:54:00:ff:00:09", subnet: s}
	renewing := stranger
	renewing.client.ClientAddr = a
	if err := d.notYet(stranger, a); !errors.Is(err, dhcp.ErrNotMine) {
		t.Errorf("a stranger: %v", err)
	}
	if err := d.notYet(renewing, a); err != nil {
		t.Errorf("a renewal: %v", err)
	}
	site.Status.Recovery.Held = false
	if err := d.notYet(stranger, a); !errors.Is(err, dhcp.ErrNotMine) {
		t.Errorf("within the lease time: %v", err)
	}
	site.Status.Recovery.Restored = time.Now().Add(-2 * time.Hour)
	if err := d.notYet(stranger, a); err != nil {
		t.Errorf("after it: %v", err)
	}
}

// withSite is the bench's Decider as it would be with another Site.
func withSite(b *bench, site *api.Site) *dhcpDecider {
	d := *b.d.dhcpDecider
	d.cache = d.cache.With(site)
	return &d
}
