package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/recovery"
	"github.com/rackweft/rackweft/bootd/store"
)

// Recovery completes a restore.
type Recovery interface {
	Status() api.RecoveryStatus
	Accept(ctx context.Context, host string) error
	WriteOff(ctx context.Context, host string) error
	Finish(ctx context.Context, forget bool) error
	// Claim records a host that the store does not know, and returns the message for it.
	Claim(ctx context.Context, h api.RecoveryHost) string
	// Known completes a new object with what hosts report for its kind and name; the uid is "" when they report
	// nothing.
	Known(o api.Object) (uid string)
}

// upkeep backs up a Site, and handles the decisions about a restored one.
type upkeep struct {
	recovery Recovery
	backup   func(ctx context.Context, w io.Writer, blobs bool) error // nil for none
	streams  *streams
	log      *slog.Logger
}

func (h *upkeep) recoveryRoutes() []route {
	const tag = "Recovery"
	return []route{
		{method: "GET", path: "/v1/recovery", tag: tag, role: viewer, summary: "The state of the Site after a restore, and what it waits for", out: api.RecoveryStatus{},
			handle: func(c *call) error { return c.json(http.StatusOK, h.recovery.Status()) }},
		{method: "POST", path: "/v1/recovery/accept/{name}", tag: tag, role: admin, audited: true, status: http.StatusNoContent,
			summary: "Accept a host whose key was made after the backup",
			handle:  h.decided(func(c *call) error { return h.recovery.Accept(c.r.Context(), c.name()) })},
		{method: "POST", path: "/v1/recovery/write-off/{name}", tag: tag, role: admin, audited: true, status: http.StatusNoContent,
			summary: "Stop waiting for a host that no longer exists, or may be provisioned again",
			handle:  h.decided(func(c *call) error { return h.recovery.WriteOff(c.r.Context(), c.name()) })},
		{method: "POST", path: "/v1/recovery/finish", tag: tag, role: admin, audited: true, status: http.StatusNoContent,
			summary: "End the restore", query: []parameter{{"forget", "also drop reservations for Networks, Guests and hosts that were not applied or accepted", "boolean"}},
			handle: h.decided(func(c *call) error {
				forget, err := c.flag("forget")
				if err != nil {
					return err
				}
				return h.recovery.Finish(c.r.Context(), forget)
			})},
	}
}

// decided is a person's decision about a host.
func (h *upkeep) decided(do func(*call) error) func(*call) error {
	return func(c *call) error {
		err := do(c)
		if errors.Is(err, recovery.ErrNothing) {
			return problem(http.StatusConflict, "%s", err)
		}
		if err != nil {
			return err
		}
		c.changed = true
		return c.empty(http.StatusNoContent)
	}
}

// create stores a new object, with the uid that hosts report for its name where the Site was restored.
func (h *objects) create(ctx context.Context, o api.Object) error {
	if uid := h.recovery.Known(o); uid != "" {
		return h.store.CreateAs(ctx, o, uid)
	}
	return h.store.Create(ctx, o)
}

// mayDelete refuses to delete the Site while a restore is unfinished: its reservations would be lost.
func (h *objects) mayDelete(k api.Kind) error {
	if k.Name == "Site" && store.Recovery(h.cache) != nil {
		return problem(http.StatusConflict, "the Site was restored, and the restore is not finished: see weftctl restore status; when all is done, weftctl restore finish")
	}
	return nil
}
