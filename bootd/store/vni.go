package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// vnisPrefix holds the current or last owner of each VNI.
const vnisPrefix = internalPrefix + "vnis/"

// VNIClaim names the owner of a VNI.
type VNIClaim struct {
	VNI     uint32    `json:"-"`
	Network string    `json:"network"`
	UID     string    `json:"uid"`            // the Network's
	Freed   time.Time `json:"freed,omitzero"` // when the Network was deleted
	at      int64     // mod revision
}

// VNIs are the claims of VNIs.
type VNIs struct{ etcd *etcd }

// List lists every claim, by number.
func (v *VNIs) List(ctx context.Context) (map[uint32]VNIClaim, error) {
	claims := map[uint32]VNIClaim{}
	_, err := v.etcd.scan(ctx, vnisPrefix, func(kv *mvccpb.KeyValue) {
		c := VNIClaim{at: kv.ModRevision}
		n, err := strconv.ParseUint(path.Base(string(kv.Key)), 10, 24)
		if err := errors.Join(err, json.Unmarshal(kv.Value, &c)); err != nil {
			v.etcd.log.Error("a VNI's claim in the store is skipped", "key", string(kv.Key), "error", err)
			return
		}
		c.VNI = uint32(n)
		claims[c.VNI] = c
	})
	if err != nil {
		return nil, fmt.Errorf("list the VNIs: %w", err)
	}
	return claims, nil
}

// Put writes a claim over the one that was listed, or over none: ErrConflict says that it has changed.
func (v *VNIs) Put(ctx context.Context, old, claim VNIClaim) error {
	raw, err := json.Marshal(claim)
	if err != nil {
		return fmt.Errorf("encode the claim of VNI %d: %w", claim.VNI, err)
	}
	return v.swap(ctx, claim.VNI, old.at, clientv3.OpPut(vniKey(claim.VNI), summed(vniKey(claim.VNI), raw)))
}

// Drop deletes a claim that was listed.
func (v *VNIs) Drop(ctx context.Context, claim VNIClaim) error {
	return v.swap(ctx, claim.VNI, claim.at, clientv3.OpDelete(vniKey(claim.VNI)))
}

func vniKey(vni uint32) string { return vnisPrefix + strconv.FormatUint(uint64(vni), 10) }

func (v *VNIs) swap(ctx context.Context, vni uint32, at int64, op clientv3.Op) error {
	commit := v.etcd.write
	if op.IsDelete() {
		commit = v.etcd.commit
	}
	resp, err := commit(ctx, transaction{when: []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(vniKey(vni)), "=", at)}, then: []clientv3.Op{op}})
	if err != nil {
		return fmt.Errorf("claim VNI %d: %w", vni, err)
	}
	if !resp.Succeeded {
		return fmt.Errorf("claim VNI %d: it %w", vni, ErrConflict)
	}
	return nil
}
