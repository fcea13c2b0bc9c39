package server

import (
	"net/http"
	"net/netip"

	"github.com/rackweft/rackweft/api"
)

// zones shows a Zone's BGP.
type zones struct{ zones Zones }

func (h *zones) routes() []route {
	const one = "/v1/zones/{name}/bgp/"
	return []route{
		{method: "GET", path: one + "sessions", tag: "Zone", role: viewer, summary: "Every BGP session of a Zone, as its ends report it",
			out: api.ZoneSessions{}, handle: h.sessions},
		{method: "GET", path: one + "routes", tag: "Zone", role: viewer, summary: "The routes that a Zone's hosts should originate, and those that its reflectors have",
			out: api.ZoneRoutes{}, handle: h.bgpRoutes},
		{method: "GET", path: one + "test", tag: "Zone", role: viewer, summary: "The result of a Zone's policies for a prefix", out: api.BGPTest{}, handle: h.test,
			query: []parameter{{"prefix", "Such as 10.5.3.0/24.", "string"}, {"from", "The host that advertises it, or the address of an uplink.", "string"}}},
	}
}

func (h *zones) sessions(c *call) error {
	v, err := h.zones.ZoneSessions(c.r.Context(), c.name())
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, v)
}

func (h *zones) bgpRoutes(c *call) error {
	v, err := h.zones.ZoneRoutes(c.r.Context(), c.name())
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, v)
}

func (h *zones) test(c *call) error {
	q := c.r.URL.Query()
	prefix, err := netip.ParsePrefix(q.Get("prefix"))
	if err != nil {
		return problem(http.StatusBadRequest, "invalid ?prefix=%s: want one such as 10.5.3.0/24", q.Get("prefix"))
	}
	if q.Get("from") == "" {
		return problem(http.StatusBadRequest, "?from= is missing: name the host that advertises the prefix, or the address of an uplink")
	}
	v, err := h.zones.TestPolicy(c.r.Context(), c.name(), q.Get("from"), prefix)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, v)
}
