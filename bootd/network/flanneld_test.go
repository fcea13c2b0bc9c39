package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/flanneltest"
	"github.com/rackweft/rackweft/internal/nstest"
)

// inNamespace runs fn in a new network namespace that has an underlay interface
// with an address.
func inNamespace(t *testing.T, address string, fn func() error) {
	t.Helper()
	ns := nstest.New(t)
	nstest.IP(t, ns, "link", "add", "eth0", "mtu", "1500", "type", "veth", "peer", "name", "peer0")
	nstest.IP(t, ns, "link", "set", "eth0", "up")
	nstest.IP(t, ns, "link", "set", "peer0", "up")
	nstest.IP(t, ns, "addr", "add", address, "dev", "eth0")
	if err := nstest.Within(ns, fn); err != nil {
		t.Fatal(err)
	}
}

// TestStockFlanneld has a real flanneld join a Network through the Gate before
// the etcd of bootd: it takes what its configuration says, clashes with no host, programs
// every host, and is a peer of each.
func TestStockFlanneld(t *testing.T) {
	binary := flanneltest.Binary(t)
	b := newBench(t)
	b.Create(machine(1), machine(2), machine(3), network("net"))
	b.settled("net", "Allocated", 3)

	log, err := os.Create(filepath.Join(t.TempDir(), "flanneld.log"))
	if err != nil {
		t.Fatal(err)
	}
	env := filepath.Join(t.TempDir(), "subnet.env")
	files := b.certificate("net")
	cmd := exec.Command(binary, "-etcd-endpoints=https://127.0.0.1:2379", "-etcd-prefix=/coreos.com/network/net",
		"-etcd-cafile="+files+"/ca.crt", "-etcd-certfile="+files+"/client.crt", "-etcd-keyfile="+files+"/client.key", "-iface=eth0", "-iptables-forward-rules=false", "-subnet-file="+env, "-healthz-port=0")
	cmd.Stdout, cmd.Stderr = log, log
	var kernel *netlink.Handle
	inNamespace(t, "198.18.11.1/22", func() error {
		if kernel, err = netlink.NewHandle(); err != nil {
			return err
		}
		l, err := net.Listen("tcp", "127.0.0.1:2379")
		if err != nil {
			return err
		}
		b.serve(l)
		return cmd.Start()
	})
	text := func() string { raw, _ := os.ReadFile(log.Name()); return string(raw) }
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		kernel.Close()
		if t.Failed() {
			t.Log(text())
		}
	})

	public := netip.MustParseAddr("198.18.11.1")
	var its api.NetworkPeer
	b.eventually("flanneld is a peer", func() bool {
		for _, p := range b.c.Index.View("net").Peers() {
			if p.VTEP == public {
				its = p
			}
		}
		return its.Lease.IsValid()
	})
	hosts := map[string]bool{}
	for _, p := range b.c.Index.View("net").Peers() {
		if p.Lease != its.Lease && p.Lease.Overlaps(its.Lease) {
			t.Errorf("flanneld has %s, %s has %s", its.Lease, p.Host, p.Lease)
		}
		hosts[p.Host] = true
	}
	if !hosts["r1u01"] || !hosts["r1u03"] || its.Host != public.String() || its.Lease.Bits() != 24 {
		t.Errorf("%+v beside %v", its, hosts)
	}
	b.eventually("flanneld says what it has", func() bool {
		raw, err := os.ReadFile(env)
		return err == nil && strings.Contains(string(raw), "FLANNEL_NETWORK=10.5.0.0/16") && strings.Contains(string(raw), "FLANNEL_MTU=1450")
	})
	routes := func() []string {
		link, err := kernel.LinkByName("flannel.100")
		if err != nil {
			return nil
		}
		list, _ := kernel.RouteList(link, netlink.FAMILY_V4)
		var to []string
		for _, r := range list {
			to = append(to, r.Dst.String())
		}
		slices.Sort(to)
		return to
	}
	b.eventually("flanneld has a route to every host", func() bool { return len(routes()) == 3 })

	// Hosts come and go under it, and it loses none of the others.
	b.Create(machine(4))
	b.eventually("a route to the new host", func() bool { return len(routes()) == 4 })
	gone := b.Machine("r1u02")
	if err := b.Store.Delete(t.Context(), api.KindOf(gone), "r1u02", ""); err != nil {
		t.Fatal(err)
	}
	b.eventually("no route to the deleted host", func() bool { return len(routes()) == 3 })
	link, err := kernel.LinkByName("flannel.100")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := kernel.NeighList(link.Attrs().Index, 7) // AF_BRIDGE
	if err != nil {
		t.Fatal(err)
	}
	m := b.Machine("r1u04")
	if !slices.ContainsFunc(entries, func(n netlink.Neigh) bool {
		return api.MAC(n.HardwareAddr.String()) == VTEPMAC(m.Metadata.UID, 100) && n.IP.String() == addr(4).String()
	}) {
		t.Errorf("the entry of r1u04 is missing in %v", entries)
	}

	b.followsGuest(kernel, routes)

	// The Network's deletion ends it in order.
	for _, name := range []string{"r1u01", "r1u03", "r1u04"} {
		b.Change(name, func(m *api.Machine) {
			m.Status.Host = &api.HostStatus{UID: m.Metadata.UID, Epoch: 1, Revision: 1 << 40}
		})
	}
	if err := b.Store.Delete(t.Context(), api.KindOf(new(api.Network)), "net", ""); err != nil {
		t.Fatal(err)
	}
	b.eventually("the leases are gone", func() bool { return len(b.layout("net")) == 0 })
	b.eventually("flanneld notes that", func() bool { return strings.Contains(text(), "Lease has been revoked") })
	b.eventually("the Network is gone", func() bool {
		_, err := store.Get[api.Network](t.Context(), b.Store, "net")
		return errors.Is(err, store.ErrNotFound)
	})
}

