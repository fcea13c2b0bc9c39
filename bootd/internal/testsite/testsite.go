// Package testsite opens a Site for tests: a real embedded store with its
// cache, a CA, tokens and leases, and all that was recorded and logged.
package testsite

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/lease"
	"github.com/rackweft/rackweft/bootd/store"
)

// Site is what a bootd has open. It is closed with its test.
type Site struct {
	*Records
	Dir    string
	Store  *store.Store
	Cache  *store.Cache
	CA     *ca.Authority
	Tokens *ca.Tokens
	Leases *lease.Table
	Log    *slog.Logger

	t testing.TB
}

// Open makes an empty Site.
func Open(t testing.TB) *Site {
	t.Helper()
	s := &Site{t: t, Dir: t.TempDir(), Records: new(Records)}
	s.Log = slog.New(slog.NewTextHandler(s.Records, &slog.HandlerOptions{Level: slog.LevelDebug}))
	keys, err := ca.LoadKeyring(s.Dir, "")
	s.must(err)
	s.Tokens = ca.NewTokens(keys)
	s.CA, err = ca.Open(s.Dir)
	s.must(err)
	s.Store, err = store.Open(t.Context(), store.Config{Dir: s.Dir}, keys, s.Log)
	s.must(err)
	s.Cache = store.NewCache(s.Store, s.Log)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Cache.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := s.Store.Close(); err != nil {
			t.Error(err)
		}
	})
	<-s.Cache.Synced()
	registered := func(mac string) bool { _, ok := store.RegisteredByMAC(s.Cache, api.MAC(mac)); return ok }
	s.Leases, err = lease.New(t.Context(), store.NewLeaseBackend(s.Store), time.Now, registered)
	s.must(err)
	return s
}

func (s *Site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// Env is what a controller of the Site works on.
func (s *Site) Env() control.Env {
	return control.Env{Store: s.Store, Cache: s.Cache, Event: s.Event, Log: s.Log}
}

// Named is the beginning of an object.
func Named(name string) api.Base { return api.Base{Metadata: api.Metadata{Name: name}} }

// Create stores objects with their defaults; the cache has them when it returns.
func (s *Site) Create(objects ...api.Object) {
	s.t.Helper()
	for _, o := range objects {
		o.SetDefaults()
		if faults := o.Validate(); len(faults) > 0 {
			s.t.Fatalf("%s %s: %v", api.KindOf(o).Name, o.Meta().Name, faults)
		}
		s.must(s.Store.Create(s.t.Context(), o))
	}
	s.Sync()
}

// Sync returns when the cache has seen every write before it.
func (s *Site) Sync() {
	s.t.Helper()
	_, revision, err := store.List[api.Machine](s.t.Context(), s.Store)
	s.must(err)
	s.must(s.Cache.WaitRevision(s.t.Context(), revision))
}

// Idle returns when a controller has nothing left to do.
func (s *Site) Idle(c interface{ Idle(context.Context) error }) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	s.must(c.Idle(ctx))
}

// Machine reads a Machine from the store.
func (s *Site) Machine(name string) *api.Machine {
	s.t.Helper()
	m, err := store.Get[api.Machine](s.t.Context(), s.Store, name)
	s.must(err)
	return m
}

// Change changes a Machine.
func (s *Site) Change(name string, fn func(*api.Machine)) *api.Machine {
	s.t.Helper()
	m, err := store.Mutate(s.t.Context(), s.Store, name, func(m *api.Machine) error { fn(m); return nil })
	s.must(err)
	s.Sync()
	return m
}

// Attempt is an open BootAttempt that has come to a stage.
func Attempt(id string, stage api.Stage) *api.BootAttempt {
	now := time.Now().UTC()
	return &api.BootAttempt{ID: id, Number: 1, Reason: "test", Started: now, Deadline: now.Add(time.Hour), Stage: stage,
		Stages: []api.StageTime{{Stage: stage, Time: now}}}
}

// Request makes a key and a certificate request over it, and the key's digest.
func (s *Site) Request() (csr, key string) {
	s.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.must(err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	s.must(err)
	raw := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	key, err = ca.RequestKey(raw)
	s.must(err)
	return string(raw), key
}

// Status is the status of a *api.Problem, 0 for nil, and -1 for another error.
func Status(err error) int {
	var p *api.Problem
	switch {
	case err == nil:
		return 0
	case errors.As(err, &p):
		return p.Status
	}
	return -1
}

// Records keeps all that is recorded and logged.
type Records struct {
	mu        sync.Mutex
	log       bytes.Buffer
	events    []api.Event
	decisions []api.Decision
}

// Write takes the log.
func (r *Records) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(b)
}

// Event implements machine.Recorder.
func (r *Records) Event(o api.Object, typ api.EventType, reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, api.Event{Name: o.Meta().Name, Type: typ, Reason: reason, Message: message})
}

// Decision implements machine.Recorder.
func (r *Records) Decision(d api.Decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.decisions = append(r.decisions, d)
}

// Events returns what was recorded so far.
func (r *Records) Events() []api.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// Decisions returns what was recorded so far.
func (r *Records) Decisions() []api.Decision {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.decisions)
}

// Text is the log so far.
func (r *Records) Text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

// Happened counts the events of a reason.
func (r *Records) Happened(reason string) int {
	n := 0
	for _, e := range r.Events() {
		if e.Reason == reason {
			n++
		}
	}
	return n
}

// Why is the reason of the newest decision on a question.
func (r *Records) Why(question string) string {
	for _, d := range slices.Backward(r.Decisions()) {
		if d.Question == question {
			return strings.Join([]string{d.Answer, d.Reason}, ": ")
		}
	}
	return ""
}
