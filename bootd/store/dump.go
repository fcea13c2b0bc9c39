package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Record is one key in a backup.
type Record struct {
	Key   string
	Value []byte
	TTL   bool // it had an etcd lease: a stock flanneld's
}

// rackweftPrefix is the prefix of all of bootd's keys except the leases of Networks.
const rackweftPrefix = "/rackweft/"

// dumped are the prefixes of everything that a Site has in etcd. Elections, the Site's holder, and the mark of a
// restore in progress belong to this etcd only.
func dumped() []string { return []string{rackweftPrefix, FlannelPrefix} }

func ownToEtcd(key string) bool {
	return strings.HasPrefix(key, electionPrefix) || key == restoringKey || key == holderKey
}

// dumps reads and writes the store's part of a backup.
type dumps struct {
	etcd *etcd
	raw  *Raw
}

// Dump calls fn with every key of the Site at one revision. It must not be older than the store's history.
func (d *dumps) Dump(ctx context.Context, revision int64, fn func(Record) error) error {
	for _, prefix := range dumped() {
		var fault error
		_, err := d.etcd.scanAt(ctx, prefix, revision, func(kv *mvccpb.KeyValue) {
			if fault != nil || ownToEtcd(string(kv.Key)) {
				return
			}
			if _, fault = opened(string(kv.Key), kv.Value); fault == nil {
				fault = fn(Record{Key: string(kv.Key), Value: kv.Value, TTL: kv.Lease != 0})
			}
		})
		if err := errors.Join(err, fault); err != nil {
			return fmt.Errorf("read the store: %w", err)
		}
	}
	return nil
}

// ErrNotEmpty says that a store already holds a Site.
var ErrNotEmpty = errors.New("the store already holds a Site")

// restoringKey exists while a restore is in progress.
const restoringKey = internalPrefix + "raw/restoring"

// Restoring reports whether a restore into this store was begun and not ended.
func (d *dumps) Restoring(ctx context.Context) (bool, error) {
	raw, err := d.raw.Get(ctx, "restoring")
	return len(raw) > 0, err
}

// BeginRestore prepares a store for Load: one that holds a Site is an ErrNotEmpty, unless its content is from an
// interrupted restore.
func (d *dumps) BeginRestore(ctx context.Context) error {
	again, err := d.Restoring(ctx)
	if err != nil {
		return err
	}
	for _, prefix := range []string{objectPrefix, internalPrefix + "raw/", vnisPrefix, FlannelPrefix} {
		if again {
			if err := d.drop(ctx, prefix); err != nil {
				return err
			}
		}
		resp, err := d.etcd.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return fmt.Errorf("check whether the store is empty: %w", d.etcd.explain(ctx, err))
		}
		if resp.Count > 0 {
			return fmt.Errorf("%w: %d keys are under %s", ErrNotEmpty, resp.Count, prefix)
		}
	}
	return d.raw.Put(ctx, "restoring", []byte("1"))
}

func (d *dumps) drop(ctx context.Context, prefix string) error {
	_, err := d.etcd.commit(ctx, transaction{then: []clientv3.Op{clientv3.OpDelete(prefix, clientv3.WithPrefix())}})
	if err != nil {
		return fmt.Errorf("remove what an interrupted restore left under %s: %w", prefix, err)
	}
	return nil
}

// EndRestore marks the store as complete: from now on bootd may run on it.
func (d *dumps) EndRestore(ctx context.Context) error { return d.raw.Delete(ctx, "restoring") }

const (
	// loadOps and loadBytes limit one transaction of Load.
	loadOps   = 100
	loadBytes = 1 << 20
	// flannelTTL is how long the lease of a stock flanneld is kept, as flannel itself does (subnetTTL in
	// pkg/subnet/etcd/registry.go).
	flannelTTL = 24 * 60 * 60
)

// Loader writes records into a store that BeginRestore has prepared.
type Loader struct {
	etcd  *etcd
	ops   []clientv3.Op
	bytes int
	lease clientv3.LeaseID
}

// Loader begins to load.
func (d *dumps) Loader() *Loader { return &Loader{etcd: d.etcd} }

// Add writes a record, no later than the next Flush.
func (l *Loader) Add(ctx context.Context, r Record) error {
	known := false
	for _, prefix := range dumped() {
		known = known || strings.HasPrefix(r.Key, prefix)
	}
	if !known || ownToEtcd(r.Key) {
		return fmt.Errorf("invalid key %.120q: want a key of a Site", r.Key)
	}
	var opts []clientv3.OpOption
	if r.TTL {
		if err := l.grant(ctx); err != nil {
			return err
		}
		opts = append(opts, clientv3.WithLease(l.lease))
	}
	if len(l.ops) >= loadOps || l.bytes+len(r.Value) > loadBytes {
		if err := l.Flush(ctx); err != nil {
			return err
		}
	}
	l.ops = append(l.ops, clientv3.OpPut(r.Key, string(r.Value), opts...))
	l.bytes += len(r.Key) + len(r.Value)
	return nil
}

func (l *Loader) grant(ctx context.Context) error {
	if l.lease != 0 {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	granted, err := l.etcd.client.Grant(limited, flannelTTL)
	if err != nil {
		return fmt.Errorf("keep the leases of flannelds: %w", l.etcd.explain(ctx, err))
	}
	l.lease = granted.ID
	return nil
}

// Flush writes the collected records.
func (l *Loader) Flush(ctx context.Context) error {
	if len(l.ops) == 0 {
		return nil
	}
	ops := l.ops
	l.ops, l.bytes = nil, 0
	_, err := l.etcd.write(ctx, transaction{then: ops})
	if err != nil {
		return fmt.Errorf("load %d keys: %w", len(ops), err)
	}
	return nil
}

// PutExpiring writes one record with an etcd lease of its own.
func (d *dumps) PutExpiring(ctx context.Context, r Record) error {
	l := d.Loader()
	if err := l.Add(ctx, r); err != nil {
		return err
	}
	return l.Flush(ctx)
}
