package hostspec

import (
	"context"

	"github.com/google/uuid"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/text"
)

// maxRecount bounds what one host may have, over all frames of a recount.
const maxRecount = 64 << 10

// recount is a host's, of which more frames may follow.
type recount struct {
	api.Recount
	items int
}

// hold has a host of a restored Site know the epoch, go on as it is, and say
// what it has. Nothing of its HostSpec is sent: the backup may know less of it
// than the host does.
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

// recounted gathers the frames of a recount, and hands it on with the last.
func (h *Hub) recounted(ctx context.Context, s *stream, r *api.Recount) {
	if h.Recovery == nil {
		return
	}
	if s.recount == nil || s.recount.ID != r.ID {
		s.recount = &recount{Recount: api.Recount{ID: r.ID}}
	}
	c := s.recount
	c.items += len(r.Networks) + len(r.Guests) + len(r.Hosts) + len(r.Flannelds)
	if c.items > maxRecount {
		h.event(s, api.Warning, "RecountRefused", "it says that it has more Networks, Guests and peers than a host can")
		s.recount = nil
		return
	}
	c.Networks, c.Guests = append(c.Networks, r.Networks...), append(c.Guests, r.Guests...)
	c.Hosts, c.Flannelds = append(c.Hosts, r.Hosts...), append(c.Flannelds, r.Flannelds...)
	c.Loopbacks, c.Reflector = append(c.Loopbacks, r.Loopbacks...), c.Reflector || r.Reflector
	if r.Incomplete {
		return
	}
	s.recount = nil
	if err := h.Recovery.Reported(ctx, s.peer.Name, s.peer.UID, c.Recount); err != nil && ctx.Err() == nil {
		h.event(s, api.Warning, "RecountRefused", text.Clip(err.Error(), 1024))
	}
}

// Claim is who the host says it is, for a person to decide.
func (p Peer) Claim() api.RecoveryHost {
	return api.RecoveryHost{Name: p.Name, UID: p.UID, Key: p.Key, Address: p.Address, Issued: p.Issued}
}
