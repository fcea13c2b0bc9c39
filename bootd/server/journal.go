package server

import (
	"net/http"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// maxRecords bounds one answer out of the journal.
const maxRecords = 1000

// DecisionList is decisions, oldest first.
type DecisionList struct {
	Items []api.Decision `json:"items"`
}

// AuditList is audit records, oldest first.
type AuditList struct {
	Items []api.AuditRecord `json:"items"`
}

func (s *Server) journalRoutes() []route {
	return []route{
		{method: "GET", path: "/v1/events", tag: "Journal", role: viewer, stream: true, summary: "Events, oldest first, as newline-delimited JSON",
			query:   []parameter{{"kind", "Of this kind only.", "string"}, {"name", "Of the object of this name only.", "string"}, {"follow", "Go on with new ones.", "boolean"}},
			outType: "application/x-ndjson", out: api.Event{}, handle: s.events},
		{method: "GET", path: "/v1/decisions", tag: "Journal", role: viewer, summary: "Why machines got the answers that they got",
			query: []parameter{{"machine", "Of this Machine, or of this MAC, only.", "string"}}, out: DecisionList{}, handle: s.decisions},
		{method: "GET", path: "/v1/audit", tag: "Journal", role: admin, summary: "Who changed what", out: AuditList{}, handle: s.auditRecords},
	}
}

func (s *Server) events(c *call) error {
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
	ctx, cancel := s.lasting(c)
	defer cancel()
	send := c.lines()
	err = s.conf.Journal.Events(ctx, kind, q.Get("name"), follow && c.r.Method == http.MethodGet, func(e api.Event) error { return send(e) })
	if ctx.Err() != nil {
		return nil // the client left, or the Server stops
	}
	return err
}

func (s *Server) decisions(c *call) error {
	match := func(api.Decision) bool { return true }
	if who := c.r.URL.Query().Get("machine"); who != "" {
		match = s.about(who)
	}
	list, err := s.conf.Journal.Decisions(maxRecords, match)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, DecisionList{Items: list})
}

// about matches the decisions on a Machine, by its name and its MACs, or on a MAC.
func (s *Server) about(who string) func(api.Decision) bool {
	var macs []api.MAC
	if mac, err := api.ParseMAC(who); err == nil {
		macs = append(macs, mac)
	}
	if m, ok := store.Cached[api.Machine](s.conf.Cache, who); ok {
		macs = m.MACs()
	}
	return func(d api.Decision) bool {
		return d.Machine == who || d.MAC != "" && slices.Contains(macs, d.MAC)
	}
}

func (s *Server) auditRecords(c *call) error {
	list, err := s.conf.Journal.AuditRecords(maxRecords)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, AuditList{Items: list})
}
