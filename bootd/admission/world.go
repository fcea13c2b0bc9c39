package admission

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/index"
)

// World holds the stored objects when an object is judged, with an index for each lookup of a rule: the cost of a
// verdict depends on the object, not on the number of others. An index finds the objects to examine, the rule
// decides. A World is safe for concurrent use. Its objects are shared and not changed.
type World struct {
	mu      sync.RWMutex
	objects map[id]api.Object
	keyed   index.Keyed[key, id]
	over    map[layer]*index.Prefixes[id]
	asks    map[id][]string // Secrets that the templates of Layers and Guests use
}

type id struct{ kind, name string }

// key is a property by which a rule finds objects.
type key struct{ what, value string }

// The kinds of key.
const (
	referrer    = "refers to " // and a kind: the object that is named
	byMAC       = "MAC"        // Machines, discovered ones too
	byAddress   = "address"    // Machines that pin it
	byBMC       = "BMC"        // Machines
	byLoopbacks = "loopbacks"  // Machines of a Zone that pin any
	byInterface = "interface"  // provisioning Subnets
	byASN       = "ASN"        // Zones
	byUplinkASN = "uplink ASN" // Zones
	byUplink    = "uplink"     // Zones, by the address
	byChosen    = "chosen"     // Zones that have chosen the address for a host
	byVNI       = "VNI"        // Networks
	byProfile   = "profile"    // Machines, by Profile/Zone
	keyedZone   = "keyed"      // Zones and Networks that give their hosts a key
	asks        = "asks"       // Layers and Guests, by the Secret that a template uses
	givenLayer  = "given Layer"
	givenGuest  = "given Guest"
	givenGuests = "given Guests" // Secrets that any Guest receives
)

// layer is a set of prefixes that are searched together.
type layer struct{ what, zone string }

// The layers; those of one Zone carry its name.
const (
	subnetPrefixes    = "Subnets"
	zonePrefixes      = "Zones"
	uplinkAddresses   = "uplinks"   // Zones
	routedPrefixes    = "routed"    // Networks to which a Zone has routes
	guestPrefixes     = "guests"    // Networks of one Zone
	announcedPrefixes = "announced" // Zones and Machines
)

// NewWorld returns an empty World.
func NewWorld() *World {
	return &World{objects: map[id]api.Object{}, over: map[layer]*index.Prefixes[id]{}, asks: map[id][]string{}}
}

// Follow returns a World that always matches the cache.
func Follow(c *store.Cache) *World {
	w := NewWorld()
	c.Mirror(func(ch store.Change) { w.Set(ch.Kind.Name, ch.Name, ch.New) })
	return w
}

// Set replaces the object of that name; nil removes it.
func (w *World) Set(kind, name string, o api.Object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, of := id{kind, name}, rulesOf(kind)
	if old := w.objects[at]; old != nil {
		for _, k := range of.allKeys(old) {
			w.keyed.Remove(k, at)
		}
		for _, secret := range w.asks[at] {
			w.keyed.Remove(key{asks, secret}, at)
		}
		delete(w.asks, at)
		for l, list := range of.allLayers(old) {
			for _, p := range list {
				w.over[l].Remove(p, at)
			}
		}
		delete(w.objects, at)
	}
	if o == nil {
		return
	}
	w.objects[at] = o
	for _, k := range of.allKeys(o) {
		w.keyed.Add(k, at)
	}
	if list := of.asked(o); len(list) > 0 {
		w.asks[at] = list
		for _, secret := range list {
			w.keyed.Add(key{asks, secret}, at)
		}
	}
	for l, list := range of.allLayers(o) {
		if w.over[l] == nil {
			w.over[l] = new(index.Prefixes[id])
		}
		for _, p := range list {
			w.over[l].Add(p, at)
		}
	}
}

// allKeys lists all keys by which rules find an object.
func (r rules) allKeys(o api.Object) []key {
	var list []key
	for _, ref := range api.References(o) {
		list = append(list, key{referrer + ref.Kind, ref.Name})
	}
	if r.keys != nil {
		list = append(list, r.keys(o)...)
	}
	return list
}

