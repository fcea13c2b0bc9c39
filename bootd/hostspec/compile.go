// Package hostspec owns what a host should be: it compiles each Machine's
// HostSpec from the objects and streams its parts to nodeagent, over the one
// stream that each host opens.
package hostspec

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
)

// Compiler makes HostSpecs out of the objects as they stand. It is pure but for
// the cache and the leases that it reads.
type Compiler struct {
	Cache *store.Cache
	// Networks has the leases of every Network; there are none without it.
	Networks *network.Index
	// BGP makes bgp parts; there are none without it.
	BGP *BGP
	// Epoch is raised by a restore.
	Epoch int64
	// API lists the URLs of bootd that hosts are to know.
	API func(m *api.Machine) []string

	closed closed
	meshes meshes
}

// With is a Compiler out of other objects.
func (c *Compiler) With(cache *store.Cache) *Compiler {
	return &Compiler{Cache: cache, Networks: c.Networks, BGP: c.BGP, Epoch: c.Epoch, API: c.API}
}

// Compile makes the HostSpec of a Machine as people may see it: keys are masked.
// Equal objects give equal parts.
func (c *Compiler) Compile(ctx context.Context, m *api.Machine) (*api.HostSpec, error) {
	s, err := c.compile(ctx, m)
	if err != nil {
		return nil, err
	}
	h := &api.HostSpec{Epoch: s.epoch, Revision: s.revision, Parts: map[string]api.Part{}, Tombstones: s.tombstones}
	h.SetDefaults()
	h.Metadata = api.Metadata{Name: m.Metadata.Name, UID: m.Metadata.UID}
	for name, p := range s.parts {
		if h.Parts[name], err = api.MaskPart(name, p.Value()); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// compile makes a HostSpec whose large parts are put together only when sent.
func (c *Compiler) compile(ctx context.Context, m *api.Machine) (*hostSpec, error) {
	s := &hostSpec{epoch: c.Epoch, revision: c.Cache.Revision(), parts: map[string]part{}, buried: map[api.Tombstone]int64{}}
	b := c.base(m)
	base, err := api.EncodePart(b)
	if err != nil {
		return nil, fmt.Errorf("compile the base part of %s: %w", m.Metadata.Name, err)
	}
	s.parts[api.PartBase] = whole(base)
	if err := c.networks(ctx, m, b.Underlay, s); err != nil {
		return nil, err
	}
	if err := c.guests(m, s); err != nil {
		return nil, err
	}
	if err := c.bgp(ctx, m, s); err != nil {
		return nil, err
	}
	return s, nil
}

func (c *Compiler) base(m *api.Machine) api.BasePart {
	b := api.BasePart{UID: m.Metadata.UID, Zone: m.Spec.Zone, Labels: maps.Clone(m.Metadata.Labels), Underlay: network.Underlay(c.Cache, m)}
	b.Underlay.Encryption = c.encryption(m)
	if s, ok := store.Cached[api.Site](c.Cache, api.SiteName); ok {
		b.NTP = s.Spec.NTP
	}
	b.Underlay.Closed = c.closed.of(c.Cache)
	b.Underlay.Transit = c.transit(m)
	if c.API != nil {
		b.API = c.API(m)
	}
	return b
}

// closed is what no tenant may reach: the same for every host, and so found once
// for all that are compiled at one revision.
type closed struct {
	mu       sync.Mutex
	revision int64
	prefixes []netip.Prefix
}

func (x *closed) of(c *store.Cache) []netip.Prefix {
	x.mu.Lock()
	defer x.mu.Unlock()
	if now := c.Revision(); now != x.revision || now == 0 {
		x.revision, x.prefixes = now, network.Closed(c)
	}
	return x.prefixes
}

// hostSpec is a HostSpec on its way to a host.
type hostSpec struct {
	epoch, revision int64
	parts           map[string]part
	tombstones      []api.Tombstone
	// buried says for each tombstone from which revision a host's word counts
	// that nothing is left; 0 when this spec is older than that.
	buried map[api.Tombstone]int64
}

// part is one part in the making.
type part interface {
	Digest() string
	Value() api.Part
}

// whole is a part that is there.
type whole api.Part

func (w whole) Digest() string  { return api.PartDigest(api.Part(w)) }
func (w whole) Value() api.Part { return api.Part(w) }

// bury adds a tombstone.
func (s *hostSpec) bury(t api.Tombstone, from int64) {
	if s.revision < from {
		from = 0
	}
	s.tombstones = append(s.tombstones, t)
	s.buried[t] = from
}

// held is what a host holds of its HostSpec.
type held struct {
	digests map[string]string
	// parts, tombstones: as they were sent on this stream.
	parts  map[string]part
	buried map[api.Tombstone]int64
}

// held is what the host holds that has been sent s.
func (s *hostSpec) held() held {
	h := held{digests: make(map[string]string, len(s.parts)), parts: s.parts, buried: s.buried}
	for name, p := range s.parts {
		h.digests[name] = p.Digest()
	}
	return h
}

// difference lists the frames that bring a host from what it holds to s: parts
// that changed, parts that are gone, tombstones, then a bookmark.
func difference(h held, s *hostSpec) []api.ServerFrame {
	var frames []api.ServerFrame
	for _, name := range slices.Sorted(maps.Keys(s.parts)) {
		if digest := s.parts[name].Digest(); h.digests[name] != digest {
			frames = append(frames, api.ServerFrame{Part: h.update(name, digest, s.parts[name])})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(h.digests)) {
		if _, stays := s.parts[name]; !stays {
			frames = append(frames, api.ServerFrame{Gone: name})
		}
	}
	var fresh []api.Tombstone
	for _, t := range s.tombstones {
		if from, told := h.buried[t]; !told || from != s.buried[t] {
			fresh = append(fresh, t)
		}
	}
	if len(fresh) > 0 {
		frames = append(frames, api.ServerFrame{Tombstones: fresh})
	}
	return append(frames, api.ServerFrame{Bookmark: &api.Bookmark{Epoch: s.epoch, Revision: s.revision}})
}

// update is the whole part, or what changed in a Network's peers since the part
// that was sent on this stream.
func (h held) update(name, digest string, p part) *api.PartUpdate {
	u := &api.PartUpdate{Name: name, Digest: digest}
	now, ok := p.(*network.Part)
	old, known := h.parts[name].(*network.Part)
	if ok && known {
		u.Delta = now.Delta(old)
	}
	if u.Delta == nil {
		u.Value = p.Value()
	} else {
		u.Base = h.digests[name]
	}
	return u
}
