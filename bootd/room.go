package bootd

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/store"
)

// errRoom ends a bootd that serves a copy of its store once its own can be
// written, errChoking one that had better serve a copy. Both are begun again.
var (
	errRoom    = errors.New("the state directory can be written again")
	errChoking = errors.New("the state directory cannot be written any more")
)

// tolerate passes over the error of a write that the state directory had no
// room for, or that it does not take: bootd serves what it has. The log says it.
func (d *daemon) tolerate(what string, err error) error {
	if err == nil {
		return nil
	}
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EROFS)
	if !full && !store.Unwritable(err) && !errors.Is(err, blob.ErrNoSpace) {
		return fmt.Errorf("%s: %w", what, err)
	}
	d.log.Error("the state directory cannot be written: bootd goes on without", "lacks", what, "error", err)
	return nil
}

// storeWritable is the Site's condition that changes can be stored.
const storeWritable = "StoreWritable"

const roomEvery = time.Second

// followRoom says whether the store can be written: in the log and on the Site,
// each time that it changes. For a store that serves a copy it ends with errRoom
// when the directory can be written again.
func (d *daemon) followRoom(ctx context.Context) error {
	if d.store.Stale() != nil {
		d.noteRoom(ctx, d.store.Stale())
		if err := d.store.AwaitRoom(ctx); err != nil {
			return err
		}
		return errRoom
	}
	known, tick := "", time.NewTicker(roomEvery)
	defer tick.Stop()
	for {
		if d.store.Choking() {
			return errChoking
		}
		err := d.store.Ready(ctx)
		if now := fmt.Sprint(store.Unwritable(err)); now != known && ctx.Err() == nil {
			if store.Unwritable(err) {
				d.log.Error("nothing can be stored; what is there is served", "error", err)
			} else if known != "" {
				d.log.Info("the store can be written again")
			}
			if d.noteRoom(ctx, err) {
				known = now
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// noteRoom writes the Site's condition, out of the reserve when it must.
func (d *daemon) noteRoom(ctx context.Context, fault error) (noted bool) {
	status, reason, message := api.True, "Writable", ""
	switch {
	case errors.Is(fault, store.ErrNoSpace):
		status, reason, message = api.False, "NoSpace", fault.Error()
	case errors.Is(fault, store.ErrReadOnly):
		status, reason, message = api.False, "ReadOnly", fault.Error()
	case fault != nil:
		return false // the store does not answer at all
	}
	_, err := store.Mutate(store.Urgent(ctx), d.store, api.SiteName, func(s *api.Site) error {
		if !s.Status.Conditions.Set(time.Now(), storeWritable, status, reason, message) {
			return store.ErrUnchanged
		}
		return nil
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) && ctx.Err() == nil {
		d.log.Warn("the Site does not say whether the store can be written", "error", err)
	}
	return err == nil
}
