package boot

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/lease"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
)

// Config is what the Decider decides from. All but Advertise and Metrics must be set.
type Config struct {
	Store   *store.Store
	Cache   *store.Cache
	Leases  *lease.Table
	Tracker *machine.Tracker
	CA      *ca.Authority
	Tokens  *ca.Tokens
	Record  machine.Recorder
	// Epoch is the store's; with the cache's revision it tells hosts from where on
	// a HostSpec counts.
	Epoch int64
	// HTTPPort and APIPort are where bootd's boot and API servers listen.
	HTTPPort, APIPort int
	// Advertise are further API URLs that hosts may use, tried first.
	Advertise []string
	// Agent is the nodeagent binary that hosts install; its digest names a blob.
	Agent Agent
	// Interfaces lists bootd's own interfaces and their addresses. It is called
	// for every DHCP packet.
	Interfaces func() map[string][]netip.Prefix
	// Neighbour is the MAC at which the kernel sees an address on one of bootd's
	// interfaces. On a Subnet in proxy mode it stands for the lease.
	Neighbour func(iface string, addr netip.Addr) (api.MAC, bool)
	// Source is bootd's own address from which it reaches a peer: what a machine
	// behind a relay is told to come back to.
	Source  func(peer netip.Addr) (netip.Addr, error)
	Metrics prometheus.Registerer // nil for none
	Log     *slog.Logger
}

// Agent is the nodeagent that is handed to hosts.
type Agent struct {
	Digest  api.SHA256
	Unit    string // nodeagent.service
	Speaker string // nodeagent-speaker.service
}

// Decider answers the boot servers and the first calls of a new host.
type Decider struct {
	Config
	discover *discovery
	ledger   *ledger
	takes    *takes
	metrics  *metrics

	applying sync.Mutex       // one ApplySubnets at a time
	faults   map[string]error // of Subnets whose pool cannot be used; under applying
}

// New makes a Decider.
func New(c Config) (*Decider, error) {
	d := &Decider{Config: c, discover: newDiscovery(), ledger: newLedger(), takes: newTakes(), metrics: newMetrics()}
	if c.Metrics != nil {
		if err := d.metrics.register(c.Metrics); err != nil {
			return nil, fmt.Errorf("register the boot metrics: %w", err)
		}
	}
	return d, nil
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
func (d *Decider) profile(m *api.Machine) (*api.Profile, *api.Image, error) {
	p, ok := store.Cached[api.Profile](d.Cache, m.Spec.Profile)
	if !ok {
		return nil, nil, fmt.Errorf("the Machine %s: its Profile %q does not exist", m.Metadata.Name, m.Spec.Profile)
	}
	img, ok := store.Cached[api.Image](d.Cache, p.Spec.Image)
	if !ok {
		return nil, nil, fmt.Errorf("the Profile %s: its Image %q does not exist", p.Metadata.Name, p.Spec.Image)
	}
	return p, img, nil
}
