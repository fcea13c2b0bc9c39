package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rackweft/rackweft/internal/wait"
)

// FlannelPrefix is flannel's prefix (pkg/subnet/etcd in flannel v0.26.7: its
// default --etcd-prefix). A Network's keys are one level below, so that
// flanneld --etcd-prefix=/coreos.com/network/NETWORK is a member of it.
const FlannelPrefix = "/coreos.com/network/"

// FlannelKind is the kind of a Network's key.
type FlannelKind string

// The keys of a Network. Flannel reads only config and subnets/; owner and hosts/ are rackweft's, under the same
// prefix so that one watch sees both at one revision. Only leases may ever exist under subnets/: a key there that
// flanneld cannot parse makes it drop all of its peers.
const (
	FlannelConfig FlannelKind = "config"  // flannel's configuration of the Network
	FlannelSubnet FlannelKind = "subnets" // a lease, of a host or of a stock flanneld
	FlannelOwner  FlannelKind = "owner"   // which Network it is; changed by every write of bootd
	FlannelHost   FlannelKind = "hosts"   // which host a lease of rackweft belongs to
)

// FlannelID names one key.
type FlannelID struct {
	Network string
	Kind    FlannelKind
	Subnet  netip.Prefix // of FlannelSubnet and FlannelHost
}

// String is the key in etcd.
func (id FlannelID) String() string {
	key := FlannelPrefix + id.Network + "/" + string(id.Kind)
	if id.Kind == FlannelSubnet || id.Kind == FlannelHost {
		key += "/" + id.Subnet.Addr().String() + "-" + strconv.Itoa(id.Subnet.Bits())
	}
	return key
}

// FlannelKey is one key in etcd.
type FlannelKey struct {
	FlannelID
	Value    []byte // nil: deleted
	TTL      bool   // it expires unless a flanneld renews it
	Revision int64  // of its last write
}

// FlannelBatch is a set of changes of the layout at one revision.
type FlannelBatch struct {
	Snapshot bool // Keys contains all keys; else the changed ones
	Keys     []FlannelKey
	Revision int64
}

// FlannelWrite changes one key that must be at a given revision.
type FlannelWrite struct {
	FlannelID
	At    int64  // its mod revision; 0: it must not exist
	Value []byte // nil deletes it
}

// maxFlannelWrites keeps a transaction within etcd's 128 operations.
const maxFlannelWrites = 120

// Flannel is flannel's layout in etcd, with bootd's own keys.
type Flannel struct{ etcd *etcd }

// Read reads all keys of a Network, at one revision.
func (f *Flannel) Read(ctx context.Context, network string) ([]FlannelKey, error) {
	keys, _, err := f.read(ctx, FlannelPrefix+network+"/")
	if err != nil {
		return nil, fmt.Errorf("read the leases of Network %s: %w", network, err)
	}
	return keys, nil
}

// ReadAll reads all keys of all Networks.
func (f *Flannel) ReadAll(ctx context.Context) ([]FlannelKey, error) {
	keys, _, err := f.read(ctx, FlannelPrefix)
	if err != nil {
		return nil, fmt.Errorf("read the leases of Networks: %w", err)
	}
	return keys, nil
}

func (f *Flannel) read(ctx context.Context, prefix string) ([]FlannelKey, int64, error) {
	var keys []FlannelKey
	revision, err := f.etcd.scan(ctx, prefix, func(kv *mvccpb.KeyValue) {
		if k, ok := flannelKey(kv); ok {
			keys = append(keys, k)
		}
	})
	return keys, revision, err
}

// Write makes all the changes or none: it fails with ErrConflict when one of the keys is no longer at its
// revision.
func (f *Flannel) Write(ctx context.Context, writes ...FlannelWrite) error {
	if len(writes) > maxFlannelWrites {
		return fmt.Errorf("write %d leases at once: at most %d can be", len(writes), maxFlannelWrites)
	}
	var when []clientv3.Cmp
	var then []clientv3.Op
	commit := f.etcd.commit
	for _, w := range writes {
		key := w.String()
		when = append(when, clientv3.Compare(clientv3.ModRevision(key), "=", w.At))
		if w.Value == nil {
			then = append(then, clientv3.OpDelete(key))
			continue
		}
		then = append(then, clientv3.OpPut(key, string(w.Value)))
		commit = f.etcd.write
	}
	resp, err := commit(ctx, transaction{when: when, then: then})
	if err != nil {
		return fmt.Errorf("write leases: %w", err)
	}
	if !resp.Succeeded {
		return fmt.Errorf("write leases: one of them %w", ErrConflict)
	}
	return nil
}

