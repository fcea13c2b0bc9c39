package hostspec

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/wait"
)

// meshes are the hosts of each encrypted Zone.
type meshes map[string][]api.EncryptionPeer

// encryption is how a host encrypts its underlay; nil when its Zone has none.
func (c *Compiler) encryption(m *api.Machine) *api.Encryption {
	zone, ok := store.Cached[api.Zone](c.Cache, m.Spec.Zone)
	if !ok || zone.Spec.Encryption != api.EncryptionWireGuard || network.Underlay(c.Cache, m).Interface == "" {
		return nil
	}
	e := &api.Encryption{Port: api.WireGuardPort}
	for _, p := range store.Derived(c.Cache, meshesOf)[m.Spec.Zone] {
		if p.Host != m.Metadata.Name {
			e.Peers = append(e.Peers, p)
		}
	}
	return e
}

func meshesOf(c *store.Cache) meshes {
	all := meshes{}
	for _, z := range store.CachedList[api.Zone](c) {
		if z.Spec.Encryption == api.EncryptionWireGuard {
			all[z.Metadata.Name] = mesh(c, z.Metadata.Name)
		}
	}
	return all
}

// mesh gives each key and each address to one host only: what a Machine is
// pinned to comes before what a host says of itself.
func mesh(c *store.Cache, zone string) []api.EncryptionPeer {
	var list []api.EncryptionPeer
	keys, taken := map[string]bool{}, map[netip.Addr]bool{}
	machines := store.CachedList[api.Machine](c)
	for _, pinned := range []bool{true, false} {
		for _, m := range machines {
			p, how := meshPeer(c, m)
			if m.Spec.Zone != zone || how != pinned || p.PublicKey == "" || keys[p.PublicKey] {
				continue
			}
			p.Addresses = slices.DeleteFunc(p.Addresses, func(a netip.Addr) bool { return taken[a] })
			if len(p.Addresses) == 0 {
				continue
			}
			keys[p.PublicKey] = true
			for _, a := range p.Addresses {
				taken[a] = true
			}
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b api.EncryptionPeer) int { return strings.Compare(a.Host, b.Host) })
	return list
}

// meshPeer is a Machine as other hosts of its Zone are told of it.
func meshPeer(c *store.Cache, m *api.Machine) (p api.EncryptionPeer, pinned bool) {
	p.Host = m.Metadata.Name
	if m.Status.Host != nil {
		p.PublicKey = m.Status.Host.WireGuardKey
	}
	p.Addresses, pinned = network.Addresses(c, m)
	return p, pinned
}

// meshChanged reports whether other hosts are to hear of a change to a Machine.
func (h *Hub) meshChanged(c store.Change) bool {
	facts := func(o api.Object) (zone string, p api.EncryptionPeer) {
		if m, ok := o.(*api.Machine); ok {
			p, _ = meshPeer(h.Cache, m)
			zone = m.Spec.Zone
		}
		return zone, p
	}
	oldZone, old := facts(c.Old)
	nowZone, now := facts(c.New)
	if old.PublicKey == "" && now.PublicKey == "" {
		return false
	}
	return oldZone != nowZone || old.PublicKey != now.PublicKey || !slices.Equal(old.Addresses, now.Addresses)
}

// gather is how long changes of hosts are gathered before the others of their
// Zone are told: each of these gets the whole list.
const gather = time.Second

// tellMeshes tells the hosts of encrypted Zones of each other, until ctx ends.
func (h *Hub) tellMeshes(ctx context.Context, dirty wait.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-dirty:
		}
		if wait.For(ctx, orDefault(h.Gather, gather)) != nil {
			return nil
		}
		h.mu.Lock()
		for name, s := range h.streams {
			if h.encrypted(name) {
				s.mark()
			}
		}
		h.mu.Unlock()
	}
}

func (h *Hub) encrypted(machine string) bool {
	m, ok := store.Cached[api.Machine](h.Cache, machine)
	if !ok {
		return false
	}
	zone, ok := store.Cached[api.Zone](h.Cache, m.Spec.Zone)
	return ok && zone.Spec.Encryption == api.EncryptionWireGuard
}

// keyFault says what is wrong with a WireGuard key that a host reports of
// itself. A key is the first host's that had it.
func (h *Hub) keyFault(host, key string) string {
	if m, ok := store.Cached[api.Machine](h.Cache, host); key == "" || ok && m.Status.Host != nil && m.Status.Host.WireGuardKey == key {
		return ""
	}
	if err := api.ValidateWireGuardKey(key); err != nil {
		return err.Error()
	}
	for _, m := range store.CachedList[api.Machine](h.Cache) {
		if m.Metadata.Name != host && m.Status.Host != nil && m.Status.Host.WireGuardKey == key {
			return "its WireGuard key is that of host " + m.Metadata.Name + ": remove wireguard.key from the state directory of nodeagent and restart it"
		}
	}
	return ""
}
