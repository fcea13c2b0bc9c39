package hostspec

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/part"
	"github.com/rackweft/rackweft/internal/text"
)

// receive reads a host's frames until its stream breaks.
func (h *Hub) receive(ctx context.Context, s *stream, in *frames) error {
	for {
		f, err := in.next()
		if err != nil {
			return fmt.Errorf("host %s: %w", s.peer.Name, err)
		}
		s.touch()
		if answer := h.handle(ctx, s, f); answer != nil {
			if s.out.wait(ctx, replies, *answer) != nil {
				return nil
			}
		}
		if s.quota.frames.Wait(ctx) != nil {
			return nil // ctx has ended
		}
	}
}

// handle processes one frame and returns the reply, if any.
func (h *Hub) handle(ctx context.Context, s *stream, f *api.HostFrame) *api.ServerFrame {
	switch {
	case f.Ping != nil:
		h.overdue(ctx, s)
		h.audit(s)
		return &api.ServerFrame{Pong: &api.Ping{Time: time.Now().UTC()}}
	case f.Status != nil:
		h.report(ctx, s, f.Status)
	case f.Event != nil:
		typ := f.Event.Type
		if typ != api.Warning {
			typ = api.Normal
		}
		h.eventOf(s, h.Compiler.subject(s.peer, f.Event), typ, text.Clip(f.Event.Reason, 64), text.Clip(f.Event.Message, 1024))
	case f.BGP != nil:
		h.bgpReport(s, f.BGP)
	case f.Usage != nil:
		h.usageReport(s, f.Usage)
	case f.Recount != nil:
		h.recounted(ctx, s, f.Recount)
	case f.Renew != "":
		return h.renew(s, f.Renew)
	}
	return nil
}

// Limits of a host's stored status, which is part of its Machine: etcd accepts 1.5 MiB for all of it.
const (
	maxStatusParts     = 1024
	maxStatusNICs      = 256
	maxStatusAddresses = 64
	maxStatusBytes     = 512 << 10
)

// bounded returns a copy of a host's status that can be stored. If there are too many parts, those of its HostSpec
// come first.
func (t table) bounded(spec *part.Spec, status *api.HostStatus) (*api.HostStatus, error) {
	next := *status
	next.Connected, next.LastHeartbeat, next.Reported, next.BGP = false, time.Time{}, time.Time{}, nil
	for _, word := range []*string{&next.AgentVersion, &next.OS, &next.Kernel, &next.BootID, &next.AttemptID, &next.WireGuardKey} {
		*word = text.Clip(*word, 128)
	}
	next.NICs = slices.Clone(status.NICs[:min(len(status.NICs), maxStatusNICs)])
	for i := range next.NICs {
		n := &next.NICs[i]
		n.Name = text.Clip(n.Name, 15)
		// One spelling of each address, or two hosts could have the same.
		n.Addresses = slices.DeleteFunc(slices.Clone(n.Addresses), func(p netip.Prefix) bool { return !p.IsValid() || p.Addr().Is4In6() })
		n.Addresses = n.Addresses[:min(len(n.Addresses), maxStatusAddresses)]
	}
	next.Parts = t.boundedParts(spec, status.Parts)
	raw, err := json.Marshal(next)
	if err != nil {
		return nil, fmt.Errorf("its status cannot be encoded: %w", err)
	}
	if len(raw) > maxStatusBytes {
		return nil, fmt.Errorf("its status has %d bytes, at most %d are stored: the previous one is kept", len(raw), maxStatusBytes)
	}
	return &next, nil
}

func (t table) boundedParts(spec *part.Spec, parts map[string]api.PartStatus) map[string]api.PartStatus {
	said := make([]string, 0, len(parts))
	for name := range parts {
		if len(name) <= 128 {
			said = append(said, name)
		}
	}
	slices.SortFunc(said, func(a, b string) int {
		inA, inB := names(spec, a), names(spec, b)
		if inA != inB {
			if inA {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	kept := map[string]api.PartStatus{}
	for _, name := range said[:min(len(said), maxStatusParts)] {
		p := parts[name]
		p.Digest, p.State, p.Message = text.Clip(p.Digest, 80), api.PartState(text.Clip(string(p.State), 16)), text.Clip(p.Message, 256)
		keep := t.of(name).Keep
		if keep != nil {
			keep(&p)
		} else {
			p.Guest = nil
		}
		kept[name] = p
	}
	return kept
}

// names reports whether a host's part is one of the HostSpec or of a tombstone,
// which nodeagent reports as PART@UID.
func names(s *part.Spec, reported string) bool {
	name, uid, buried := strings.Cut(reported, "@")
	if buried {
		_, ok := s.Buried[api.Tombstone{Part: name, UID: uid}]
		return ok
	}
	return s.Parts[reported] != nil
}

const reasonApplying = "Applying"

// judge compares what the host has applied with its HostSpec.
func (t table) judge(spec *part.Spec, status *api.HostStatus) (applied api.ConditionStatus, reason, message string) {
	var waiting, failed []string
	now := heldOf(spec).digests
	for name := range now {
		p, ok := status.Parts[name]
		switch {
		case t.of(name).OwnFault:
		case ok && p.State == api.PartFailed:
			failed = append(failed, name+": "+p.Message)
		case !ok || p.State != api.PartApplied || p.Digest != now[name]:
			waiting = append(waiting, strings.TrimSuffix(name+": "+p.Message, ": "))
		}
	}
	slices.Sort(waiting)
	slices.Sort(failed)
	switch {
	case len(failed) > 0:
		return api.False, "PartFailed", strings.Join(failed, "; ")
	case len(waiting) > 0:
		return api.False, reasonApplying, "not applied yet: " + strings.Join(waiting, "; ")
	}
	return api.True, "Applied", fmt.Sprintf("%d parts are applied", len(spec.Parts))
}

// subject is the object of a host's event: an object of one of its parts, or the host itself. It cannot record
// events for others.
func (c *Compiler) subject(p Peer, e *api.Event) api.Object {
	if o := c.parts().speaks(p.UID, e); o != nil {
		return o
	}
	return hostObject(c.Cache, p.Name)
}

// renew signs a new certificate for a host that holds its stream.
func (h *Hub) renew(s *stream, csr string) *api.ServerFrame {
	cert, key, err := h.Signer.Renew([]byte(csr), s.peer.Name, s.peer.UID)
	if err != nil {
		h.event(s, api.Warning, "RenewalRefused", text.Clip(err.Error(), 1024))
		return nil
	}
	if key != s.peer.Key {
		h.event(s, api.Warning, "RenewalRefused", "the request is for another key than the host joined with")
		return nil
	}
	return &api.ServerFrame{Certificate: string(cert)}
}