// followsGuest takes a Guest of r1u01 to r1u03, to r1u04, and home: flanneld's
// route goes with it, and it loses no host by that.
func (b *bench) followsGuest(kernel *netlink.Handle, routes func() []string) {
	b.t.Helper()
	link, err := kernel.LinkByName("flannel.100")
	if err != nil {
		b.t.Fatal(err)
	}
	home, _ := store.ParseFlannelSubnet(b.ownLease("net", "r1u01"))
	guest := guestLease(netip.AddrFrom4([4]byte{10, 5, home.Addr().As4()[2], 8}))
	// leads reports whether all that flanneld needs for a lease is in the kernel,
	// and leads to a host.
	leads := func(lease netip.Prefix, host int) bool {
		mac := VTEPMAC(b.Machine(fmt.Sprintf("r1u%02d", host)).Metadata.UID, 100)
		neighbours, err := kernel.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
		if err != nil {
			b.t.Fatal(err)
		}
		entries, err := kernel.NeighList(link.Attrs().Index, 7) // AF_BRIDGE
		if err != nil {
			b.t.Fatal(err)
		}
		has := func(list []netlink.Neigh, ip netip.Addr) bool {
			return slices.ContainsFunc(list, func(n netlink.Neigh) bool {
				return api.MAC(n.HardwareAddr.String()) == mac && n.IP.String() == ip.String()
			})
		}
		return slices.Contains(routes(), lease.String()) && has(neighbours, lease.Addr()) && has(entries, addr(host))
	}
	hosts := func() bool {
		for _, i := range []int{1, 3, 4} {
			lease, _ := store.ParseFlannelSubnet(b.ownLease("net", fmt.Sprintf("r1u%02d", i)))
			if !leads(lease, i) {
				return false
			}
		}
		return true
	}
	b.Create(newGuest("g"))
	for _, host := range []int{3, 4} {
		b.place("g", fmt.Sprintf("r1u%02d", host), guest.Addr())
		b.eventually(fmt.Sprintf("flanneld has followed the Guest to r1u%02d", host), func() bool { return leads(guest, host) && hosts() })
	}
	b.place("g", "r1u01", guest.Addr())
	b.eventually("the Guest is at home", func() bool { return !slices.Contains(routes(), guest.String()) })
	// It takes one change after the other: when it has a later one, it is done.
	b.put("net/subnets/10.5.77.0-24", string(leaseValue(100, netip.MustParseAddr("198.18.11.77"), "56:aa:bb:cc:dd:77")))
	b.eventually("a route to a reservation", func() bool { return slices.Contains(routes(), "10.5.77.0/24") })
	if !hosts() {
		b.t.Error("flanneld has lost a host with the Guest's lease")
	}
	if err := b.Store.Delete(b.t.Context(), api.KindOf(new(api.Guest)), "g", ""); err != nil {
		b.t.Fatal(err)
	}
}
