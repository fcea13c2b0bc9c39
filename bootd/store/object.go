package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

// Create stores a new object and sets its uid, generation, creationTimestamp
// and resourceVersion. It fails with ErrExists when the name is taken.
// A Secret's data is sealed, and cleared in o.
func (s *Store) Create(ctx context.Context, o api.Object) error {
	return s.CreateAs(ctx, o, uuid.NewString())
}

// CreateAs is Create with a known uid: for an object that hosts have, and a restored store does not.
func (s *Store) CreateAs(ctx context.Context, o api.Object, uid string) error {
	k := api.KindOf(o)
	name := o.Meta().Name
	if err := storable(k, name); err != nil {
		return err
	}
	o.SetDefaults()
	m := o.Meta()
	m.UID, m.Generation, m.ResourceVersion = uid, 1, ""
	m.CreationTimestamp, m.DeletionTimestamp = time.Now().UTC().Truncate(time.Second), nil
	sealed, err := s.seal(o, nil)
	if err != nil {
		return err
	}
	revision, err := s.put(ctx, k, sealed, 0)
	if errors.Is(err, ErrConflict) {
		return fmt.Errorf("%s %q %w", k.Name, name, ErrExists)
	}
	if err != nil {
		return fmt.Errorf("create %s %q: %w", k.Name, name, err)
	}
	reveal(o, sealed, revision)
	return nil
}

// Get reads an object; a *NotFoundError when there is none.
func (s *Store) Get(ctx context.Context, k api.Kind, name string) (api.Object, error) {
	o, err := s.sealed(ctx, k, name)
	if err != nil {
		return nil, err
	}
	redact(o)
	return o, nil
}

// sealed reads an object as it is stored: the values of a Secret are sealed.
func (s *Store) sealed(ctx context.Context, k api.Kind, name string) (api.Object, error) {
	if err := storable(k, name); err != nil {
		return nil, err
	}
	kv, err := s.read(ctx, k, name)
	if err != nil {
		return nil, err
	}
	return decode(k, kv)
}

// List reads all objects of a kind, sorted by name, at the revision that it returns: a Watch from there misses
// nothing.
func (s *Store) List(ctx context.Context, k api.Kind) ([]api.Object, int64, error) {
	if err := storable(k, "any"); err != nil {
		return nil, 0, err
	}
	var objects []api.Object
	revision, err := s.etcd.scan(ctx, prefix(k), func(kv *mvccpb.KeyValue) {
		o, err := decode(k, kv)
		if err != nil {
			s.etcd.log.Error("an object in the store is skipped", "error", err)
			return
		}
		redact(o)
		objects = append(objects, o)
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list %s: %w", k.Plural, err)
	}
	return objects, revision, nil
}

// Update replaces an object that the caller has read: its resourceVersion is
// required, and a *ConflictError says that it is no longer current. Uid and timestamps do not change; generation
// rises when spec changes; nothing is written when nothing differs. An object that is being deleted disappears
// with its last finalizer. A Secret without data keeps its data.
func (s *Store) Update(ctx context.Context, o api.Object) error {
	k, m := api.KindOf(o), o.Meta()
	if err := storable(k, m.Name); err != nil {
		return err
	}
	want, err := strconv.ParseInt(m.ResourceVersion, 10, 64)
	if err != nil || want <= 0 {
		return fmt.Errorf("update %s %q: it has no valid resourceVersion (%q): read it first", k.Name, m.Name, m.ResourceVersion)
	}
	kv, err := s.read(ctx, k, m.Name)
	if errors.Is(err, ErrNotFound) {
		return conflict(k, m.Name, 0)
	}
	if err != nil {
		return err
	}
	if kv.ModRevision != want {
		return conflict(k, m.Name, kv.ModRevision)
	}
	return s.replace(ctx, k, kv, o)
}

// Mutate reads an object, lets fn change it and writes it back, and retries when another writer was faster: fn
// may run several times. When fn returns ErrUnchanged nothing is written; any other error is returned unchanged.
// Mutate returns the resulting object.
func (s *Store) Mutate(ctx context.Context, k api.Kind, name string, fn func(api.Object) error) (api.Object, error) {
	if err := storable(k, name); err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		o, err := s.mutateOnce(ctx, k, name, fn)
		if !errors.Is(err, ErrConflict) {
			return o, err
		}
		if err := wait.For(ctx, jitter(try)); err != nil {
			return nil, err
		}
	}
}

func (s *Store) mutateOnce(ctx context.Context, k api.Kind, name string, fn func(api.Object) error) (api.Object, error) {
	kv, err := s.read(ctx, k, name)
	if err != nil {
		return nil, err
	}
	o, err := decode(k, kv)
	if err != nil {
		return nil, err
	}
	redact(o)
	switch err := fn(o); {
	case errors.Is(err, ErrUnchanged):
		return o, nil
	case err != nil:
		return nil, err
	}
	return o, s.replace(ctx, k, kv, o)
}

