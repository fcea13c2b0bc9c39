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
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/namespace"
	"github.com/rackweft/rackweft/nodeagent"
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
	// Config answers a request to 169.254.169.254, port 80, by the Guest with that
	// uid; "" stands for a source that is no Guest's of the Network here. It ends
	// with the request's context. Guests are not answered without it.
	Config func(w http.ResponseWriter, r *http.Request, uid string)
	// Speakers run where guests peer; without them guests do not.
	Speakers Speakers
	Log      *slog.Logger
}

// Overlay makes the Networks of one host true. It is the nodeagent.Handler of
// network parts, a nodeagent.Runner, and a prometheus.Collector.
type Overlay struct {
	dir   string
	host  string
	env   string
	pin   func(ctx context.Context, path string) error
	unpin func(ctx context.Context, path string) error
	log   *slog.Logger
	// config is the Options' Config.
	config func(w http.ResponseWriter, r *http.Request, uid string)

	serving  serving
	speakers Speakers

	// kernel is held while a tenant's namespace is worked on: Reconcile, SetPorts
	// and Attach come from different goroutines. It is taken before mu.
	kernel sync.Mutex

	mu       sync.Mutex
	underlay api.Underlay
	stats    map[string]Stats   // by uid
	settled  map[string]string  // by stage and uid: what was asked for when nothing was left to do
	networks map[string]network // by name: those that were made since the agent's start
	ports    portTable
	// portsKnown: SetPorts was called since the agent's start.
	portsKnown bool
	// As settled and Stats.Repairs, of the host's filter.
	hostSettled map[string]string
	forwarding  []string // interfaces that forward for our sake; only Reconcile looks
	// probeFile, probed and wrongChecksums are checksumsAreWrong's.
	probeFile      string
	probed         bool
	wrongChecksums bool
	// noHostRoutes: the last pass left none, and none is asked for.
	noHostRoutes bool
	hostRepairs  int64
	drift        repairs
	encrypted    bool // as the last pass saw the underlay

	metrics metrics
}

