// Package overlay owns a host's data plane: any number of Networks, each a
// flannel VXLAN of its own.
//
// A Network is one network namespace. In it are the VXLAN device
// flannel.<vni>, the bridge br-<vni> that guests are plugged into, and one
// neighbour, FDB entry, nexthop and route per remote host. The VXLAN's UDP
// socket is in the host's own namespace, so that the underlay carries it while
// the tenants' addresses never meet: two Networks may have the same CIDR.
//
// The kernel is the truth. Each pass lists what is there, compares it with
// what the parts ask for, and changes what differs: a new agent finds its
// Networks running and touches nothing. What is ours is told by marks: the
// namespace's name and the alias of its loopback, the alias
// `rackweft:<uid>` of every interface, the protocol number of routes and
// nexthops, the nftables table `rackweft`. Only a tombstone removes.
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
	"strings"
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

// Options make an Overlay. All fields but Log have defaults.
type Options struct {
	// NamespaceDir is where the tenants' network namespaces are pinned;
	// /run/netns by default, where ip-netns(8) finds them.
	NamespaceDir string
	// HostNamespace is a file of the network namespace that has the underlay;
	// by default the process's own.
	HostNamespace string
	// EnvDir is where each Network has its NAME.env, as flanneld writes it; no
	// files if empty.
	EnvDir string
	// ResolvConf names the host's resolvers; /etc/resolv.conf by default.
	ResolvConf string
	// Pin makes a network namespace and pins it at a path, Unpin takes it away.
	// They default to those of internal/namespace; an agent in a private
	// mount namespace needs ones that work outside of it.
	Pin, Unpin func(ctx context.Context, path string) error
	// ProbeFile keeps what was found out of this kernel, for the next agent of
	// the same boot; without it each agent finds out anew.
	ProbeFile string
	// Speakers run where guests peer; without them guests do not.
	Speakers Speakers
	Log      *slog.Logger
}

// Overlay makes the Networks of one host true. It is the nodeagent.Handler of
// network parts, a nodeagent.Runner, and a prometheus.Collector.
type Overlay struct {
	tenants tenants
	env     string
	log     *slog.Logger

	serving  *serving
	speakers Speakers

	// kernel is held while a tenant's namespace is worked on: Reconcile, SetPorts
	// and Attach come from different goroutines. It is taken before mu.
	kernel sync.Mutex

	host   *hostSide
	probe  checksumProbe
	ledger *ledger

	mu        sync.Mutex
	underlay  api.Underlay
	encrypted bool               // as the last pass saw the underlay
	networks  map[string]network // by name: those that were made since the agent's start
	ports     portTable
	// portsKnown: SetPorts was called since the agent's start.
	portsKnown bool

	metrics metrics
}

// New prepares an Overlay; nothing is touched before Reconcile.
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
func (o *Overlay) Kind() string { return "network" }

// SetUnderlay says which interface carries the Networks and by which of its
// addresses. It counts from the next Reconcile on.
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

// Reconcile implements nodeagent.Handler. Networks go first: they may hold a
// VNI or a name that another is to have.
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

// errUnsealed is of Networks that are made, but reach no other host.
var errUnsealed = errors.New("nothing goes to other hosts: their Zone is encrypted, and this host has no " + wireguard.Name + " (the part " + api.PartBase + " says why)")

// stage is a part of the work on one Network.
type stage string

const (
	alone  stage = "alone"  // what it is by itself
	joined stage = "joined" // what needs other Networks' namespaces
)

func networkName(part string) string { return strings.TrimPrefix(part, "network/") }

func pending(err error) api.PartStatus {
	return api.PartStatus{State: api.PartPending, Message: err.Error()}
}

// ensure makes a stage of one Network true and counts what it had to repair.
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

// know remembers a Network for SetPorts and Attach.
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

// remove takes a Network away, and nothing of its name with another uid.
func (o *Overlay) remove(ctx context.Context, host place, p nodeagent.Part) api.PartStatus {
	o.kernel.Lock()
	defer o.kernel.Unlock()
	name := networkName(p.Name)
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

// HostRepairs counts the changes to the host's filter that nothing had asked for.
func (o *Overlay) HostRepairs() int64 { return o.ledger.repairsOfHost() }
