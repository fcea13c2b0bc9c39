package boot

import (
	"errors"
	"testing"

	"github.com/rackweft/rackweft/bootd/dhcp"
)

// TestForgedFramesTakeNoAddress sends the frames with which a stranger could take a Machine's address:
// in its name, since anyone can forge a MAC, and in the stranger's own.
func TestForgedFramesTakeNoAddress(t *testing.T) {
	const stranger, sibling = "52:54:00:ff:00:01", "52:54:00:01:07:01"
	b := newBench(t)
	ctx := t.Context()
	own := b.lease(hostMAC)
	other := addr("198.18.0.107")
	for _, c := range []struct {
		name  string
		forge func() error
	}{
		{"release", func() error { return b.d.Release(ctx, client(hostMAC), own) }},
		{"decline", func() error { return b.d.Decline(ctx, client(hostMAC), own) }},
		{"request for another address", func() error { _, err := b.d.Request(ctx, client(hostMAC), other); return err }},
		{"discover that wants another address", func() error {
			a, err := b.d.Offer(ctx, client(hostMAC, func(c *dhcp.Client) { c.Requested = other }))
			if err == nil && a.Address != own {
				t.Errorf("offered %s", a.Address)
			}
			return err
		}},
		{"release by a stranger", func() error { return b.d.Release(ctx, client(stranger), own) }},
		{"decline by a stranger", func() error { return b.d.Decline(ctx, client(stranger), own) }},
		{"release by a sibling", func() error { return b.d.Release(ctx, client(sibling), own) }},
	} {
		_ = c.forge() // whether it is answered does not matter: what it changes does
		for _, mac := range []string{stranger, sibling} {
			_, err := b.d.Request(ctx, client(mac), own)
			var refusal *dhcp.Refusal
			if !errors.As(err, &refusal) {
				t.Errorf("%s: a REQUEST of %s for %s is answered with %v, want a refusal", c.name, mac, own, err)
			}
			if a, err := b.d.Offer(ctx, client(mac, func(c *dhcp.Client) { c.Requested = own })); err != nil || a.Address == own {
				t.Errorf("%s: %s is offered %s, %v", c.name, mac, a.Address, err)
			}
		}
		if err := b.d.peers.belongs(own, b.Machine(host)); err != nil {
			t.Errorf("%s: the Machine is not served at its address any more: %v", c.name, err)
		}
		if a, err := b.d.Request(ctx, client(hostMAC), own); err != nil || a.Address != own {
			t.Errorf("%s: the Machine's renewal is answered with %s, %v", c.name, a.Address, err)
		}
	}
}

// TestStrangersDeclineInVain empties a range by declining: the registered Machine still gets an address.
func TestStrangersDeclineInVain(t *testing.T) {
	b := newBench(t)
	for n := range 200 {
		mac := []byte{0x52, 0x54, 0, 0xee, byte(n >> 8), byte(n)}
		c := client("52:54:00:ee:00:00", func(c *dhcp.Client) { c.MAC, c.Kind = mac, dhcp.None })
		if a, err := b.d.Offer(t.Context(), c); err == nil {
			_ = b.d.Decline(t.Context(), c, a.Address)
		}
	}
	own := b.lease(hostMAC)
	for range 20 {
		_ = b.d.Decline(t.Context(), client(hostMAC), own)
	}
	if a := b.lease(hostMAC); a != own {
		t.Errorf("the Machine has %s after the declines, had %s", a, own)
	}
}
