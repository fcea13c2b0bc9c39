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
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

const (
	// Port is flannel's VXLAN port, over UDP; not IANA's 4789.
	Port = 8472
	// Protocol marks rackweft's routes, neighbours and nexthops
	// (rtnetlink(7), rtm_protocol).
	Protocol = 216
	// ProtocolName is what ip(8) calls it where ProtocolFile is installed.
	ProtocolName = "rackweft"
)

// ProtocolFile is the file, under /etc/iproute2/rt_protos.d, that tells ip(8)
// the name of Protocol.
func ProtocolFile() (name, text string) {
	return "rackweft.conf", fmt.Sprintf("%d\t%s\n", Protocol, ProtocolName)
}

// Options make an Overlay. All fields but Log have defaults.
type Options struct {
	// NamespaceDir is where the tenants' network namespaces are pinned;
	// /run/netns by default, where ip-netns(8) finds them.
	NamespaceDir string
	// HostNamespace is a file of the network namespace that has the underlay;
	// by default the process's own.
	HostNamespace string
	// Pin makes a network namespace and pins it at a path, Unpin takes it away.
	// They default to PinNamespace and UnpinNamespace; an agent in a private
	// mount namespace needs ones that work outside of it.
	Pin, Unpin func(ctx context.Context, path string) error
	Log        *slog.Logger
}

// Overlay makes the Networks of one host true. It is the nodeagent.Handler of
// network parts.
type Overlay struct {
	dir   string
	host  string
	pin   func(ctx context.Context, path string) error
	unpin func(ctx context.Context, path string) error
	log   *slog.Logger

	mu       sync.Mutex
	underlay api.Underlay
	stats    map[string]Stats  // by uid
	settled  map[string]string // by uid: what was asked for when nothing was left to do
	// The same of the host's filter.
	hostSettled string
	hostRepairs int64
}

// Stats tell of one Network on this host.
type Stats struct {
	Network   string
	VNI       uint32
	Namespace string
	Peers     int
	Entries   int   // FDB, neighbours, nexthops and routes in the kernel
	Repairs   int64 // changes made although nothing else had been asked for, since the agent's start
}

