// Package part owns the composition of HostSpecs. The room of each kind compiles the parts of its objects, and
// states their properties here; package hostspec assembles and sends them.
package part

import (
	"context"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Kind is one kind of part, for bootd. A nil function does not apply.
type Kind struct {
	Name   string // of the api.PartKind
	Object string // kind of the objects that parts are named after; "" for a part of which a host has one
	// Compile adds a host's parts to its HostSpec, and tombstones of those that the host must remove. A part that
	// cannot be compiled now is omitted: the host keeps the one it has.
	Compile func(ctx context.Context, m *api.Machine, s *Spec) error
	// Concerns finds the hosts whose parts may differ after a change.
	Concerns func(store.Change) Hosts
	// Follow reports hosts whose parts may differ for reasons outside the objects, until ctx ends.
	Follow func(ctx context.Context, fn func(Hosts)) error
	// Keep limits what is stored of a host's report on a part.
	Keep func(*api.PartStatus)
	// Speaks returns the object for which a host, by its Machine's uid, may record events; nil when it may not.
	Speaks func(hostUID, object, uid string) api.Object
	// OwnFault says that the failure of a part is its object's fault, not its host's.
	OwnFault bool
	// Steps says that each state of a part is stored at once: a controller waits for it.
	Steps bool
	// Digests says that the digest of the applied part is stored: something depends on it.
	Digests bool
}

// Hosts are the hosts that something concerns. The zero value is none.
type Hosts struct {
	All   bool
	Zones []string // all hosts of these Zones
	Names []string
	UIDs  map[string]bool // of their Machines
}

// Add adds other hosts.
func (h *Hosts) Add(other Hosts) {
	h.All = h.All || other.All
	h.Zones, h.Names = append(h.Zones, other.Zones...), append(h.Names, other.Names...)
	for uid := range other.UIDs {
		if h.UIDs == nil {
			h.UIDs = map[string]bool{}
		}
		h.UIDs[uid] = true
	}
}

// Part is one part to be sent. Large ones are encoded only when sent.
type Part interface {
	Digest() string
	Value() api.Part
}

// Changing is a Part that can be sent as a difference.
type Changing interface {
	Part
	// Delta returns the difference from an earlier part of the same host; nil when the whole must be sent.
	Delta(from Part) *api.PeerDelta
}

// whole is a part that is already encoded.
type whole api.Part

func (w whole) Digest() string  { return api.PartDigest(api.Part(w)) }
func (w whole) Value() api.Part { return api.Part(w) }

// Spec is a HostSpec under construction.
type Spec struct {
	Epoch, Revision int64
	Base            api.BasePart // parts that every host has: compiled first
	Parts           map[string]Part
	Tombstones      []api.Tombstone
	// Buried gives for each tombstone the revision from which a host's report counts that nothing is left; 0 when
	// this spec is older than that.
	Buried map[api.Tombstone]int64
}

// NewSpec returns a Spec without parts.
func NewSpec(epoch, revision int64) *Spec {
	return &Spec{Epoch: epoch, Revision: revision, Parts: map[string]Part{}, Buried: map[api.Tombstone]int64{}}
}

// Put adds a complete part.
func (s *Spec) Put(name string, v any) error {
	raw, err := api.EncodePart(v)
	if err != nil {
		return err
	}
	s.Parts[name] = whole(raw)
	return nil
}

// Bury adds a tombstone.
func (s *Spec) Bury(t api.Tombstone, from int64) {
	if s.Revision < from {
		from = 0
	}
	s.Tombstones = append(s.Tombstones, t)
	s.Buried[t] = from
}
