package recovery

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
)

// Keeper holds a restored Site until it is known what its hosts have. It may be used on every bootd; Run is for
// the elected one.
type Keeper struct {
	Store *store.Store
	Cache *store.Cache
	// Lease records that a MAC uses an address of a provisioning Subnet.
	Lease func(ctx context.Context, machine string, mac api.MAC, subnet *api.Subnet, addr netip.Addr) error
	Event func(o api.Object, typ api.EventType, reason, message string)
	Log   *slog.Logger
	// Grace. Default: 30 s.
	Grace time.Duration

	mu sync.Mutex // serializes changes of the record
}

const (
	// grace is how long a restored Site is held at least, from the start of its bootd: a host that neither the
	// backup nor another host knows may take this long to reconnect (10 s between two attempts, 5 s for each
	// address of bootd).
	grace = 30 * time.Second
	// every is how often the elected bootd checks whether everything is known.
	every = 500 * time.Millisecond
	// maxHosts limits how many hosts can add themselves to the store.
	maxHosts = 1024
	// maxRecord limits what is stored of Guests and Networks that only hosts know: it is one object.
	maxRecord = 1 << 20
)

// stored is the stored form of one host's recount.
type stored struct {
	UID     string      `json:"uid"` // the Machine's
	Recount api.Recount `json:"recount"`
}

// Run settles everything once every Machine is accounted for, and cleans up the record afterwards.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if store.Recovery(k.Cache) == nil {
			continue
		}
		if err := k.look(ctx, time.Since(began)); err != nil && ctx.Err() == nil {
			k.Log.Error("settle the store after the restore; retrying", "error", err)
		}
	}
}

func (k *Keeper) look(ctx context.Context, age time.Duration) error {
	r := store.Recovery(k.Cache)
	if !r.Held {
		return k.tidy(ctx, r)
	}
	if err := k.reconsider(ctx); err != nil {
		return err
	}
	if waiting, _ := k.waiting(); len(waiting) > 0 || age < cmp.Or(k.Grace, grace) {
		return nil
	}
	return k.settle(ctx)
}

// waiting names the Machines and hosts that are not accounted for.
func (k *Keeper) waiting() (machines []string, hosts []string) {
	for _, m := range store.CachedList[api.Machine](k.Cache) {
		if !machine.IsDiscovered(m) && !m.Status.Conditions.Is(api.CondAccounted) {
			machines = append(machines, m.Metadata.Name)
		}
	}
	if r := store.Recovery(k.Cache); r != nil {
		for _, h := range r.Hosts {
			hosts = append(hosts, h.Name)
		}
	}
	return append(machines, hosts...), hosts
}

// Reported stores a host's recount: the host is accounted for.
func (k *Keeper) Reported(ctx context.Context, name, uid string, r api.Recount) error {
	r = bounded(r)
	raw, err := json.Marshal(stored{UID: uid, Recount: r})
	if err != nil {
		return fmt.Errorf("keep the recount of host %s: %w", name, err)
	}
	if len(raw) > store.MaxObjectBytes {
		return fmt.Errorf("keep the recount of host %s: it has %d bytes, at most %d are allowed", name, len(raw), store.MaxObjectBytes)
	}
	if err := k.Store.Raw.Put(ctx, recounts+name, raw); err != nil {
		return err
	}
	if err := k.heardOf(ctx, r.Hosts); err != nil {
		return err
	}
	return k.account(ctx, name, func(m *api.Machine) (api.ConditionStatus, string, string) {
		if m.Metadata.UID != uid {
			return "", "", ""
		}
		if m.Spec.State != api.StateActive {
			return api.False, contradicts, fmt.Sprintf("its host runs, and the backup has state %s: apply its manifest with state Active, or keep the backup's state with weftctl restore write-off %s", m.Spec.State, name)
		}
		return api.True, api.AccountedReport, fmt.Sprintf("its host has reported %d Networks and %d Guests", len(r.Networks), len(r.Guests))
	})
}

// contradicts is the reason why a running host is not accounted for: the backup has it switched off, or in
// Maintenance.
const contradicts = "Contradicts"

