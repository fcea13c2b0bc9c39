package overlay

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/nodeagent"
)

// tapPrefix begins the names of guests' taps.
const tapPrefix = "tap"

// tapName is derived from the Guest's uid, and fits IFNAMSIZ.
func tapName(uid string) string {
	sum := sha256.Sum256([]byte(uid))
	return tapPrefix + hex.EncodeToString(sum[:6])
}

// guestPort is a Guest's port on its Network, checked and in the kernel's terms.
type guestPort struct {
	network, guest, uid string
	tap                 string // the interface's name
	mac                 mac
	addresses           []netip.Addr
	limits              limits
	config              bool // it has a config to fetch
	peers               bool // it may peer with its host; known when it is filtered
}

// compilePort checks a port that the guest handler requests.
func compilePort(p nodeagent.Port) (guestPort, error) {
	out := guestPort{network: p.Network, guest: p.Guest, uid: p.UID, tap: tapName(p.UID),
		addresses: slices.Clone(p.Addresses), limits: limits{p.Inbound, p.Outbound}, config: p.Config}
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if p.Network == "" {
		fault("it has no Network")
	}
	if p.UID == "" {
		fault("it has no uid")
	}
	var ok bool
	if out.mac, ok = parseMAC(p.MAC); !ok {
		fault("%q is no unicast MAC address", p.MAC)
	}
	if out.mac == gatewayMAC() {
		fault("its MAC address %s is the gateway's", out.mac)
	}
	for _, a := range p.Addresses {
		if !isGuests(a) {
			fault("%s is no address for a guest", a)
		}
	}
	if p.Inbound < 0 || p.Outbound < 0 {
		fault("a limit is negative")
	}
	if len(faults) > 0 {
		return out, fmt.Errorf("port of Guest %s: %w", p.Guest, errors.Join(faults...))
	}
	return out, nil
}

// isGuests reports whether a guest may have an address: its filter treats others
// differently.
func isGuests(a netip.Addr) bool {
	return a.IsValid() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsLoopback() &&
		!a.IsMulticast() && !a.IsLinkLocalUnicast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// portTable holds the ports by name of the Network, sorted by the taps' names.
type portTable map[string][]guestPort

// compilePorts leaves out ports that conflict with another guest's, and returns why.
func compilePorts(list []nodeagent.Port) (portTable, []error) {
	table := portTable{}
	var faults []error
	for _, asked := range list {
		p, err := compilePort(asked)
		if err == nil {
			err = table.conflict(p)
		}
		if err != nil {
			faults = append(faults, err)
			continue
		}
		table.put(p)
	}
	return table, faults
}

// conflict returns an error if another Guest has the MAC, an address or the tap of p.
func (t portTable) conflict(p guestPort) error {
	for _, other := range t[p.network] {
		if other.tap == p.tap && other.uid == p.uid {
			continue
		}
		shared := slices.ContainsFunc(p.addresses, func(a netip.Addr) bool { return slices.Contains(other.addresses, a) })
		if shared || other.mac == p.mac || other.tap == p.tap {
			return fmt.Errorf("port of Guest %s: it shares its MAC, an address or its tap with Guest %s of Network %s", p.guest, other.guest, p.network)
		}
	}
	return nil
}

// put adds a port or replaces the same Guest's.
func (t portTable) put(p guestPort) {
	list := slices.DeleteFunc(slices.Clone(t[p.network]), func(other guestPort) bool { return other.tap == p.tap })
	list = append(list, p)
	slices.SortFunc(list, func(a, b guestPort) int { return cmp.Compare(a.tap, b.tap) })
	t[p.network] = list
}

// SetPorts sets all ports of guests on this host. Existing taps follow at once or, if
// that fails, at the next Reconcile. A tap without a port lets nothing through, and
// goes with its QEMU. Before the first call after the agent's start only the taps of
// Attach are touched.
func (o *Overlay) SetPorts(ports []nodeagent.Port) {
	table, faults := compilePorts(ports)
	for _, err := range faults {
		o.log.Warn("overlay: a port is left out", "error", err)
	}
	o.kernel.Lock()
	defer o.kernel.Unlock()
	for _, n := range o.replacePorts(table) {
		if err := o.portsNow(n); err != nil {
			o.log.Warn("overlay: cannot configure all ports yet", "network", n.name, "error", err)
		}
		o.peerSoon(n)
	}
}

// replacePorts returns the Networks whose ports have changed.
func (o *Overlay) replacePorts(table portTable) []network {
	o.mu.Lock()
	defer o.mu.Unlock()
	var changed []network
	for name, n := range o.networks {
		if !o.portsKnown || !slices.EqualFunc(o.ports[name], table[name], guestPort.equal) {
			changed = append(changed, n)
		}
	}
	o.ports, o.portsKnown = table, true
	return changed
}

// limited returns the port with the Network's limits where it has none of its own.
func (p guestPort) limited(of limits) guestPort {
	p.limits = limits{cmp.Or(p.limits.in, of.in), cmp.Or(p.limits.out, of.out)}
	return p
}

func (p guestPort) equal(q guestPort) bool {
	return p.guest == q.guest && p.uid == q.uid && p.tap == q.tap && p.mac == q.mac &&
		slices.Equal(p.addresses, q.addresses) && p.limits == q.limits && p.config == q.config
}

// portsNow configures the ports of a Network without the rest of it.
func (o *Overlay) portsNow(n network) error {
	tenant, err := openPlace(o.tenants.pathOf(n))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the next Reconcile creates it
	}
	if err != nil {
		return err
	}
	defer tenant.close()
	w := &work{tenant: tenant, network: n}
	w.ports, w.complete = o.portsOf(n.name)
	if err := errors.Join(w.guestPorts(), o.serving.serve(tenant, n, o.portsFor(n))); err != nil {
		return err
	}
	o.ledger.noteTaps(w)
	return nil
}

