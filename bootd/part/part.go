// Package part owns what HostSpecs are made of. The room of each kind makes the
// parts of its objects, and says here what else is to be known of them; package
// hostspec asks, puts together and sends.
package part

import (
	"context"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Kind is one kind of part as bootd makes it. A nil function does not apply.
type Kind struct {
	Name   string // of the api.PartKind
	Object string // kind of the objects that parts are named for; "" for a part that is one of a kind
	// Compile adds a host's parts to its HostSpec, and tombstones of those that the
	// host is to give up. What cannot be compiled now is left out: the host continues
	// with what it has.
	Compile func(ctx context.Context, m *api.Machine, s *Spec) error
	// Concerns finds the hosts whose parts may differ after a change.
	Concerns func(store.Change) Hosts
	// Follow reports hosts whose parts may differ because of something that is not
	// among the objects, until ctx ends.
	Follow func(ctx context.Context, fn func(Hosts)) error
	// Keep bounds what is kept of a host's report on a part.
	Keep func(*api.PartStatus)
	// Speaks returns the object that a host, by its Machine's uid, may record
	// events of; nil when it may not.
	Speaks func(hostUID, object, uid string) api.Object
	// OwnFault says that a part that fails is its object's fault, not its host's.
	OwnFault bool
	// Steps says that each state of a part is stored at once: a controller waits
	// for it.
	Steps bool
	// Digests says that the digest of what is applied is stored: something is
	// judged by it.
	Digests bool
}

// Hosts are those that something concerns. The zero value is none.
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

// Part is one part in the making. Large ones are put together only when sent.
type Part interface {
	Digest() string
	Value() api.Part
}

// Changing is a Part of which a host can be sent what differs.
type Changing interface {
	Part
	// Delta leads to it from an earlier part of the same host; nil when the whole
	// is to be sent.
	Delta(from Part) *api.PeerDelta
}

// whole is a part that is there.
type whole api.Part

func (w whole) Digest() string  { return api.PartDigest(api.Part(w)) }
func (w whole) Value() api.Part { return api.Part(w) }

// Spec is a HostSpec in the making.
type Spec struct {
	Epoch, Revision int64
	Base            api.BasePart // what every host has: it is compiled first
	Parts           map[string]Part
	Tombstones      []api.Tombstone
	// Buried says for each tombstone from which revision a host's word counts
	// that nothing is left; 0 when this spec is older than that.
	Buried map[api.Tombstone]int64
}

// NewSpec returns a Spec without parts.
func NewSpec(epoch, revision int64) *Spec {
	return &Spec{Epoch: epoch, Revision: revision, Parts: map[string]Part{}, Buried: map[api.Tombstone]int64{}}
}

// Put adds a part that is there as a whole.
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
