package control

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Write changes an object that still has the given uid. change may run several times, and returns false when there
// is nothing to change. Write returns when the cache has the result: the next step must not see the object as it
// was before this step's own writes. A deleted object is not an error.
func Write[T api.Object](ctx context.Context, e Env, o T, change func(fresh T) bool) error {
	kind, name := api.KindOf(o), o.Meta().Name
	fresh, err := e.Store.Mutate(ctx, kind, name, func(fresh api.Object) error {
		if fresh.Meta().UID != o.Meta().UID || !change(fresh.(T)) {
			return store.ErrUnchanged
		}
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write %s %s: %w", kind.Name, name, err)
	}
	return e.Cache.WaitRevision(ctx, store.RevisionOf(fresh))
}

// HasFinalizer reports whether an object has a finalizer.
func HasFinalizer(o api.Object, finalizer string) bool {
	return slices.Contains(o.Meta().Finalizers, finalizer)
}

// AddFinalizer puts a finalizer on an object that is being written, unless it is
// being deleted. It reports whether that changed anything.
func AddFinalizer(o api.Object, finalizer string) bool {
	m := o.Meta()
	if m.DeletionTimestamp != nil || HasFinalizer(o, finalizer) {
		return false
	}
	m.Finalizers = append(m.Finalizers, finalizer)
	return true
}

// DropFinalizer takes a finalizer off an object that is being written. It reports
// whether that changed anything.
func DropFinalizer(o api.Object, finalizer string) bool {
	m := o.Meta()
	before := len(m.Finalizers)
	m.Finalizers = slices.DeleteFunc(m.Finalizers, func(f string) bool { return f == finalizer })
	return len(m.Finalizers) != before
}
