package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/part"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
)

// Parts compiles the parts of Networks.
type Parts struct {
	Cache *store.Cache
	Index *Index // nil: no leases
	Keys  Keys
}

// Keys opens the MD5 keys of guests' sessions.
type Keys interface {
	// Open opens a Secret that permits the use. Its salt is derived from the object's uid. The error is ErrNoKey
	// where keys are never opened, and ErrKeyClosed for a Secret that cannot be opened.
	Open(ctx context.Context, s *api.Secret, use api.SecretUse, uid string) (password, salt string, err error)
}

// The errors of Keys.
var (
	ErrNoKey     = errors.New("keys are not opened here")
	ErrKeyClosed = errors.New("the key cannot be opened")
)

// Kind describes the parts.
func (p Parts) Kind() part.Kind {
	return part.Kind{Name: api.PartNetwork, Object: "Network", Compile: p.compile, Concerns: p.concerns, Follow: p.follow, Speaks: p.speaks}
}

// follow reports the hosts that have a lease of a Network whose leases changed.
func (p Parts) follow(ctx context.Context, fn func(part.Hosts)) error {
	if p.Index == nil {
		return nil
	}
	return p.Index.Subscribe(ctx, func(c Change) { fn(part.Hosts{UIDs: c.Hosts}) })
}

// concerns finds the hosts whose parts may differ after a change of an object.
// Leases are counted in a Network's status, and hosts receive them one by one.
func (p Parts) concerns(c store.Change) part.Hosts {
	switch c.Kind.Name {
	case "Site":
		return part.Hosts{All: true} // the domain of guests, and their DNS
	case "Network":
		old, _ := c.Old.(*api.Network)
		now, _ := c.New.(*api.Network)
		return part.Hosts{All: now == nil || now.Metadata.DeletionTimestamp != nil || !SameToAllow(old, now)}
	case "Secret":
		return part.Hosts{All: p.opens(c.Name)}
	}
	return part.Hosts{} // what changes with a Zone or a Subnet changes the base part, too
}

// opens reports whether a Secret is the key of a Network's guests.
func (p Parts) opens(secret string) bool {
	for _, o := range p.Cache.CachedReferrers("Secret", secret) {
		if _, ok := o.(*api.Network); ok {
			return true
		}
	}
	return false
}

// speaks returns the Network that a host has a lease of.
func (p Parts) speaks(hostUID, name, uid string) api.Object {
	n, ok := store.Cached[api.Network](p.Cache, name)
	if !ok || n.Metadata.UID != uid || p.Index == nil {
		return nil
	}
	if _, _, member := p.Index.Lease(hostUID, name); !member {
		return nil
	}
	return n
}

// compile adds the parts of the Networks that a host has a lease of, and tombstones of those that it must remove.
// For a Network that is merely missing in the cache it adds neither: the host keeps it running.
func (p Parts) compile(ctx context.Context, m *api.Machine, s *part.Spec) error {
	if p.Index == nil {
		return nil
	}
	vtep := VTEP(p.Cache, m)
	for _, l := range p.Index.Memberships(m.Metadata.UID) {
		name := api.NetworkPartName(l.Network)
		n, ok := store.Cached[api.Network](p.Cache, l.Network)
		ok = ok && n.Metadata.UID == l.UID
		if l.Buried > 0 || ok && n.Metadata.DeletionTimestamp != nil {
			s.Bury(api.Tombstone{Part: name, UID: l.UID}, l.Buried)
			continue
		}
		if !ok {
			continue
		}
		made, err := p.of(ctx, m, n, l, s.Base.Underlay, vtep)
		if errors.Is(err, ErrKeyClosed) {
			continue // the host keeps the part that it has
		}
		if err != nil {
			return fmt.Errorf("part %s: %w", name, err)
		}
		s.Parts[name] = made
	}
	return nil
}

// of compiles the part of one Network.
func (p Parts) of(ctx context.Context, m *api.Machine, n *api.Network, l Membership, underlay api.Underlay, vtep netip.Addr) (*Part, error) {
	site := site.Spec(p.Cache)
	peering, err := p.peering(ctx, n)
	if err != nil {
		return nil, err
	}
	allow, _ := Allow(p.Cache, n)
	return l.View.NewPart(m.Metadata.UID, api.NetworkPart{
		UID: l.UID, VNI: l.VNI, MTU: MTU(underlay, vtep), CIDRs: n.Spec.CIDRs,
		Lease: l.Lease, Lease6: l.Lease6, Moved: l.Moved, MAC: VTEPMAC(m.Metadata.UID, l.VNI),
		Egress: n.Spec.Egress, Advertise: n.Spec.Advertise, Allow: allow, Direct: n.Spec.Direct && underlay.Encryption == nil,
		Limits: n.Spec.Limits, GuestLimits: n.Spec.GuestLimits,
		DNS: site.DNS, Domain: domain(l.Network, site.Domain), Peering: peering,
	})
}

// peering is how a Network's guests peer; nil where they do not. Without the configured key, because its Secret
// is missing or does not permit it, they do not peer.
func (p Parts) peering(ctx context.Context, n *api.Network) (*api.PeeringPart, error) {
	x := n.Spec.Peering
	z, ok := store.Cached[api.Zone](p.Cache, n.Spec.Zone)
	if x == nil || !ok || z.Spec.ASN == x.ASN {
		return nil, nil
	}
	out := &api.PeeringPart{Zone: z.Metadata.Name, ASN: z.Spec.ASN, Community: z.Community(), GuestASN: x.ASN,
		Prefixes: x.Prefixes, MaxPrefixes: x.MaxPrefixes, Advertise: x.Advertise, GracefulRestart: z.Spec.BGP.GracefulRestart}
	if x.Secret == "" {
		return out, nil
	}
	use := api.UseNetwork(n.Metadata.Name)
	s, ok := store.Cached[api.Secret](p.Cache, x.Secret)
	if !ok || s.Status.Digests[api.SessionPassword] == "" || s.Permits(use) != nil {
		return nil, nil
	}
	var err error
	out.Password, out.Salt, err = p.Keys.Open(ctx, s, use, n.Metadata.UID)
	if errors.Is(err, ErrNoKey) {
		return nil, nil
	}
	return out, err
}

// domain is the domain of a Network's guests: a name below the Site's, where that has one.
func domain(network, site string) string {
	if site == "" {
		return ""
	}
	return network + "." + site
}
