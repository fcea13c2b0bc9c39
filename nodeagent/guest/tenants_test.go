package guest

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/namespace"
	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/nodeagent"
)

// fabric is a switch: a bridge in a namespace that goes with the test.
type fabric struct {
	*netlink.Handle
	ns     netns.NsHandle
	bridge netlink.Link
}

func newFabric(t *testing.T) fabric {
	t.Helper()
	nstest.Root(t, nstest.Namespaces)
	dir, err := os.MkdirTemp("", "fabric")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "switch")
	t.Cleanup(func() {
		_ = namespace.Unpin(path)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		_ = os.RemoveAll(dir)
	})
	if err := namespace.Pin(path); err != nil {
		t.Fatal(err)
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	k, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := k.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	if err := k.LinkSetUp(bridge); err != nil {
		t.Fatal(err)
	}
	return fabric{k, ns, bridge}
}

// tenants are two Networks of one CIDR.
func tenants() []string { return []string{"red", "blue"} }

// networkPart is a tenant's on host i, 1 or 2, with the other host for a peer.
func networkPart(name string, i int) nodeagent.Part {
	vni := map[string]uint32{"red": 7301, "blue": 7302}[name]
	lease := func(i int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("10.7.%d.0/24", i)) }
	mac := func(i int) api.MAC { return api.MAC(fmt.Sprintf("02:00:00:00:%02x:%02x", vni&0xff, i)) }
	other := 3 - i
	value := &api.NetworkPart{UID: name, VNI: vni, MTU: 1450, Lease: lease(i), MAC: mac(i), CIDRs: []netip.Prefix{netip.MustParsePrefix("10.7.0.0/16")},
		Peers: []api.NetworkPeer{{Host: fmt.Sprintf("h%d", other), Lease: lease(other), VTEP: netip.MustParseAddr(underlay(other)), MAC: mac(other)}}}
	return nodeagent.Part{Name: api.NetworkPartName(name), UID: name, Digest: "1", Value: value}
}

func underlay(i int) string { return fmt.Sprintf("198.18.0.%d", i) }

// Guests of one Network on two hosts talk. Those of another Network, which have
// the same addresses, are nobody to them: neither when the address that they call
// is on their own host, nor when it is on the other.
func TestTenantsAcrossHosts(t *testing.T) {
	if testing.Short() {
		t.Skip("boots four Guests under emulation")
	}
	t.Parallel()
	f := newFabric(t)
	hosts := []*host{newHost(t), newHost(t)}
	uid := func(tenant string, i int) string { return fmt.Sprintf("%s-%d", tenant, i) }
	address := func(i int) string { return fmt.Sprintf("10.7.%d.8", i) }
	parts := func(i int, state map[string]api.GuestState) (list []nodeagent.Part) {
		for n, tenant := range tenants() {
			g := linux(hosts[i-1])
			g.Memory, g.StopTimeout = quantity("128Mi"), 1
			g.Network, g.Addresses, g.MAC = tenant, []netip.Addr{netip.MustParseAddr(address(i))}, api.MAC(fmt.Sprintf("02:00:00:07:%02x:%02x", n, i))
			if s, ok := state[tenant]; ok {
				g.State = s
			}
			list = append(list, part(tenant, uid(tenant, i), g))
		}
		return list
	}
	for i, h := range hosts {
		port := fmt.Sprintf("h%d", i+1)
		eth0 := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: port, PeerNamespace: netlink.NsFd(f.ns)}
		o := h.overlay(underlay(i+1), eth0, nil, networkPart("red", i+1), networkPart("blue", i+1))
		peer, err := f.LinkByName(port)
		h.try(err)
		h.try(f.LinkSetMaster(peer, f.bridge))
		h.try(f.LinkSetUp(peer))
		h.with = func(options *Options) { options.Network = o }
		h.run()
		h.want(parts(i+1, nil)...)
	}
	for i, h := range hosts {
		for _, tenant := range tenants() {
			id := uid(tenant, i+1)
			h.wait(id+" boots", func() bool { return strings.Contains(h.console(id), "@tick 1") })
			h.must(id, "network "+address(i+1), "ok")
			h.must(id, "serve "+id, "ok")
		}
	}
	for i, h := range hosts {
		for _, tenant := range tenants() {
			for to := range hosts {
				h.must(uid(tenant, i+1), "call "+address(to+1), uid(tenant, to+1))
			}
		}
	}

	// Without its own tenant's Guest an address is nobody's.
	gone := hosts[1]
	gone.want(parts(2, map[string]api.GuestState{"blue": "Stopped"})...)
	gone.wait("it is stopped", gone.is("guest/blue", api.PartApplied, "Stopped"))
	hosts[0].must(uid("blue", 1), "call "+address(2), "nobody")
	hosts[0].must(uid("red", 1), "call "+address(2), uid("red", 2))
	hosts[0].want(parts(1, map[string]api.GuestState{"red": "Stopped"})...)
	hosts[0].wait("it is stopped", hosts[0].is("guest/red", api.PartApplied, "Stopped"))
	gone.must(uid("red", 2), "call "+address(1), "nobody")
	hosts[0].must(uid("blue", 1), "call "+address(1), uid("blue", 1))
}
