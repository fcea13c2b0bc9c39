package bootd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"syscall"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/store"
)

// errRoom ends a bootd that serves a copy of its store once its own can be written, errChoking one that should
// serve a copy. Both are restarted.
var (
	errRoom    = errors.New("the state directory can be written again")
	errChoking = errors.New("the state directory can no longer be written")
)

// tolerate ignores, and logs, the error of a write for which the state directory had no space, or that was refused
// as read-only: bootd serves what it has.
func tolerate(log *slog.Logger, what string, err error) error {
	if err == nil {
		return nil
	}
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EROFS)
	if !full && !store.Unwritable(err) && !errors.Is(err, blob.ErrNoSpace) {
		return fmt.Errorf("%s: %w", what, err)
	}
	log.Error("the state directory cannot be written: bootd continues without", "lacks", what, "error", err)
	return nil
}

// storeWritable is the Site's condition that changes can be stored.
const storeWritable = "StoreWritable"

const roomEvery = time.Second

// followRoom reports each change of whether the store can be written, in the log and on the Site. For a store that
// serves a copy it ends with errRoom when the directory can be written again.
func (d *daemon) followRoom(ctx context.Context) error {
	if d.store.Stale() != nil {
		noteRoom(ctx, d.store, d.log, d.store.Stale())
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
				d.log.Error("nothing can be stored; existing data is served", "error", err)
			} else if known != "" {
				d.log.Info("the store can be written again")
			}
			if noteRoom(ctx, d.store, d.log, err) {
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

// noteRoom writes the Site's condition, using the reserve if necessary.
func noteRoom(ctx context.Context, s *store.Store, log *slog.Logger, fault error) (noted bool) {
	status, reason, message := api.True, "Writable", ""
	switch {
	case errors.Is(fault, store.ErrNoSpace):
		status, reason, message = api.False, "NoSpace", fault.Error()
	case errors.Is(fault, store.ErrReadOnly):
		status, reason, message = api.False, "ReadOnly", fault.Error()
	case fault != nil:
		return false // the store does not answer
	}
	_, err := store.Mutate(store.Urgent(ctx), s, api.SiteName, func(s *api.Site) error {
		if !s.Status.Conditions.Set(time.Now(), storeWritable, status, reason, message) {
			return store.ErrUnchanged
		}
		return nil
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) && ctx.Err() == nil {
		log.Warn("cannot record on the Site whether the store can be written", "error", err)
	}
	return err == nil
}

// terse drops the warnings of everything that has to wait while nothing can be stored: followRoom has logged it
// once.
type terse struct{ slog.Handler }

func (t terse) Handle(ctx context.Context, r slog.Record) error {
	waits := false
	r.Attrs(func(a slog.Attr) bool {
		err, ok := a.Value.Any().(error)
		waits = waits || ok && store.Unwritable(err)
		return !waits
	})
	if waits && r.Level == slog.LevelWarn {
		return nil
	}
	return t.Handler.Handle(ctx, r)
}

func (t terse) WithAttrs(attrs []slog.Attr) slog.Handler { return terse{t.Handler.WithAttrs(attrs)} }
func (t terse) WithGroup(name string) slog.Handler       { return terse{t.Handler.WithGroup(name)} }