// allLayers lists the prefixes by which rules find an object.
func (r rules) allLayers(o api.Object) map[layer][]netip.Prefix {
	if r.layers == nil {
		return nil
	}
	return r.layers(o)
}

// asked lists the Secrets that an object's own templates use.
func (r rules) asked(o api.Object) []string {
	if r.asks == nil {
		return nil
	}
	return r.asks(o)
}

// Claims lists what no other object may share with this one. Objects that share no claim may be judged and
// written in parallel: each verdict is the same in either order of the writes. The verdict on an object without
// claims may depend on all others.
func Claims(o api.Object) (claims []string, apart bool) {
	kind := api.KindOf(o).Name
	r := rulesOf(kind)
	if r.claims == nil {
		return nil, false
	}
	return append(r.claims(o), kind+"/"+o.Meta().Name), true
}

// DeletionClaims are the Claims needed to delete an object: as long as they are held, no object is written that
// may refer to it.
func DeletionClaims(k api.Kind, name string) (claims []string, apart bool) {
	if !rulesOf(k.Name).unnamed {
		return nil, false
	}
	o := k.New()
	o.Meta().Name = name
	return Claims(o)
}

// only the object's name is claimed.
func nothing(api.Object) []string { return nil }

func prefixesOf(all []announced) []netip.Prefix {
	list := make([]netip.Prefix, len(all))
	for i, a := range all {
		list[i] = a.prefix
	}
	return list
}

func uplinks(z *api.Zone) []netip.Prefix {
	list := make([]netip.Prefix, len(z.Spec.Uplinks))
	for i, u := range z.Spec.Uplinks {
		list[i] = api.HostPrefix(u.Address)
	}
	return list
}

// guests lists the prefixes of the addresses of a Network's guests, as its Zone sees them.
func guests(n *api.Network) []netip.Prefix {
	return slices.Concat(n.Spec.CIDRs, n.Spec.AdvertisedPeering())
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// found is a set of objects that a rule must examine.
type found map[id]struct{}

// with adds the objects that have a key.
func (f found) with(w *World, what, value string) found {
	w.keyed.Collect(key{what, value}, f)
	return f
}

// over adds the objects of a layer that overlap any of the prefixes.
func (f found) over(w *World, l layer, prefixes ...netip.Prefix) found {
	if x := w.over[l]; x != nil {
		for _, p := range prefixes {
			x.Collect(p, f)
		}
	}
	return f
}

// networks adds Networks by name, whether or not they exist.
func (f found) networks(names ...string) found {
	for _, n := range names {
		f[id{"Network", n}] = struct{}{}
	}
	return f
}

// sorted are the objects of one type among those found, by name.
func sorted[P api.Object](w *World, f found) []P {
	var list []P
	for at := range f {
		if o, ok := w.objects[at].(P); ok {
			list = append(list, o)
		}
	}
	slices.SortFunc(list, func(a, b P) int { return cmp.Compare(a.Meta().Name, b.Meta().Name) })
	return list
}

func (w *World) subnet(name string) *api.Subnet { return object[*api.Subnet](w, id{"Subnet", name}) }
func (w *World) zone(name string) *api.Zone     { return object[*api.Zone](w, id{"Zone", name}) }
func (w *World) network(name string) *api.Network {
	return object[*api.Network](w, id{"Network", name})
}
func (w *World) secret(name string) *api.Secret { return object[*api.Secret](w, id{"Secret", name}) }

// object returns nil when there is none.
func object[P api.Object](w *World, at id) P {
	o, _ := w.objects[at].(P)
	return o
}

// referrersOf are the objects of one type that name another.
func referrersOf[P api.Object](w *World, kind, name string) []P {
	return sorted[P](w, found{}.with(w, referrer+kind, name))
}

func (w *World) has(kind, name string) bool { return w.objects[id{kind, name}] != nil }

// compareIDs is the order of kinds, and then of names.
func compareIDs(a, b id) int {
	place := func(kind string) int {
		return slices.IndexFunc(api.Kinds(), func(k api.Kind) bool { return k.Name == kind })
	}
	return cmp.Or(place(a.kind)-place(b.kind), strings.Compare(a.name, b.name))
}
