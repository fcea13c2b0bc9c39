package bootd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/backup"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/store"
)

// site is the state of a bootd that does not run, with a key to back it up to.
type site struct {
	t    *testing.T
	conf Config
	key  *age.X25519Identity
	log  *slog.Logger
}

func newSite(t *testing.T) *site {
	t.Helper()
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return &site{t: t, key: key, log: slog.New(slog.DiscardHandler), conf: Config{StateDir: filepath.Join(dir, "s"), RunDir: filepath.Join(dir, "r"), Version: "test"}}
}

// open opens its store, and closes it when fn returns.
func (s *site) open(fn func(context.Context, *store.Store)) {
	s.t.Helper()
	keyring, err := ca.LoadKeyring(s.conf.StateDir, "")
	if err != nil {
		s.t.Fatal(err)
	}
	st, err := store.Open(s.t.Context(), s.conf.storeConfig(), keyring, s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	fn(s.t.Context(), st)
	if err := st.Close(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) fill() {
	s.t.Helper()
	if _, err := ca.Open(s.conf.StateDir); err != nil {
		s.t.Fatal(err)
	}
	s.open(func(ctx context.Context, st *store.Store) {
		secret := &api.Secret{Base: api.Base{Metadata: api.Metadata{Name: "bmc"}}}
		secret.Spec.Data = map[string]string{"password": "hunter2"}
		m := &api.Machine{Base: api.Base{Metadata: api.Metadata{Name: "r1u01"}}}
		err := errors.Join(st.Create(ctx, secret), st.Create(ctx, m), writeEpoch(ctx, st, 7))
		_, merr := store.Mutate(ctx, st, "r1u01", func(m *api.Machine) error {
			m.Status.Attempt = &api.BootAttempt{ID: "a", Number: 3, Stage: api.StageJoined, Deadline: time.Now().Add(time.Hour)}
			m.Status.HostKey, m.Status.Power = "its key", "Off"
			m.Status.Conditions.Set(time.Now(), api.CondFenced, api.True, "PoweredOff", "once")
			m.Status.Requests = []api.Request{{ID: "r", Verb: api.VerbPower, Argument: "reset", State: api.RequestRunning}}
			return nil
		})
		lease := store.FlannelWrite{FlannelID: store.FlannelID{Network: "n", Kind: store.FlannelHost, Subnet: netip.MustParsePrefix("10.5.1.0/24")},
			Value: []byte(`{"network":"u","machine":"r1u01","uid":"m","buried":99}`)}
		if err := errors.Join(err, merr, st.Flannel.Write(ctx, lease), st.Raw.Put(ctx, "recount/r1u01", []byte("of an earlier restore"))); err != nil {
			s.t.Fatal(err)
		}
	})
	blobs, err := blob.Open(filepath.Join(s.conf.StateDir, "blobs"), blob.Options{})
	if err == nil {
		_, _, err = blobs.Put(s.t.Context(), strings.NewReader("a kernel"), "")
	}
	if err := errors.Join(err, blobs.Close()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) backup(blobs bool) string {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "site.age")
	report, err := Backup(s.t.Context(), BackupOptions{Config: s.conf, File: file, To: []backup.Recipient{s.key.Recipient()}, Blobs: blobs}, s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode() != 0o600 || info.Size() != report.Bytes {
		s.t.Errorf("the file is %v, %v", info, err)
	}
	if report.Running || report.Epoch != 7 || report.Records < 5 || report.Header.Blobs != blobs {
		s.t.Errorf("the report is %+v", report)
	}
	return file
}

func (s *site) restore(file string, change ...func(*RestoreOptions)) (*RestoreReport, error) {
	o := RestoreOptions{Config: s.conf, File: file, With: []backup.Identity{s.key}}
	for _, f := range change {
		f(&o)
	}
	return Restore(s.t.Context(), o, s.log)
}

func TestRestore(t *testing.T) {
	from := newSite(t)
	from.fill()
	file := from.backup(true)
	old, err := os.ReadFile(filepath.Join(from.conf.StateDir, "ca", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}

	to := newSite(t)
	to.key = from.key
	if r, err := to.restore(file, func(o *RestoreOptions) { o.CheckOnly = true }); err != nil || !strings.Contains(r.Text(), "Nothing was written") {
		t.Fatalf("a check: %v", err)
	}
	if _, err := os.Stat(to.conf.StateDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a check has written: %v", err)
	}
	r, err := to.restore(file)
	if err != nil {
		t.Fatal(err)
	}
	if r.NewEpoch < time.Now().Add(-time.Hour).Unix() || r.Blobs != 1 {
		t.Errorf("the report is %+v", r)
	}
	now, err := os.ReadFile(filepath.Join(to.conf.StateDir, "ca", "ca.crt"))
	if err != nil || !bytes.Equal(now, old) {
		t.Errorf("the CA is another: %v", err)
	}
	kernel, err := os.ReadDir(filepath.Join(to.conf.StateDir, "blobs", "sha256"))
	if err != nil || len(kernel) != 1 {
		t.Errorf("the blobs are %v, %v", kernel, err)
	}
	to.open(func(ctx context.Context, st *store.Store) {
		if v, err := store.OpenSecret(ctx, st, "bmc", api.UseBMC("https://198.18.0.7")); err != nil || v["password"] != "hunter2" {
			t.Errorf("the Secret is %v, %v", v, err)
		}
		if e, err := readEpoch(ctx, st); err != nil || e != r.NewEpoch {
			t.Errorf("the epoch is %d, %v", e, err)
		}
		if under, err := st.Restoring(ctx); err != nil || under {
			t.Errorf("the store is said to be under way: %v, %v", under, err)
		}
		s, err := store.Get[api.Site](ctx, st, api.SiteName)
		if err != nil || !s.Held() || s.Status.Epoch != r.NewEpoch || !s.Status.Recovery.Backup.Equal(r.Created.Truncate(time.Second)) {
			t.Errorf("the Site is %+v, %v", s, err)
		}
		m, err := store.Get[api.Machine](ctx, st, "r1u01")
		if err != nil {
			t.Fatal(err)
		}
		if a := m.Status.Attempt; a.Open() || a.Result != api.ResultFailed || !strings.Contains(a.Message, "tokens are dead") || m.Status.HostKey != "its key" {
			t.Errorf("the attempt is %+v, the key %q", a, m.Status.HostKey)
		}
		if m.Status.Power != "Unknown" || m.Status.Conditions.Is(api.CondFenced) || m.Status.Requests[0].State != api.RequestFailed {
			t.Errorf("what was seen of it still counts: %+v", m.Status)
		}
		if c := m.Status.Conditions.Get(api.CondAccounted); c == nil || c.Status != api.False || c.Reason != api.AccountedWaiting {
			t.Errorf("it is accounted for: %+v", c)
		}
		keys, err := st.Flannel.Read(ctx, "n")
		if err != nil || len(keys) != 1 || strings.Contains(string(keys[0].Value), "buried") {
			t.Errorf("the leases are %s, %v", keys, err)
		}
		if raw, err := st.Raw.Get(ctx, "recount/r1u01"); err != nil || raw != nil {
			t.Errorf("a recount of another restore: %q, %v", raw, err)
		}
	})
}

// TestRestoreRefuses has each of these write nothing.
func TestRestoreRefuses(t *testing.T) {
	from := newSite(t)
	from.fill()
	file := from.backup(false)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	short := filepath.Join(t.TempDir(), "short.age")
	if err := os.WriteFile(short, raw[:len(raw)-100], 0o600); err != nil {
		t.Fatal(err)
	}
	stranger, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, file, want string
		change           func(*RestoreOptions)
	}{
		{"cut short", short, "damaged or truncated", nil},
		{"another identity", file, "encrypted to another identity", func(o *RestoreOptions) { o.With = []backup.Identity{stranger} }},
		{"no file", filepath.Join(t.TempDir(), "none"), "no such file", nil},
		{"no external store", file, "names none in store.endpoints", func(o *RestoreOptions) { o.WithoutStore = true }},
	} {
		to := newSite(t)
		to.key = from.key
		change := c.change
		if change == nil {
			change = func(*RestoreOptions) {}
		}
		if _, err := to.restore(c.file, change); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, err := os.Stat(to.conf.StateDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: it has written: %v", c.name, err)
		}
	}

	// Onto itself: refused, and put aside when told.
	if _, err := from.restore(file); err == nil || !strings.Contains(err.Error(), "is not empty") || !strings.Contains(err.Error(), "--replace") {
		t.Errorf("onto a state: %v", err)
	}
	from.open(func(ctx context.Context, st *store.Store) {
		if _, err := from.restore(file, func(o *RestoreOptions) { o.Replace = true }); err == nil || !strings.Contains(err.Error(), "another bootd") {
			t.Errorf("under a bootd that runs: %v", err)
		}
	})
	r, err := from.restore(file, func(o *RestoreOptions) { o.Replace = true })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(r.Aside, "etcd")); err != nil {
		t.Errorf("the old state is not in %q: %v", r.Aside, err)
	}
}

// TestInterruptedRestore kills a restore in its middle: bootd does not start on
// what it left, and the same restore again makes it whole.
func TestInterruptedRestore(t *testing.T) {
	from := newSite(t)
	from.fill()
	file := from.backup(false)
	to := newSite(t)
	to.key = from.key
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o := RestoreOptions{Config: to.conf, File: file, With: []backup.Identity{to.key}}
	if _, err := Restore(ctx, o, to.log); err == nil {
		t.Fatal("a restore that was ended has come to its end")
	}
	err := Run(t.Context(), to.conf, to.log)
	if err == nil || !strings.Contains(err.Error(), "was interrupted: run bootd restore FILE again") {
		t.Errorf("bootd starts on it: %v", err)
	}
	if _, err := to.restore(file); err != nil {
		t.Fatal(err)
	}
	to.open(func(ctx context.Context, st *store.Store) {
		if _, err := store.Get[api.Machine](ctx, st, "r1u01"); err != nil {
			t.Error(err)
		}
	})
}

// TestRestoreIntoExternalStore uses another embedded etcd as the external one.
func TestRestoreIntoExternalStore(t *testing.T) {
	from := newSite(t)
	from.fill()
	file := from.backup(false)
	far, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()}, nil, from.log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = far.Close() }()
	to := newSite(t)
	to.key = from.key
	to.conf.Store.Endpoints = far.Client().Endpoints()
	if _, err := far.Client().Put(t.Context(), "/somebody/else", "x"); err != nil {
		t.Fatal(err)
	}
	r, err := to.restore(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.Text(), "its store into unix://") {
		t.Errorf("it says %s", r.Text())
	}
	if _, err := store.Get[api.Machine](t.Context(), far, "r1u01"); err != nil {
		t.Error(err)
	}
	again := newSite(t)
	again.key, again.conf.Store = from.key, to.conf.Store
	if _, err := again.restore(file); !errors.Is(err, store.ErrNotEmpty) {
		t.Errorf("into a store that has a Site: %v", err)
	}
	// The store was not lost: keys, CA and blobs are enough.
	only := newSite(t)
	only.key, only.conf.Store = from.key, to.conf.Store
	if _, err := only.restore(file, func(o *RestoreOptions) { o.WithoutStore = true }); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(only.conf.StateDir, "seal.key")); err != nil {
		t.Error(err)
	}
}

func TestBackupFailsWhole(t *testing.T) {
	s := newSite(t)
	file := filepath.Join(t.TempDir(), "site.age")
	_, err := Backup(t.Context(), BackupOptions{Config: s.conf, File: file, To: []backup.Recipient{s.key.Recipient()}}, s.log)
	if err == nil || !strings.Contains(err.Error(), "holds no state to read") {
		t.Errorf("without a bootd: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Dir(file)); len(left) > 0 {
		t.Errorf("it leaves %v", left)
	}
	// A store that breaks off in the middle.
	s.fill()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Backup(ctx, BackupOptions{Config: s.conf, File: file, To: []backup.Recipient{s.key.Recipient()}}, s.log)
	if left, _ := os.ReadDir(filepath.Dir(file)); err == nil || len(left) > 0 {
		t.Errorf("%v leaves %v", err, left)
	}
}
