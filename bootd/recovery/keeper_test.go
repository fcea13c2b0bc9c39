package recovery

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// keeper is one of a restored Site with Machine a, whose host has key k.
func newKeeper(t *testing.T) *Keeper {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()}, nil, log)
	if err != nil {
		t.Fatal(err)
	}
	m := &api.Machine{}
	m.Metadata.Name = "a"
	m.SetDefaults()
	m.Status.HostKey = "k"
	if err := s.Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if err := Renew(t.Context(), s, 7, time.Now().Add(-time.Hour), time.Now()); err != nil {
		t.Fatal(err)
	}
	k := &Keeper{Store: s, Cache: store.NewCache(s, log), Event: func(api.Object, api.EventType, string, string) {}, Log: log}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = k.Cache.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; _ = s.Close() })
	<-k.Cache.Synced()
	return k
}

func TestClaim(t *testing.T) {
	k := newKeeper(t)
	h := api.RecoveryHost{Name: "b", UID: "ub", Key: "kb", Address: "198.18.0.9", Issued: time.Now().Add(-2 * time.Hour)}
	if said := k.Claim(t.Context(), h); said != "" {
		t.Errorf("a key that the backup has revoked is noted: %s", said)
	}
	h.Issued = time.Now()
	if said := k.Claim(t.Context(), h); !strings.Contains(said, "weftctl restore accept b") {
		t.Errorf("a key from after the backup: %q", said)
	}
	if err := k.Accept(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), "apply its manifest first") {
		t.Errorf("a host without a Machine: %v", err)
	}
	m := &api.Machine{}
	m.Metadata.Name = "b"
	m.SetDefaults()
	if err := k.Store.Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if err := k.Cache.WaitRevision(t.Context(), store.RevisionOf(m)); err != nil {
		t.Fatal(err)
	}
	if now, ok := store.Cached[api.Machine](k.Cache, "b"); !ok || !store.Claimed(k.Cache, now) {
		t.Error("its Machine may be provisioned over it")
	}
	if err := k.Accept(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	now, err := store.Get[api.Machine](t.Context(), k.Store, "b")
	if err != nil || now.Metadata.UID != "ub" || now.Status.HostKey != "kb" || now.Status.Phase != api.PhaseActive || store.Claimed(k.Cache, now) {
		t.Errorf("accepted it is %+v, %v", now, err)
	}
}

func TestWriteOff(t *testing.T) {
	k := newKeeper(t)
	if err := k.Reported(t.Context(), "a", m(t, k).Metadata.UID, api.Recount{Hosts: []string{"c"}}); err != nil {
		t.Fatal(err)
	}
	if waiting, _ := k.waiting(); len(waiting) == 0 || waiting[len(waiting)-1] != "c" {
		t.Errorf("a host that another names is not waited for: %v", waiting)
	}
	if err := k.Finish(t.Context(), true); err == nil {
		t.Error("it is finished while it waits")
	}
	for _, name := range []string{"c", "a"} {
		if err := k.WriteOff(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.WriteOff(t.Context(), "z"); err == nil {
		t.Error("a host that nobody knows is written off")
	}
}

func m(t *testing.T, k *Keeper) *api.Machine {
	t.Helper()
	m, err := store.Get[api.Machine](t.Context(), k.Store, "a")
	if err != nil {
		t.Fatal(err)
	}
	return m
}