// portsOf lists a Network's ports. Until SetPorts was called the list is incomplete,
// and a missing port means nothing.
func (o *Overlay) portsOf(network string) (ports []guestPort, known bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ports[network], o.portsKnown
}

// portsFor returns the ports that are known so far.
func (o *Overlay) portsFor(n network) []guestPort {
	ports, _ := o.portsOf(n.name)
	return ports
}

// Attach creates a Guest's tap and opens its only queue: the tap is filtered and
// plugged in when Attach returns, and goes when the queue is closed. The port need not
// have been named by SetPorts before. Attach fails while the Network does not exist,
// or while another queue of the tap is open.
func (o *Overlay) Attach(ctx context.Context, asked nodeagent.Port) (nodeagent.Attachment, error) {
	p, err := compilePort(asked)
	if err != nil {
		return nodeagent.Attachment{}, err
	}
	o.kernel.Lock()
	defer o.kernel.Unlock()
	if err := ctx.Err(); err != nil {
		return nodeagent.Attachment{}, err
	}
	n, err := o.admit(p, asked.Silent)
	if err != nil {
		return nodeagent.Attachment{}, err
	}
	path := o.tenants.pathOf(n)
	tenant, err := openPlace(path)
	if err != nil {
		return nodeagent.Attachment{}, fmt.Errorf("attach Guest %s to Network %s: %w", p.guest, p.network, err)
	}
	defer tenant.close()
	tap, err := openQueue(tenant.ns, p.tap)
	if err != nil {
		return nodeagent.Attachment{}, fmt.Errorf("attach Guest %s to Network %s: %w", p.guest, p.network, err)
	}
	attached := nodeagent.Attachment{Tap: tap, Interface: p.tap, Namespace: path, MTU: n.mtu}
	if asked.Silent {
		return attached, nil
	}
	w := &work{tenant: tenant, network: n, ports: []guestPort{p}}
	if err := w.guestPorts(); err != nil {
		return nodeagent.Attachment{}, errors.Join(fmt.Errorf("attach Guest %s to Network %s: %w", p.guest, p.network, err), tap.Close())
	}
	if err := o.serving.serve(tenant, n, o.portsFor(n)); err != nil {
		o.log.Warn("overlay: guests are not served until the next pass", "network", n.name, "error", err)
	}
	o.peerSoon(n)
	return attached, nil
}

// admit puts a port into the table, unless it is silent, and returns its Network.
func (o *Overlay) admit(p guestPort, silent bool) (network, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, there := o.networks[p.network]
	if !there {
		return n, fmt.Errorf("attach Guest %s: Network %s is not on this host yet; its part says why", p.guest, p.network)
	}
	if err := o.ports.conflict(p); err != nil {
		return n, err
	}
	if !silent {
		o.ports.put(p)
	}
	return n, nil
}
