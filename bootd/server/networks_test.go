package server

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// TestNetworkPeers has one lease of each kind in a Network.
func TestNetworkPeers(t *testing.T) {
	r := newRig(t)
	put(t, r.root(), testsite.NewMachine("r1", "52:54:00:00:00:01"))
	n := &api.Network{Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes("10.5.0.0/16")}}
	n.Metadata.Name = "net"
	n.SetDefaults()
	put(t, r.root(), n)
	m, err := store.Mutate(context.Background(), r.store, "r1", func(m *api.Machine) error {
		m.Status.Host = &api.HostStatus{UID: m.Metadata.UID, Parts: map[string]api.PartStatus{"network/net": {State: api.PartFailed, Message: "no underlay"}}}
		return nil
	})
	must(t, err)
	etcd := r.store.Client()
	expires, err := etcd.Grant(context.Background(), 1000)
	must(t, err)
	vxlan := func(addr, mac string) string {
		return `{"PublicIP":"` + addr + `","BackendType":"vxlan","BackendData":{"VNI":100,"VtepMAC":"` + mac + `"}}`
	}
	ours := `{"network":"x","machine":"r1","uid":"` + m.Metadata.UID + `"`
	for _, kv := range []struct {
		key, value string
		opts       []clientv3.OpOption
	}{
		{"owner", `{"uid":"x","vni":100}`, nil},
		{"subnets/10.5.1.0-24", vxlan("198.18.8.1", "02:00:00:00:00:01"), nil},
		{"hosts/10.5.1.0-24", ours + `,"lease6":"fd00:0:0:1::/64"}`, nil},
		{"subnets/10.5.9.8-31", vxlan("198.18.8.1", "02:00:00:00:00:01"), nil},
		{"hosts/10.5.9.8-31", ours + `,"guest":"g"}`, nil},
		{"hosts/10.5.4.0-24", `{"network":"x","machine":"gone","uid":"y"}`, nil},
		{"subnets/10.5.2.0-24", vxlan("198.18.8.2", "56:00:00:00:00:02"), []clientv3.OpOption{clientv3.WithLease(expires.ID)}},
		{"subnets/10.5.3.0-24", "mine", nil},
	} {
		_, err := etcd.Put(context.Background(), store.FlannelPrefix+"net/"+kv.key, kv.value, kv.opts...)
		must(t, err)
	}
	var got *api.NetworkPeers
	waittest.Soon(time.Minute, func() bool { // what it is in the end is looked at below
		got, err = r.root().NetworkPeers(context.Background(), "net")
		must(t, err)
		return len(got.Peers) == 5 && got.Peers[0].State != ""
	})
	want := []string{
		"host r1 10.5.1.0/24 fd00:0:0:1::/64 198.18.8.1 02:00:00:00:00:01 Failed no underlay",
		"flanneld 198.18.8.2 10.5.2.0/24 invalid Prefix 198.18.8.2 56:00:00:00:00:02  ",
		"reservation  10.5.3.0/24 invalid Prefix invalid IP   ",
		"host gone 10.5.4.0/24 invalid Prefix invalid IP   its Machine is deleted; the lease is released soon",
		"guest r1 10.5.9.8/31 invalid Prefix 198.18.8.1 02:00:00:00:00:01 Failed no underlay",
	}
	var lines []string
	for _, p := range got.Peers {
		lines = append(lines, string(p.Kind)+" "+p.Host+" "+p.Lease.String()+" "+p.Lease6.String()+" "+p.VTEP.String()+" "+string(p.MAC)+" "+string(p.State)+" "+p.Message)
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Error(diff)
	}
	if p := got.Peers[len(got.Peers)-1]; p.Guest != "g" || p.Connected {
		t.Errorf("%+v", p)
	}
	if _, err := r.root().NetworkPeers(context.Background(), "nope"); !api.IsStatus(err, http.StatusNotFound) {
		t.Errorf("%v", err)
	}
	if _, err := r.bearer("").NetworkPeers(context.Background(), "net"); !api.IsStatus(err, http.StatusUnauthorized) {
		t.Errorf("without a login: %v", err)
	}
	if _, err := r.bearer(viewerToken).NetworkPeers(context.Background(), "net"); err != nil {
		t.Errorf("a viewer: %v", err)
	}

	path, err := r.bearer(viewerToken).NetworkPath(context.Background(), "net", "10.5.2.4", "10.5.1.4")
	must(t, err)
	if last := path.Steps[len(path.Steps)-1]; path.Delivered || last.Host != "r1" || last.Problem != "no underlay" {
		t.Errorf("the path ends with %+v", last)
	}
	if path, err = r.root().NetworkPath(context.Background(), "net", "10.5.1.4", "169.254.1.1"); err != nil || path.Delivered {
		t.Errorf("a packet leaves a host that failed: %+v, %v", path, err)
	}
	for _, c := range []struct {
		network, from, to string
		status            int
	}{{"nope", "10.5.2.4", "10.5.1.4", http.StatusNotFound}, {"net", "nobody", "10.5.1.4", http.StatusNotFound}, {"net", "10.5.2.4", "", http.StatusBadRequest}} {
		if _, err := r.root().NetworkPath(context.Background(), c.network, c.from, c.to); !api.IsStatus(err, c.status) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
