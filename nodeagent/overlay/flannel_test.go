package overlay

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/flanneltest"
	"github.com/rackweft/rackweft/nodeagent"
)

// startEtcd runs an etcd on the loopback of a namespace.
func startEtcd(t testing.TB, p place) *clientv3.Client {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir = t.TempDir()
	// What keeps it from starting is returned; being closed it calls an error four times.
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	client, peer := url.URL{Scheme: "http", Host: "127.0.0.1:2379"}, url.URL{Scheme: "http", Host: "127.0.0.1:2380"}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	var server *embed.Etcd
	must(t, within(p.ns, func() (err error) {
		server, err = embed.StartEtcd(cfg)
		return err
	}))
	t.Cleanup(server.Close)
	select {
	case <-server.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		t.Fatal("etcd does not come up")
	}
	return v3client.New(server.Server) // in memory: the test itself is in another namespace
}

type subnetKey struct {
	PublicIP    string
	BackendType string
	BackendData struct {
		VNI     int
		VtepMAC string
	}
}

// stockHost is a flanneld on a host of the fabric, and the etcd that it reads.
type stockHost struct {
	*testHost
	network tenant
	index   int         // of the host, from 1
	guests  map[int]end // of ours, one on each host
	etcd    *clientv3.Client
	ctx     context.Context
	stop    func()
}

func newStockHost(ctx context.Context, t testing.TB, f *fabric, n tenant, index int) *stockHost {
	t.Helper()
	s := &stockHost{testHost: f.hosts[index-1], network: n, index: index, guests: map[int]end{}, ctx: ctx}
	s.etcd = startEtcd(t, s.place)
	s.put("config", fmt.Sprintf(`{"Network": "10.%[1]d.0.0/16", "SubnetLen": 24, "SubnetMin": "10.%[1]d.%[2]d.0", "SubnetMax": "10.%[1]d.%[2]d.0", "Backend": {"Type": "vxlan", "VNI": %[3]d, "Port": 8472}}`,
		n.second, index, n.vni))
	return s
}

func (s *stockHost) put(key, value string) {
	s.fabric.t.Helper()
	_, err := s.etcd.Put(s.ctx, "/coreos.com/network/"+s.network.name+"/"+key, value)
	must(s.fabric.t, err)
}

func (s *stockHost) subnet(i int) string {
	return fmt.Sprintf("subnets/%s-24", s.network.lease(i).Addr())
}

// admit writes the lease of one of our hosts, as bootd does.
func (s *stockHost) admit(i int) {
	s.fabric.t.Helper()
	s.put(s.subnet(i), fmt.Sprintf(`{"PublicIP": %q, "BackendType": "vxlan", "BackendData": {"VNI": %d, "VtepMAC": %q}}`,
		s.fabric.hosts[i-1].underlay, s.network.vni, s.network.mac(i)))
}

func (s *stockHost) dismiss(i int) {
	s.fabric.t.Helper()
	_, err := s.etcd.Delete(s.ctx, "/coreos.com/network/"+s.network.name+"/"+s.subnet(i))
	must(s.fabric.t, err)
}

// run starts flanneld and answers what its lease makes of it for the others.
func (s *stockHost) run(binary string) api.NetworkPeer {
	t := s.fabric.t
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "flanneld.log"))
	must(t, err)
	cmd := exec.Command(binary, "-etcd-endpoints=http://127.0.0.1:2379", "-etcd-prefix=/coreos.com/network/"+s.network.name,
		"-iface=eth0", "-iptables-forward-rules=false", "-subnet-file="+filepath.Join(t.TempDir(), "subnet.env"))
	cmd.Stdout, cmd.Stderr = log, log
	must(t, within(s.ns, cmd.Start))
	s.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("flanneld:\n%s", text)
		}
	})
	t.Cleanup(s.stop)
	lease := flanneldLease(s.ctx, t, s.etcd, "/coreos.com/network/"+s.network.name+"/"+s.subnet(s.index))
	return api.NetworkPeer{Host: s.name, Lease: s.network.lease(s.index), VTEP: netip.MustParseAddr(lease.PublicIP), MAC: api.MAC(lease.BackendData.VtepMAC)}
}