// New prepares an Overlay; nothing is touched before Reconcile.
func New(o Options) *Overlay {
	v := &Overlay{dir: o.NamespaceDir, host: o.HostNamespace, env: o.EnvDir, pin: o.Pin, unpin: o.Unpin, log: o.Log, probeFile: o.ProbeFile, config: o.Config, speakers: o.Speakers,
		stats: map[string]Stats{}, settled: map[string]string{}, hostSettled: map[string]string{},
		networks: map[string]network{}, ports: portTable{},
		drift: repairs{told: map[string]toldRepair{}, now: time.Now}, metrics: newMetrics()}
	if v.dir == "" {
		v.dir = "/run/netns"
	}
	if v.host == "" {
		v.host = ownNamespace
	}
	v.serving = newServing(v.dialHost, o.ResolvConf)
	if v.pin == nil {
		v.pin = func(_ context.Context, path string) error { return namespace.Pin(path) }
	}
	if v.unpin == nil {
		v.unpin = func(_ context.Context, path string) error { return namespace.Unpin(path) }
	}
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

// Reconcile implements nodeagent.Handler. Networks go first: they may hold a
// VNI or a name that another is to have.
func (o *Overlay) Reconcile(ctx context.Context, parts []nodeagent.Part) map[string]api.PartStatus {
	out := map[string]api.PartStatus{}
	host, err := openPlace(o.host)
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
	u, underlayErr := o.findUnderlay(host)
	o.noteEncryption(u)
	var jobs []job
	var networks []network
	for _, p := range parts {
		part, ok := p.Value.(*api.NetworkPart)
		switch {
		case p.Want == nodeagent.Removed || !ok:
			continue
		case underlayErr != nil:
			out[p.Key()] = pending(underlayErr)
			continue
		}
		n, notes, err := compile(networkName(p.Name), *part, u)
		if err != nil {
			out[p.Key()] = api.PartStatus{State: api.PartFailed, Message: err.Error()}
			continue
		}
		n.digest = p.Digest
		jobs = append(jobs, newJob(p.Key(), n, notes))
	}
	joinNetworks(jobs)
	settleDirect(jobs, u)
	settleAdvertised(jobs, u)
	if len(jobs) > 0 && o.checksumsAreWrong() {
		for i := range jobs {
			jobs[i].note(api.PartApplied, "this kernel sends wrong checksums inside VXLAN: their offload is off")
		}
	}
	for _, j := range jobs {
		networks = append(networks, j.network)
	}
	err = o.filterHost(host, u, networks)
	if err != nil {
		err = fmt.Errorf("filter on the host: %w", err)
		o.log.Warn("overlay: no Network is changed", "error", err)
	}
	for _, j := range jobs {
		if err != nil {
			out[j.key] = pending(err)
			continue
		}
		out[j.key] = o.reconcileOne(ctx, host, j, networks, alone)
	}
	if err == nil && underlayErr == nil {
		if err := o.hostRoutes(host, u, networks); err != nil {
			o.log.Warn("overlay: routes of Networks are not as they should be", "error", err)
			for _, j := range jobs {
				if j.network.routed() {
					out[j.key] = pending(err)
				}
			}
		}
	}
	// Passages need both namespaces.
	for _, j := range jobs {
		if err == nil && len(j.network.passages) > 0 && out[j.key].State != api.PartPending {
			out[j.key] = o.reconcileOne(ctx, host, j, networks, joined)
		}
	}
	for _, j := range jobs {
		if out[j.key].State == api.PartApplied && u.encrypted && !u.sealed {
			out[j.key] = pending(errUnsealed)
		}
	}
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

func (o *Overlay) reconcileOne(ctx context.Context, host place, j job, all []network, s stage) api.PartStatus {
	if ctx.Err() != nil {
		return pending(ctx.Err())
	}
	if err := o.ensure(ctx, host, j.network, all, s); err != nil {
		o.log.Warn("overlay: not as it should be", "network", j.network.name, "error", err)
		return pending(err)
	}
	if s == alone {
		if err := o.peer(ctx, j.network); err != nil {
			o.log.Warn("overlay: guests cannot peer", "network", j.network.name, "error", err)
			return pending(err)
		}
	}
	return api.PartStatus{State: j.state, Message: summary(j.notes)}
}

func networkName(part string) string { return strings.TrimPrefix(part, "network/") }

func pending(err error) api.PartStatus {
	return api.PartStatus{State: api.PartPending, Message: err.Error()}
}

// ensure makes a stage of one Network true and counts what it had to repair.
func (o *Overlay) ensure(ctx context.Context, host place, n network, all []network, s stage) error {
	o.kernel.Lock()
	defer o.kernel.Unlock()
	path := o.pathOf(n)
	tenant, err := o.openTenant(ctx, path)
	if err != nil {
		return err
	}
	defer tenant.close()
	work := &work{host: host, tenant: tenant, network: n, dir: o.dir, wrongChecksums: o.wrongChecksums}
	work.unknown = func(vni uint32) (bool, error) {
		if slices.ContainsFunc(all, func(n network) bool { return n.vni == vni }) {
			return false, nil
		}
		complete, err := o.complete(all)
		return !complete, err
	}
	work.ports, work.complete = o.portsOf(n.name)
	for _, step := range work.steps(s) {
		if err = step(); err != nil {
			break
		}
	}
	o.note(work, s, filepath.Base(path), err)
	if err != nil || s != alone {
		return err
	}
	return errors.Join(o.serve(tenant, n), writeEnv(o.env, n))
}

func (o *Overlay) noteEncryption(u underlay) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.encrypted = u.encrypted && u.sealed
}

func settledKey(at stage, uid string) string { return string(at) + " " + uid }

// note keeps the counters.
func (o *Overlay) note(w *work, at stage, namespace string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := w.network
	asked := fmt.Sprint(n.digest, n.underlay, n.source, n.mtu, n.passages, n.direct, n.directPeers(), n.advertise)
	s := o.stats[n.uid]
	done := settledKey(at, n.uid)
	if o.settled[done] == asked && w.changes > 0 {
		s.Repairs += int64(w.changes)
		o.log.Warn("overlay: repaired", "network", n.name, "changes", w.changes, "first", w.first)
		o.drift.tell(n, w.changes, w.first)
	}
	delete(o.settled, done)
	if err == nil {
		o.settled[done] = asked
	}
	s.Network, s.VNI, s.Namespace, s.Peers = n.name, n.vni, namespace, len(n.peers)
	s.Offload = !w.wrongChecksums
	if w.listed {
		s.Entries = w.entries
	}
	if w.seen {
		s.Traffic, s.Drops, s.Ports = w.traffic, w.drops, w.stats
	}
	o.stats[n.uid] = s
	o.networks[n.name] = n
}

// remove takes a Network away, and nothing of its name with another uid.
func (o *Overlay) remove(ctx context.Context, host place, p nodeagent.Part) api.PartStatus {
	o.kernel.Lock()
	defer o.kernel.Unlock()
	name := networkName(p.Name)
	path := filepath.Join(o.dir, namespaceName(name, p.UID))
	o.serving.stop(p.UID) // its sockets would hold the namespace, as would a speaker's
	if err := errors.Join(o.silence(ctx, p.UID), removeEnv(o.env, name, p.UID), o.removeAt(ctx, host, path, p.UID)); err != nil {
		return pending(fmt.Errorf("remove Network %s: %w", name, err))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.stats, p.UID)
	delete(o.drift.told, p.UID)
	delete(o.settled, settledKey(alone, p.UID))
	delete(o.settled, settledKey(joined, p.UID))
	maps.DeleteFunc(o.networks, func(_ string, n network) bool { return n.uid == p.UID })
	return api.PartStatus{State: api.PartApplied}
}

// HostRepairs counts the changes to the host's filter that nothing had asked for.
func (o *Overlay) HostRepairs() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.hostRepairs
}
