// Package hostspec owns what a host should be: it compiles each Machine's
// HostSpec from the objects and streams its parts to nodeagent, over the one
// stream that each host opens.
package hostspec

import (
	"fmt"
	"maps"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Compiler makes HostSpecs out of the objects as they stand. It is pure but for
// the cache that it reads.
type Compiler struct {
	Cache *store.Cache
	// Epoch is raised by a restore.
	Epoch int64
	// API lists the URLs of bootd that hosts are to know.
	API func(m *api.Machine) []string
}

// Compile makes the HostSpec of a Machine. Equal objects give equal parts.
func (c *Compiler) Compile(m *api.Machine) (*api.HostSpec, error) {
	h := &api.HostSpec{Epoch: c.Epoch, Revision: c.Cache.Revision(), Parts: map[string]api.Part{}}
	h.SetDefaults()
	h.Metadata = api.Metadata{Name: m.Metadata.Name, UID: m.Metadata.UID}
	base, err := api.EncodePart(c.base(m))
	if err != nil {
		return nil, fmt.Errorf("compile the base part of %s: %w", m.Metadata.Name, err)
	}
	h.Parts[api.PartBase] = base
	return h, nil
}

func (c *Compiler) base(m *api.Machine) api.BasePart {
	b := api.BasePart{UID: m.Metadata.UID, Zone: m.Spec.Zone, Labels: maps.Clone(m.Metadata.Labels), Underlay: c.underlay(m)}
	if s, ok := store.Cached[api.Site](c.Cache, api.SiteName); ok {
		b.NTP = s.Spec.NTP
	}
	if c.API != nil {
		b.API = c.API(m)
	}
	return b
}

// underlay is the first link on a production Subnet.
func (c *Compiler) underlay(m *api.Machine) api.Underlay {
	for _, l := range m.Spec.Links {
		s, ok := store.Cached[api.Subnet](c.Cache, l.Subnet)
		if !ok || s.Spec.Purpose != api.Production {
			continue
		}
		u := api.Underlay{Interface: l.Name, Addresses: l.Addresses, MTU: l.MTU}
		if u.MTU == 0 {
			u.MTU = s.Spec.MTU
		}
		return u
	}
	return api.Underlay{}
}

// digests are the digests of a HostSpec's parts.
func digests(h *api.HostSpec) map[string]string {
	d := make(map[string]string, len(h.Parts))
	for name, p := range h.Parts {
		d[name] = api.PartDigest(p)
	}
	return d
}

// difference lists the frames that bring a host from what it holds to h: parts
// that changed, parts that are gone, tombstones, then a bookmark.
func difference(held map[string]string, h *api.HostSpec) []api.ServerFrame {
	var frames []api.ServerFrame
	now := digests(h)
	for _, name := range slices.Sorted(maps.Keys(h.Parts)) {
		if held[name] != now[name] {
			frames = append(frames, api.ServerFrame{Part: &api.PartUpdate{Name: name, Digest: now[name], Value: h.Parts[name]}})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(held)) {
		if _, stays := now[name]; !stays {
			frames = append(frames, api.ServerFrame{Gone: name})
		}
	}
	if len(h.Tombstones) > 0 {
		frames = append(frames, api.ServerFrame{Tombstones: h.Tombstones})
	}
	return append(frames, api.ServerFrame{Bookmark: &api.Bookmark{Epoch: h.Epoch, Revision: h.Revision}})
}
