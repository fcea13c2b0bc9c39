package store

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/rackweft/rackweft/api"
)

// The errors that callers distinguish with errors.Is.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("exists already")
	ErrConflict = errors.New("changed in the meantime")
	// ErrCompacted says that a watch requested a revision that was compacted away, or is in the future (a backup
	// was restored): list again.
	ErrCompacted = errors.New("the revision is no longer kept: list again")
	// ErrNoSpace says that the disk or the store's quota is full. Reads continue.
	ErrNoSpace = errors.New("the store has no space left")
	// ErrReadOnly says that the file system cannot be written. Reads continue.
	ErrReadOnly = errors.New("the store can only be read")
	// ErrNotHolder says that another bootd may hold the Site: this one must not serve it, and cannot write.
	ErrNotHolder = errors.New("this bootd does not hold the Site")
	// ErrTooLarge says that one object exceeds MaxObjectBytes.
	ErrTooLarge = errors.New("the object is too large")
	// ErrUnchanged is returned by a Mutate function that has nothing to write.
	ErrUnchanged = errors.New("unchanged")
)

// Unwritable reports whether an error says that the store can be read but not written: callers then postpone what
// can wait.
func Unwritable(err error) bool { return errors.Is(err, ErrNoSpace) || errors.Is(err, ErrReadOnly) }

// NotFoundError names the object that does not exist. It is an ErrNotFound.
type NotFoundError struct{ Kind, Name string }

func (e *NotFoundError) Error() string        { return fmt.Sprintf("%s %q does not exist", e.Kind, e.Name) }
func (e *NotFoundError) Is(target error) bool { return target == ErrNotFound }

// ConflictError says that an object is no longer at the resourceVersion that
// the caller had read. It is an ErrConflict.
type ConflictError struct {
	Kind, Name string
	// Current is the current resourceVersion; "" when the object was deleted.
	Current string
}

func (e *ConflictError) Error() string {
	if e.Current == "" {
		return fmt.Sprintf("%s %q was deleted in the meantime", e.Kind, e.Name)
	}
	return fmt.Sprintf("%s %q was changed in the meantime and is at resourceVersion %s: read it again and repeat the change", e.Kind, e.Name, e.Current)
}

// Is makes every ConflictError an ErrConflict.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

func conflict(k api.Kind, name string, revision int64) error {
	e := &ConflictError{Kind: k.Name, Name: name}
	if revision > 0 {
		e.Current = formatRevision(revision)
	}
	return e
}

// explain turns etcd's errors into the store's. ctx is the caller's own, to distinguish its end from the store's
// time limit.
func (e *etcd) explain(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, rpctypes.ErrNoSpace):
		e.space.full()
		return e.space.quotaError()
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		return ErrTooLarge
	case errors.Is(err, rpctypes.ErrCompacted):
		return ErrCompacted
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("etcd (%s) did not answer within %s: %w", e.where, requestTimeout, err)
	}
	return fmt.Errorf("etcd (%s): %w", e.where, err)
}
