package store

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rackweft/rackweft/api"
)

// testSealer is a real AEAD with a key of its own.
type testSealer struct {
	aead cipher.AEAD
	key  []byte
}

func newSealer(t testing.TB) Sealer {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	return &testSealer{aead, key}
}

func (s *testSealer) Seal(plain, aad []byte) ([]byte, error) {
	return s.aead.Seal(nil, nil, plain, aad), nil
}

func (s *testSealer) Open(sealed, aad []byte) ([]byte, error) {
	return s.aead.Open(nil, nil, sealed, aad)
}

func (s *testSealer) Digest(plain []byte) string {
	h := hmac.New(sha256.New, s.key)
	h.Write(plain)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// open starts a store of its own for the test.
func open(t testing.TB, conf Config) *Store {
	t.Helper()
	if conf.Dir == "" {
		conf.Dir = t.TempDir()
	}
	s, err := Open(t.Context(), conf, newSealer(t), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func kindOf(t testing.TB, word string) api.Kind {
	k, err := api.LookupKind(word)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func machine(name string, macs ...api.MAC) *api.Machine {
	m := new(api.Machine)
	m.Metadata.Name = name
	for i, mac := range macs {
		m.Spec.Links = append(m.Spec.Links, api.Link{Name: fmt.Sprintf("eth%d", i), MAC: mac})
	}
	m.SetDefaults()
	return m
}

func create(t testing.TB, s *Store, objects ...api.Object) {
	t.Helper()
	for _, o := range objects {
		if err := s.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
}

func TestObjectLifecycle(t *testing.T) {
	ctx := t.Context()
	s := open(t, Config{})
	machines := kindOf(t, "machine")

	m := machine("r1u07", "52:54:00:01:07:00")
	create(t, s, m)
	if m.Metadata.UID == "" || m.Metadata.Generation != 1 || m.Metadata.ResourceVersion == "" || m.Metadata.CreationTimestamp.IsZero() {
		t.Fatalf("the store set too little: %+v", m.Metadata)
	}
	if err := s.Create(ctx, machine("r1u07")); !errors.Is(err, ErrExists) {
		t.Errorf("a second one of the name: %v", err)
	}
	got, err := Get[api.Machine](ctx, s, "r1u07")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(mustEncode(t, m), mustEncode(t, got)); diff != "" {
		t.Errorf("read is not what was written:\n%s", diff)
	}

	t.Run("status leaves the generation alone", func(t *testing.T) {
		after, err := Mutate(ctx, s, "r1u07", func(m *api.Machine) error { m.Status.Phase = api.PhaseAvailable; return nil })
		if err != nil || after.Metadata.Generation != 1 || after.Metadata.ResourceVersion == m.Metadata.ResourceVersion {
			t.Errorf("%+v, %v", after.Metadata, err)
		}
	})
	t.Run("spec counts the generation on", func(t *testing.T) {
		after, err := Mutate(ctx, s, "r1u07", func(m *api.Machine) error { m.Spec.Profile = "worker"; m.Metadata.Generation = 77; return nil })
		if err != nil || after.Metadata.Generation != 2 {
			t.Errorf("%+v, %v", after.Metadata, err)
		}
	})
	t.Run("no change is no write", func(t *testing.T) {
		before, _ := s.Get(ctx, machines, "r1u07")
		after, err := s.Mutate(ctx, machines, "r1u07", func(api.Object) error { return nil })
		if err != nil || after.Meta().ResourceVersion != before.Meta().ResourceVersion {
			t.Errorf("%+v, %v", after.Meta(), err)
		}
		after, err = s.Mutate(ctx, machines, "r1u07", func(o api.Object) error { o.Meta().Labels = map[string]string{"a": "b"}; return ErrUnchanged })
		if err != nil || after.Meta().ResourceVersion != before.Meta().ResourceVersion {
			t.Errorf("ErrUnchanged wrote: %v", err)
		}
	})
	t.Run("an old resourceVersion is refused", func(t *testing.T) {
		old := machine("r1u07")
		old.Metadata.ResourceVersion = m.Metadata.ResourceVersion
		err := s.Update(ctx, old)
		var c *ConflictError
		current, _ := s.Get(ctx, machines, "r1u07")
		if !errors.As(err, &c) || c.Current != current.Meta().ResourceVersion {
			t.Errorf("got %v, want a conflict with %s", err, current.Meta().ResourceVersion)
		}
		old.Metadata.ResourceVersion = ""
		if err := s.Update(ctx, old); err == nil || !strings.Contains(err.Error(), "read it first") {
			t.Errorf("without a resourceVersion: %v", err)
		}
		if err := s.Delete(ctx, machines, "r1u07", m.Metadata.ResourceVersion); !errors.Is(err, ErrConflict) {
			t.Errorf("delete: %v", err)
		}
	})
	t.Run("uid and timestamps stay", func(t *testing.T) {
		o, _ := Get[api.Machine](ctx, s, "r1u07")
		o.Metadata.CreationTimestamp = time.Time{}
		o.Metadata.UID = ""
		o.Metadata.Labels = map[string]string{"row": "1"}
		if err := s.Update(ctx, o); err != nil {
			t.Fatal(err)
		}
		again, _ := Get[api.Machine](ctx, s, "r1u07")
		if again.Metadata.UID != m.Metadata.UID || !again.Metadata.CreationTimestamp.Equal(m.Metadata.CreationTimestamp) || again.Metadata.Generation != 2 {
			t.Errorf("%+v", again.Metadata)
		}
		o.Metadata.UID = "of-another"
		if err := s.Update(ctx, o); !errors.Is(err, ErrConflict) {
			t.Errorf("another uid: %v", err)
		}
	})
	t.Run("finalizers hold the object", func(t *testing.T) {
		if _, err := s.Mutate(ctx, machines, "r1u07", func(o api.Object) error { o.Meta().Finalizers = []string{"machine"}; return nil }); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.Delete(ctx, machines, "r1u07", ""); err != nil {
				t.Fatal(err)
			}
		}
		o, err := s.Get(ctx, machines, "r1u07")
		if err != nil || o.Meta().DeletionTimestamp == nil {
			t.Fatalf("%v %v", o, err)
		}
		if _, err := s.Mutate(ctx, machines, "r1u07", func(o api.Object) error {
			o.Meta().DeletionTimestamp, o.Meta().Finalizers = nil, nil
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		var missing *NotFoundError
		if _, err := s.Get(ctx, machines, "r1u07"); !errors.As(err, &missing) || missing.Name != "r1u07" || !errors.Is(err, ErrNotFound) {
			t.Errorf("after its last finalizer: %v", err)
		}
	})
	t.Run("what is gone", func(t *testing.T) {
		if err := s.Delete(ctx, machines, "r1u07", ""); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		m.Metadata.ResourceVersion = "1"
		if err := s.Update(ctx, m); !errors.Is(err, ErrConflict) {
			t.Error(err)
		}
	})
	t.Run("what cannot be stored", func(t *testing.T) {
		hs := new(api.HostSpec)
		hs.Metadata.Name = "x"
		if err := s.Create(ctx, hs); err == nil || !strings.Contains(err.Error(), "compiled") {
			t.Errorf("HostSpec: %v", err)
		}
		if err := s.Create(ctx, machine("a/b")); err == nil || !strings.Contains(err.Error(), "RFC 1123") {
			t.Errorf("slash: %v", err)
		}
		big := machine("big")
		big.Metadata.Annotations = map[string]string{"x": strings.Repeat("x", MaxObjectBytes)}
		if err := s.Create(ctx, big); !errors.Is(err, ErrTooLarge) {
			t.Errorf("big: %v", err)
		}
		big.Metadata.Annotations["x"] = strings.Repeat("x", MaxObjectBytes-1000)
		if err := s.Create(ctx, big); err != nil {
			t.Errorf("nearly too big: %v", err)
		}
	})
}

func mustEncode(t *testing.T, o any) string {
	t.Helper()
	b, err := api.Encode(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestListPagesAtOneRevision(t *testing.T) {
	s := open(t, Config{})
	const n = pageSize + 7
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < n; i += 8 {
				if err := s.Create(t.Context(), machine(fmt.Sprintf("m%04d", i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	list, revision, err := List[api.Machine](t.Context(), s)
	if err != nil || len(list) != n || revision == 0 {
		t.Fatalf("%d objects at %d, %v", len(list), revision, err)
	}
	for i, m := range list {
		if m.Metadata.Name != fmt.Sprintf("m%04d", i) {
			t.Fatalf("entry %d is %s", i, m.Metadata.Name)
		}
	}
}

func TestMutateLosesNoUpdate(t *testing.T) {
	s := open(t, Config{})
	create(t, s, machine("m"))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				_, err := Mutate(t.Context(), s, "m", func(m *api.Machine) error { m.Spec.Location.Unit++; return nil })
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	m, err := Get[api.Machine](t.Context(), s, "m")
	if err != nil || m.Spec.Location.Unit != 80 || m.Metadata.Generation != 81 {
		t.Errorf("unit %d generation %d, %v", m.Spec.Location.Unit, m.Metadata.Generation, err)
	}
}

func TestSecretsAreSealed(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	cache := runCache(t, s)
	const password = "correct-horse-battery-staple"
	bmc := api.UseBMC("https://198.18.0.7")
	secret := new(api.Secret)
	secret.Metadata.Name = "bmc"
	secret.Spec.Data = map[string]string{"username": "admin", "password": password}
	create(t, s, secret)
	if secret.Spec.Data != nil || len(secret.Status.Digests) != 2 {
		t.Errorf("after Create: %+v", secret)
	}

	first, err := Get[api.Secret](ctx, s, "bmc")
	if err != nil || len(first.Spec.Data) != 0 || len(first.Status.Digests) != 2 {
		t.Errorf("Get: %+v, %v", first, err)
	}
	if values, err := OpenSecret(ctx, s, "bmc", bmc); err != nil || values["password"] != password || values["username"] != "admin" {
		t.Errorf("OpenSecret: %v, %v", values, err)
	}
	var refused *api.NotPermittedError
	if values, err := OpenSecret(ctx, s, "bmc", api.UseLayer("worker")); values != nil || !errors.As(err, &refused) {
		t.Errorf("opened for what it is not for: %v, %v", values, err)
	}

	t.Run("the same again is no change", func(t *testing.T) {
		same := *first
		same.Spec.Data = map[string]string{"username": "admin", "password": password}
		if err := s.Update(ctx, &same); err != nil || same.Metadata.ResourceVersion != first.Metadata.ResourceVersion {
			t.Errorf("%+v %v", same.Metadata, err)
		}
	})
	t.Run("labels keep the data", func(t *testing.T) {
		after, err := Mutate(ctx, s, "bmc", func(o *api.Secret) error { o.Metadata.Labels = map[string]string{"a": "b"}; return nil })
		if err != nil || after.Metadata.Generation != 1 {
			t.Errorf("%+v %v", after.Metadata, err)
		}
		if values, err := OpenSecret(ctx, s, "bmc", bmc); err != nil || values["password"] != password {
			t.Errorf("%v %v", values, err)
		}
	})
	t.Run("another password is a new generation", func(t *testing.T) {
		after, err := Mutate(ctx, s, "bmc", func(o *api.Secret) error {
			o.Spec.Data = map[string]string{"password": password + "2"}
			return nil
		})
		if err != nil || after.Metadata.Generation != 2 || len(after.Status.Digests) != 1 || after.Spec.Data != nil {
			t.Errorf("%+v %v", after, err)
		}
		if values, err := OpenSecret(ctx, s, "bmc", bmc); err != nil || values["password"] != password+"2" || len(values) != 1 {
			t.Errorf("%v %v", values, err)
		}
	})
	t.Run("a value copied to another Secret does not open", func(t *testing.T) {
		raw, err := s.client.Get(ctx, objectPrefix+"secrets/bmc")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.client.Put(ctx, objectPrefix+"secrets/thief", string(raw.Kvs[0].Value)); err != nil {
			t.Fatal(err)
		}
		if values, err := OpenSecret(ctx, s, "thief", bmc); err == nil {
			t.Errorf("opened: %v", values)
		}
	})
	waitCache(t, s, cache)
	if o, ok := Cached[api.Secret](cache, "bmc"); !ok || o.Spec.Data != nil || len(o.Status.Digests) != 1 {
		t.Errorf("the cache has %+v", o)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{password, "YWRtaW4"} {
		refuseInFiles(t, dir, word)
	}
	requireInFiles(t, dir, "bmc")
}

// filesWith lists the files under dir that contain the text.
func filesWith(t *testing.T, dir, text string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), text) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func refuseInFiles(t *testing.T, dir, text string) {
	t.Helper()
	if files := filesWith(t, dir, text); len(files) > 0 {
		t.Errorf("%q is in the clear in %v", text, files)
	}
}

// requireInFiles shows that the search finds what is there.
func requireInFiles(t *testing.T, dir, text string) {
	t.Helper()
	if len(filesWith(t, dir, text)) == 0 {
		t.Errorf("%q is in no file: the search is broken", text)
	}
}

func TestSecondBootdIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	_, err := Open(t.Context(), Config{Dir: dir}, newSealer(t), testLog(t))
	want := fmt.Sprintf("another bootd (pid %d) uses %s: stop it, or give this one its own --state-dir", os.Getpid(), dir)
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	create(t, s, machine("m"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, Config{Dir: dir})
	if _, err := Get[api.Machine](t.Context(), again, "m"); err != nil {
		t.Error(err)
	}
}

func TestTwoStoresAndALongPath(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 100), strings.Repeat("e", 100))
	a, b := open(t, Config{}), open(t, Config{Dir: long})
	create(t, a, machine("a"))
	create(t, b, machine("b"))
	if _, err := Get[api.Machine](t.Context(), b, "a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the stores are not apart: %v", err)
	}
}

func TestExternalCluster(t *testing.T) {
	owner := open(t, Config{})
	s, err := Open(t.Context(), Config{Dir: t.TempDir(), Endpoints: []string{owner.server.endpoint}}, newSealer(t), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	create(t, s, machine("m"))
	if _, err := Get[api.Machine](t.Context(), owner, "m"); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, Config{Dir: t.TempDir(), Endpoints: []string{"http://127.0.0.1:9"}}, nil, testLog(t)); err == nil {
		t.Error("opened a cluster that is not there")
	}
	_, err = Open(t.Context(), Config{Dir: t.TempDir(), Endpoints: []string{"https://127.0.0.1:9"}, CAFile: "/does/not/exist"}, nil, testLog(t))
	if err == nil || !strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("a CA file that is not there: %v", err)
	}
}

func TestDamagedDataIsAnError(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	create(t, s, machine("m"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db := filepath.Join(dir, "etcd", "member", "snap", "db")
	if err := os.WriteFile(db, []byte("not a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	s2, err := Open(t.Context(), Config{Dir: dir}, newSealer(t), testLog(t))
	if err == nil {
		_ = s2.Close()
		t.Fatal("opened a damaged database")
	}
	t.Log(err)
	if !strings.Contains(err.Error(), dir) {
		t.Errorf("the error does not say where: %v", err)
	}
}

func TestRawValues(t *testing.T) {
	s := open(t, Config{})
	if v, err := s.Raw.Get(t.Context(), "epoch"); v != nil || err != nil {
		t.Errorf("%q %v", v, err)
	}
	if err := s.Raw.Put(t.Context(), "epoch", []byte("4")); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Raw.Get(t.Context(), "epoch"); string(v) != "4" || err != nil {
		t.Errorf("%q %v", v, err)
	}
}
