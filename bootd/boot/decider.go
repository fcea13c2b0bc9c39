package boot

import (
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/lease"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/prom"
)

// Config configures a Decider. Only Advertise and Metrics are optional.
type Config struct {
	Store   *store.Store
	Cache   *store.Cache
	Leases  *lease.Table
	Tracker *machine.Tracker
	CA      *ca.Authority
	Tokens  *ca.Tokens
	Record  machine.Recorder
	// Epoch is the store's; with the cache's revision it is the oldest HostSpec that a host may apply.
	Epoch int64
	// HTTPPort and APIPort are where bootd's boot and API servers listen.
	HTTPPort, APIPort int
	// Advertise are further API URLs that hosts may use, tried first.
	Advertise []string
	// Agent is the nodeagent binary that hosts install; its digest names a blob.
	Agent Agent
	// Interfaces lists bootd's own interfaces and their addresses. It is called for every DHCP packet.
	Interfaces func() map[string][]netip.Prefix
	// Neighbour returns the MAC under which the kernel knows an address on one of bootd's interfaces. On a Subnet
	// in proxy mode it replaces the lease.
	Neighbour func(iface string, addr netip.Addr) (api.MAC, bool)
	// Source returns bootd's own address from which it reaches a peer, which a machine behind a relay must connect
	// to.
	Source  func(peer netip.Addr) (netip.Addr, error)
	Metrics prometheus.Registerer // nil for none
	Log     *slog.Logger
}

// Agent is the nodeagent that hosts install.
type Agent struct {
	Digest  api.SHA256
	Unit    string // nodeagent.service
	Speaker string // nodeagent-speaker.service
}

// Decider answers the boot servers and the first calls of a new host. It owns the steps with a fixed order (script,
// pointer, config, join) and delegates the rest to its parts.
type Decider struct {
	*dhcpDecider
	*subnets

	store *store.Store
	cache *store.Cache
	ca    *ca.Authority
	agent Agent

	keys     keys
	peers    *peers
	own      *endpoints
	book     *book
	attempts *attempts
	scripts  *scripts
	configs  *compiler
}

// New returns a Decider.
func New(c Config) (*Decider, error) {
	keys := keys{c.Tokens}
	peers := &peers{cache: c.Cache, leases: c.Leases, neighbour: c.Neighbour}
	own := &endpoints{
		cache: c.Cache, peers: peers, interfaces: c.Interfaces, source: c.Source,
		httpPort: c.HTTPPort, apiPort: c.APIPort, advertise: c.Advertise,
	}
	book := &book{peers: peers, recorder: c.Record, ledger: newLedger(), metrics: newMetrics()}
	if _, err := prom.Register(c.Metrics, book.metrics.all()...); err != nil {
		return nil, fmt.Errorf("register the boot metrics: %w", err)
	}
	attempts := &attempts{store: c.Store, cache: c.Cache, tracker: c.Tracker, peers: peers, book: book, takes: newTakes(), log: c.Log}
	return &Decider{
		dhcpDecider: &dhcpDecider{
			cache: c.Cache, leases: c.Leases, own: own, book: book, attempts: attempts,
			strangers: &strangers{store: c.Store, record: c.Record, log: c.Log, seen: newSightings()},
		},
		subnets: &subnets{store: c.Store, cache: c.Cache, leases: c.Leases, own: own},
		store:   c.Store, cache: c.Cache, ca: c.CA, agent: c.Agent,
		keys: keys, peers: peers, own: own, book: book, attempts: attempts,
		scripts: &scripts{cache: c.Cache, tracker: c.Tracker, own: own, keys: keys, attempts: attempts, log: c.Log},
		configs: &compiler{store: c.Store, cache: c.Cache, ca: c.CA, own: own, keys: keys, epoch: c.Epoch, agent: c.Agent},
	}, nil
}

// Registered reports whether a registered Machine has an address now.
func (d *Decider) Registered(peer netip.Addr) bool { return d.peers.registered(peer) }

// APIFor lists the URLs of bootd for a Machine's host.
func (d *Decider) APIFor(m *api.Machine) []string { return d.own.apiFor(m) }

// Origins names the Layer of each part of the Machine's config, as far as it can be compiled now.
func (d *Decider) Origins(m *api.Machine) ([]api.Origin, []string, error) {
	return d.configs.origins(m)
}

// profileOf finds the Machine's Profile and Image.
func profileOf(cache *store.Cache, m *api.Machine) (*api.Profile, *api.Image, error) {
	p, ok := store.Cached[api.Profile](cache, m.Spec.Profile)
	if !ok {
		return nil, nil, fmt.Errorf("the Machine %s: its Profile %q does not exist", m.Metadata.Name, m.Spec.Profile)
	}
	img, ok := store.Cached[api.Image](cache, p.Spec.Image)
	if !ok {
		return nil, nil, fmt.Errorf("the Profile %s: its Image %q does not exist", p.Metadata.Name, p.Spec.Image)
	}
	return p, img, nil
}
