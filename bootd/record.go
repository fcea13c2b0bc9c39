package bootd

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/journal"
)

// recorder keeps the records that people read later: events, the reasons of decisions, and the audit. A record that
// cannot be written never stops the action that it describes: it is counted and logged.
type recorder struct {
	events    *journal.Journal[api.Event]
	decisions *journal.Journal[api.Decision]
	audit     *journal.Journal[api.AuditRecord]
	log       *slog.Logger
}

func openRecorder(dir string, log *slog.Logger) (*recorder, error) {
	r := &recorder{log: log}
	var err error
	if r.events, err = journal.Open[api.Event](dir, "events", journal.Options{Log: log}); err != nil {
		return nil, err
	}
	if r.decisions, err = journal.Open[api.Decision](dir, "decisions", journal.Options{Log: log}); err != nil {
		return nil, errors.Join(err, r.close())
	}
	if r.audit, err = journal.Open[api.AuditRecord](dir, "audit", journal.Options{Log: log, Sync: journal.Each, MaxFiles: 64}); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *recorder) close() error {
	var errs []error
	if r.events != nil {
		errs = append(errs, r.events.Close())
	}
	if r.decisions != nil {
		errs = append(errs, r.decisions.Close())
	}
	if r.audit != nil {
		errs = append(errs, r.audit.Close())
	}
	return errors.Join(errs...)
}

// Event records an event of an object.
func (r *recorder) Event(o api.Object, typ api.EventType, reason, message string) {
	kind, meta := api.KindOf(o), o.Meta()
	level := slog.LevelInfo
	if typ == api.Warning {
		level = slog.LevelWarn
	}
	r.log.Log(context.Background(), level, message, "kind", kind.Name, "name", meta.Name, "reason", reason)
	r.append(r.events.Append(context.Background(), api.Event{
		Time: time.Now().UTC(), Kind: kind.Name, Name: meta.Name, UID: meta.UID, Type: typ, Reason: reason, Message: message,
	}))
}

// Decision records why a machine got its answer.
func (r *recorder) Decision(d api.Decision) {
	d.Time = time.Now().UTC()
	r.log.Debug("decision", "machine", d.Machine, "mac", d.MAC, "peer", d.Peer, "question", d.Question, "answer", d.Answer, "reason", d.Reason)
	r.append(r.decisions.Append(context.Background(), d))
}

// Audit records a change that a person or a host requested.
func (r *recorder) Audit(a api.AuditRecord) {
	r.append(r.audit.Append(context.Background(), a))
}

// metrics counts records that could not be written.
func (r *recorder) metrics() prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "rackweft_records_lost_total", Help: "Events, decisions and audit records that could not be written.",
	}, func() float64 { return float64(r.events.Lost() + r.decisions.Lost() + r.audit.Lost()) })
}

// damagedBlobs counts the blobs that are not served because the disk has damaged them.
func damagedBlobs(b *blob.Store) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "rackweft_blobs_damaged", Help: "Blobs whose content on the disk is not what their digest says; they are not served.",
	}, func() float64 { return float64(b.Damaged()) })
}

func (r *recorder) append(err error) {
	if err != nil && !errors.Is(err, journal.ErrClosed) {
		r.log.Error("a record was lost", "error", err)
	}
}
