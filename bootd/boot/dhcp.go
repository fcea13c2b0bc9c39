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
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
)

// ScriptPath is the first-stage iPXE script under bootd's boot server.
const ScriptPath = "/boot.ipxe"

// leased is the result of a client's lease.
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
	who := d.ask(c)
	return d.answer(ctx, who, func() (grant, error) {
		if err := d.notYet(who, netip.Addr{}); err != nil {
			return grant{}, err
		}
		addr, err := d.leases.Offer(who.holder(), who.subnet.Metadata.Name, c.Requested)
		return grant{addr, time.Duration(who.subnet.Spec.LeaseTime), "offered"}, err
	})
}

// Request implements dhcp.Decider.
func (d *dhcpDecider) Request(ctx context.Context, c dhcp.Client, addr netip.Addr) (dhcp.Answer, error) {
	who := d.ask(c)
	if who.proxied() {
		return dhcp.Answer{}, fmt.Errorf("%w: on Subnet %s another server leases the addresses", dhcp.ErrNotMine, who.subnet.Metadata.Name)
	}
	return d.answer(ctx, who, func() (grant, error) {
		if err := d.notYet(who, addr); err != nil {
			return grant{}, err
		}
		l, err := d.leases.Commit(ctx, who.holder(), who.subnet.Metadata.Name, addr, time.Duration(who.subnet.Spec.LeaseTime))
		if errors.Is(err, lease.ErrUnavailable) || errors.Is(err, lease.ErrReserved) {
			return grant{}, &dhcp.Refusal{Reason: err.Error()}
		}
		return grant{l.Address, time.Until(l.Expires).Round(time.Second), leased}, err
	})
}

// Inform implements dhcp.Decider.
func (d *dhcpDecider) Inform(ctx context.Context, c dhcp.Client) (dhcp.Answer, error) {
	who := d.ask(c)
	return d.answer(ctx, who, func() (grant, error) {
		if _, inside := who.subnet.Prefix(c.ClientAddr); !inside {
			return grant{}, fmt.Errorf("%w: its address %s is not inside Subnet %s", dhcp.ErrNotMine, c.ClientAddr, who.subnet.Metadata.Name)
		}
		return grant{c.ClientAddr, 0, "informed"}, nil
	})
}

// Boot implements dhcp.Decider.
func (d *dhcpDecider) Boot(ctx context.Context, c dhcp.Client) (dhcp.Boot, error) {
	who := d.ask(c)
	if who.subnet == nil {
		return dhcp.Boot{}, fmt.Errorf("%w: %s", dhcp.ErrNotMine, who.noSubnet)
	}
	b := d.bootfile(who)
	d.book.decide(who.about(c.ClientAddr), bootText(b), b.Reason+" (asked on port 4011)")
	return b, nil
}

// Release implements dhcp.Decider.
func (d *dhcpDecider) Release(ctx context.Context, c dhcp.Client, addr netip.Addr) error {
	who := d.ask(c).about(addr)
	released, err := d.leases.Release(ctx, string(who.mac), addr)
	if err != nil {
		return err
	}
	if !released {
		d.book.decide(who, "release of "+addr.String()+" ignored", "a registered Machine keeps its address, and no one else may release it: anyone can forge a RELEASE")
		return nil
	}
	d.book.decide(who, "released "+addr.String(), "the client returned it")
	return nil
}

// Decline implements dhcp.Decider.
func (d *dhcpDecider) Decline(ctx context.Context, c dhcp.Client, addr netip.Addr) error {
	who := d.ask(c).about(addr)
	quarantined, err := d.leases.Decline(ctx, string(who.mac), addr)
	if err != nil {
		d.book.decide(who, "cannot replace "+addr.String(), err.Error())
		return err
	}
	if !quarantined {
		d.book.decide(who, "decline of "+addr.String()+" ignored", "the client does not hold the address, or a quarter of the range is in quarantine already")
		return nil
	}
	d.book.decide(who, "quarantined "+addr.String(), "the client found the address in use by another machine")
	return nil
}

// asker is a DHCP client with everything that its answer depends on, each looked up once.
type asker struct {
	client   dhcp.Client
	mac      api.MAC
	machine  *api.Machine // nil for none
	subnet   *api.Subnet  // nil when it is on none
	server   netip.Addr   // bootd's own address for the client
	noSubnet error
	noServer error
}

// ask finds the client's Machine, its Subnet and bootd's own address there.
func (d *dhcpDecider) ask(c dhcp.Client) asker {
	who := asker{client: c, mac: api.MAC(c.MAC.String())}
	who.machine, _ = store.CachedMachineByMAC(d.cache, who.mac)
	who.subnet, who.noSubnet = d.subnetOf(c)
	if who.subnet != nil {
		who.server, who.noServer = d.own.address(who.subnet, c.Local, c.Relay)
	}
	return who
}

// about is the recorded question, with the address that it is about, if there is one.
func (a asker) about(addr netip.Addr) query {
	return query{question: "dhcp", machine: a.machine, mac: a.mac, peer: addr}
}

// registered reports whether a person has registered the client's MAC.
func (a asker) registered() bool { return a.machine != nil && !isDiscovered(a.machine) }

