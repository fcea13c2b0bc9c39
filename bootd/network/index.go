package network

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/wait"
)

// Index holds the leases of every Network in memory, kept current by one watch of flannel's layout. Every bootd
// has one, elected or not.
type Index struct {
	store *store.Store
	log   *slog.Logger

	mu       sync.Mutex
	networks map[string]*layout
	hosts    map[string]map[string]netip.Prefix // Machine uid → Network → the host's own lease
	views    int64                              // counts Views
	news     Change
	feeds    map[*func(Change)]struct{}

	wake     wait.Signal
	synced   chan struct{}
	syncOnce sync.Once
}

// settle batches changes: a new host gets a lease of every Network within a few transactions.
const settle = 20 * time.Millisecond

// layout is one Network's state in etcd.
type layout struct {
	config  store.FlannelKey
	owner   store.FlannelKey
	of      owner // according to owner
	subnets map[netip.Prefix]store.FlannelKey
	hosts   map[netip.Prefix]held
	view    *View // nil: not built yet
}

// held is a host's record and its key.
type held struct {
	hostRecord
	key store.FlannelKey
}

func newLayout() *layout {
	return &layout{subnets: map[netip.Prefix]store.FlannelKey{}, hosts: map[netip.Prefix]held{}}
}

// NewIndex prepares an Index; it is empty until Run has filled it.
func NewIndex(s *store.Store, log *slog.Logger) *Index {
	return &Index{store: s, log: log, networks: map[string]*layout{}, hosts: map[string]map[string]netip.Prefix{}, news: newChange(),
		feeds: map[*func(Change)]struct{}{}, wake: wait.NewSignal(), synced: make(chan struct{})}
}

// Run fills the Index and keeps it current until ctx ends.
func (x *Index) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return x.store.Flannel.Follow(ctx, x.take) })
	g.Go(func() error { return x.notify(ctx) })
	return g.Wait()
}

// Synced is closed when the Index has been filled for the first time.
func (x *Index) Synced() <-chan struct{} { return x.synced }

// Change says what may have changed.
type Change struct {
	Networks map[string]bool // by name
	Hosts    map[string]bool // by their Machines' uids: those with a lease of the changed Networks
}

func newChange() Change { return Change{map[string]bool{}, map[string]bool{}} }

// Subscribe calls fn after changes, until ctx ends. fn must not block.
func (x *Index) Subscribe(ctx context.Context, fn func(Change)) error {
	x.mu.Lock()
	x.feeds[&fn] = struct{}{}
	x.mu.Unlock()
	<-ctx.Done()
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.feeds, &fn)
	return ctx.Err()
}

func (x *Index) notify(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-x.wake:
		}
		if err := wait.For(ctx, settle); err != nil {
			return err
		}
		x.mu.Lock()
		news, feeds := x.news, slices.Collect(maps.Keys(x.feeds))
		x.news = newChange()
		x.mu.Unlock()
		for _, fn := range feeds {
			(*fn)(news)
		}
	}
}

func (x *Index) take(b store.FlannelBatch) {
	x.mu.Lock()
	defer x.mu.Unlock()
	changed := map[string]bool{}
	keys := b.Keys
	if b.Snapshot {
		keys = append(keys, x.gone(keys)...)
	}
	for _, k := range keys {
		if x.set(k) {
			changed[k.Network] = true
		}
	}
	for name := range changed {
		x.touch(name)
	}
	x.syncOnce.Do(func() { close(x.synced) })
}

// gone lists what the Index holds and etcd no longer has.
func (x *Index) gone(current []store.FlannelKey) []store.FlannelKey {
	there := map[store.FlannelID]bool{}
	for _, k := range current {
		there[k.FlannelID] = true
	}
	var gone []store.FlannelKey
	for _, l := range x.networks {
		for _, k := range l.keys() {
			if !there[k.FlannelID] {
				gone = append(gone, store.FlannelKey{FlannelID: k.FlannelID})
			}
		}
	}
	return gone
}

func (l *layout) keys() []store.FlannelKey {
	var all []store.FlannelKey
	for _, k := range []store.FlannelKey{l.config, l.owner} {
		if k.Value != nil {
			all = append(all, k)
		}
	}
	for _, k := range l.subnets {
		all = append(all, k)
	}
	for _, h := range l.hosts {
		all = append(all, h.key)
	}
	return all
}

// set applies one key and reports whether it may have changed peers.
func (x *Index) set(k store.FlannelKey) bool {
	l := x.networks[k.Network]
	if l == nil {
		if k.Value == nil {
			return false
		}
		l = newLayout()
		x.networks[k.Network] = l
	}
	before := l.hosts[k.Subnet]
	if k.Kind == store.FlannelConfig && !bytes.Equal(l.config.Value, k.Value) {
		x.tellOf(k.Network) // the Controller's concern; no host receives it
	}
	if !l.set(k) {
		return false
	}
	if k.Kind == store.FlannelHost {
		x.moved(k.Network, k.Subnet, before, l.hosts[k.Subnet])
	}
	return true
}

// moved keeps hosts current. A host that lost its lease must be notified, too.
func (x *Index) moved(network string, subnet netip.Prefix, before, now held) {
	x.news.Hosts[before.UID] = true
	if x.hosts[before.UID][network] == subnet {
		delete(x.hosts[before.UID], network)
		if len(x.hosts[before.UID]) == 0 {
			delete(x.hosts, before.UID)
		}
	}
	if now.UID == "" || now.Guest != "" {
		return
	}
	if x.hosts[now.UID] == nil {
		x.hosts[now.UID] = map[string]netip.Prefix{}
	}
	x.hosts[now.UID][network] = subnet
}

