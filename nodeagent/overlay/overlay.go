// Package overlay owns a host's data plane: any number of Networks, each a
// flannel VXLAN of its own.
//
// A Network is one network namespace. In it are the VXLAN device
// flannel.<vni>, the bridge br-<vni> that guests are plugged into, and one
// neighbour, FDB entry, nexthop and route per remote host. The VXLAN's UDP
// socket is in the host's own namespace, so that the underlay carries it while
// the tenants' addresses never meet: two Networks may have the same CIDR.
//
// The kernel's state counts. Each pass lists it, compares it with the parts, and
// changes what differs: a new agent finds its Networks running and touches nothing.
// Marks identify what is ours: the namespace's name and the alias of its loopback,
// the alias `rackweft:<uid>` of every interface, the protocol number of routes and
// nexthops, the nftables table `rackweft`. Only a tombstone removes anything.
package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/overlay/dhcp"
	"github.com/rackweft/rackweft/nodeagent/wireguard"
)

const (
	// Port is flannel's VXLAN port, over UDP; not IANA's 4789.
	Port = 8472
	// Protocol marks rackweft's routes, neighbours and nexthops
	// (rtnetlink(7), rtm_protocol).
	Protocol = api.RouteProtocol
)

// Options configure an Overlay. All fields but Log are optional.
type Options struct {
	// NamespaceDir is the directory in which the tenants' network namespaces are
	// pinned. Default: /run/netns, where ip-netns(8) finds them.
	NamespaceDir string
	// HostNamespace is a file of the network namespace that has the underlay.
	// Default: the process's own.
	HostNamespace string
	// EnvDir is the directory for each Network's NAME.env, as flanneld writes it.
	// Default: no files.
	EnvDir string
	// ResolvConf is the file with the host's resolvers. Default: /etc/resolv.conf.
	ResolvConf string
	// Pin creates a network namespace and pins it at a path, Unpin removes it.
	// Default: those of internal/namespace. An agent in a private mount namespace
	// needs ones that work outside of it.
	Pin, Unpin func(ctx context.Context, path string) error
	// ProbeFile stores the result of the checksum probe for later agents of the same
	// boot. Default: each agent probes again.
	ProbeFile string
	// Speakers run where guests peer. Default: guests cannot peer.
	Speakers Speakers
	Log      *slog.Logger
}

// Overlay applies the network parts of one host. It is their nodeagent.Handler, a
// nodeagent.Runner, and a prometheus.Collector.
type Overlay struct {
	tenants tenants
	env     string
	log     *slog.Logger

	serving  *serving
	speakers Speakers

	// kernel is held while a tenant's namespace is changed: Reconcile, SetPorts and
	// Attach are called by different goroutines. It is locked before mu.
	kernel sync.Mutex

	host   *hostSide
	probe  checksumProbe
	ledger *ledger

	mu        sync.Mutex
	underlay  api.Underlay
	encrypted bool               // the underlay, at the last pass
	networks  map[string]network // by name: those that were applied since the agent's start
	ports     portTable
	// portsKnown: SetPorts was called since the agent's start.
	portsKnown bool

	metrics metrics
}

// New creates an Overlay; it touches nothing before Reconcile.
func New(o Options) *Overlay {
	t := newTenants(o)
	l := newLedger(o.Log)
	v := &Overlay{tenants: t, env: o.EnvDir, log: o.Log, speakers: o.Speakers,
		probe: checksumProbe{file: o.ProbeFile, log: o.Log}, ledger: l,
		networks: map[string]network{}, ports: portTable{}, metrics: newMetrics()}
	v.host = &hostSide{path: cmp.Or(o.HostNamespace, ownNamespace), tenants: t, kernel: &v.kernel, ledger: l}
	v.serving = &serving{tenants: t, log: o.Log, guestAt: v.guestAt, servers: map[string]*served{},
		forwarder: dhcp.NewForwarder(v.host.dial, cmp.Or(o.ResolvConf, "/etc/resolv.conf"))}
	return v
}

// Kind implements nodeagent.Handler.
func (o *Overlay) Kind() string { return api.PartNetwork }

// SetUnderlay sets the interface that carries the Networks and its addresses, from
// the next Reconcile on.
func (o *Overlay) SetUnderlay(u api.Underlay) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.underlay = u
}