// Three hosts of ours and a stock flanneld are members of one Network, whose
// leases are keys of etcd in flannel's layout. Each leaves and joins again.
func TestFlanneldIsAMember(t *testing.T) {
	binary := flanneltest.Binary(t)
	f := newFabric(t, 4, false)
	const index = 4
	n := red()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stock := newStockHost(ctx, t, f, n, index)
	members := []int{1, 2, 3}
	for _, i := range members {
		stock.admit(i)
	}
	peer := stock.run(binary)
	pass := func(stockIn bool) {
		t.Helper()
		for _, i := range members {
			part := f.part(n, i)
			for j := range f.hosts {
				if !slices.Contains(members, j+1) {
					part = withoutPeer(part, f.hosts[j].name)
				}
			}
			if stockIn {
				value := part.Value.(*api.NetworkPart)
				value.Peers = append(value.Peers, peer)
			}
			part.Digest = fmt.Sprint(members, stockIn)
			// A Network beside it with the very same addresses changes nothing.
			f.hosts[i-1].reconcile(part, withoutPeer(f.part(blue(), i), stock.name))
		}
	}
	pass(true)
	for _, i := range members {
		stock.settle(i, 8)
	}
	stock.meets(members)
	for i, h := range f.hosts[:3] {
		lost := newPinger(t, h.tenant(blue()).ns, first(blue().lease(i+1)))
		if err := lost.ping(n.lease(index).Addr(), 56, moment); err == nil {
			t.Errorf("%s reaches the stock host from another Network", h.name)
		}
	}

	for _, leaving := range []int{3, 1, 2} { // of ours
		stock.dismiss(leaving)
		members = slices.DeleteFunc(slices.Clone(members), func(i int) bool { return i == leaving })
		h := f.hosts[leaving-1]
		h.reconcile(removed(n), withoutPeer(f.part(blue(), leaving), stock.name))
		pass(true)
		stock.meets(members)
		soon(t, "flanneld has no route to a host that left", func() bool { return !stock.routes(n.lease(leaving)) })
		stock.admit(leaving)
		members = append(members, leaving)
		pass(true)
		stock.settle(leaving, 10)
		stock.meets(members)
	}

	stock.stop() // its key outlives it, until somebody takes it away
	stock.meets(members)
	pass(false)
	from := newPinger(t, f.hosts[0].tenant(n).ns, first(n.lease(1)))
	if from.ping(n.lease(index).Addr(), 56, moment) == nil {
		t.Error("a stock host that left is still reached")
	}
	stock.dismiss(index)
	peer = stock.run(binary)
	pass(true)
	stock.meets(members)
}

func (s *stockHost) routes(lease netip.Prefix) bool {
	list, err := s.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: ipNet(lease)}, netlink.RT_FILTER_DST)
	must(s.fabric.t, err)
	return len(list) > 0
}

// end is who speaks with others.
type end struct {
	place
	addr netip.Addr
}

// settle plugs a guest in on host i.
func (s *stockHost) settle(i int, last byte) {
	s.fabric.t.Helper()
	p, addr := s.fabric.guest(s.network, i, last)
	s.fabric.awaitGateway(p, addr)
	s.guests[i] = end{p, addr}
}

// meets wants pings, full packets and TCP between all pairs of members' guests and
// the stock host, both ways.
func (s *stockHost) meets(members []int) {
	t := s.fabric.t
	t.Helper()
	ends := []end{{s.place, s.network.lease(s.index).Addr()}} // of its VXLAN device itself
	for _, i := range members {
		ends = append(ends, s.guests[i])
	}
	for _, i := range members {
		soon(t, "flanneld has a route to every member", func() bool { return s.routes(s.network.lease(i)) })
	}
	for _, from := range ends {
		p := newPinger(t, from.ns, from.addr)
		for _, to := range ends {
			if from.addr == to.addr {
				continue
			}
			for _, size := range []int{56, underlayMTU - overheadIPv6 - 28} { // the guests' MTU
				if err := p.ping(to.addr, size, patience); err != nil {
					t.Errorf("%s does not reach %s with %d bytes: %v", from.addr, to.addr, size, err)
				}
			}
			if err := dial(t, from.place, from.addr, to.place, to.addr, patience); err != nil {
				t.Errorf("TCP from %s to %s: %v", from.addr, to.addr, err)
			}
		}
		_ = p.conn.Close()
	}
}

func withoutPeer(p nodeagent.Part, host string) nodeagent.Part {
	value := *p.Value.(*api.NetworkPart)
	value.Peers = nil
	for _, peer := range p.Value.(*api.NetworkPart).Peers {
		if peer.Host != host {
			value.Peers = append(value.Peers, peer)
		}
	}
	p.Value = &value
	return p
}

// flanneldLease waits for the key that flanneld writes.
func flanneldLease(ctx context.Context, t testing.TB, etcd *clientv3.Client, at string) subnetKey {
	t.Helper()
	for {
		got, err := etcd.Get(ctx, at)
		must(t, err)
		if len(got.Kvs) == 1 {
			var key subnetKey
			must(t, json.Unmarshal(got.Kvs[0].Value, &key))
			return key
		}
		time.Sleep(20 * time.Millisecond)
	}
}
