package hostspec

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// receive reads a host's frames until its stream breaks.
func (h *Hub) receive(ctx context.Context, s *stream, in *frames, replies chan<- api.ServerFrame) error {
	for {
		f, err := in.next()
		if err != nil {
			return fmt.Errorf("host %s: %w", s.peer.Name, err)
		}
		s.touch()
		if answer := h.handle(ctx, s, f); answer != nil {
			select {
			case replies <- *answer:
			case <-ctx.Done():
				return nil
			}
		}
		if s.quota.frames.Wait(ctx) != nil {
			return nil // ctx has ended
		}
	}
}

// handle takes one frame and returns what to answer, if anything.
func (h *Hub) handle(ctx context.Context, s *stream, f *api.HostFrame) *api.ServerFrame {
	switch {
	case f.Ping != nil:
		return &api.ServerFrame{Pong: &api.Ping{Time: time.Now().UTC()}}
	case f.Status != nil:
		h.report(ctx, s, f.Status)
	case f.Event != nil:
		typ := f.Event.Type
		if typ != api.Warning {
			typ = api.Normal
		}
		h.event(s, typ, clip(f.Event.Reason, 64), clip(f.Event.Message, 1024))
	case f.Renew != "":
		return h.renew(s, f.Renew)
	}
	return nil
}

// report takes over what the host says of itself.
func (h *Hub) report(ctx context.Context, s *stream, status *api.HostStatus) {
	m, ok := store.Cached[api.Machine](h.Cache, s.peer.Name)
	if !ok {
		return
	}
	spec, err := h.Compiler.compile(m)
	if err != nil {
		h.Log.Warn("compile HostSpec", "host", s.peer.Name, "error", err)
		return
	}
	applied, reason, message := judge(spec, status)
	next, err := bounded(spec, status)
	if err != nil {
		h.event(s, api.Warning, "StatusRefused", err.Error())
		return
	}
	next.UID = s.peer.UID
	h.mutate(ctx, s.peer.Name, s.peer.UID, func(m *api.Machine) bool {
		changed := m.Status.Conditions.Set(time.Now(), api.CondApplied, applied, reason, clip(message, 1024))
		if old := m.Status.Host; old != nil {
			next.Reported = old.Reported
		}
		if same(m.Status.Host, next) {
			return changed
		}
		next.Reported = time.Now().UTC()
		m.Status.Host = next
		return true
	})
}

// same compares as the store would: an empty list is none.
func same(a, b *api.HostStatus) bool {
	x, xerr := json.Marshal(a)
	y, yerr := json.Marshal(b)
	return xerr == nil && yerr == nil && bytes.Equal(x, y)
}

// What is kept of a host's status, which is stored with its Machine: etcd takes
// 1.5 MiB for all of it.
const (
	maxStatusParts     = 1024
	maxStatusNICs      = 256
	maxStatusAddresses = 64
	maxStatusBytes     = 512 << 10
)

// bounded is a copy of a host's status that is fit to be stored. Of more parts
// than are kept, those of its HostSpec come first.
func bounded(spec *hostSpec, status *api.HostStatus) (*api.HostStatus, error) {
	next := *status
	next.Connected, next.LastHeartbeat, next.Reported = false, time.Time{}, time.Time{}
	for _, text := range []*string{&next.AgentVersion, &next.OS, &next.Kernel, &next.BootID, &next.AttemptID} {
		*text = clip(*text, 128)
	}
	next.NICs = slices.Clone(status.NICs[:min(len(status.NICs), maxStatusNICs)])
	for i := range next.NICs {
		n := &next.NICs[i]
		n.Name, n.Addresses = clip(n.Name, 15), n.Addresses[:min(len(n.Addresses), maxStatusAddresses)]
	}
	next.Parts = boundedParts(spec, status.Parts)
	raw, err := json.Marshal(next)
	if err != nil {
		return nil, fmt.Errorf("its status cannot be encoded: %w", err)
	}
	if len(raw) > maxStatusBytes {
		return nil, fmt.Errorf("its status takes %d bytes, and %d are kept: the one before it stands", len(raw), maxStatusBytes)
	}
	return &next, nil
}

func boundedParts(spec *hostSpec, parts map[string]api.PartStatus) map[string]api.PartStatus {
	names := make([]string, 0, len(parts))
	for name := range parts {
		if len(name) <= 128 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		inA, inB := spec.names(a), spec.names(b)
		if inA != inB {
			if inA {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	kept := map[string]api.PartStatus{}
	for _, name := range names[:min(len(names), maxStatusParts)] {
		p := parts[name]
		kept[name] = api.PartStatus{Digest: clip(p.Digest, 80), State: api.PartState(clip(string(p.State), 16)), Message: clip(p.Message, 256), Time: p.Time}
	}
	return kept
}

// names reports whether a host's part is one of the HostSpec or of a tombstone,
// which nodeagent reports as PART@UID.
func (s *hostSpec) names(part string) bool {
	name, uid, buried := strings.Cut(part, "@")
	if buried {
		_, ok := s.buried[api.Tombstone{Part: name, UID: uid}]
		return ok
	}
	return s.parts[name] != nil
}

// clip bounds a host's word, and keeps control characters out of what people
// read.
func clip(s string, n int) string {
	cut := len(s) > n
	s = strings.ToValidUTF8(s[:min(len(s), n)], "")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if cut {
		s += "…"
	}
	return s
}

// judge compares what the host has applied with what it should have.
func judge(spec *hostSpec, status *api.HostStatus) (applied api.ConditionStatus, reason, message string) {
	var waiting, failed []string
	now := spec.held().digests
	for name := range now {
		p, ok := status.Parts[name]
		switch {
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
		return api.False, "Applying", "not applied yet: " + strings.Join(waiting, "; ")
	}
	return api.True, "Applied", fmt.Sprintf("%d parts are applied", len(spec.parts))
}

// renew signs a fresh certificate for a host that holds its stream.
func (h *Hub) renew(s *stream, csr string) *api.ServerFrame {
	cert, key, err := h.Signer.Renew([]byte(csr), s.peer.Name, s.peer.UID)
	if err != nil {
		h.event(s, api.Warning, "RenewalRefused", clip(err.Error(), 1024))
		return nil
	}
	if key != s.peer.Key {
		h.event(s, api.Warning, "RenewalRefused", "the request is over another key than the host joined with")
		return nil
	}
	return &api.ServerFrame{Certificate: string(cert)}
}
