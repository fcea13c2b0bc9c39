package boot

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/dhcp"
	"github.com/rackweft/rackweft/bootd/lease"
	"github.com/rackweft/rackweft/bootd/store"
)

// ScriptPath is the first-stage iPXE script under bootd's boot server.
const ScriptPath = "/boot.ipxe"

// leased is what became of an address that a client has now.
const leased = "leased"

// dhcpDecider implements dhcp.Decider.
type dhcpDecider struct {
	cache     *store.Cache
	leases    *lease.Table
	own       *endpoints
	book      *book
	attempts  *attempts
	strangers *strangers
}

// Offer implements dhcp.Decider.
func (d *dhcpDecider) Offer(ctx context.Context, c dhcp.Client) (dhcp.Answer, error) {
	return d.answer(ctx, c, "offered", func(s *api.Subnet, h lease.Holder) (netip.Addr, time.Duration, error) {
		if err := d.notYet(c, s, h, netip.Addr{}); err != nil {
			return netip.Addr{}, 0, err
		}
		addr, err := d.leases.Offer(h, s.Metadata.Name, c.Requested)
		return addr, time.Duration(s.Spec.LeaseTime), err
	})
}

// Request implements dhcp.Decider.
func (d *dhcpDecider) Request(ctx context.Context, c dhcp.Client, addr netip.Addr) (dhcp.Answer, error) {
	if s, err := d.subnetOf(c); err == nil && s.Spec.Mode == api.Proxy {
		return dhcp.Answer{}, fmt.Errorf("%w: on Subnet %s another server gives the addresses", dhcp.ErrNotMine, s.Metadata.Name)
	}
	return d.answer(ctx, c, leased, func(s *api.Subnet, h lease.Holder) (netip.Addr, time.Duration, error) {
		if err := d.notYet(c, s, h, addr); err != nil {
			return netip.Addr{}, 0, err
		}
		l, err := d.leases.Commit(ctx, h, s.Metadata.Name, addr, time.Duration(s.Spec.LeaseTime))
		if errors.Is(err, lease.ErrUnavailable) || errors.Is(err, lease.ErrReserved) {
			return netip.Addr{}, 0, &dhcp.Refusal{Reason: err.Error()}
		}
		return l.Address, time.Until(l.Expires).Round(time.Second), err
	})
}

// Inform implements dhcp.Decider.
func (d *dhcpDecider) Inform(ctx context.Context, c dhcp.Client) (dhcp.Answer, error) {
	return d.answer(ctx, c, "informed", func(s *api.Subnet, _ lease.Holder) (netip.Addr, time.Duration, error) {
		if _, inside := s.Prefix(c.ClientAddr); !inside {
			return netip.Addr{}, 0, fmt.Errorf("%w: its address %s is not inside Subnet %s", dhcp.ErrNotMine, c.ClientAddr, s.Metadata.Name)
		}
		return c.ClientAddr, 0, nil
	})
}

// answer builds the whole answer around an address that pick chooses; did says
// in one word what becomes of the address.
func (d *dhcpDecider) answer(ctx context.Context, c dhcp.Client, did string, pick func(*api.Subnet, lease.Holder) (netip.Addr, time.Duration, error)) (dhcp.Answer, error) {
	mac := api.MAC(c.MAC.String())
	m, known := store.CachedMachineByMAC(d.cache, mac)
	s, err := d.subnetOf(c)
	if err != nil {
		d.book.decide(m, mac, c.Relay, "dhcp", "silence", err.Error())
		return dhcp.Answer{}, fmt.Errorf("%w: %s", dhcp.ErrNotMine, err)
	}
	registered := known && !isDiscovered(m)
	if !registered && c.Kind != dhcp.None {
		d.strangers.note(ctx, mac, s)
	}
	boot := d.bootfile(c, m, s)
	if s.Spec.Mode == api.Proxy {
		return d.proxyAnswer(ctx, c, m, s, boot), nil
	}
	h := lease.Holder{MAC: string(mac), Hostname: c.Hostname}
	if registered {
		h.Machine, h.Hostname = m.Metadata.Name, m.Metadata.Name
	}
	addr, granted, err := pick(s, h)
	if err != nil {
		d.book.decide(m, mac, netip.Addr{}, "dhcp", "no address", err.Error())
		return dhcp.Answer{}, err
	}
	d.book.decide(m, mac, addr, "dhcp", did+" "+addr.String(), leaseReason(h, s)+"; "+boot.Reason)
	if registered && did == leased {
		d.attempts.seenAt(ctx, m, addr, d.portOf(c, s, addr))
	}
	if registered && c.Kind != dhcp.None {
		d.attempts.reached(ctx, m, api.StageDHCP, func(m *api.Machine) { m.Status.Addresses = []netip.Addr{addr} })
	}
	return d.complete(c, s, h, addr, granted, boot), nil
}