func (o *Overlay) wantedUnderlay() api.Underlay {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.underlay
}

// Reconcile implements nodeagent.Handler. Removals come first: a removed Network may
// hold a VNI or a name that another is to get.
func (o *Overlay) Reconcile(ctx context.Context, parts []nodeagent.Part) map[string]api.PartStatus {
	out := map[string]api.PartStatus{}
	host, err := openPlace(o.host.path)
	if err != nil {
		for _, p := range parts {
			out[p.Key()] = pending(err)
		}
		return out
	}
	defer host.close()
	for _, p := range parts {
		if p.Want == nodeagent.Removed {
			out[p.Key()] = o.remove(ctx, host, p)
		}
	}
	u, fault := findUnderlay(host, o.wantedUnderlay())
	o.noteEncryption(u)
	r := &round{overlay: o, host: host, underlay: u, out: out}
	r.plan(parts, fault)
	if err := o.host.filter(host, u, r.networks); err != nil {
		err = fmt.Errorf("filter on the host: %w", err)
		o.log.Warn("overlay: no Network is changed", "error", err)
		r.fail(err, func(network) bool { return true })
		return out
	}
	r.work(ctx)
	if fault == nil {
		r.routes()
	}
	r.passages(ctx)
	r.hold()
	return out
}

// errUnsealed is the error of Networks that are applied, but reach no other host.
var errUnsealed = errors.New("nothing is sent to other hosts: their Zone is encrypted, and this host has no " + wireguard.Name + " (the part " + api.PartBase + " says why)")

// stage is a stage of the work on one Network.
type stage string

const (
	alone  stage = "alone"  // its own namespace
	joined stage = "joined" // steps that need other Networks' namespaces
)

func pending(err error) api.PartStatus {
	return api.PartStatus{State: api.PartPending, Message: err.Error()}
}

// ensure applies a stage of one Network and counts repairs.
func (o *Overlay) ensure(ctx context.Context, host place, n network, all []network, s stage) error {
	o.kernel.Lock()
	defer o.kernel.Unlock()
	path := o.tenants.pathOf(n)
	tenant, err := o.tenants.open(ctx, path)
	if err != nil {
		return err
	}
	defer tenant.close()
	work := &work{host: host, tenant: tenant, network: n, dir: o.tenants.dir, wrongChecksums: o.probe.wrong}
	work.unknown = func(vni uint32) (bool, error) {
		if slices.ContainsFunc(all, func(n network) bool { return n.vni == vni }) {
			return false, nil
		}
		complete, err := o.tenants.complete(all)
		return !complete, err
	}
	work.ports, work.complete = o.portsOf(n.name)
	for _, step := range work.steps(s) {
		if err = step(); err != nil {
			break
		}
	}
	o.ledger.note(work, s, filepath.Base(path), err)
	o.know(n)
	if err != nil || s != alone {
		return err
	}
	return errors.Join(o.serving.serve(tenant, n, o.portsFor(n)), writeEnv(o.env, n))
}

// know records a Network for SetPorts and Attach.
func (o *Overlay) know(n network) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.networks[n.name] = n
}

func (o *Overlay) noteEncryption(u underlay) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.encrypted = u.encrypted && u.sealed
}

// remove removes a Network, but nothing of one with its name and another uid.
func (o *Overlay) remove(ctx context.Context, host place, p nodeagent.Part) api.PartStatus {
	o.kernel.Lock()
	defer o.kernel.Unlock()
	name := api.PartObject(p.Name)
	path := o.tenants.path(name, p.UID)
	o.serving.stop(p.UID) // its sockets would hold the namespace, as would a speaker's
	if err := errors.Join(o.silence(ctx, p.UID), removeEnv(o.env, name, p.UID), o.tenants.remove(ctx, host, path, p.UID)); err != nil {
		return pending(fmt.Errorf("remove Network %s: %w", name, err))
	}
	o.ledger.forget(p.UID)
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.networks, func(_ string, n network) bool { return n.uid == p.UID })
	return api.PartStatus{State: api.PartApplied}
}

// HostRepairs counts repairs of the host's filter.
func (o *Overlay) HostRepairs() int64 { return o.ledger.repairsOfHost() }