// reconsider rechecks Machines that contradicted the backup, whose spec a person has changed since.
func (k *Keeper) reconsider(ctx context.Context) error {
	for _, m := range store.CachedList[api.Machine](k.Cache) {
		c := m.Status.Conditions.Get(api.CondAccounted)
		if c == nil || c.Reason != contradicts || m.Spec.State != api.StateActive {
			continue
		}
		err := k.account(ctx, m.Metadata.Name, func(m *api.Machine) (api.ConditionStatus, string, string) {
			return api.True, api.AccountedReport, "its host has reported"
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// account records whether a Machine is accounted for, unless it was written off.
func (k *Keeper) account(ctx context.Context, name string, judge func(*api.Machine) (api.ConditionStatus, string, string)) error {
	_, err := store.Mutate(ctx, k.Store, name, func(m *api.Machine) error {
		status, reason, message := judge(m)
		if old := m.Status.Conditions.Get(api.CondAccounted); status == "" || old != nil && old.Reason == api.AccountedGone {
			return store.ErrUnchanged
		}
		if !m.Status.Conditions.Set(time.Now(), api.CondAccounted, status, reason, message) {
			return store.ErrUnchanged
		}
		return nil
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("account for Machine %s: %w", name, err)
	}
	return nil
}

// heardOf records hosts that others know and this bootd does not.
func (k *Keeper) heardOf(ctx context.Context, names []string) error {
	var strange []string
	for _, n := range names {
		if _, known := store.Cached[api.Machine](k.Cache, n); !known {
			strange = append(strange, n)
		}
	}
	if len(strange) == 0 {
		return nil
	}
	return k.record(ctx, func(r *api.Recovery) bool {
		before := len(r.Hosts)
		for _, n := range strange {
			if r.Held && len(r.Hosts) < maxHosts && !slices.ContainsFunc(r.Hosts, func(h api.RecoveryHost) bool { return h.Name == n }) {
				r.Hosts = append(r.Hosts, api.RecoveryHost{Name: n})
			}
		}
		return len(r.Hosts) != before
	})
}

// Claim records a host with a certificate of this Site's CA that the store does not know. It returns the message
// for the host, or "" for one that is simply refused: there was no restore, or its key is older than the backup,
// which then lacks it for a reason.
func (k *Keeper) Claim(ctx context.Context, h api.RecoveryHost) string {
	r := store.Recovery(k.Cache)
	if r == nil || !h.Issued.After(r.Backup) || api.ValidateName(h.Name) != nil {
		return ""
	}
	// Once nothing is held, a Machine's host may legitimately lose its key: when it is provisioned again, or
	// joins twice.
	if m, ok := store.Cached[api.Machine](k.Cache, h.Name); ok && !r.Held && m.Metadata.UID == h.UID {
		return ""
	}
	h.Seen = time.Now().UTC()
	err := k.record(ctx, func(r *api.Recovery) bool {
		i := slices.IndexFunc(r.Hosts, func(o api.RecoveryHost) bool { return o.Name == h.Name })
		switch {
		case i < 0 && len(r.Hosts) >= maxHosts:
			return false
		case i < 0:
			r.Hosts = append(r.Hosts, h)
		case r.Hosts[i].Key == h.Key && r.Hosts[i].UID == h.UID && h.Seen.Sub(r.Hosts[i].Seen) < time.Minute:
			return false
		default:
			r.Hosts[i] = h
		}
		return true
	})
	if err == nil {
		err = k.account(ctx, h.Name, func(m *api.Machine) (api.ConditionStatus, string, string) {
			if !store.Held(k.Cache) {
				return "", "", ""
			}
			return api.False, api.AccountedNewKey, fmt.Sprintf("its host, at %s, has a key from after the backup: weftctl restore accept %s, if it is that host", h.Address, h.Name)
		})
	}
	if err != nil {
		k.Log.Warn("record a host that the backup does not know", "host", h.Name, "error", err)
	}
	return fmt.Sprintf("bootd was restored from a backup that is older than the key of host %s: it continues unchanged until a person accepts it (weftctl restore accept %[1]s)", h.Name)
}

// record changes the Site's record, when fn reports a change, and waits until
// the cache has it.
func (k *Keeper) record(ctx context.Context, fn func(*api.Recovery) bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	site, err := store.Mutate(ctx, k.Store, api.SiteName, func(s *api.Site) error {
		if s.Status.Recovery == nil || !fn(s.Status.Recovery) {
			return store.ErrUnchanged
		}
		slices.SortFunc(s.Status.Recovery.Hosts, func(a, b api.RecoveryHost) int { return strings.Compare(a.Name, b.Name) })
		return nil
	})
	if err != nil {
		return fmt.Errorf("update the record of the restore: %w", err)
	}
	return k.Cache.WaitRevision(ctx, store.RevisionOf(site))
}

// tidy removes what a person has applied again from the record, and the record when it is empty.
func (k *Keeper) tidy(ctx context.Context, r *api.Recovery) error {
	known := func(p api.RecoveryPart) bool {
		kind, err := api.LookupKind(p.Kind)
		if err != nil {
			return true
		}
		o, ok := k.Cache.CachedObject(kind, p.Name)
		return ok && o.Meta().UID == p.UID
	}
	if !slices.ContainsFunc(r.Unknown, known) {
		return nil
	}
	return k.record(ctx, func(r *api.Recovery) bool {
		before := len(r.Unknown)
		r.Unknown = slices.DeleteFunc(r.Unknown, known)
		return len(r.Unknown) != before
	})
}
