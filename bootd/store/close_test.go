package store

import (
	"context"
	"log/slog"
	"sync"
	"testing"

	"github.com/rackweft/rackweft/internal/logtest"
)

// Etcd calls it an error four times that its listeners end when it is closed.
func TestCloseIsNoError(t *testing.T) {
	log := new(logtest.Buffer)
	s, err := Open(t.Context(), Config{Dir: t.TempDir()}, newSealer(t), slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		t.Fatal(err)
	}
	create(t, s, machine("r1u01"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var watching sync.WaitGroup
	watching.Go(func() {
		for range s.Watch(ctx, kindOf(t, "machine"), 0) { // until the store ends
		}
	})
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	watching.Wait()
	if got := log.String(); got != "" {
		t.Errorf("closing it in order is logged as\n%s", got)
	}
}
