package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rackweft/rackweft/bootd/lease"
)

const leasePrefix = objectPrefix + "leases/"

// LeaseBackend keeps DHCP leases in the store, at
// /rackweft/v1alpha1/leases/<subnet>/<address>. It is a lease.Backend.
type LeaseBackend struct{ store *Store }

// NewLeaseBackend prepares the backend of a lease.Table.
func NewLeaseBackend(s *Store) *LeaseBackend { return &LeaseBackend{s} }

// leaseRecord is a stored lease.Lease; its key has the rest.
type leaseRecord struct {
	MAC      string    `json:"mac,omitzero"`
	Machine  string    `json:"machine,omitzero"`
	Hostname string    `json:"hostname,omitzero"`
	Expires  time.Time `json:"expires"`
}

// List implements lease.Backend.
func (b *LeaseBackend) List(ctx context.Context) ([]lease.Lease, error) {
	var leases []lease.Lease
	_, err := b.store.scan(ctx, leasePrefix, func(kv *mvccpb.KeyValue) {
		l, err := decodeLease(kv)
		if err != nil {
			b.store.log.Error("a lease in the store is skipped", "error", err)
			return
		}
		leases = append(leases, l)
	})
	if err != nil {
		return nil, fmt.Errorf("list the leases: %w", err)
	}
	return leases, nil
}

// Apply implements lease.Backend: it writes all or nothing.
func (b *LeaseBackend) Apply(ctx context.Context, put, del []lease.Lease) error {
	ops := make([]clientv3.Op, 0, len(put)+len(del))
	for _, l := range put {
		raw, err := json.Marshal(leaseRecord{MAC: l.MAC, Machine: l.Machine, Hostname: l.Hostname, Expires: l.Expires.UTC()})
		if err != nil {
			return fmt.Errorf("encode the lease of %s: %w", l.Address, err)
		}
		ops = append(ops, clientv3.OpPut(leaseKey(l), summed(leaseKey(l), raw)))
	}
	for _, l := range del {
		ops = append(ops, clientv3.OpDelete(leaseKey(l)))
	}
	if len(ops) == 0 {
		return nil
	}
	commit := b.store.write
	if len(put) == 0 {
		commit = b.store.commit
	}
	_, err := commit(ctx, transaction{then: ops})
	if Unwritable(err) {
		return fmt.Errorf("write %d leases: %w: %w", len(ops), lease.ErrUnwritable, err)
	}
	if err != nil {
		return fmt.Errorf("write %d leases: %w", len(ops), err)
	}
	return nil
}

func leaseKey(l lease.Lease) string { return leasePrefix + l.Subnet + "/" + l.Address.String() }

func decodeLease(kv *mvccpb.KeyValue) (lease.Lease, error) {
	subnet, address, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), leasePrefix), "/")
	addr, err := netip.ParseAddr(address)
	var r leaseRecord
	value, sumErr := opened(string(kv.Key), kv.Value)
	if err := errors.Join(err, sumErr); err != nil {
		return lease.Lease{}, err
	}
	if err := json.Unmarshal(value, &r); err != nil {
		return lease.Lease{}, fmt.Errorf("%s does not contain a valid lease: %w", kv.Key, err)
	}
	return lease.Lease{Subnet: subnet, Address: addr, MAC: r.MAC, Machine: r.Machine, Hostname: r.Hostname, Expires: r.Expires}, nil
}
