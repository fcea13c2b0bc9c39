package server

import (
	"context"
	"net/http"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/journal"
	"github.com/rackweft/rackweft/bootd/store"
)

// maxRecords limits one answer from the journal.
const maxRecords = 1000

// DecisionList is decisions, oldest first.
type DecisionList struct {
	Items []api.Decision `json:"items"`
}

// AuditList is audit records, oldest first.
type AuditList struct {
	Items []api.AuditRecord `json:"items"`
}

// journals returns recorded events, decisions and audit records.
type journals struct {
	cache     *store.Cache
	events    *journal.Journal[api.Event]
	decisions *journal.Journal[api.Decision]
	auditLog  *journal.Journal[api.AuditRecord]
	streams   *streams
}

func (h *journals) routes() []route {
	return []route{
		{method: "GET", path: "/v1/events", tag: "Journal", role: viewer, stream: true, summary: "Events, oldest first, as newline-delimited JSON",
			query:   []parameter{{"kind", "Of this kind only.", "string"}, {"name", "Of the object of this name only.", "string"}, {"follow", "Continue with new ones.", "boolean"}},
			outType: "application/x-ndjson", out: api.Event{}, handle: h.readEvents},
		{method: "GET", path: "/v1/decisions", tag: "Journal", role: viewer, summary: "The decisions about machines' requests",
			query: []parameter{{"machine", "Of this Machine, or of this MAC, only.", "string"}}, out: DecisionList{}, handle: h.readDecisions},
		{method: "GET", path: "/v1/audit", tag: "Journal", role: admin, summary: "Who changed what", out: AuditList{}, handle: h.readAudit},
	}
}

func (h *journals) readEvents(c *call) error {
	follow, err := c.flag("follow")
	if err != nil {
		return err
	}
	q := c.r.URL.Query()
	kind := q.Get("kind")
	if kind != "" {
		k, err := api.LookupKind(kind)
		if err != nil {
			return problem(http.StatusBadRequest, "?kind=%s: %s", kind, err)
		}
		kind = k.Name
	}
	wanted := eventsOf(kind, q.Get("name"))
	ctx, cancel := h.streams.lasting(c)
	defer cancel()
	last := h.events.LastSeq()
	kept, err := h.events.Query(ctx, journal.Query[api.Event]{Limit: maxRecords, Filter: func(r journal.Record[api.Event]) bool {
		return r.Seq <= last && wanted(r)
	}})
	if err != nil {
		return err
	}
	send := c.lines()
	for _, r := range kept {
		if err := send(r.Data); err != nil {
			return err
		}
	}
	if !follow || c.r.Method != http.MethodGet {
		return nil
	}
	for r, err := range h.events.Watch(ctx, last) {
		if ctx.Err() != nil {
			return nil // the client disconnected, or the Server stops
		}
		if err != nil {
			return err
		}
		if !wanted(r) {
			continue
		}
		if err := send(r.Data); err != nil {
			return err
		}
	}
	return nil
}

// eventsOf matches the events of a kind and a name; empty ones match all.
func eventsOf(kind, name string) func(journal.Record[api.Event]) bool {
	return func(r journal.Record[api.Event]) bool {
		return (kind == "" || r.Data.Kind == kind) && (name == "" || r.Data.Name == name)
	}
}

// newest returns the last records that match, oldest first.
func newest[T any](ctx context.Context, j *journal.Journal[T], limit int, match func(journal.Record[T]) bool) ([]T, error) {
	records, err := j.Query(ctx, journal.Query[T]{Limit: limit, Filter: match})
	if err != nil {
		return nil, err
	}
	list := make([]T, len(records))
	for i, r := range records {
		list[i] = r.Data
	}
	return list, nil
}

func (h *journals) readDecisions(c *call) error {
	var match func(journal.Record[api.Decision]) bool
	if who := c.r.URL.Query().Get("machine"); who != "" {
		match = h.about(who)
	}
	list, err := newest(c.r.Context(), h.decisions, maxRecords, match)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, DecisionList{Items: list})
}

// about matches the decisions on a Machine, by its name and its MACs, or on a MAC.
func (h *journals) about(who string) func(journal.Record[api.Decision]) bool {
	var macs []api.MAC
	if mac, err := api.ParseMAC(who); err == nil {
		macs = append(macs, mac)
	}
	if m, ok := store.Cached[api.Machine](h.cache, who); ok {
		macs = m.MACs()
	}
	return func(r journal.Record[api.Decision]) bool {
		return r.Data.Machine == who || r.Data.MAC != "" && slices.Contains(macs, r.Data.MAC)
	}
}

func (h *journals) readAudit(c *call) error {
	list, err := newest(c.r.Context(), h.auditLog, maxRecords, nil)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, AuditList{Items: list})
}
