// Package wireguard owns the encryption of a host's underlay: the WireGuard device
// wg-rackweft, its peers, and the policy route that sends the traffic of the host's
// Networks through it.
//
// The Networks are not involved. Their VXLAN packets go to the hosts' underlay
// addresses as before; a rule for UDP port 8472 selects a table of their own, which
// routes them into the device or, if that is missing, nowhere. The device has the
// underlay addresses of each host and encrypts packets to them; its own packets have
// another port and take the ordinary routes. Packets to a host without a key are
// dropped, too.
//
// The kernel's state counts. Each pass compares device, peers, rules and routes with
// the HostSpec and changes what differs, peer by peer: a session is dropped only
// with its peer. The device is marked by its alias, rules and routes by their
// protocol number.
package wireguard

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/inet"
)

const (
	// Name is the device's name. Names of package overlay's devices begin with weft.
	Name = "wg-rackweft"
	mark = "rackweft:wireguard"

	defaultMTU = 1500
)

// Driver creates and configures the device.
type Driver struct {
	// Kind is the device's type as rtnetlink names it.
	Kind string
	Make func(h *netlink.Handle, name string) error
	Open func() (Client, error)
}

// Encrypter encrypts the underlay of the network namespace of the thread that
// calls it. It implements nodeagent.Encrypter.
type Encrypter struct {
	driver Driver
	log    *slog.Logger
}

// New creates an Encrypter; it touches nothing before Encrypt.
func New(d Driver, log *slog.Logger) *Encrypter { return &Encrypter{driver: d, log: log} }

// Kernel is the driver of Linux's own WireGuard. Creating the device loads its
// module.
func Kernel() Driver {
	return Driver{Kind: "wireguard", Open: openKernel, Make: func(h *netlink.Handle, name string) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		err := h.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
		if errors.Is(err, unix.EOPNOTSUPP) {
			return errors.New("the kernel has no WireGuard: boot an image whose kernel has it (CONFIG_WIREGUARD, and the module), or set spec.encryption of the Zone to none")
		}
		return err
	}}
}

// Encrypt configures encryption as u says, or removes it if u has none. While it
// fails, traffic that should be encrypted is not sent at all.
func (e *Encrypter) Encrypt(_ context.Context, key *ecdh.PrivateKey, u api.Underlay) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	p := &pass{driver: e.driver, handle: h}
	if u.Encryption == nil {
		err = p.remove()
	} else {
		err = p.ensure(key, u)
	}
	if len(p.changes) > 0 {
		e.log.Info("wireguard: changed", "changes", len(p.changes), "first", p.changes[0])
	}
	return err
}

// pass is one comparison of the kernel's state with the desired one.
type pass struct {
	driver  Driver
	handle  *netlink.Handle
	changes []string
}

func (p *pass) did(format string, args ...any) {
	p.changes = append(p.changes, fmt.Sprintf(format, args...))
}

// ensure keeps packets off the ordinary routes even if there is no device to route
// them into.
func (p *pass) ensure(key *ecdh.PrivateKey, u api.Underlay) error {
	l, err := p.link()
	if err != nil {
		return errors.Join(fmt.Errorf("WireGuard device %s: %w", Name, err), p.steer(0, families(u)))
	}
	want, faults := compile(key, u)
	return errors.Join(faults, p.shape(l, p.mtu(u)), p.configure(want), p.up(l), p.steer(l.Attrs().Index, families(u)))
}

// mtu is the underlay's MTU without the overhead.
func (p *pass) mtu(u api.Underlay) int {
	mtu := u.MTU
	if l, err := p.handle.LinkByName(u.Interface); err == nil {
		mtu = l.Attrs().MTU
	}
	if mtu == 0 {
		mtu = defaultMTU
	}
	outer := netip.IPv4Unspecified()
	if families(u)[unix.AF_INET6] {
		outer = netip.IPv6Unspecified()
	}
	return mtu - inet.WireGuardOverhead(outer)
}

// link finds or creates the device.
func (p *pass) link() (netlink.Link, error) {
	l, err := p.find()
	if err != nil || l != nil {
		return l, err
	}
	p.did("add %s", Name)
	if err := p.driver.Make(p.handle, Name); err != nil {
		return nil, err
	}
	return p.handle.LinkByName(Name)
}

// shape sets the device's mark and MTU.
func (p *pass) shape(l netlink.Link, mtu int) error {
	if l.Attrs().Alias != mark {
		p.did("set alias of %s", Name)
		if err := p.handle.LinkSetAlias(l, mark); err != nil {
			return fmt.Errorf("mark WireGuard device %s: %w", Name, err)
		}
	}
	if l.Attrs().MTU != mtu {
		p.did("set MTU of %s to %d", Name, mtu)
		if err := p.handle.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("set MTU of WireGuard device %s to %d: %w", Name, mtu, err)
		}
	}
	return nil
}

func (p *pass) up(l netlink.Link) error {
	if l.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	p.did("set up %s", Name)
	if err := p.handle.LinkSetUp(l); err != nil {
		return fmt.Errorf("set up WireGuard device %s: %w", Name, err)
	}
	return nil
}

// find returns nil if there is no device. A device without an alias is that of an
// agent that died before it could set one.
func (p *pass) find() (netlink.Link, error) {
	l, err := p.handle.LinkByName(Name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if alias := l.Attrs().Alias; l.Type() != p.driver.Kind || alias != "" && alias != mark {
		return nil, fmt.Errorf("the host has a %s of that name, marked %q, which is not rackweft's; rename or remove it", l.Type(), alias)
	}
	return l, nil
}

// remove removes the encryption. The rule goes first: from then on packets take the
// ordinary routes.
func (p *pass) remove() error {
	if err := p.steerNot(); err != nil {
		return err
	}
	l, err := p.handle.LinkByName(Name)
	if errors.As(err, new(netlink.LinkNotFoundError)) || err == nil && l.Attrs().Alias != mark {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find WireGuard device %s: %w", Name, err)
	}
	p.did("remove %s", Name)
	if err := p.handle.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove WireGuard device %s: %w", Name, err)
	}
	return nil
}
