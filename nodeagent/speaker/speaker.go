// Package speaker owns the agent's side of the host's BGP speaker: it hands the
// bgp part over in a file, has the speaker started, and reports what that
// shows. The speaker itself is package bgp, in a unit of its own: no session
// notices what becomes of the agent.
package speaker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bgp"
	"github.com/rackweft/rackweft/bgp/fib"
	"github.com/rackweft/rackweft/bgp/loopback"
	"github.com/rackweft/rackweft/nodeagent"
)

// Options make a Speaker.
type Options struct {
	Part   string // file for the part; it has MD5 keys in it
	Socket string // of the speaker
	// Start has the speaker started, Stop has it stopped; both take it as it is
	// when there is nothing to do.
	Start, Stop func(ctx context.Context) error
	// Inside are the speakers inside of Networks, which are reported too; nil is none.
	Inside *Inside
	Log    *slog.Logger
}

// Speaker is the nodeagent.Handler of the bgp part.
type Speaker struct {
	options Options
	client  *bgp.Client
	audits  chan api.BGPAudit
	metrics metrics
}

// maxAudits bounds what waits for Run; what is dropped is heard again.
const maxAudits = 512

// New prepares a Speaker; nothing is touched before Reconcile.
func New(o Options) *Speaker {
	return &Speaker{options: o, client: bgp.NewClient(o.Socket), audits: make(chan api.BGPAudit, maxAudits), metrics: newMetrics()}
}

// hasPart reports whether the speaker has been given one.
func (s *Speaker) hasPart() bool {
	_, err := os.Stat(s.options.Part)
	return err == nil
}

// Audit implements nodeagent.Auditor.
func (s *Speaker) Audit(a api.BGPAudit) {
	select {
	case s.audits <- a:
	default:
	}
}

// Kind implements nodeagent.Handler.
func (s *Speaker) Kind() string { return api.PartBGP }

// Reconcile implements nodeagent.Handler.
func (s *Speaker) Reconcile(ctx context.Context, parts []nodeagent.Part) map[string]api.PartStatus {
	out := map[string]api.PartStatus{}
	there := false
	for _, p := range parts {
		there = there || p.Want != nodeagent.Removed && p.Value != nil
	}
	for _, p := range parts {
		switch {
		case p.Want != nodeagent.Removed:
			out[p.Key()] = s.ensure(ctx, p)
		case there: // its successor has the speaker
			out[p.Key()] = api.PartStatus{State: api.PartApplied}
		default:
			out[p.Key()] = s.remove(ctx)
		}
	}
	return out
}

func pending(err error) api.PartStatus {
	return api.PartStatus{State: api.PartPending, Message: err.Error()}
}

func (s *Speaker) ensure(ctx context.Context, p nodeagent.Part) api.PartStatus {
	raw, err := api.EncodePart(p.Value)
	if err != nil {
		return api.PartStatus{State: api.PartFailed, Message: err.Error()}
	}
	if err := writePart(s.options.Part, raw); err != nil {
		return pending(fmt.Errorf("hand the speaker its part: %w", err))
	}
	status, err := s.client.Status(ctx)
	if err != nil {
		if err := s.options.Start(ctx); err != nil {
			return pending(fmt.Errorf("start the speaker: %w", err))
		}
		if status, err = await(ctx, s.client, raw); err != nil {
			return pending(err)
		}
	} else if status.Part != digest(raw) {
		if status, err = await(ctx, s.client, raw); err != nil {
			return pending(err)
		}
	}
	return toPartStatus(status, digest(raw))
}

func digest(raw []byte) string {
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// await gives the speaker the time to take the part up.
func await(ctx context.Context, client *bgp.Client, raw []byte) (bgp.Status, error) {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		status, err := client.Status(ctx)
		if err == nil && status.Part == digest(raw) {
			return status, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return status, err // that it has not taken it up yet is told by its status
		}
	}
}

// toPartStatus says how the part stands: sessions that are down are told of,
// but no fault of the part.
func toPartStatus(s bgp.Status, digest string) api.PartStatus {
	out := api.PartStatus{State: api.PartApplied, Message: s.Line()}
	switch {
	case s.Part != digest:
		out.State, out.Message = api.PartPending, "the speaker has not taken the part up yet: "+s.Line()
	case s.Refused != "":
		out.State, out.Message = api.PartFailed, "the speaker refuses the part and goes on with what it had: "+s.Refused
	case s.Problem != "":
		out.State = api.PartPending
	}
	return out
}

// remove ends the speaker, and its routes and addresses with it.
func (s *Speaker) remove(ctx context.Context) api.PartStatus {
	old, err := os.ReadFile(s.options.Part)
	if errors.Is(err, fs.ErrNotExist) {
		return api.PartStatus{State: api.PartApplied}
	}
	if err := s.options.Stop(ctx); err != nil {
		return pending(fmt.Errorf("stop the speaker: %w", err))
	}
	if _, err := s.client.Status(ctx); err == nil {
		return pending(fmt.Errorf("the speaker still answers on %s: stop it", s.options.Socket))
	}
	if err := flush(old, s.options.Log); err != nil {
		return pending(err)
	}
	if err := loopback.Sync(nil); err != nil {
		return pending(err)
	}
	if err := os.Remove(s.options.Part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pending(fmt.Errorf("remove the speaker's part: %w", err))
	}
	return api.PartStatus{State: api.PartApplied}
}

// flush takes the speaker's routes out of the kernel.
func flush(part []byte, log *slog.Logger) error {
	options, err := bgp.FIBOptions(part)
	if err != nil {
		log.Warn("bgp: the part that goes cannot be read; the main table is cleared of its routes", "error", err)
	}
	options.Log = log
	f, err := fib.Open(options)
	if err != nil {
		return err
	}
	defer f.Close()
	state, err := f.Sync(nil, false)
	if err == nil && state.Installed > 0 {
		err = fmt.Errorf("%d routes of the speaker are left in the kernel", state.Installed)
	}
	return err
}