// New prepares an Overlay; nothing is touched before Reconcile.
func New(o Options) *Overlay {
	v := &Overlay{dir: o.NamespaceDir, host: o.HostNamespace, pin: o.Pin, unpin: o.Unpin, log: o.Log,
		stats: map[string]Stats{}, settled: map[string]string{}}
	if v.dir == "" {
		v.dir = "/run/netns"
	}
	if v.host == "" {
		v.host = "/proc/self/ns/net"
	}
	if v.pin == nil {
		v.pin = func(_ context.Context, path string) error { return PinNamespace(path) }
	}
	if v.unpin == nil {
		v.unpin = func(_ context.Context, path string) error { return UnpinNamespace(path) }
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

// Stats lists the Networks that the last Reconcile saw, by name.
func (o *Overlay) Stats() []Stats {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.SortedFunc(maps.Values(o.stats), func(a, b Stats) int { return strings.Compare(a.Network, b.Network) })
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
		jobs = append(jobs, job{p.Key(), n, notes})
		networks = append(networks, n)
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
		out[j.key] = o.reconcileOne(ctx, host, j.network, j.notes)
	}
	return out
}

// job is a part that can be made true.
type job struct {
	key     string
	network network
	notes   []string
}

func (o *Overlay) reconcileOne(ctx context.Context, host place, n network, notes []string) api.PartStatus {
	if ctx.Err() != nil {
		return pending(ctx.Err())
	}
	if err := o.ensure(ctx, host, n); err != nil {
		o.log.Warn("overlay: not as it should be", "network", n.name, "error", err)
		return pending(err)
	}
	state := api.PartApplied
	for _, note := range notes {
		if strings.HasPrefix(note, "peer ") {
			state = api.PartFailed
		}
	}
	return api.PartStatus{State: state, Message: summary(notes)}
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
	if want.Interface == "" && len(want.Addresses) == 0 {
		return underlay{}, errors.New("the host's underlay is not known: give the Machine a link in a production Subnet")
	}
	links, err := again(host.LinkList)
	if err != nil {
		return underlay{}, fmt.Errorf("list the host's links: %w", err)
	}
	for _, l := range links {
		if want.Interface != "" && l.Attrs().Name != want.Interface {
			continue
		}
		u, err := seeUnderlay(host, l, want)
		if err != nil {
			return underlay{}, err
		}
		if want.Interface != "" || len(u.addresses) > 0 {
			return u, upAndAddressed(l, u, want)
		}
	}
	if want.Interface == "" {
		return underlay{}, fmt.Errorf("no interface of the host has %s", want.Addresses[0])
	}
	return underlay{}, fmt.Errorf("underlay %s: there is no such interface", want.Interface)
}

func seeUnderlay(host place, l netlink.Link, want api.Underlay) (underlay, error) {
	u := underlay{name: l.Attrs().Name, index: l.Attrs().Index, mtu: l.Attrs().MTU}
	addrs, err := again(func() ([]netlink.Addr, error) { return host.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return u, fmt.Errorf("list the addresses of %s: %w", u.name, err)
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

// ensure makes one Network true and counts what it had to repair.
func (o *Overlay) ensure(ctx context.Context, host place, n network) error {
	path := filepath.Join(o.dir, namespaceName(n.name, n.uid))
	tenant, err := o.openTenant(ctx, path)
	if err != nil {
		return err
	}
	defer tenant.close()
	work := &work{host: host, tenant: tenant, network: n}
	err = work.run()
	o.note(work, filepath.Base(path), err)
	return err
}

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

// note keeps the counters.
func (o *Overlay) note(w *work, namespace string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := w.network
	asked := fmt.Sprint(n.digest, n.underlay, n.source, n.mtu)
	s := o.stats[n.uid]
	if o.settled[n.uid] == asked && w.changes > 0 {
		s.Repairs += int64(w.changes)
		o.log.Warn("overlay: repaired", "network", n.name, "changes", w.changes, "first", w.first)
	}
	delete(o.settled, n.uid)
	if err == nil {
		o.settled[n.uid] = asked
	}
	s.Network, s.VNI, s.Namespace, s.Peers, s.Entries = n.name, n.vni, namespace, len(n.peers), w.entries
	o.stats[n.uid] = s
}

// work is one pass over one Network.
type work struct {
	host, tenant place
	network      network
	entries      int
	changes      int
	first        string // of the changes
}

// did counts changes.
func did[T fmt.Stringer](w *work, changes []T) {
	if w.changes == 0 && len(changes) > 0 {
		w.first = changes[0].String()
	}
	w.changes += len(changes)
}

func (w *work) run() error {
	steps := []func() error{w.links, w.sysctls, w.filter, w.peers, w.egress}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (w *work) sysctls() error { return w.setSysctls(w.tenant, wantSysctls(w.network)) }

func (w *work) setSysctls(at place, want []sysctl) error {
	set, err := setSysctls(at.ns, want)
	did(w, set)
	return err
}

func (w *work) filter() error {
	changes, err := filter(w.tenant.ns, tenantRules(w.network))
	did(w, changes)
	return err
}

func (w *work) links() error {
	seen, err := listLinks(w.tenant.Handle)
	if err != nil {
		return err
	}
	ops, err := diffLinks(wantLinks(w.network), seen)
	if err != nil {
		return err
	}
	did(w, ops)
	return applyLinks(w.host.Handle, w.tenant.Handle, w.tenant.ns, ops)
}

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
	w.entries = want.count()
	return c.applyEntries(index, ops)
}

// remove takes a Network away, and nothing of its name with another uid.
func (o *Overlay) remove(ctx context.Context, host place, p nodeagent.Part) api.PartStatus {
	path := filepath.Join(o.dir, namespaceName(networkName(p.Name), p.UID))
	if err := o.removeAt(ctx, host, path, p.UID); err != nil {
		return pending(fmt.Errorf("remove Network %s: %w", networkName(p.Name), err))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.stats, p.UID)
	delete(o.settled, p.UID)
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
