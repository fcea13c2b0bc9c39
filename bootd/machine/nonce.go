package machine

import (
	"context"
	"errors"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/hardware"
)

// TagFinalizer keeps a deleted Machine until its AssetTag is back.
const TagFinalizer = "rackweft/asset-tag"

// tagPatience is how long the deletion of a Machine waits for a BMC that does not take the old AssetTag.
const tagPatience = 10 * time.Minute

// tags writes nonces to the AssetTags of systems.
type tags struct {
	control.Env
	nonce func(machineUID, attemptID string) string
}

// writeNonce writes the open attempt's nonce to the system's AssetTag. The tag that is there is saved first, in the
// store: whatever happens to bootd then, it is known what to restore.
func (t tags) writeNonce(ctx context.Context, b BMC, m *api.Machine) (is tagAnswer, err error) {
	is.own = true
	old, err := b.AssetTag(ctx)
	if err != nil {
		return is, setAside(err, &is.refused)
	}
	if old, is.saved, err = t.save(ctx, m, old); err != nil || !is.saved {
		return is, err
	}
	if err = b.SetAssetTag(ctx, t.nonce(m.Metadata.UID, m.Status.Attempt.ID)); errors.Is(err, hardware.ErrUnsupported) {
		now, rerr := b.AssetTag(ctx)
		is.own = rerr == nil && now == old
	}
	return is, setAside(err, &is.refused)
}

// save records the tag that the nonce replaces, and returns it. A tag that is saved already stays: what the BMC
// shows is then the nonce of an earlier attempt. Nothing is saved when another attempt has begun meanwhile.
func (t tags) save(ctx context.Context, m *api.Machine, tag string) (own string, saved bool, err error) {
	err = mutate(ctx, t.Env, m, func(fresh *api.Machine) {
		saved = fresh.Status.Attempt != nil && fresh.Status.Attempt.ID == m.Status.Attempt.ID
		if !saved {
			return
		}
		if old := fresh.Status.AssetTag; old != nil {
			tag = old.Value
		}
		fresh.Status.AssetTag = &api.SavedAssetTag{Value: tag, Attempt: m.Status.Attempt.ID}
		if !control.HasFinalizer(fresh, TagFinalizer) {
			fresh.Metadata.Finalizers = append(fresh.Metadata.Finalizers, TagFinalizer)
		}
	})
	return tag, saved && err == nil, err
}

// nonceDue reports whether the nonce has to be written before the power action.
func nonceDue(m *api.Machine) bool {
	n := m.Status.Attempt.Nonce
	return n != nil && n.State == api.NoncePending
}

// tagDue reports whether the old AssetTag has to be restored. Until Ignition has its pointer a boot may start over in
// the same attempt, and its firmware must show the nonce again.
func tagDue(m *api.Machine) bool {
	a := m.Status.Attempt
	inUse := a.Open() && a.Nonce != nil && a.Nonce.State != api.NonceFailed && !a.Reached(api.StagePointer)
	return m.Status.AssetTag != nil && !inUse
}

func forgetTag(m *api.Machine) {
	m.Status.AssetTag = nil
	control.DropFinalizer(m, TagFinalizer)
}
