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
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

const flannelModule = "github.com/flannel-io/flannel@v0.26.7"

// flanneld is the stock one, built once and kept in the user's cache.
func flanneld(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("building flanneld takes minutes")
	}
	cache, err := os.UserCacheDir()
	must(t, err)
	dir := filepath.Join(cache, "rackweft-test")
	binary := filepath.Join(dir, "flannel")
	if _, err := os.Stat(binary); err == nil {
		return binary
	}
	cmd := exec.Command("go", "install", flannelModule)
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=")
	cmd.Dir = t.TempDir()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", flannelModule, err, out)
	}
	return binary
}

// startEtcd runs an etcd on the loopback of a namespace.
func startEtcd(t testing.TB, p place) *clientv3.Client {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel = t.TempDir(), "error"
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

// A stock flanneld is a full member of a Network whose leases are keys of etcd
// in flannel's layout: it joins, its host is reached, and its leaving is seen.
func TestFlanneldIsAMember(t *testing.T) {
	binary := flanneld(t)
	f := newFabric(t, 3, false)
	stock := f.hosts[2]
	etcd := startEtcd(t, stock.place)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	put := func(key, value string) {
		t.Helper()
		_, err := etcd.Put(ctx, "/coreos.com/network/red/"+key, value)
		must(t, err)
	}
	n := red()
	put("config", `{"Network": "10.5.0.0/16", "SubnetLen": 24, "SubnetMin": "10.5.3.0", "SubnetMax": "10.5.3.0", "Backend": {"Type": "vxlan", "VNI": 101, "Port": 8472}}`)
	for i := 1; i <= 2; i++ {
		put(fmt.Sprintf("subnets/10.5.%d.0-24", i), fmt.Sprintf(
			`{"PublicIP": "198.18.0.%d", "BackendType": "vxlan", "BackendData": {"VNI": 101, "VtepMAC": %q}}`, i, n.mac(i)))
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "flanneld.log"))
	must(t, err)
	cmd := exec.Command(binary, "-etcd-endpoints=http://127.0.0.1:2379", "-etcd-prefix=/coreos.com/network/red",
		"-iface=eth0", "-iptables-forward-rules=false", "-subnet-file="+filepath.Join(t.TempDir(), "subnet.env"))
	cmd.Stdout, cmd.Stderr = log, log
	must(t, within(stock.ns, cmd.Start))
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("flanneld:\n%s", text)
		}
	})

	lease := flanneldLease(ctx, t, etcd)
	peer := api.NetworkPeer{Host: stock.name, Lease: n.lease(3), VTEP: netip.MustParseAddr(lease.PublicIP), MAC: api.MAC(lease.BackendData.VtepMAC)}
	for i, h := range f.hosts[:2] {
		part := f.part(n, i+1)
		value := part.Value.(*api.NetworkPart)
		value.Peers[1] = peer
		// A Network beside it with the very same addresses changes nothing.
		h.reconcile(part, withoutPeer(f.part(blue(), i+1), stock.name))
	}

	addr := n.lease(3).Addr() // of flannel.101 itself
	for i, h := range f.hosts[:2] {
		p := newPinger(t, h.tenant(n).ns, first(n.lease(i+1)))
		wait := time.Now().Add(patience)
		for err = errNoReply; err != nil && time.Now().Before(wait); {
			err = p.ping(addr, 56, 200*time.Millisecond)
		}
		if err != nil {
			t.Errorf("%s does not reach the stock host: %v", h.name, err)
		}
		if err := p.ping(addr, 1450-28, patience); err != nil {
			t.Errorf("%s: a full packet to the stock host: %v", h.name, err)
		}
		back := newPinger(t, stock.ns, addr)
		if err := back.ping(first(n.lease(i+1)), 1450-28, patience); err != nil {
			t.Errorf("the stock host does not reach %s: %v", h.name, err)
		}
		lost := newPinger(t, h.tenant(blue()).ns, first(blue().lease(i+1)))
		if err := lost.ping(addr, 56, 100*time.Millisecond); err == nil {
			t.Errorf("%s reaches the stock host from another Network", h.name)
		}
	}
	f.hosts = f.hosts[:2]
	f.allPairs(n)
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
func flanneldLease(ctx context.Context, t testing.TB, etcd *clientv3.Client) subnetKey {
	t.Helper()
	for {
		got, err := etcd.Get(ctx, "/coreos.com/network/red/subnets/10.5.3.0-24")
		must(t, err)
		if len(got.Kvs) == 1 {
			var key subnetKey
			must(t, json.Unmarshal(got.Kvs[0].Value, &key))
			return key
		}
		time.Sleep(20 * time.Millisecond)
	}
}
