package hostspec

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/part"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/text"
)

// A host that joins changes a part of every other, and each of those reports that it is applying it, and when it is
// done, with a digest and a revision. Nothing waits for these reports, and a write for each would make a join as
// expensive as there are hosts. They stay in memory, as heartbeats do; a host that does not finish is recorded when
// it is overdue.

// lag is how long a host that had applied everything may take for a change.
const lag = 15 * time.Second

// Reported returns a host's last report about itself to this bootd; false when it is not connected, or has not
// reported. It is shared, and must not be modified. The store's digests, times and revision may be older.
func (h *Hub) Reported(name string) (*api.HostStatus, bool) {
	h.mu.Lock()
	s := h.streams[name]
	h.mu.Unlock()
	if s == nil {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reported, s.reported != nil
}

// report stores the host's report about itself.
func (h *Hub) report(ctx context.Context, s *stream, status *api.HostStatus) {
	spec, ok := h.specOf(ctx, s)
	if !ok {
		return
	}
	next, err := h.Compiler.parts().bounded(spec, status)
	if s.refuse(err != nil) {
		h.event(s, api.Warning, "StatusRefused", err.Error())
	}
	if err != nil {
		return
	}
	if fault := keyFault(h.Cache, s.peer.Name, next.WireGuardKey); fault != "" {
		h.event(s, api.Warning, "KeyRefused", fault)
		next.WireGuardKey = ""
	}
	next.UID, next.Bootd, next.Reported = s.peer.UID, h.Name, time.Now().UTC()
	s.mu.Lock()
	s.reported = next
	s.mu.Unlock()
	h.take(ctx, s, spec, status, next)
}

// overdue rechecks a host that has not yet applied its HostSpec, or whose status was held back.
func (h *Hub) overdue(ctx context.Context, s *stream) {
	s.mu.Lock()
	reported, since, held := s.reported, s.behind, s.heldBack
	s.mu.Unlock()
	late := !since.IsZero() && time.Since(since) >= orDefault(h.Lag, lag)
	if reported == nil || !late && !held {
		return
	}
	if spec, ok := h.specOf(ctx, s); ok {
		h.take(ctx, s, spec, reported, reported)
	}
}

func (h *Hub) specOf(ctx context.Context, s *stream) (*part.Spec, bool) {
	m, ok := store.Cached[api.Machine](h.Cache, s.peer.Name)
	if !ok {
		return nil, false
	}
	spec, err := h.Compiler.compile(ctx, m)
	if err != nil {
		h.Log.Warn("compile HostSpec", "host", s.peer.Name, "error", err)
		return nil, false
	}
	return spec, true
}

// take stores the relevant changes of a report: next is the new stored status.
func (h *Hub) take(ctx context.Context, s *stream, spec *part.Spec, status, next *api.HostStatus) {
	applied, reason, message := h.Compiler.parts().judge(spec, status)
	if store.Held(h.Cache) { // it was not sent its HostSpec
		applied, reason, message = api.Unknown, "Restored", "bootd was restored and waits for its hosts: weftctl restore status"
	}
	soon := s.soon(reason, orDefault(h.Lag, lag))
	paid, held := false, false
	h.mutate(ctx, s.peer.Name, s.peer.UID, func(m *api.Machine) bool {
		old := m.Status.Host
		// A host that was restarted has applied nothing.
		soon := soon && m.Status.Conditions.Is(api.CondApplied) && old != nil && old.BootID == next.BootID
		changed := !soon && m.Status.Conditions.Set(time.Now(), api.CondApplied, applied, reason, text.Clip(message, 1024))
		if !changed && !h.Compiler.parts().news(old, next, soon, len(spec.Tombstones) > 0) {
			return false
		}
		paid = paid || s.quota.mayStore(next) // once, however often the write is tried
		if held = !paid; held {
			return false
		}
		m.Status.Host = next
		return true
	})
	if s.holdBack(held) {
		h.event(s, api.Warning, "StatusHeldBack", fmt.Sprintf("it reports changes of its status faster than they can be stored (%d KiB at once, %d KiB a second): the last one is stored later", storedBurst>>10, storedRate>>10))
	}
}

// soon reports whether a host has been applying a change for less than patience.
func (s *stream) soon(reason string, patience time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if reason != reasonApplying {
		s.behind = time.Time{}
		return false
	}
	if s.behind.IsZero() {
		s.behind = time.Now()
	}
	return time.Since(s.behind) < patience
}

// news reports whether a host's status has more information than the stored one. soon: the host is still applying
// and is not overdue. buried: it has a tombstone, so its revision must be stored.
func (t table) news(old, next *api.HostStatus, soon, buried bool) bool {
	if old == nil {
		return true
	}
	a, b := *old, *next
	a.Reported, b.Reported = time.Time{}, time.Time{}
	if !buried {
		a.Revision, b.Revision = 0, 0
	}
	a.Parts, b.Parts = maps.Clone(old.Parts), maps.Clone(next.Parts)
	if soon {
		for name, p := range b.Parts {
			stored, known := a.Parts[name]
			switch {
			case p.State != api.PartPending || t.of(name).Steps:
			case known:
				b.Parts[name] = stored
			default:
				delete(b.Parts, name)
			}
		}
	}
	for _, parts := range []map[string]api.PartStatus{a.Parts, b.Parts} {
		for name, p := range parts {
			p.Time = time.Time{}
			if !t.of(name).Digests {
				p.Digest = ""
			}
			parts[name] = p
		}
	}
	return !same(&a, &b)
}

// same compares as the store would: an empty list is none.
func same(a, b *api.HostStatus) bool {
	x, xerr := json.Marshal(a)
	y, yerr := json.Marshal(b)
	return xerr == nil && yerr == nil && bytes.Equal(x, y)
}
