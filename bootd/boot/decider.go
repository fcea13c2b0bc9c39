package boot

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/lease"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
)

// Config is what the deciders decide from.
type Config struct {
	Store   *store.Store
	Cache   *store.Cache
	Leases  *lease.Table
	Tracker *machine.Tracker
	CA      *ca.Authority
	Tokens  *ca.Tokens
	Record  machine.Recorder
	// HTTPPort and APIPort are where bootd's boot and API servers listen.
	HTTPPort, APIPort int
	// Advertise are further API URLs that hosts may use, tried first.
	Advertise []string
	// Agent is the nodeagent binary that hosts install; its digest names a blob.
	Agent Agent
	// Interfaces lists bootd's own interfaces and their addresses.
	Interfaces func() map[string][]netip.Prefix
	Log        *slog.Logger
}

// Agent is the nodeagent that is handed to hosts.
type Agent struct {
	Digest api.SHA256
	Unit   string // nodeagent.service
}

// Decider answers the boot servers and the first calls of a new host.
type Decider struct {
	Config
	discover *discovery
}

// New makes a Decider.
func New(c Config) *Decider {
	return &Decider{Config: c, discover: newDiscovery()}
}

// decide records an answer and its reason.
func (d *Decider) decide(m *api.Machine, mac api.MAC, peer netip.Addr, question, answer, reason string) {
	x := api.Decision{MAC: mac, Question: question, Answer: answer, Reason: reason}
	if peer.IsValid() {
		x.Peer = peer.String()
	}
	if m != nil {
		x.Machine = m.Metadata.Name
		if m.Status.Attempt.Open() {
			x.Attempt = m.Status.Attempt.ID
		}
	}
	d.Record.Decision(x)
}

// reached records a stage of the Machine's open attempt.
func (d *Decider) reached(ctx context.Context, m *api.Machine, stage api.Stage, also ...func(*api.Machine)) {
	if m == nil || !m.Status.Attempt.Open() {
		return
	}
	if err := d.Tracker.Reached(ctx, m.Metadata.Name, m.Status.Attempt.ID, stage, also...); err != nil {
		d.Log.Warn("record a stage", "machine", m.Metadata.Name, "stage", stage, "error", err)
	}
}

// byPeer finds the Machine that an address is leased to.
func (d *Decider) byPeer(peer netip.Addr) (*api.Machine, api.MAC) {
	l, ok := d.Leases.Lookup(peer)
	if !ok {
		return nil, ""
	}
	m, _ := store.CachedMachineByMAC(d.Cache, api.MAC(l.MAC))
	return m, api.MAC(l.MAC)
}

// leasedTo reports whether an address is leased to one of the Machine's MACs.
func (d *Decider) leasedTo(peer netip.Addr, m *api.Machine) bool {
	l, ok := d.Leases.Lookup(peer)
	return ok && slices.Contains(m.MACs(), api.MAC(l.MAC))
}

// site is the Site's spec, or the defaults while nobody has applied one.
func (d *Decider) site() api.SiteSpec {
	if s, ok := store.Cached[api.Site](d.Cache, api.SiteName); ok {
		return s.Spec
	}
	s := new(api.Site)
	s.SetDefaults()
	return s.Spec
}

// profile finds the Machine's Profile and Image.
func (d *Decider) profile(m *api.Machine) (*api.Profile, *api.Image, bool) {
	p, ok := store.Cached[api.Profile](d.Cache, m.Spec.Profile)
	if !ok {
		return nil, nil, false
	}
	img, ok := store.Cached[api.Image](d.Cache, p.Spec.Image)
	return p, img, ok
}

// current reports whether the attempt is open and inside its window.
func current(m *api.Machine) bool {
	return m.Status.Attempt.Open() && time.Now().Before(m.Status.Attempt.Deadline)
}
