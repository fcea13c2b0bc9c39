package store

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rackweft/rackweft/bootd/lease"
)

var _ lease.Backend = (*LeaseBackend)(nil)

func TestLeaseBackend(t *testing.T) {
	ctx := t.Context()
	s := open(t, Config{})
	b := NewLeaseBackend(s)
	cache := runCache(t, s)
	var put []lease.Lease
	for i := range lease.MaxBatch {
		put = append(put, lease.Lease{
			Subnet: "pxe", Address: netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}), MAC: fmt.Sprintf("52:54:00:00:00:%02x", i),
			Machine: "m", Hostname: "h", Expires: time.Unix(1800000000, 0).UTC(),
		})
	}
	if err := b.Apply(ctx, put, nil); err != nil {
		t.Fatal(err)
	}
	other := lease.Lease{Subnet: "mgmt", Address: netip.MustParseAddr("fd00::1"), Expires: time.Unix(1, 0).UTC()}
	if err := b.Apply(ctx, []lease.Lease{other}, put[1:]); err != nil {
		t.Fatal(err)
	}
	if err := b.Apply(ctx, nil, nil); err != nil {
		t.Error(err)
	}
	if _, err := s.client.Put(ctx, leasePrefix+"pxe/nonsense", "{}"); err != nil {
		t.Fatal(err)
	}
	got, err := b.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]lease.Lease{other, put[0]}, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
	waitCache(t, s, cache)

	s.conf.Reserve = 1 << 60
	if err := b.Apply(ctx, put, nil); !errors.Is(err, ErrNoSpace) {
		t.Errorf("a full disk: %v", err)
	}
	if err := b.Apply(ctx, nil, put[:1]); err != nil {
		t.Errorf("removing with a full disk: %v", err)
	}
}
