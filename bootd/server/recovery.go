package server

import (
	"context"
	"errors"
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

func (s *Server) recoveryRoutes() []route {
	const tag = "Recovery"
	return []route{
		{method: "GET", path: "/v1/recovery", tag: tag, role: viewer, summary: "How the Site stands after a restore, and what it waits for", out: api.RecoveryStatus{},
			handle: func(c *call) error { return c.json(http.StatusOK, s.conf.Recovery.Status()) }},
		{method: "POST", path: "/v1/recovery/accept/{name}", tag: tag, role: admin, audited: true, status: http.StatusNoContent,
			summary: "Take a host for the one that it says it is, whose key is from after the backup",
			handle:  s.decided(func(c *call) error { return s.conf.Recovery.Accept(c.r.Context(), c.name()) })},
		{method: "POST", path: "/v1/recovery/write-off/{name}", tag: tag, role: admin, audited: true, status: http.StatusNoContent,
			summary: "Wait no longer for a host: nothing is left of it, or what is left may be provisioned over",
			handle:  s.decided(func(c *call) error { return s.conf.Recovery.WriteOff(c.r.Context(), c.name()) })},
		{method: "POST", path: "/v1/recovery/finish", tag: tag, role: admin, audited: true, status: http.StatusNoContent,
			summary: "Forget that there was a restore", query: []parameter{{"forget", "also what is kept for Networks, Guests and hosts that nobody has applied or accepted", "boolean"}},
			handle: s.decided(func(c *call) error {
				forget, err := c.flag("forget")
				if err != nil {
					return err
				}
				return s.conf.Recovery.Finish(c.r.Context(), forget)
			})},
	}
}

// decided is a person's word about a host.
func (s *Server) decided(do func(*call) error) func(*call) error {
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
func (s *Server) create(ctx context.Context, o api.Object) error {
	if uid := s.conf.Recovery.Known(o); uid != "" {
		return s.conf.Store.CreateAs(ctx, o, uid)
	}
	return s.conf.Store.Create(ctx, o)
}

// mayDelete refuses to delete the Site while that would let go of everything.
func (s *Server) mayDelete(k api.Kind) error {
	if k.Name == "Site" && store.Recovery(s.conf.Cache) != nil {
		return problem(http.StatusConflict, "the Site was restored, and knows what that has left open: weftctl restore status; when all is done, weftctl restore finish")
	}
	return nil
}