// Reidentify gives an object the uid that hosts have for its name, and lets fn change its status with it.
func (s *Store) Reidentify(ctx context.Context, k api.Kind, name, uid string, fn func(api.Object)) error {
	for try := 0; ; try++ {
		kv, err := s.read(ctx, k, name)
		if err != nil {
			return err
		}
		o, err := decode(k, kv)
		if err != nil {
			return err
		}
		o.Meta().UID, o.Meta().ResourceVersion = uid, ""
		fn(o)
		if _, err = s.put(ctx, k, o, kv.ModRevision); !errors.Is(err, ErrConflict) {
			return err
		}
		if err := wait.For(ctx, jitter(try)); err != nil {
			return err
		}
	}
}

// Delete removes an object, or, while it has finalizers, marks it as being
// deleted. An empty resourceVersion deletes any version.
func (s *Store) Delete(ctx context.Context, k api.Kind, name, resourceVersion string) error {
	if err := storable(k, name); err != nil {
		return err
	}
	for try := 0; ; try++ {
		kv, err := s.read(ctx, k, name)
		if err != nil {
			return err
		}
		if resourceVersion != "" && resourceVersion != formatRevision(kv.ModRevision) {
			return conflict(k, name, kv.ModRevision)
		}
		err = s.deleteOnce(ctx, k, kv)
		if resourceVersion != "" || !errors.Is(err, ErrConflict) {
			return err
		}
		if err := wait.For(ctx, jitter(try)); err != nil {
			return err
		}
	}
}

func (s *Store) deleteOnce(ctx context.Context, k api.Kind, kv *mvccpb.KeyValue) error {
	o, err := decode(k, kv)
	if err != nil {
		// What cannot be read can still be removed.
		return s.remove(ctx, k, nameOf(kv), kv.ModRevision)
	}
	m := o.Meta()
	if len(m.Finalizers) == 0 {
		return s.remove(ctx, k, m.Name, kv.ModRevision)
	}
	if m.DeletionTimestamp != nil {
		return nil
	}
	now := time.Now().UTC().Truncate(time.Second)
	m.DeletionTimestamp, m.ResourceVersion = &now, ""
	if _, err := s.put(ctx, k, o, kv.ModRevision); err != nil {
		return fmt.Errorf("delete %s %q: %w", k.Name, m.Name, err)
	}
	return nil
}

// replace writes o over the object that kv holds, if that is still current.
func (s *Store) replace(ctx context.Context, k api.Kind, kv *mvccpb.KeyValue, o api.Object) error {
	old, err := decode(k, kv)
	if err != nil {
		return err
	}
	m, was := o.Meta(), old.Meta()
	if m.UID != "" && m.UID != was.UID {
		return conflict(k, was.Name, kv.ModRevision)
	}
	o.SetDefaults()
	m.Name, m.UID, m.Generation = was.Name, was.UID, was.Generation
	m.CreationTimestamp, m.DeletionTimestamp = was.CreationTimestamp, was.DeletionTimestamp
	m.ResourceVersion, was.ResourceVersion = "", ""
	defer func() {
		if m.ResourceVersion == "" {
			m.ResourceVersion = formatRevision(kv.ModRevision)
		}
	}()

	sealed, err := s.seal(o, old)
	if err != nil {
		return err
	}
	if m.DeletionTimestamp != nil && len(m.Finalizers) == 0 {
		return s.remove(ctx, k, m.Name, kv.ModRevision)
	}
	changed, err := compare(sealed, old)
	if err != nil {
		return err
	}
	if !changed {
		reveal(o, sealed, kv.ModRevision)
		return nil
	}
	revision, err := s.put(ctx, k, sealed, kv.ModRevision)
	if err != nil {
		return fmt.Errorf("update %s %q: %w", k.Name, m.Name, err)
	}
	reveal(o, sealed, revision)
	return nil
}

// compare reports whether o must be written over old, and raises its generation when their specs differ.
func compare(o, old api.Object) (changed bool, err error) {
	now, err := api.Encode(o)
	if err != nil {
		return false, err
	}
	was, err := api.Encode(old)
	if err != nil {
		return false, err
	}
	if bytes.Equal(now, was) {
		return false, nil
	}
	var a, b struct {
		Spec json.RawMessage `json:"spec"`
	}
	if err := errors.Join(json.Unmarshal(now, &a), json.Unmarshal(was, &b)); err != nil {
		return false, fmt.Errorf("compare the spec of %q: %w", o.Meta().Name, err)
	}
	if !bytes.Equal(a.Spec, b.Spec) {
		o.Meta().Generation++
	}
	return true, nil
}

