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
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/kernel"
	"github.com/rackweft/rackweft/internal/namespace"
	"github.com/rackweft/rackweft/internal/nft"
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

// place is a network namespace that is open for work.
type place struct {
	ns netns.NsHandle
	*netlink.Handle
}

func (p place) close() {
	if p.Handle != nil {
		p.Handle.Close()
	}
	_ = p.ns.Close()
}

func openPlace(path string) (place, error) {
	ns, err := openNamespace(path)
	if err != nil {
		return place{ns: netns.None()}, err
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return place{ns: netns.None()}, fmt.Errorf("open netlink in %s: %w", path, err)
	}
	return place{ns, h}, nil
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

// job is a part that can be made true.
type job struct {
	key     string
	network network
	notes   []string
	state   api.PartState // when all is done that can be
}

func newJob(key string, n network, notes []string) job {
	j := job{key: key, network: n, notes: notes, state: api.PartApplied}
	if slices.ContainsFunc(notes, func(note string) bool { return strings.HasPrefix(note, "peer ") }) {
		j.state = api.PartFailed
	}
	return j
}

// note says what is amiss. The first fault makes the state.
func (j *job) note(state api.PartState, text string) {
	j.notes = append(j.notes, text)
	if j.state == api.PartApplied {
		j.state = state
	}
}

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

// findUnderlay looks the underlay up as it is now.
func (o *Overlay) findUnderlay(host place) (underlay, error) {
	o.mu.Lock()
	want := o.underlay
	o.mu.Unlock()
	none := underlay{encrypted: want.Encryption != nil}
	if want.Interface == "" && len(want.Addresses) == 0 {
		return none, errors.New("the host's underlay is not known: give the Machine a link in a production Subnet")
	}
	links, err := kernel.List(host.LinkList)
	if err != nil {
		return none, fmt.Errorf("list the host's links: %w", err)
	}
	for _, l := range links {
		if want.Interface != "" && l.Attrs().Name != want.Interface {
			continue
		}
		u, err := seeUnderlay(host, l, want)
		if err != nil {
			return none, err
		}
		u.encrypted = none.encrypted
		u.sealed = slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == wireguard.Name })
		if want.Interface != "" || len(u.addresses) > 0 {
			return u, upAndAddressed(l, u, want)
		}
	}
	if want.Interface == "" {
		return none, fmt.Errorf("no interface of the host has %s", want.Addresses[0])
	}
	return none, fmt.Errorf("underlay %s: there is no such interface", want.Interface)
}

func seeUnderlay(host place, l netlink.Link, want api.Underlay) (underlay, error) {
	u := underlay{name: l.Attrs().Name, index: l.Attrs().Index, mtu: l.Attrs().MTU, closed: want.Closed, transit: want.Transit}
	addrs, err := kernel.List(func() ([]netlink.Addr, error) { return host.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return u, fmt.Errorf("list the addresses of %s: %w", u.name, err)
	}
	for _, a := range addrs {
		bits, _ := a.Mask.Size()
		u.connected = append(u.connected, netip.PrefixFrom(toAddr(a.IP), bits).Masked())
	}
	for _, w := range want.Addresses {
		if slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return toAddr(a.IP) == w }) {
			u.addresses = append(u.addresses, w)
		}
	}
	return u, nil
}

func upAndAddressed(l netlink.Link, u underlay, want api.Underlay) error {
	if l.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("underlay %s: the interface is down", u.name)
	}
	if len(u.addresses) == 0 {
		return fmt.Errorf("underlay %s: the interface has none of the host's addresses %s; see the host's network units", u.name, want.Addresses)
	}
	return nil
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

func (o *Overlay) pathOf(n network) string { return filepath.Join(o.dir, namespaceName(n.name, n.uid)) }

// openTenant opens a Network's namespace; one that is not there is made.
func (o *Overlay) openTenant(ctx context.Context, path string) (place, error) {
	tenant, err := openPlace(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return tenant, err
	}
	// A file that pins nothing is left when its mount was lost.
	if err := errors.Join(o.unpinIfThere(ctx, path), o.pin(ctx, path)); err != nil {
		return tenant, err
	}
	if tenant, err = openPlace(path); err != nil {
		return tenant, err
	}
	if _, err := setSysctls(tenant.ns, newSysctls()); err != nil {
		tenant.close()
		return tenant, err
	}
	return tenant, nil
}