// boots reports whether it is firmware or a boot loader.
func (a asker) boots() bool { return a.client.Kind != dhcp.None }

// proxied reports whether another server leases the addresses.
func (a asker) proxied() bool { return a.subnet != nil && a.subnet.Spec.Mode == api.Proxy }

// holder is the client for the lease table.
func (a asker) holder() lease.Holder {
	h := lease.Holder{MAC: string(a.mac), Hostname: a.client.Hostname}
	if a.registered() {
		h.Machine, h.Hostname = a.machine.Metadata.Name, a.machine.Metadata.Name
	}
	return h
}

// grant is an address that a client has, and the lease time.
type grant struct {
	address netip.Addr
	lease   time.Duration
	did     string // in one word, what happens to the address
}

// answer builds the complete answer around an address that pick chooses.
func (d *dhcpDecider) answer(ctx context.Context, who asker, pick func() (grant, error)) (dhcp.Answer, error) {
	if who.subnet == nil {
		d.book.decide(who.about(who.client.Relay), "silence", who.noSubnet.Error())
		return dhcp.Answer{}, fmt.Errorf("%w: %s", dhcp.ErrNotMine, who.noSubnet)
	}
	if !who.registered() && who.boots() {
		d.strangers.note(ctx, who.mac, who.subnet)
	}
	boot := d.bootfile(who)
	if who.proxied() {
		return d.proxyAnswer(ctx, who, boot), nil
	}
	g, err := pick()
	if err != nil {
		d.book.decide(who.about(netip.Addr{}), "no address", err.Error())
		return dhcp.Answer{}, err
	}
	d.book.decide(who.about(g.address), g.did+" "+g.address.String(), who.leaseReason()+"; "+boot.Reason)
	if who.registered() {
		d.granted(ctx, who, g)
	}
	return d.complete(who, g, boot), nil
}

// granted records the progress of a Machine's boot with the address that it has now.
func (d *dhcpDecider) granted(ctx context.Context, who asker, g grant) {
	if g.did == leased {
		d.attempts.seenAt(ctx, who.machine, g.address, d.portOf(who, g.address))
	}
	if who.boots() {
		d.attempts.reached(ctx, who.machine, api.StageDHCP, func(m *api.Machine) { m.Status.Addresses = []netip.Addr{g.address} })
	}
}

// proxyAnswer adds the boot file to another server's answer.
func (d *dhcpDecider) proxyAnswer(ctx context.Context, who asker, boot dhcp.Boot) dhcp.Answer {
	d.book.decide(who.about(netip.Addr{}), bootText(boot), boot.Reason+"; Subnet "+who.subnet.Metadata.Name+" is in proxy mode: another server leases the address")
	if who.boots() {
		d.attempts.reached(ctx, who.machine, api.StageDHCP)
	}
	return dhcp.Answer{Boot: boot, Server: who.server}
}

func bootText(b dhcp.Boot) string {
	if b.Filename == "" {
		return "no boot file"
	}
	return "boot file " + b.Filename
}

func (a asker) leaseReason() string {
	if !a.registered() {
		return "no registered Machine has this MAC: a short lease on Subnet " + a.subnet.Metadata.Name
	}
	return "Machine " + a.machine.Metadata.Name + " on Subnet " + a.subnet.Metadata.Name
}

// complete adds everything that accompanies an address. Without an address of bootd's own, dhcp uses the one that
// the packet was sent to.
func (d *dhcpDecider) complete(who asker, g grant, boot dhcp.Boot) dhcp.Answer {
	site, s := site.Spec(d.cache), who.subnet
	prefix, _ := s.Prefix(g.address)
	a := dhcp.Answer{
		Address: g.address, Prefix: netip.PrefixFrom(g.address, prefix.Bits()),
		DNS: orElse(s.Spec.DNS, site.DNS), NTP: orElse(s.Spec.NTP, site.NTP),
		Domain: site.Domain, MTU: s.Spec.MTU, Lease: g.lease, Boot: boot,
		Hostname: who.holder().Machine, Server: who.server,
	}
	if s.Spec.Gateway.IsValid() {
		a.Router = []netip.Addr{s.Spec.Gateway}
	}
	return a
}

// bootfile chooses the boot file, using the options of the Machine's spec for odd firmware.
func (d *dhcpDecider) bootfile(who asker) dhcp.Boot {
	if !who.boots() {
		return dhcp.Boot{Reason: "it does not boot from the network"}
	}
	if who.noServer != nil {
		return dhcp.Boot{Reason: who.noServer.Error()}
	}
	b := dhcp.Bootfile(who.client, dhcp.Endpoints{
		TFTP:   who.server,
		HTTP:   d.own.httpURL(who.server),
		Script: ScriptPath,
		Files:  dhcp.DefaultFiles(),
	})
	m := who.machine
	if m == nil {
		return b
	}
	if f := m.Spec.Boot.File; f != "" && who.client.Kind == dhcp.PXE {
		b.Filename, b.NextServer, b.Reason = f, who.server, "spec.boot.file of the Machine"
	}
	switch m.Spec.Boot.VendorPXE {
	case "always":
		b.Style = dhcp.Direct
	case "never":
		b.Style = dhcp.Plain
	}
	return b
}
