package overlay

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/nft"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/wireguard"
)

// hostSide manages the host's own namespace for the Networks: its filter, forwarding
// at its uplinks, and routes.
type hostSide struct {
	path    string // of the namespace
	tenants tenants
	kernel  *sync.Mutex // the Overlay's
	ledger  *ledger

	forwarding []string // interfaces that forward for our sake; only Reconcile looks
	noRoutes   bool     // the last pass left no routes, and none are wanted
}

// dial connects from the host's namespace.
func (h *hostSide) dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	if h.path == ownNamespace {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	err = withinPath(h.path, func() error {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// filter drops VXLAN packets of strangers and keeps tenants off the host. It comes
// before the Networks themselves, so none is ever unfiltered.
func (h *hostSide) filter(host place, u underlay, networks []network) error {
	complete, err := h.tenants.complete(networks)
	if err != nil {
		return err
	}
	if len(networks) == 0 && !complete {
		return nil // it is unknown which Networks run here: all stays as it is
	}
	h.kernel.Lock()
	defer h.kernel.Unlock()
	had, err := hasChain(host, "forward") // the host forwards for Networks or its Zone
	if err != nil {
		return err
	}
	forwards := slices.ContainsFunc(networks, network.leaves) || len(u.transit) > 0 || had && !complete
	rules, err := h.ruleset(host, u, networks, forwards, complete)
	if err != nil {
		return err
	}
	var changes []change
	steps := []func() error{
		func() error {
			done, err := nft.Apply(host.ns, filterTable(), rules)
			for _, c := range slices.Concat(done.Changes, done.Removals) {
				changes = append(changes, change(c))
			}
			return err
		},
		func() error {
			if !had && !forwards {
				return nil
			}
			set, err := h.forwardAtUplinks(host, u, forwards)
			for _, s := range set {
				changes = append(changes, change(s.String()))
			}
			return err
		},
	}
	if !forwards {
		slices.Reverse(steps) // forwarding is never on without the filter, and the table holds what to undo
	}
	for _, step := range steps {
		if err = step(); err != nil {
			break
		}
	}
	h.ledger.noteHost("filter", networks, u, changes, err)
	return err
}

func (h *hostSide) ruleset(host place, u underlay, networks []network, forwards, complete bool) (nft.Ruleset, error) {
	if len(networks) == 0 && !u.encrypted && !forwards {
		return nft.Ruleset{}, nil
	}
	v := &vteps{want: map[vtep]bool{}}
	known := map[uint32]bool{}
	for _, n := range networks {
		known[n.vni] = true
		for _, p := range n.peers {
			v.want[vtep{p.vtep, n.vni}] = true
		}
	}
	v.ours = func(vni uint32) bool { return complete || known[vni] }
	if !forwards {
		return sealed(hostRules(v, nil), u), nil
	}
	e := &egressRules{networks: networks, underlay: u.name, transit: u.transit}
	var err error
	if e.uplinks, err = uplinks(host, u); err != nil {
		return nft.Ruleset{}, err
	}
	own, err := connected(host)
	if err != nil {
		return nft.Ruleset{}, err
	}
	e.closed = outermost(append(own, u.closed...))
	if e.router, err = isRouter(host); err != nil {
		return nft.Ruleset{}, err
	}
	return sealed(hostRules(v, e), u), nil
}

// sealed returns the rules for an encrypted underlay. Whatever happens to routes and
// devices, they drop clear-text VXLAN in both directions, and ICMP errors that quote
// it; and they accept nothing else from the WireGuard device.
func sealed(r nft.Ruleset, u underlay) nft.Ruleset {
	if !u.encrypted {
		return r
	}
	const name = wireguard.Name
	guard := func(at string, hook nft.Hook, rules ...nft.Rule) nft.Chain {
		return nft.Chain{Name: at, Hook: hook.Raw(), Policy: nft.PolicyAccept, Rules: rules}
	}
	out := []nft.Rule{{nft.NotOIF(name), nft.UDP(Port), nft.Drop()}}
	for _, e := range refusals() {
		out = append(out, nft.Rule{aboutVXLAN(e), nft.Drop()})
	}
	r.Chains = append(r.Chains,
		guard("sealed-input", nft.Input(),
			nft.Rule{nft.IIF(name), nft.UDP(Port), nft.Accept()}, nft.Rule{nft.IIF(name), nft.Drop()}, nft.Rule{nft.UDP(Port), nft.Drop()}),
		guard("sealed-output", nft.Output(), out...),
		guard("sealed-forward", nft.Forward(), nft.Rule{nft.IIF(name), nft.Drop()}, nft.Rule{nft.OIF(name), nft.Drop()}))
	return r
}

// Guard returns an Encrypter that sets the host's filter before e encrypts the
// underlay. Other hosts may send as soon as the WireGuard device is up, even if there
// is no VXLAN device yet: the kernel would then answer in clear text that the port is
// closed, and quote their packets.
func (o *Overlay) Guard(e nodeagent.Encrypter) nodeagent.Encrypter { return guarded{o.host, e} }

type guarded struct {
	host      *hostSide
	encrypter nodeagent.Encrypter
}

// Encrypt implements nodeagent.Encrypter. It encrypts even if the filter fails:
// otherwise all traffic would be in clear text.
func (g guarded) Encrypt(ctx context.Context, key *ecdh.PrivateKey, u api.Underlay) error {
	var err error
	if u.Encryption != nil {
		err = g.host.seal()
	}
	return errors.Join(err, g.encrypter.Encrypt(ctx, key, u))
}

// seal adds the filter on a host that has none. Reconcile corrects an existing one.
func (h *hostSide) seal() error {
	host, err := openPlace(h.path)
	if err != nil {
		return err
	}
	defer host.close()
	h.kernel.Lock()
	defer h.kernel.Unlock()
	there, err := hasChain(host, "input")
	if err != nil || there {
		return err
	}
	v := &vteps{ours: func(uint32) bool { return false }}
	if _, err := nft.Apply(host.ns, filterTable(), sealed(hostRules(v, nil), underlay{encrypted: true})); err != nil {
		return fmt.Errorf("filter on the host: %w", err)
	}
	return nil
}

// hasChain reports whether our table of this host has a chain.
func hasChain(host place, name string) (has bool, err error) {
	c, err := nft.Open(host.ns)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return c.HasChain(filterTable(), name)
}

// forwardingSet, in our table, holds the interfaces on which rackweft has turned
// forwarding on.
const forwardingSet = "forwarding"

// remembered is the definition of forwardingSet.
func remembered() nft.Set {
	return nft.Set{Name: forwardingSet, Key: []nft.Type{nft.InterfaceName}}
}

// forwardAtUplinks turns forwarding on for answers to tenants and for transit, while
// there is either. A host that is a router anyway stays one. Interfaces that did not
// forward before are stored in a set next to the rules, which lives as long as the
// sysctl does (and in the agent, in case the table is flushed); only those are reset.
func (h *hostSide) forwardAtUplinks(host place, u underlay, forwards bool) (changed []sysctl, err error) {
	router, err := isRouter(host)
	if err != nil || router {
		return nil, err
	}
	c, err := nft.Open(host.ns)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	ours, err := listInterfaces(c)
	if err != nil {
		return nil, err
	}
	var names []string
	if forwards {
		if names, err = uplinks(host, u); err != nil {
			return nil, err
		}
	}
	kept := slices.DeleteFunc(slices.Clone(ours), func(name string) bool { return !slices.Contains(names, name) })
	for _, name := range names {
		off, err := differing(host.ns, []sysctl{forwarding(name, "1")})
		if err != nil {
			return nil, err
		}
		if len(off) > 0 || slices.Contains(h.forwarding, name) {
			kept = append(kept, name)
		}
	}
	slices.Sort(kept)
	kept = slices.Compact(kept)
	for _, name := range kept {
		if slices.Contains(ours, name) {
			continue
		}
		if err := c.Add(filterTable(), remembered(), nft.InterfaceKey(name)); err != nil {
			return changed, fmt.Errorf("remember that %s is to forward: %w", name, err)
		}
	}
	for _, name := range ours {
		if slices.Contains(kept, name) {
			continue
		}
		back, err := setSysctls(host.ns, ifThere(host, forwarding(name, "0")))
		changed = append(changed, back...)
		if err != nil {
			return changed, err
		}
		if err := c.Delete(filterTable(), remembered(), nft.InterfaceKey(name)); err != nil {
			return changed, fmt.Errorf("forget that %s is to forward: %w", name, err)
		}
	}
	h.forwarding = kept
	var want []sysctl
	for _, name := range names {
		want = append(want, forwarding(name, "1"))
	}
	on, err := setSysctls(host.ns, want)
	return append(changed, on...), err
}

func forwarding(name, value string) sysctl {
	return sysctl{"net/ipv4/conf/" + name + "/forwarding", value}
}

// ifThere returns s, or nothing if its interface has gone.
func ifThere(host place, s sysctl) []sysctl {
	there := within(host.ns, func() error { _, err := os.Stat(filepath.Join("/proc/sys", s.path)); return err }) == nil
	if !there {
		return nil
	}
	return []sysctl{s}
}

// listInterfaces lists the interfaces in the set.
func listInterfaces(c *nft.Conn) ([]string, error) {
	keys, err := c.Elements(filterTable(), remembered())
	var names []string
	for _, key := range keys {
		names = append(names, string(bytes.TrimRight(key, "\x00")))
	}
	return names, err
}