// proxyAnswer adds the boot file to what another server answers.
func (d *dhcpDecider) proxyAnswer(ctx context.Context, c dhcp.Client, m *api.Machine, s *api.Subnet, boot dhcp.Boot) dhcp.Answer {
	d.book.decide(m, api.MAC(c.MAC.String()), netip.Addr{}, "dhcp", bootText(boot), boot.Reason+"; Subnet "+s.Metadata.Name+" is in proxy mode: another server gives the address")
	if c.Kind != dhcp.None {
		d.attempts.reached(ctx, m, api.StageDHCP)
	}
	server, _ := d.own.address(s, c.Local, c.Relay) // without one, dhcp names the address that the packet came to
	return dhcp.Answer{Boot: boot, Server: server}
}

func bootText(b dhcp.Boot) string {
	if b.Filename == "" {
		return "no boot file"
	}
	return "boot file " + b.Filename
}

func leaseReason(h lease.Holder, s *api.Subnet) string {
	if h.Machine == "" {
		return "no registered Machine has this MAC: a short lease on Subnet " + s.Metadata.Name
	}
	return "Machine " + h.Machine + " on Subnet " + s.Metadata.Name
}

// complete fills in what goes with an address.
func (d *dhcpDecider) complete(c dhcp.Client, s *api.Subnet, h lease.Holder, addr netip.Addr, granted time.Duration, boot dhcp.Boot) dhcp.Answer {
	site := siteOf(d.cache)
	prefix, _ := s.Prefix(addr)
	server, _ := d.own.address(s, c.Local, c.Relay) // without one, dhcp names the address that the packet came to
	a := dhcp.Answer{
		Address: addr, Prefix: netip.PrefixFrom(addr, prefix.Bits()),
		DNS: orElse(s.Spec.DNS, site.DNS), NTP: orElse(s.Spec.NTP, site.NTP),
		Domain: site.Domain, MTU: s.Spec.MTU, Lease: granted, Boot: boot,
		Server: server,
	}
	if s.Spec.Gateway.IsValid() {
		a.Router = []netip.Addr{s.Spec.Gateway}
	}
	if h.Machine != "" {
		a.Hostname = h.Machine
	}
	return a
}

// bootfile chooses the boot file, with what the Machine's spec says of its odd
// firmware.
func (d *dhcpDecider) bootfile(c dhcp.Client, m *api.Machine, s *api.Subnet) dhcp.Boot {
	if c.Kind == dhcp.None {
		return dhcp.Boot{Reason: "it does not boot from the network"}
	}
	server, err := d.own.address(s, c.Local, c.Relay)
	if err != nil {
		return dhcp.Boot{Reason: err.Error()}
	}
	b := dhcp.Bootfile(c, dhcp.Endpoints{
		TFTP:   server,
		HTTP:   d.own.httpURL(server),
		Script: ScriptPath,
		Files:  dhcp.DefaultFiles(),
	})
	if m == nil {
		return b
	}
	if f := m.Spec.Boot.File; f != "" && c.Kind == dhcp.PXE {
		b.Filename, b.NextServer, b.Reason = f, server, "spec.boot.file of the Machine"
	}
	switch m.Spec.Boot.VendorPXE {
	case "always":
		b.Style = dhcp.Direct
	case "never":
		b.Style = dhcp.Plain
	}
	return b
}

// Boot implements dhcp.Decider.
func (d *dhcpDecider) Boot(ctx context.Context, c dhcp.Client) (dhcp.Boot, error) {
	mac := api.MAC(c.MAC.String())
	m, _ := store.CachedMachineByMAC(d.cache, mac)
	s, err := d.subnetOf(c)
	if err != nil {
		return dhcp.Boot{}, fmt.Errorf("%w: %s", dhcp.ErrNotMine, err)
	}
	b := d.bootfile(c, m, s)
	d.book.decide(m, mac, c.ClientAddr, "dhcp", bootText(b), b.Reason+" (asked on port 4011)")
	return b, nil
}

// Release implements dhcp.Decider.
func (d *dhcpDecider) Release(ctx context.Context, c dhcp.Client, addr netip.Addr) error {
	mac := api.MAC(c.MAC.String())
	m, _ := store.CachedMachineByMAC(d.cache, mac)
	released, err := d.leases.Release(ctx, string(mac), addr)
	if err != nil {
		return err
	}
	if !released {
		d.book.decide(m, mac, addr, "dhcp", "release of "+addr.String()+" ignored", "a registered Machine keeps its address, and nobody else may release it: anyone can forge a RELEASE")
		return nil
	}
	d.book.decide(m, mac, addr, "dhcp", "released "+addr.String(), "the client gave it back")
	return nil
}

// Decline implements dhcp.Decider.
func (d *dhcpDecider) Decline(ctx context.Context, c dhcp.Client, addr netip.Addr) error {
	mac := api.MAC(c.MAC.String())
	m, _ := store.CachedMachineByMAC(d.cache, mac)
	quarantined, err := d.leases.Decline(ctx, string(mac), addr)
	if err != nil {
		d.book.decide(m, mac, addr, "dhcp", "cannot replace "+addr.String(), err.Error())
		return err
	}
	if !quarantined {
		d.book.decide(m, mac, addr, "dhcp", "decline of "+addr.String()+" ignored", "the client does not hold the address, or a quarter of the range is in quarantine already")
		return nil
	}
	d.book.decide(m, mac, addr, "dhcp", "quarantined "+addr.String(), "the client found the address in use by somebody else")
	return nil
}
