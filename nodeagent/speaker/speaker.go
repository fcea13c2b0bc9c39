// Package speaker owns the agent's side of the host's BGP speaker: it writes the bgp
// part to a file, starts the speaker, and reports its status. The speaker itself is
// package bgp, in a unit of its own: its sessions do not depend on the agent.
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

// Options configure a Speaker.
type Options struct {
	Part   string // file for the part; it contains MD5 keys
	Socket string // of the speaker
	// Start starts the speaker, Stop stops it; both succeed if there is nothing to do.
	Start, Stop func(ctx context.Context) error
	// Inside has the speakers inside Networks, which are reported, too; nil if there
	// are none.
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

// maxAudits bounds the audits that wait for Run; a dropped one is reported again.
const maxAudits = 512

// New creates a Speaker; it touches nothing before Reconcile.
func New(o Options) *Speaker {
	return &Speaker{options: o, client: bgp.NewClient(o.Socket), audits: make(chan api.BGPAudit, maxAudits), metrics: newMetrics()}
}

// hasPart reports whether the speaker has been given a part.
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
		case there: // its successor owns the speaker
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
		return pending(fmt.Errorf("pass the part to the speaker: %w", err))
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

// await waits for the speaker to read the part.
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
			return status, err // the status shows whether it has read the part
		}
	}
}

// toPartStatus returns the part's status. Sessions that are down are in its message,
// but do not make the part fail.
func toPartStatus(s bgp.Status, digest string) api.PartStatus {
	out := api.PartStatus{State: api.PartApplied, Message: s.Line()}
	switch {
	case s.Part != digest:
		out.State, out.Message = api.PartPending, "the speaker has not read the part yet: "+s.Line()
	case s.Refused != "":
		out.State, out.Message = api.PartFailed, "the speaker refuses the part and keeps its previous configuration: "+s.Refused
	case s.Problem != "":
		out.State = api.PartPending
	}
	return out
}

// remove stops the speaker, and removes its routes and addresses.
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
		return pending(fmt.Errorf("remove the part of the speaker: %w", err))
	}
	return api.PartStatus{State: api.PartApplied}
}

// flush removes the speaker's routes from the kernel.
func flush(part []byte, log *slog.Logger) error {
	options, err := bgp.FIBOptions(part)
	if err != nil {
		log.Warn("bgp: cannot read the part to be removed; removing the speaker's routes from the main table", "error", err)
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
