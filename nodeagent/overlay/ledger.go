package overlay

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/nodeagent"
)

// ledger records changes to Networks and host, and reports repairs.
type ledger struct {
	log *slog.Logger

	mu      sync.Mutex
	stats   map[string]Stats  // by uid
	settled map[string]string // by stage and uid: the desired state when nothing was left to do
	// As settled and Stats.Repairs, for the host's filter.
	hostSettled map[string]string
	hostRepairs int64
	drift       repairs
}

func newLedger(log *slog.Logger) *ledger {
	return &ledger{log: log, stats: map[string]Stats{}, settled: map[string]string{}, hostSettled: map[string]string{},
		drift: repairs{reported: map[string]reportedRepair{}, now: time.Now}}
}

// tellTo sets the agent that receives repair events; nil while none runs.
func (l *ledger) tellTo(host nodeagent.Host) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drift.host = host
}

// wake requests another pass from the agent.
func (l *ledger) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.drift.host != nil {
		l.drift.host.Changed()
	}
}

// forget drops a removed Network.
func (l *ledger) forget(uid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.stats, uid)
	delete(l.drift.reported, uid)
	delete(l.settled, settledKey(alone, uid))
	delete(l.settled, settledKey(joined, uid))
}

// noteTaps records the counters of a Network's taps.
func (l *ledger) noteTaps(w *work) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, there := l.stats[w.network.uid]; there {
		s.Traffic, s.Drops, s.Ports = w.traffic, w.drops, w.stats
		l.stats[w.network.uid] = s
	}
}

// list returns the Networks' stats, sorted by name.
func (l *ledger) list() []Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := slices.SortedFunc(maps.Values(l.stats), func(a, b Stats) int { return strings.Compare(a.Network, b.Network) })
	for i := range list {
		list[i].Ports = slices.Clone(list[i].Ports)
	}
	return list
}

// repairsOfHost counts repairs of the host's filter.
func (l *ledger) repairsOfHost() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hostRepairs
}

func settledKey(at stage, uid string) string { return string(at) + " " + uid }

// note records a pass over a Network.
func (l *ledger) note(w *work, at stage, namespace string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := w.network
	asked := fmt.Sprint(n.digest, n.underlay, n.source, n.mtu, n.passages, n.direct, n.directPeers(), n.advertise)
	s := l.stats[n.uid]
	done := settledKey(at, n.uid)
	if l.settled[done] == asked && w.changes > 0 {
		s.Repairs += int64(w.changes)
		l.log.Warn("overlay: repaired", "network", n.name, "changes", w.changes, "first", w.first)
		l.drift.report(n, w.changes, w.first)
	}
	delete(l.settled, done)
	if err == nil {
		l.settled[done] = asked
	}
	s.Network, s.VNI, s.Namespace, s.Peers = n.name, n.vni, namespace, len(n.peers)
	s.Offload = !w.wrongChecksums
	if w.listed {
		s.Entries = w.entries
	}
	if w.seen {
		s.Traffic, s.Drops, s.Ports = w.traffic, w.drops, w.stats
	}
	l.stats[n.uid] = s
}

// noteHost records a pass over the host's own state.
func (l *ledger) noteHost(what string, networks []network, u underlay, changes []change, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, n := range networks {
		fmt.Fprint(&b, n.uid, n.digest)
	}
	asked := fmt.Sprint(b.String(), u)
	if l.hostSettled[what] == asked && len(changes) > 0 {
		l.hostRepairs += int64(len(changes))
		l.log.Warn("overlay: repaired the host's "+what, "changes", len(changes), "first", changes[0])
		l.drift.report(network{}, len(changes), changes[0].String())
	}
	delete(l.hostSettled, what)
	if err == nil {
		l.hostSettled[what] = asked
	}
}