// put writes o if its key is still at the mod revision `at` (0: absent).
func (s *Store) put(ctx context.Context, k api.Kind, o api.Object, at int64) (int64, error) {
	raw, err := api.Encode(o)
	if err != nil {
		return 0, err
	}
	if len(raw) > MaxObjectBytes {
		return 0, fmt.Errorf("%w: %d bytes are more than %d", ErrTooLarge, len(raw), MaxObjectBytes)
	}
	return s.swap(ctx, k, o.Meta().Name, at, clientv3.OpPut(key(k, o.Meta().Name), summed(key(k, o.Meta().Name), raw)))
}

func (s *Store) remove(ctx context.Context, k api.Kind, name string, at int64) error {
	if _, err := s.swap(ctx, k, name, at, clientv3.OpDelete(key(k, name))); err != nil {
		return fmt.Errorf("delete %s %q: %w", k.Name, name, err)
	}
	return nil
}

// swap runs op if the object's key is at the mod revision `at`, and returns
// the revision that op made.
func (s *Store) swap(ctx context.Context, k api.Kind, name string, at int64, op clientv3.Op) (int64, error) {
	path := key(k, name)
	run := transaction{
		when: []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(path), "=", at)},
		then: []clientv3.Op{op}, instead: []clientv3.Op{clientv3.OpGet(path, clientv3.WithKeysOnly())},
	}
	commit := s.etcd.write
	if op.IsDelete() {
		commit = s.etcd.commit
	}
	resp, err := commit(ctx, run)
	if err != nil {
		return 0, err
	}
	if resp.Succeeded {
		return resp.Header.Revision, nil
	}
	var current int64
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		current = kvs[0].ModRevision
	}
	return 0, conflict(k, name, current)
}

func (s *Store) read(ctx context.Context, k api.Kind, name string) (*mvccpb.KeyValue, error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := s.etcd.client.Get(limited, key(k, name))
	if err != nil {
		return nil, fmt.Errorf("read %s %q: %w", k.Name, name, s.etcd.explain(ctx, err))
	}
	if len(resp.Kvs) == 0 {
		return nil, &NotFoundError{Kind: k.Name, Name: name}
	}
	return resp.Kvs[0], nil
}

func storable(k api.Kind, name string) error {
	if k.Computed {
		return fmt.Errorf("a %s is compiled from other objects and not stored", k.Name)
	}
	if err := api.ValidateName(name); err != nil {
		return fmt.Errorf("%s: %w", k.Name, err)
	}
	return nil
}

func prefix(k api.Kind) string           { return objectPrefix + k.Plural + "/" }
func key(k api.Kind, name string) string { return prefix(k) + name }

func nameOf(kv *mvccpb.KeyValue) string {
	path := string(kv.Key)
	return path[strings.LastIndexByte(path, '/')+1:]
}

// decode decodes a stored object: a Secret's data is sealed. Fields that a newer version has written and this one
// does not know are ignored.
func decode(k api.Kind, kv *mvccpb.KeyValue) (api.Object, error) {
	o := k.New()
	value, err := opened(string(kv.Key), kv.Value)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(value, o); err != nil {
		return nil, fmt.Errorf("%s does not contain a valid %s: %w", kv.Key, k.Name, err)
	}
	o.SetDefaults()
	o.Meta().Name = nameOf(kv)
	o.Meta().ResourceVersion = formatRevision(kv.ModRevision)
	return o, nil
}

// jitter is how long to wait before the next try after a conflict.
func jitter(try int) time.Duration {
	return rand.N(time.Millisecond << min(try, 7))
}

// kind is a pointer to one of the kinds.
type kind[T any] interface {
	*T
	api.Object
}

// Get reads one object of a known type: Get[api.Machine](ctx, s, "r1u07").
func Get[T any, P kind[T]](ctx context.Context, s *Store, name string) (P, error) {
	o, err := s.Get(ctx, api.KindOf(P(new(T))), name)
	if err != nil {
		return nil, err
	}
	return o.(P), nil
}

// List reads all objects of a known type, by name, and their revision.
func List[T any, P kind[T]](ctx context.Context, s *Store) ([]P, int64, error) {
	objects, revision, err := s.List(ctx, api.KindOf(P(new(T))))
	if err != nil {
		return nil, 0, err
	}
	typed := make([]P, len(objects))
	for i, o := range objects {
		typed[i] = o.(P)
	}
	return typed, revision, nil
}

// Mutate changes one object of a known type; see Store.Mutate.
func Mutate[T any, P kind[T]](ctx context.Context, s *Store, name string, fn func(P) error) (P, error) {
	o, err := s.Mutate(ctx, api.KindOf(P(new(T))), name, func(o api.Object) error { return fn(o.(P)) })
	if err != nil {
		return nil, err
	}
	return o.(P), nil
}

func formatRevision(revision int64) string { return strconv.FormatInt(revision, 10) }