func (o *Overlay) unpinIfThere(ctx context.Context, path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return o.unpin(ctx, path)
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

// work is one pass over one Network.
type work struct {
	host, tenant place
	network      network
	ports        []guestPort
	complete     bool   // ports are all that there are
	dir          string // of the tenants' namespaces

	unknown func(vni uint32) (bool, error)
	listed  bool
	entries int
	seen    bool // traffic and stats are set
	traffic Traffic
	drops   Drops
	stats   []PortStats
	changes int
	first   string // of the changes
	// wrongChecksums: see checksumsAreWrong.
	wrongChecksums bool
}

// change describes one, for the log.
type change string

func (c change) String() string { return string(c) }

// did counts changes.
func did[T fmt.Stringer](w *work, changes []T) {
	if w.changes == 0 && len(changes) > 0 {
		w.first = changes[0].String()
	}
	w.changes += len(changes)
}

func (w *work) steps(s stage) []func() error {
	if s == joined {
		return []func() error{w.passages}
	}
	return []func() error{w.firstSysctls, w.links, w.offload, w.sysctls, w.filter, w.guestPorts, w.reach}
}

func (w *work) firstSysctls() error { return w.setSysctls(w.tenant, firstSysctls(w.network)) }

func (w *work) sysctls() error { return w.setSysctls(w.tenant, wantSysctls(w.network)) }

func (w *work) setSysctls(at place, want []sysctl) error {
	set, err := setSysctls(at.ns, want)
	did(w, set)
	return err
}

func (w *work) filter() error {
	done, err := nft.Apply(w.tenant.ns, filterTable(), tenantRules(w.network))
	did(w, done.Changes)
	did(w, done.Removals)
	return err
}

func (w *work) links() error {
	seen, err := listLinks(w.tenant.Handle)
	if err != nil {
		return err
	}
	if err := w.oldPassages(seen); err != nil {
		return err
	}
	ops, err := diffLinks(wantLinks(w.network), seen)
	if err != nil {
		return err
	}
	did(w, ops)
	return applyLinks(w.host.Handle, w.tenant.Handle, w.tenant.ns, ops)
}

// reach sets the ways out. Egress is first, since a direct route takes the place
// of one by VXLAN and has to make room for it; its faults leave the peers be.
func (w *work) reach() error { return errors.Join(w.egress(), w.peers()) }

func (w *work) peers() error {
	vxlan, err := w.tenant.LinkByName(vxlanName(w.network.vni))
	if err != nil {
		return fmt.Errorf("find %s: %w", vxlanName(w.network.vni), err)
	}
	index := vxlan.Attrs().Index
	c, err := dialRTNL(w.tenant.ns)
	if err != nil {
		return err
	}
	defer c.close()
	seen, err := c.listEntries(index, len(w.network.peers))
	if err != nil {
		return err
	}
	want := wantEntries(w.network.peers)
	ops := diffEntries(want, seen)
	did(w, ops)
	w.entries, w.listed = want.count(), true
	return c.applyEntries(index, ops)
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

func (o *Overlay) removeAt(ctx context.Context, host place, path, uid string) error {
	tenant, err := openPlace(path)
	if errors.Is(err, fs.ErrNotExist) {
		return o.unpinIfThere(ctx, path)
	}
	if err != nil {
		return err
	}
	defer tenant.close()
	links, err := listLinks(tenant.Handle)
	if err != nil {
		return err
	}
	if alias := links["lo"].alias; alias != "" && alias != mark(uid) {
		return fmt.Errorf("the loopback of %s is marked %q, not %q: it is somebody else's", path, alias, mark(uid))
	}
	// The namespace goes in its own time; the VNI must be free at once.
	if err := removeMarked(tenant, mark(uid)); err != nil {
		return err
	}
	if err := removeMarked(host, mark(uid)); err != nil {
		return err
	}
	return o.unpin(ctx, path)
}

// removeMarked takes the interfaces away that are marked so.
func removeMarked(p place, mark string) error {
	links, err := listLinks(p.Handle)
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.alias != mark || l.name == "lo" {
			continue
		}
		if err := p.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: l.index}}); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove %s: %w", l.name, err)
		}
	}
	return nil
}

// HostRepairs counts the changes to the host's filter that nothing had asked for.
func (o *Overlay) HostRepairs() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.hostRepairs
}