// Drop deletes all keys of a Network whose owner's record is still at a
// revision.
func (f *Flannel) Drop(ctx context.Context, network string, at int64) error {
	owner := FlannelID{Network: network, Kind: FlannelOwner}.String()
	resp, err := f.etcd.commit(ctx, transaction{
		when: []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(owner), "=", at)},
		then: []clientv3.Op{clientv3.OpDelete(FlannelPrefix+network+"/", clientv3.WithPrefix())},
	})
	if err != nil {
		return fmt.Errorf("delete the leases of Network %s: %w", network, err)
	}
	if !resp.Succeeded {
		return fmt.Errorf("delete the leases of Network %s: they %w", network, ErrConflict)
	}
	return nil
}

// Follow calls take with the whole layout, then with every change, until
// ctx ends. After a failure it begins again with the whole.
func (f *Flannel) Follow(ctx context.Context, take func(FlannelBatch)) error {
	for {
		err := f.follow(ctx, take)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, ErrCompacted) {
			f.etcd.log.Warn("leases of Networks are not updated until etcd answers again", "error", err)
		}
		if err := wait.For(ctx, time.Second); err != nil {
			return err
		}
	}
}

func (f *Flannel) follow(ctx context.Context, take func(FlannelBatch)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	keys, revision, err := f.read(ctx, FlannelPrefix)
	if err != nil {
		return fmt.Errorf("read the leases of Networks: %w", err)
	}
	take(FlannelBatch{Snapshot: true, Keys: keys, Revision: revision})
	for resp, err := range f.etcd.follow(ctx, FlannelPrefix, revision) {
		if err != nil {
			return fmt.Errorf("watch the leases of Networks: %w", err)
		}
		b := FlannelBatch{Revision: resp.Header.Revision}
		for _, e := range resp.Events {
			k, ok := flannelKey(e.Kv)
			if !ok {
				continue
			}
			if e.Type == clientv3.EventTypeDelete {
				k.Value = nil
			}
			b.Keys = append(b.Keys, k)
		}
		if len(b.Keys) > 0 {
			take(b)
		}
	}
	return errors.New("etcd ended the watch")
}

// flannelKey ignores keys that do not belong to a Network, such as those of a flanneld with the default prefix.
func flannelKey(kv *mvccpb.KeyValue) (FlannelKey, bool) {
	network, rest, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), FlannelPrefix), "/")
	k := FlannelKey{FlannelID: FlannelID{Network: network}, Value: kv.Value, TTL: kv.Lease != 0, Revision: kv.ModRevision}
	if k.Value == nil {
		k.Value = []byte{}
	}
	kind, subnet, leaf := strings.Cut(rest, "/")
	k.Kind = FlannelKind(kind)
	switch k.Kind {
	case FlannelConfig, FlannelOwner:
		return k, !leaf
	case FlannelSubnet, FlannelHost:
		var ok bool
		k.Subnet, ok = ParseFlannelSubnet(subnet)
		return k, ok
	}
	return k, false
}

// ParseFlannelSubnet reads the last part of a lease's key, as flannel's
// subnet.ParseSubnetKey does: ADDRESS-LENGTH, IPv4, the length at most 31. Of a dual-stack key (…&ADDRESS-LENGTH)
// it returns the IPv4 half.
func ParseFlannelSubnet(s string) (netip.Prefix, bool) {
	s, _, _ = strings.Cut(s, "&")
	addr, length, ok := strings.Cut(s, "-")
	a, err1 := netip.ParseAddr(addr)
	n, err2 := strconv.ParseUint(length, 10, 5)
	if !ok || err1 != nil || err2 != nil || !a.Is4() {
		return netip.Prefix{}, false
	}
	p := netip.PrefixFrom(a, int(n))
	return p, p == p.Masked()
}