// set applies one key and reports whether it has changed.
func (l *layout) set(k store.FlannelKey) bool {
	switch k.Kind {
	case store.FlannelConfig:
		l.config = k
		return false
	case store.FlannelOwner:
		old := l.of
		l.owner, l.of = k, ownerOf(k)
		return old != l.of
	case store.FlannelSubnet:
		if k.Value == nil {
			delete(l.subnets, k.Subnet)
			return true
		}
		old := l.subnets[k.Subnet]
		l.subnets[k.Subnet] = k
		return !bytes.Equal(old.Value, k.Value) // a renewal changes nothing
	case store.FlannelHost:
		if k.Value == nil {
			delete(l.hosts, k.Subnet)
			return true
		}
		h := held{key: k}
		if json.Unmarshal(k.Value, &h.hostRecord) != nil {
			return false
		}
		old := l.hosts[k.Subnet]
		l.hosts[k.Subnet] = h
		return old.hostRecord != h.hostRecord
	}
	return false
}

// owner is the part of an owner's record that affects peers.
type owner struct {
	uid string
	vni uint32
}

func ownerOf(k store.FlannelKey) owner {
	var r ownerRecord
	if k.Value == nil || json.Unmarshal(k.Value, &r) != nil {
		return owner{}
	}
	return owner{r.UID, r.VNI}
}

// touch invalidates a Network's View, and marks its hosts as changed.
func (x *Index) touch(name string) {
	l := x.networks[name]
	l.view = nil
	for _, h := range l.hosts {
		x.news.Hosts[h.UID] = true
	}
	if len(l.keys()) == 0 {
		delete(x.networks, name)
	}
	x.tellOf(name)
}

// tellOf notifies subscribers of a Network.
func (x *Index) tellOf(name string) {
	x.news.Networks[name] = true
	x.wake.Set()
}

// view returns the View of a Network, and builds it if needed. The caller holds mu.
func (x *Index) view(name string) *View {
	l := x.networks[name]
	if l == nil {
		return nil
	}
	if l.view != nil {
		return l.view
	}
	x.views++
	v, err := newView(x.views, l.peers())
	if err != nil {
		x.log.Error("the peers of a Network cannot be encoded", "network", name, "error", err)
		return nil
	}
	l.view = v
	return v
}

// peers are the leases that hosts forward to: those of hosts, and of stock flannelds that do not conflict with a
// host's.
func (l *layout) peers() []peer {
	vni := l.of.vni
	var own []netip.Prefix
	for p, h := range l.hosts {
		if h.Guest == "" {
			own = append(own, p)
		}
	}
	mine := spans(own)
	var list []peer
	for subnet, k := range l.subnets {
		h, ours := l.hosts[subnet]
		addr, mac, ok := parseLease(k.Value, vni)
		if !ok || !ours && overlaps(mine, subnet) {
			continue
		}
		host := h.Machine
		if host == "" {
			host = addr.String()
		}
		list = append(list, peer{NetworkPeer: api.NetworkPeer{Host: host, Lease: subnet, Lease6: h.Lease6, VTEP: addr, MAC: mac}, uid: h.UID})
	}
	return list
}

// Membership describes a host's leases of a Network.
type Membership struct {
	Network string
	UID     string // the Network's
	VNI     uint32
	Lease   netip.Prefix // the host's own
	Lease6  netip.Prefix
	Moved   []netip.Prefix // further leases, of Guests that moved there with their address
	Buried  int64          // revision of the order to remove the Network from the host; 0: it is a member
	View    *View
}

// Memberships lists the Networks that a host, by its Machine's uid, has a lease
// of, by name.
func (x *Index) Memberships(uid string) []Membership {
	x.mu.Lock()
	defer x.mu.Unlock()
	leases := x.hosts[uid]
	list := make([]Membership, 0, len(leases))
	for _, name := range slices.Sorted(maps.Keys(leases)) {
		l := x.networks[name]
		h := l.hosts[leases[name]]
		if v := x.view(name); v != nil {
			list = append(list, Membership{Network: name, UID: h.Network, VNI: l.of.vni, Lease: leases[name], Lease6: h.Lease6, Moved: v.moved(uid, leases[name]), Buried: h.Buried, View: v})
		}
	}
	return list
}

// Lease is a host's own lease of one Network, by its Machine's uid; false when it has none, or must release it.
func (x *Index) Lease(uid, network string) (lease, lease6 netip.Prefix, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	lease, ok = x.hosts[uid][network]
	if !ok {
		return lease, lease6, false
	}
	h := x.networks[network].hosts[lease]
	return lease, h.Lease6, h.Buried == 0
}

// layout returns a copy of a Network's layout.
func (x *Index) layout(network string) *layout {
	x.mu.Lock()
	defer x.mu.Unlock()
	l := x.networks[network]
	if l == nil {
		return newLayout()
	}
	return &layout{config: l.config, owner: l.owner, of: l.of, subnets: maps.Clone(l.subnets), hosts: maps.Clone(l.hosts)}
}

// View returns the peers of a Network; nil when it has no lease.
func (x *Index) View(network string) *View {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.view(network)
}
