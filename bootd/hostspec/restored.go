package hostspec

import (
	"context"
	"encoding/json"

	"github.com/google/uuid"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/text"
)

// maxRecount limits the bytes of all frames of a recount: more could not be stored.
const maxRecount = 2 * store.MaxObjectBytes

// recount is a host's recount, of which more frames may follow.
type recount struct {
	api.Recount
	bytes int
	done  bool // it was passed on, or refused: a stream has one
}

// hold makes a host of a restored Site adopt the epoch, continue unchanged, and report what it has. Nothing of its
// HostSpec is sent: the backup may know less of it than the host does.
func (h *Hub) hold(s *stream, send func(api.ServerFrame) error) error {
	if s.held {
		return nil
	}
	mark := &api.Bookmark{Epoch: h.Compiler.Epoch, Revision: h.Cache.Revision(), Hold: true}
	if err := send(api.ServerFrame{Bookmark: mark}); err != nil {
		return err
	}
	if err := send(api.ServerFrame{Recount: &api.RecountRequest{ID: uuid.NewString()}}); err != nil {
		return err
	}
	s.held = true
	return nil
}

// recounted collects the frames of a recount, and passes it on with the last. One that was not requested is not
// stored.
func (h *Hub) recounted(ctx context.Context, s *stream, r *api.Recount) {
	c := &s.recount
	if h.Recovery == nil || c.done || !store.Held(h.Cache) {
		return
	}
	raw, err := json.Marshal(r)
	c.bytes += len(raw)
	if err != nil || c.bytes > maxRecount {
		h.event(s, api.Warning, "RecountRefused", "it reports more Networks, Guests and peers than a host can have")
		s.recount = recount{done: true}
		return
	}
	c.ID, c.Reflector = r.ID, c.Reflector || r.Reflector
	c.Networks, c.Guests = append(c.Networks, r.Networks...), append(c.Guests, r.Guests...)
	c.Hosts, c.Flannelds = append(c.Hosts, r.Hosts...), append(c.Flannelds, r.Flannelds...)
	c.Loopbacks = append(c.Loopbacks, r.Loopbacks...)
	if r.Incomplete {
		return
	}
	all := c.Recount
	s.recount = recount{done: true}
	if err := h.Recovery.Reported(ctx, s.peer.Name, s.peer.UID, all); err != nil && ctx.Err() == nil {
		h.event(s, api.Warning, "RecountRefused", text.Clip(err.Error(), 1024))
	}
}

// Claim is the identity that the host claims, for a person to decide.
func (p Peer) Claim() api.RecoveryHost {
	return api.RecoveryHost{Name: p.Name, UID: p.UID, Key: p.Key, Address: p.Address, Issued: p.Issued}
}
