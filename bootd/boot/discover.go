package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
)

const (
	// maxDiscovered limits the Machines created from unknown MACs: anyone can forge MACs by the thousand.
	maxDiscovered = 256
	// seenEvery limits how often one unknown MAC is recorded.
	seenEvery = 10 * time.Minute
)

// sightings stores when unknown MACs were last recorded.
type sightings struct {
	mu sync.Mutex
	at map[api.MAC]time.Time
}

func newSightings() *sightings { return &sightings{at: map[api.MAC]time.Time{}} }

// due reports whether the MAC must be recorded now.
func (s *sightings) due(mac api.MAC, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.at[mac]) < seenEvery {
		return false
	}
	for m, t := range s.at {
		if now.Sub(t) >= seenEvery {
			delete(s.at, m)
		}
	}
	if len(s.at) >= maxDiscovered {
		return false
	}
	s.at[mac] = now
	return true
}

func isDiscovered(m *api.Machine) bool { return m != nil && machine.IsDiscovered(m) }

// strangers creates Machines for unregistered MACs.
type strangers struct {
	store  *store.Store
	record machine.Recorder
	log    *slog.Logger
	seen   *sightings
}

// note creates a Machine in phase Discovered for an unregistered MAC, or records that it was seen again. It
// receives only an address and a script that waits.
func (x *strangers) note(ctx context.Context, mac api.MAC, s *api.Subnet) {
	if !x.seen.due(mac, time.Now()) {
		return
	}
	name := "discovered-" + strings.ReplaceAll(string(mac), ":", "")
	if err := x.noteAs(ctx, name, mac, s); err != nil {
		x.log.Warn("record a discovered machine", "mac", mac, "error", err)
	}
}

func (x *strangers) noteAs(ctx context.Context, name string, mac api.MAC, s *api.Subnet) error {
	// The cache may be slightly behind: a Machine that was just registered must not get a double.
	all, _, err := store.List[api.Machine](ctx, x.store)
	if err != nil {
		return err
	}
	count := 0
	for _, m := range all {
		if isDiscovered(m) {
			count++
		} else if slices.Contains(m.MACs(), mac) {
			return nil
		}
	}
	exists := slices.ContainsFunc(all, func(m *api.Machine) bool { return m.Metadata.Name == name })
	if exists {
		_, err := store.Mutate(ctx, x.store, name, func(m *api.Machine) error {
			if !isDiscovered(m) {
				return store.ErrUnchanged
			}
			m.Status.LastSeen = time.Now().UTC()
			return nil
		})
		return err
	}
	if count >= maxDiscovered {
		return fmt.Errorf("%d machines are discovered already, as many as are kept: apply or delete some (weftctl get machines)", count)
	}
	m := &api.Machine{}
	m.SetDefaults()
	m.Metadata.Name = name
	m.Metadata.Labels = map[string]string{api.DiscoveredLabel: "true"}
	m.Spec.Links = []api.Link{{Name: "pxe0", MAC: mac, Subnet: s.Metadata.Name}}
	m.Status.Phase = api.PhaseDiscovered
	m.Status.LastSeen = time.Now().UTC()
	if err := x.store.Create(ctx, m); err != nil {
		if errors.Is(err, store.ErrExists) {
			return nil // another bootd has received it too
		}
		return err
	}
	x.record.Event(m, api.Normal, "Discovered", fmt.Sprintf("MAC %s asked for a boot on Subnet %s; apply a Machine with this MAC to register it", mac, s.Metadata.Name))
	return nil
}
