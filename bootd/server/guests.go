package server

import (
	"errors"
	"net/http"
	"strings"

	"github.com/google/uuid"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/guest"
	"github.com/rackweft/rackweft/bootd/store"
)

// guests handles the verbs of Guests, and what their hosts fetch for them.
type guests struct {
	store   *store.Store
	cache   *store.Cache
	objects *objects
}

func (h *guests) routes() []route {
	var routes []route
	for _, v := range []struct{ verb, summary string }{
		{api.GuestVerbReset, "Reset a Guest, as with a reset button"},
		{api.GuestVerbRestart, "Stop a Guest gracefully and start it again, so that changes of its spec take effect"},
		{api.GuestVerbMove, "Move a Guest to another host, with its addresses and its disks"},
		{api.GuestSnapshotCreate, "Take a snapshot of all disks of a Guest at one point in time"},
		{api.GuestSnapshotRevert, "Revert all disks of a stopped Guest to a snapshot"},
		{api.GuestSnapshotDelete, "Delete a snapshot of a Guest"},
	} {
		routes = append(routes, route{method: "POST", path: "/v1/guests/{name}/" + v.verb, tag: "Guest", role: operator, audited: true,
			summary: v.summary, in: api.GuestAction{}, out: api.Guest{}, status: http.StatusAccepted,
			handle: func(c *call) error { return h.verb(c, v.verb) }})
	}
	return append(routes, route{method: "GET", path: "/v1/hosts/{name}/guests/{guest}/config", tag: "Host", host: ownName,
		summary: "The config of a Guest on the host: Ignition's, or the user data of cloud-init", outType: "application/vnd.coreos.ignition+json", handle: h.config},
		route{method: "GET", path: "/v1/hosts/{name}/guests/{guest}/shares/{share}", tag: "Host", host: ownName,
			summary: "The content of a share of a Guest on the host", out: api.GuestShareContent{}, handle: h.share})
}

// on returns a Guest that is on the calling host.
func (h *guests) on(c *call) (*api.Guest, error) {
	if c.who.host == nil {
		return nil, problem(http.StatusForbidden, "only the Guest's host may read it: show the certificate of host:%s", c.name())
	}
	name := c.r.PathValue("guest")
	g, ok := store.Cached[api.Guest](h.cache, name)
	if !ok || !guest.Has(g, c.who.host.UID) {
		return nil, problem(http.StatusNotFound, "Guest %q is not on %s", name, c.name())
	}
	return g, nil
}

// share returns to a host the content of a Guest's share.
func (h *guests) share(c *call) error {
	g, err := h.on(c)
	if err != nil {
		return err
	}
	content, err := guest.Configs{Store: h.store, Cache: h.cache}.Share(c.r.Context(), g, c.r.PathValue("share"))
	if err != nil {
		return problem(http.StatusServiceUnavailable, "%s", err)
	}
	c.w.Header().Set("Cache-Control", "no-store")
	return c.json(http.StatusOK, content)
}

// config returns to a host the config of one of its Guests.
func (h *guests) config(c *call) error {
	g, err := h.on(c)
	if err != nil {
		return err
	}
	config, mediaType, err := guest.Configs{Store: h.store, Cache: h.cache}.Config(c.r.Context(), g)
	if err != nil {
		return problem(http.StatusServiceUnavailable, "%s", err)
	}
	c.w.Header().Set("Content-Type", mediaType)
	c.w.Header().Set("Cache-Control", "no-store")
	c.write(http.StatusOK, config)
	return nil
}

// verb writes a verb into the Guest's status; one with the same id as the last changes nothing.
func (h *guests) verb(c *call, verb string) error {
	raw, err := c.body(maxBoot)
	if err != nil {
		return err
	}
	var a api.GuestAction
	if len(raw) > 0 {
		if err := api.DecodeStrict(raw, &a); err != nil {
			return err
		}
	}
	if len(a.ID) > 64 {
		return problem(http.StatusUnprocessableEntity, "id has at most 64 characters")
	}
	if a.ID == "" {
		a.ID = uuid.NewString()
	}
	if _, ok := store.Cached[api.Machine](h.cache, a.To); a.To != "" && !ok {
		return problem(http.StatusUnprocessableEntity, "there is no Machine %s to move to", a.To)
	}
	g, err := store.Mutate(c.r.Context(), h.store, c.name(), func(g *api.Guest) error {
		if g.Status.Request != nil && g.Status.Request.ID == a.ID {
			return store.ErrUnchanged
		}
		if err := guest.Ask(g, verb, a); err != nil {
			return problem(http.StatusUnprocessableEntity, "%s", err)
		}
		c.changed = true
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return problem(http.StatusNotFound, "Guest %q does not exist", c.name())
	}
	if err != nil {
		return err
	}
	if c.changed {
		c.diff = []api.Change{{Pointer: "/status", New: strings.TrimSpace(verb + " " + a.To + a.Snapshot)}}
	}
	return c.json(http.StatusAccepted, g)
}
