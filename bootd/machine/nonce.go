package machine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
)

// TagFinalizer keeps a deleted Machine until its AssetTag is back.
const TagFinalizer = "rackweft/asset-tag"

// tagPatience is how long the deletion of a Machine waits for a BMC that does not take the old AssetTag.
const tagPatience = 10 * time.Minute

// writeNonce writes the open attempt's nonce to the system's AssetTag. The tag that is there is saved first, in the
// store: whatever happens to bootd then, it is known what to put back.
func (c *Controller) writeNonce(ctx context.Context, m *api.Machine) (time.Duration, error) {
	attempt := m.Status.Attempt.ID
	var refused error
	own, saved := true, false // the system has its own tag; it is saved
	wait, err := c.withBMC(ctx, m, "write the AssetTag", func(ctx context.Context, b BMC) error {
		old, err := b.AssetTag(ctx)
		if err != nil {
			return setAside(err, &refused)
		}
		if old, saved, err = c.saveTag(ctx, m, old); err != nil || !saved {
			return err
		}
		if err = b.SetAssetTag(ctx, c.Nonce(m.Metadata.UID, attempt)); errors.Is(err, hardware.ErrUnsupported) {
			now, rerr := b.AssetTag(ctx)
			own = rerr == nil && now == old
		}
		return setAside(err, &refused)
	})
	if err != nil {
		return heldOr(wait, err)
	}
	if refused != nil {
		return 0, c.nonceRefused(ctx, m, refused, own)
	}
	if !saved {
		return 0, nil // the attempt is over, and its end brings the Machine back here
	}
	c.Decision(api.Decision{Machine: m.Metadata.Name, Question: "nonce", Answer: "written to the AssetTag", Attempt: attempt,
		Reason: "trust level nonce is required by " + Required(c.Cache, m).Of})
	return 0, c.mutate(ctx, m, func(fresh *api.Machine) {
		if a := fresh.Status.Attempt; a.Open() && a.ID == attempt && a.Nonce != nil {
			*a.Nonce = api.Nonce{State: api.NonceWritten, Time: time.Now().UTC()}
		}
	})
}

// setAside keeps a BMC's refusal out of its condition: a BMC without asset tags is well.
func setAside(err error, refused *error) error {
	if errors.Is(err, hardware.ErrUnsupported) {
		*refused = err
		return nil
	}
	return err
}

// saveTag records the tag that the nonce replaces, and returns it. A tag that is saved already stays: what the BMC
// shows is then the nonce of an earlier attempt. Nothing is saved when another attempt has begun meanwhile.
func (c *Controller) saveTag(ctx context.Context, m *api.Machine, tag string) (own string, saved bool, err error) {
	err = c.mutate(ctx, m, func(fresh *api.Machine) {
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

// nonceRefused fails an attempt whose level cannot be reached: the Machine would stand at its firmware's prompt until
// the window is over. own says that the system still has its own tag.
func (c *Controller) nonceRefused(ctx context.Context, m *api.Machine, why error, own bool) error {
	message := fmt.Sprintf("trust level nonce is required (by %s), and the BMC does not take the system's AssetTag: %s; "+
		"require another level (spec.trust.minimum; lowering it needs an admin)", Required(c.Cache, m).Of, why)
	failed := false
	err := c.mutate(ctx, m, func(fresh *api.Machine) {
		a := fresh.Status.Attempt
		if failed = a.Open() && a.ID == m.Status.Attempt.ID; !failed {
			return
		}
		a.Nonce = &api.Nonce{State: api.NonceFailed, Message: why.Error(), Time: time.Now().UTC()}
		fresh.Status.Conditions.Set(time.Now(), api.CondTrust, api.False, "LevelNotReached", message)
		Fail(fresh, time.Now(), message)
		if own {
			forgetTag(fresh)
		}
	})
	if err == nil && failed {
		c.Event(m, api.Warning, "LevelNotReached", message)
	}
	return err
}

// nonceDue reports whether the nonce is to be written before the power action.
func nonceDue(m *api.Machine) bool {
	n := m.Status.Attempt.Nonce
	return n != nil && n.State == api.NoncePending
}

// tagDue reports whether the old AssetTag is to be put back. Until Ignition has its pointer a boot may start over in
// the same attempt, and its firmware must show the nonce again.
func tagDue(m *api.Machine) bool {
	a := m.Status.Attempt
	inUse := a.Open() && a.Nonce != nil && a.Nonce.State != api.NonceFailed && !a.Reached(api.StagePointer)
	return m.Status.AssetTag != nil && !inUse
}

// putTagBack gives the system the AssetTag back that a nonce took the place of. It returns when to look again, at the
// latest after wait (0 means never).
func (c *Controller) putTagBack(ctx context.Context, name string, wait time.Duration) (time.Duration, error) {
	m, ok := store.Cached[api.Machine](c.Cache, name)
	if !ok || !tagDue(m) {
		return wait, nil
	}
	again, err := c.restoreTag(ctx, m)
	if err != nil || again == 0 || wait > 0 && wait < again {
		return wait, err
	}
	return again, nil
}

func (c *Controller) restoreTag(ctx context.Context, m *api.Machine) (time.Duration, error) {
	saved := *m.Status.AssetTag
	refused := errors.New("the Machine has no BMC in its spec any more")
	if m.Spec.BMC != nil {
		refused = nil
		wait, err := c.withBMC(ctx, m, "put the AssetTag back", func(ctx context.Context, b BMC) error {
			return setAside(b.SetAssetTag(ctx, saved.Value), &refused)
		})
		if err != nil {
			return heldOr(wait, err)
		}
	}
	if refused != nil {
		c.tagLost(m, refused.Error())
	} else {
		c.Decision(api.Decision{Machine: m.Metadata.Name, Question: "nonce", Answer: "the AssetTag is back", Attempt: saved.Attempt,
			Reason: "the nonce is spent"})
	}
	return 0, c.mutate(ctx, m, func(fresh *api.Machine) {
		if fresh.Status.AssetTag != nil && *fresh.Status.AssetTag == saved && tagDue(fresh) {
			forgetTag(fresh)
		}
	})
}

// tagLost says which tag a person has to put back.
func (c *Controller) tagLost(m *api.Machine, why string) {
	c.Event(m, api.Warning, "AssetTagNotRestored", fmt.Sprintf("the system's AssetTag was %q, and a spent nonce is in its place: %s", m.Status.AssetTag.Value, why))
}

func forgetTag(m *api.Machine) {
	m.Status.AssetTag = nil
	control.DropFinalizer(m, TagFinalizer)
}

// remove ends a Machine that is being deleted: whatever was given to it is revoked at once, then its AssetTag is put
// back, if its BMC lets it.
func (c *Controller) remove(ctx context.Context, m *api.Machine) (time.Duration, error) {
	if m.Status.Attempt.Open() || m.Status.HostKey != "" {
		return 0, c.mutate(ctx, m, func(fresh *api.Machine) {
			Fail(fresh, time.Now(), "the Machine is being deleted")
			fresh.Status.HostKey = ""
		})
	}
	if !control.HasFinalizer(m, TagFinalizer) {
		return 0, nil
	}
	if m.Status.AssetTag != nil && time.Since(*m.Metadata.DeletionTimestamp) < tagPatience {
		wait, err := c.restoreTag(ctx, m)
		return min(wait, tagPatience), err
	}
	if m.Status.AssetTag != nil {
		c.tagLost(m, "the Machine is deleted, and its BMC did not answer")
	}
	return 0, c.mutate(ctx, m, forgetTag)
}
