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

// Recovery is what follows on a restore.
type Recovery interface {
	Status() api.RecoveryStatus
	Accept(ctx context.Context, host string) error
	WriteOff(ctx context.Context, host string) error
	Finish(ctx context.Context, forget bool) error
	// Claim notes a host that the store does not know, and says what it is told.
	Claim(ctx context.Context, h api.RecoveryHost) string
	// Known gives a new object what hosts have for its kind and name; the uid is
	// "" when they have nothing.
	Known(o api.Object) (uid string)
}

// upkeep saves a Site, and says what is made of a restored one.
type upkeep struct {
	recovery Recovery
	backup   func(ctx context.Context, w io.Writer, blobs bool) error // nil for none
	streams  *streams
	log      *slog.Logger
}

func (h *upkeep) recoveryRoutes() []route {
	const tag = "Recovery"
	return []route{
		{method: "GET", path: "/v1/recovery", tag: tag, role: viewer, summary: "How the Site stands after a restore, and what it waits for", out: api.RecoveryStatus{},
			handle: func(c *call) error { return c.json(http.StatusOK, h.recovery.Status()) }},
		{method: "POST", path: "/v1/recovery/accept/{name}", tag: tag, role: admin, audited: true, status: http.StatusNoContent,
			summary: "Take a host for the one that it says it is, whose key is from after the backup",
			handle:  h.decided(func(c *call) error { return h.recovery.Accept(c.r.Context(), c.name()) })},
		{method: "POST", path: "/v1/recovery/write-off/{name}", tag: tag, role: admin, audited: true, status: http.StatusNoContent,
			summary: "Wait no longer for a host: nothing is left of it, or what is left may be provisioned over",
			handle:  h.decided(func(c *call) error { return h.recovery.WriteOff(c.r.Context(), c.name()) })},
		{method: "POST", path: "/v1/recovery/finish", tag: tag, role: admin, audited: true, status: http.StatusNoContent,
			summary: "Forget that there was a restore", query: []parameter{{"forget", "also what is kept for Networks, Guests and hosts that no one has applied or accepted", "boolean"}},
			handle: h.decided(func(c *call) error {
				forget, err := c.flag("forget")
				if err != nil {
					return err
				}
				return h.recovery.Finish(c.r.Context(), forget)
			})},
	}
}

// decided is a person's word about a host.
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

// create stores a new object: as the one that hosts have by its name, where a
// restored Site knows of one.
func (h *objects) create(ctx context.Context, o api.Object) error {
	if uid := h.recovery.Known(o); uid != "" {
		return h.store.CreateAs(ctx, o, uid)
	}
	return h.store.Create(ctx, o)
}

// mayDelete refuses to delete the Site while that would let go of everything.
func (h *objects) mayDelete(k api.Kind) error {
	if k.Name == "Site" && store.Recovery(h.cache) != nil {
		return problem(http.StatusConflict, "the Site was restored, and knows what that has left open: weftctl restore status; when all is done, weftctl restore finish")
	}
	return nil
}
