package hostspec

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/wait"
)

// meshes lists the hosts of each encrypted Zone.
type meshes map[string][]api.EncryptionPeer

// encryption returns how a host encrypts its underlay; nil when its Zone does not.
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

// mesh assigns each key to one host only: Machines whose addresses are pinned take precedence over hosts' reports.
func mesh(c *store.Cache, zone string) []api.EncryptionPeer {
	var list []api.EncryptionPeer
	keys, taken := map[string]bool{}, map[netip.Addr]bool{}
	machines := store.CachedList[api.Machine](c)
	for _, first := range []bool{true, false} {
		for _, m := range machines {
			_, pinned := site.Claims(c, m)
			key := wireGuardKey(m)
			if m.Spec.Zone != zone || pinned != first || key == "" || keys[key] {
				continue
			}
			addrs := slices.DeleteFunc(slices.Clone(site.UnderlayOf(c, m).Addresses), func(a netip.Addr) bool { return taken[a] })
			if len(addrs) == 0 {
				continue
			}
			keys[key] = true
			for _, a := range addrs {
				taken[a] = true
			}
			list = append(list, api.EncryptionPeer{Host: m.Metadata.Name, PublicKey: key, Addresses: addrs})
		}
	}
	slices.SortFunc(list, func(a, b api.EncryptionPeer) int { return strings.Compare(a.Host, b.Host) })
	return list
}

func wireGuardKey(m *api.Machine) string {
	if m.Status.Host == nil {
		return ""
	}
	return m.Status.Host.WireGuardKey
}

// meshChanged reports whether other hosts must receive a change to a Machine: an address that it reports may be
// another's, whose peers must drop it.
func meshChanged(cache *store.Cache, c store.Change) bool {
	facts := func(o api.Object) (zone, key string, addrs []netip.Addr) {
		m, ok := o.(*api.Machine)
		if !ok {
			return "", "", nil
		}
		addrs, _ = site.Claims(cache, m)
		return m.Spec.Zone, wireGuardKey(m), addrs
	}
	zone, key, addrs := facts(c.Old)
	nowZone, nowKey, nowAddrs := facts(c.New)
	return (key != "" || nowKey != "") && zone != nowZone || key != nowKey || !slices.Equal(addrs, nowAddrs)
}

// gather is how long changes of hosts are collected before the others of their Zone receive them: each of these
// gets the whole list.
const gather = time.Second

// tellMeshes informs the hosts of encrypted Zones about each other, until ctx ends.
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
			if encrypted(h.Cache, name) {
				s.mark()
			}
		}
		h.mu.Unlock()
	}
}

func encrypted(cache *store.Cache, machine string) bool {
	m, ok := store.Cached[api.Machine](cache, machine)
	if !ok {
		return false
	}
	zone, ok := store.Cached[api.Zone](cache, m.Spec.Zone)
	return ok && zone.Spec.Encryption == api.EncryptionWireGuard
}

// keyFault returns what is wrong with the WireGuard key that a host reports. A key belongs to the first host that
// reported it.
func keyFault(cache *store.Cache, host, key string) string {
	if m, ok := store.Cached[api.Machine](cache, host); key == "" || ok && m.Status.Host != nil && m.Status.Host.WireGuardKey == key {
		return ""
	}
	if err := api.ValidateWireGuardKey(key); err != nil {
		return err.Error()
	}
	for _, m := range store.CachedList[api.Machine](cache) {
		if m.Metadata.Name != host && m.Status.Host != nil && m.Status.Host.WireGuardKey == key {
			return "its WireGuard key is that of host " + m.Metadata.Name + ": remove wireguard.key from the state directory of nodeagent and restart it"
		}
	}
	return ""
}
