package boot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
)

const (
	// maxDiscovered bounds the Machines made of unknown MACs: anyone can forge
	// MACs by the thousand.
	maxDiscovered = 256
	// seenEvery bounds how often one unknown MAC is written down.
	seenEvery = 10 * time.Minute
)

// discovery remembers which unknown MACs were written down and when.
type discovery struct {
	mu   sync.Mutex
	seen map[api.MAC]time.Time
}

func newDiscovery() *discovery { return &discovery{seen: map[api.MAC]time.Time{}} }

// due reports whether the MAC is to be written down now.
func (d *discovery) due(mac api.MAC, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now.Sub(d.seen[mac]) < seenEvery {
		return false
	}
	for m, t := range d.seen {
		if now.Sub(t) >= seenEvery {
			delete(d.seen, m)
		}
	}
	if len(d.seen) >= maxDiscovered {
		return false
	}
	d.seen[mac] = now
	return true
}

func isDiscovered(m *api.Machine) bool { return m != nil && machine.IsDiscovered(m) }

// discovered makes a Machine in phase Discovered of a MAC that nobody has
// registered. It is given nothing but an address and a script that waits.
func (d *Decider) discovered(ctx context.Context, mac api.MAC, s *api.Subnet) {
	if !d.discover.due(mac, time.Now()) {
		return
	}
	count := 0
	for _, m := range store.CachedList[api.Machine](d.Cache) {
		if isDiscovered(m) {
			count++
		}
	}
	if count >= maxDiscovered {
		d.Log.Warn("too many discovered machines: not recorded", "mac", mac, "limit", maxDiscovered)
		return
	}
	m := &api.Machine{}
	m.SetDefaults()
	m.Metadata.Name = "discovered-" + strings.ReplaceAll(string(mac), ":", "")
	m.Metadata.Labels = map[string]string{api.DiscoveredLabel: "true"}
	m.Spec.Links = []api.Link{{Name: "pxe0", MAC: mac, Subnet: s.Metadata.Name}}
	m.Status.Phase = api.PhaseDiscovered
	m.Status.LastSeen = time.Now().UTC()
	err := d.Store.Create(ctx, m)
	if errors.Is(err, store.ErrExists) {
		_, err = store.Mutate(ctx, d.Store, m.Metadata.Name, func(m *api.Machine) error {
			m.Status.LastSeen = time.Now().UTC()
			return nil
		})
	}
	if err != nil {
		d.Log.Warn("record a discovered machine", "mac", mac, "error", err)
		return
	}
	d.Record.Event(m, api.Normal, "Discovered", fmt.Sprintf("MAC %s asked for a boot on Subnet %s; apply a Machine with this MAC to register it", mac, s.Metadata.Name))
}
