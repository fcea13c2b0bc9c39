package wireguard

import (
	"cmp"
	"crypto/ecdh"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/rackweft/rackweft/api"
)

// Client reads and changes the configuration of WireGuard devices, as
// wgctrl.Client does.
type Client interface {
	Device(name string) (*wgtypes.Device, error)
	ConfigureDevice(name string, c wgtypes.Config) error
	Close() error
}

func openKernel() (Client, error) { return wgctrl.New() }

// config is the desired configuration of the device.
type config struct {
	key   wgtypes.Key
	port  int
	peers []peer
}

type peer struct {
	host      string
	key       wgtypes.Key
	addresses []netip.Addr // the first is its endpoint
	port      int
}

// compile leaves out peers that conflict with others; the error names them.
func compile(key *ecdh.PrivateKey, u api.Underlay) (config, error) {
	c := config{key: wgtypes.Key(key.Bytes()), port: u.Encryption.Port}
	keys := map[wgtypes.Key]string{c.key.PublicKey(): "this host"}
	taken := map[netip.Addr]string{}
	for _, a := range u.Addresses {
		taken[a] = "this host"
	}
	var faults []error
	for _, p := range u.Encryption.Peers {
		got := peer{host: p.Host, addresses: p.Addresses, port: c.port}
		k, err := wgtypes.ParseKey(p.PublicKey)
		got.key = k
		switch {
		case err != nil:
		case keys[k] != "":
			err = fmt.Errorf("it has the WireGuard key of %s", keys[k])
		case len(p.Addresses) == 0:
			err = errors.New("it has no address")
		default:
			err = free(taken, p.Addresses)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("peer %s is left out, nothing is sent to it: %w", p.Host, err))
			continue
		}
		keys[k] = p.Host
		for _, a := range p.Addresses {
			taken[a] = p.Host
		}
		c.peers = append(c.peers, got)
	}
	return c, errors.Join(faults...)
}

func free(taken map[netip.Addr]string, addrs []netip.Addr) error {
	for _, a := range addrs {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return fmt.Errorf("invalid address %s of a host", a)
		}
		if taken[a] != "" {
			return fmt.Errorf("it has the address %s of %s", a, taken[a])
		}
	}
	return nil
}

// configure changes what differs from want.
func (p *pass) configure(want config) error {
	client, err := p.driver.Open()
	if err != nil {
		return fmt.Errorf("open the configuration of WireGuard devices: %w", err)
	}
	seen, err := client.Device(Name)
	if err == nil {
		if change, notes := diff(want, seen); len(notes) > 0 {
			p.changes = append(p.changes, notes...)
			err = client.ConfigureDevice(Name, change)
		}
	}
	if err = errors.Join(err, client.Close()); err != nil {
		return fmt.Errorf("configure WireGuard device %s: %w", Name, err)
	}
	return nil
}

// diff returns the change that turns seen into want, with a description. It leaves
// out peers that are already right, so that their sessions continue.
func diff(want config, seen *wgtypes.Device) (change wgtypes.Config, notes []string) {
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if seen.PrivateKey != want.key {
		note("set the private key")
		change.PrivateKey = &want.key
	}
	if seen.ListenPort != want.port {
		note("set the port")
		change.ListenPort = &want.port
	}
	if seen.FirewallMark != 0 {
		note("clear the mark")
		change.FirewallMark = new(int)
	}
	left := map[wgtypes.Key]wgtypes.Peer{}
	for _, s := range seen.Peers {
		left[s.PublicKey] = s
	}
	var put []wgtypes.PeerConfig
	for _, w := range want.peers {
		s, there := left[w.key]
		delete(left, w.key)
		if c, differs := diffPeer(w, s, there); differs {
			note("set peer %s", w.host)
			put = append(put, c)
		}
	}
	for k := range left {
		note("remove peer %s", k)
		change.Peers = append(change.Peers, wgtypes.PeerConfig{PublicKey: k, Remove: true})
	}
	change.Peers = append(change.Peers, put...)
	return change, notes
}

func diffPeer(w peer, s wgtypes.Peer, there bool) (c wgtypes.PeerConfig, differs bool) {
	c = wgtypes.PeerConfig{PublicKey: w.key, UpdateOnly: there}
	if there && s.PresharedKey != (wgtypes.Key{}) {
		c.PresharedKey, differs = new(wgtypes.Key), true
	}
	if !there || !w.reachedAt(s.Endpoint) {
		c.Endpoint, differs = net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.addresses[0], uint16(w.port))), true
	}
	want := w.allowed()
	if !there || !slices.Equal(want, seenAllowed(s)) {
		c.ReplaceAllowedIPs, differs = true, true
		for _, a := range want {
			c.AllowedIPs = append(c.AllowedIPs, net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Bits())})
		}
	}
	return c, differs
}

// reachedAt accepts any of the peer's addresses: WireGuard uses the one that it last
// received from.
func (w peer) reachedAt(endpoint *net.UDPAddr) bool {
	if endpoint == nil {
		return false
	}
	at := endpoint.AddrPort()
	return int(at.Port()) == w.port && slices.Contains(w.addresses, at.Addr().Unmap())
}

// allowed returns the peer's allowed source prefixes, sorted.
func (w peer) allowed() []netip.Prefix {
	var list []netip.Prefix
	for _, a := range w.addresses {
		list = append(list, netip.PrefixFrom(a, a.BitLen()))
	}
	slices.SortFunc(list, comparePrefix)
	return list
}

func seenAllowed(s wgtypes.Peer) []netip.Prefix {
	var list []netip.Prefix
	for _, n := range s.AllowedIPs {
		addr, _ := netip.AddrFromSlice(n.IP)
		ones, _ := n.Mask.Size()
		list = append(list, netip.PrefixFrom(addr.Unmap(), ones))
	}
	slices.SortFunc(list, comparePrefix)
	return list
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
