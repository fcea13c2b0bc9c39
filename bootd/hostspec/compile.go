// Package hostspec owns HostSpecs: it compiles each Machine's HostSpec from the objects and streams its parts to
// nodeagent, over the one stream that each host opens.
package hostspec

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/part"
	"github.com/rackweft/rackweft/bootd/store"
)

// Compiler compiles HostSpecs from the current objects. It is pure except for the cache that it reads, and what its
// Parts read.
type Compiler struct {
	Cache *store.Cache
	// Parts lists the kinds of parts besides the base, compiled from a cache.
	Parts func(*store.Cache) []part.Kind
	// Epoch is raised by a restore.
	Epoch int64
	// API lists the URLs of bootd for hosts.
	API func(m *api.Machine) []string
}

// With returns a Compiler for other objects.
func (c *Compiler) With(cache *store.Cache) *Compiler {
	return &Compiler{Cache: cache, Parts: c.Parts, Epoch: c.Epoch, API: c.API}
}

// Compile returns the HostSpec of a Machine for people: keys are masked. Equal objects give equal parts.
func (c *Compiler) Compile(ctx context.Context, m *api.Machine) (*api.HostSpec, error) {
	s, err := c.compile(ctx, m)
	if err != nil {
		return nil, err
	}
	h := &api.HostSpec{Epoch: s.Epoch, Revision: s.Revision, Parts: map[string]api.Part{}, Tombstones: s.Tombstones}
	h.SetDefaults()
	h.Metadata = api.Metadata{Name: m.Metadata.Name, UID: m.Metadata.UID}
	for name, p := range s.Parts {
		if h.Parts[name], err = api.MaskPart(name, p.Value()); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// compile returns a HostSpec whose large parts are encoded only when sent.
func (c *Compiler) compile(ctx context.Context, m *api.Machine) (*part.Spec, error) {
	s := part.NewSpec(c.Epoch, c.Cache.Revision())
	for _, k := range c.parts() {
		if err := k.Compile(ctx, m, s); err != nil {
			return nil, fmt.Errorf("compile the %s parts of %s: %w", k.Name, m.Metadata.Name, err)
		}
	}
	return s, nil
}

// held is what a host has of its HostSpec.
type held struct {
	digests map[string]string
	// parts and tombstones, as sent on this stream.
	parts  map[string]part.Part
	buried map[api.Tombstone]int64
}

// heldOf returns what a host has that was sent s.
func heldOf(s *part.Spec) held {
	h := held{digests: make(map[string]string, len(s.Parts)), parts: s.Parts, buried: s.Buried}
	for name, p := range s.Parts {
		h.digests[name] = p.Digest()
	}
	return h
}

// difference lists the frames that bring a host from what it has to s: changed parts, removed parts, tombstones,
// then a bookmark.
func difference(h held, s *part.Spec) []api.ServerFrame {
	var frames []api.ServerFrame
	for _, name := range slices.Sorted(maps.Keys(s.Parts)) {
		if digest := s.Parts[name].Digest(); h.digests[name] != digest {
			frames = append(frames, api.ServerFrame{Part: h.update(name, digest, s.Parts[name])})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(h.digests)) {
		if _, stays := s.Parts[name]; !stays {
			frames = append(frames, api.ServerFrame{Gone: name})
		}
	}
	var fresh []api.Tombstone
	for _, t := range s.Tombstones {
		if from, known := h.buried[t]; !known || from != s.Buried[t] {
			fresh = append(fresh, t)
		}
	}
	if len(fresh) > 0 {
		frames = append(frames, api.ServerFrame{Tombstones: fresh})
	}
	return append(frames, api.ServerFrame{Bookmark: &api.Bookmark{Epoch: s.Epoch, Revision: s.Revision}})
}

// update returns the whole part, or the changes since the part that was sent on this stream.
func (h held) update(name, digest string, p part.Part) *api.PartUpdate {
	u := &api.PartUpdate{Name: name, Digest: digest}
	if now, ok := p.(part.Changing); ok {
		u.Delta = now.Delta(h.parts[name])
	}
	if u.Delta == nil {
		u.Value = p.Value()
	} else {
		u.Base = h.digests[name]
	}
	return u
}
