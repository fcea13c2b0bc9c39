package hostspec

import (
	"bufio"
	"context"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// receive reads a host's frames until its stream breaks.
func (h *Hub) receive(ctx context.Context, s *stream, in *bufio.Reader, c Conn, hello *api.Hello, replies chan<- api.ServerFrame) error {
	for {
		_ = c.SetReadDeadline(time.Now().Add(silence))
		f, err := readFrame(in)
		if err != nil {
			return fmt.Errorf("host %s: %w", s.peer.Name, err)
		}
		s.touch()
		answer := h.handle(ctx, s, hello, f)
		if answer == nil {
			continue
		}
		select {
		case replies <- *answer:
		case <-ctx.Done():
			return nil
		}
	}
}

// handle takes one frame and returns what to answer, if anything.
func (h *Hub) handle(ctx context.Context, s *stream, hello *api.Hello, f *api.HostFrame) *api.ServerFrame {
	switch {
	case f.Ping != nil:
		return &api.ServerFrame{Pong: &api.Ping{Time: time.Now().UTC()}}
	case f.Status != nil:
		h.report(ctx, s, hello, f.Status)
	case f.Event != nil:
		typ := f.Event.Type
		if typ != api.Warning {
			typ = api.Normal
		}
		h.Record.Event(h.object(s.peer.Name), typ, clip(f.Event.Reason, 64), clip(f.Event.Message, 1024))
	case f.Renew != "":
		return h.renew(ctx, s, f.Renew)
	}
	return nil
}

// clip bounds what a host may have written into the journal.
func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// report takes over what the host says of itself.
func (h *Hub) report(ctx context.Context, s *stream, hello *api.Hello, status *api.HostStatus) {
	m, ok := store.Cached[api.Machine](h.Cache, s.peer.Name)
	if !ok {
		return
	}
	spec, err := h.Compiler.Compile(m)
	if err != nil {
		h.Log.Warn("compile HostSpec", "host", s.peer.Name, "error", err)
		return
	}
	applied, reason, message := judge(spec, status)
	h.mutate(ctx, s.peer.Name, s.peer.UID, func(m *api.Machine) {
		next := *status
		next.UID, next.Connected, next.LastHeartbeat = s.peer.UID, false, time.Time{}
		next.Reported = time.Time{}
		if old := m.Status.Host; old != nil {
			next.Reported = old.Reported
		}
		if m.Status.Host == nil || !reflect.DeepEqual(*m.Status.Host, next) {
			next.Reported = time.Now().UTC()
			m.Status.Host = &next
		}
		m.Status.Conditions.Set(time.Now(), api.CondApplied, applied, reason, message)
	})
}

// judge compares what the host has applied with what it should have.
func judge(spec *api.HostSpec, status *api.HostStatus) (applied api.ConditionStatus, reason, message string) {
	var waiting, failed []string
	for name, digest := range digests(spec) {
		p, ok := status.Parts[name]
		switch {
		case ok && p.State == api.PartFailed:
			failed = append(failed, name+": "+p.Message)
		case !ok || p.State != api.PartApplied || p.Digest != digest:
			waiting = append(waiting, strings.TrimSuffix(name+": "+p.Message, ": "))
		}
	}
	switch {
	case len(failed) > 0:
		return api.False, "PartFailed", strings.Join(failed, "; ")
	case len(waiting) > 0:
		return api.False, "Applying", "not applied yet: " + strings.Join(waiting, "; ")
	}
	return api.True, "Applied", fmt.Sprintf("%d parts are applied", len(spec.Parts))
}

// renew signs a fresh certificate for a host that holds its stream.
func (h *Hub) renew(ctx context.Context, s *stream, csr string) *api.ServerFrame {
	cert, key, err := h.Signer.Renew([]byte(csr), s.peer.Name, s.peer.UID)
	if err != nil {
		h.Record.Event(h.object(s.peer.Name), api.Warning, "RenewalRefused", err.Error())
		return nil
	}
	if key != s.peer.Key {
		h.Record.Event(h.object(s.peer.Name), api.Warning, "RenewalRefused", "the request is over another key than the host joined with")
		return nil
	}
	return &api.ServerFrame{Certificate: string(cert)}
}
