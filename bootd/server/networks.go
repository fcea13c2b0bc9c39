package server

import (
	"net/http"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
)

// networks show who is of a Network.
type networks struct {
	cache    *store.Cache
	networks *network.Index
	hub      Hub
}

func (h *networks) routes() []route {
	return []route{
		{method: "GET", path: "/v1/networks/{name}/peers", tag: "Network", role: viewer, out: api.NetworkPeers{}, handle: h.peers,
			summary: "Who has a lease of a Network, and what each host last said of it"},
		{method: "GET", path: "/v1/networks/{name}/explain", tag: "Network", role: viewer, out: api.NetworkPath{}, handle: h.path,
			query:   []parameter{{"from", "Where it comes from: a Guest, or an address.", "string"}, {"to", "Where it goes to: a Guest, NETWORK/GUEST, or an address.", "string"}},
			summary: "What becomes of a packet of a Network"},
	}
}

// path follows a packet of a Network.
func (h *networks) path(c *call) error {
	from, to := c.r.URL.Query().Get("from"), c.r.URL.Query().Get("to")
	if from == "" || to == "" {
		return problem(http.StatusBadRequest, "from and to are both needed: a Guest, NETWORK/GUEST, or an address")
	}
	paths := network.Paths{
		Networks: store.CachedList[api.Network](h.cache), Guests: store.CachedList[api.Guest](h.cache),
		Closed: network.Closed(h.cache),
		Members: func(name string) []api.NetworkMember {
			n, ok := store.Cached[api.Network](h.cache, name)
			if !ok {
				return nil
			}
			return h.members(n)
		},
	}
	path, err := paths.Explain(c.name(), from, to)
	if err != nil {
		return problem(http.StatusNotFound, "%s", err)
	}
	return c.json(http.StatusOK, path)
}

func (h *networks) peers(c *call) error {
	n, ok := store.Cached[api.Network](h.cache, c.name())
	if !ok {
		return problem(http.StatusNotFound, "Network %q does not exist", c.name())
	}
	return c.json(http.StatusOK, api.NetworkPeers{Network: n.Metadata.Name, UID: n.Metadata.UID, VNI: n.Status.VNI, Peers: h.members(n)})
}

// members lists every lease of a Network, by prefix.
func (h *networks) members(n *api.Network) []api.NetworkMember {
	list := []api.NetworkMember{}
	for _, l := range h.networks.Leases(n.Metadata.Name) {
		list = append(list, h.member(n, l))
	}
	return list
}

// member is a lease with what its host last said of the Network.
func (h *networks) member(n *api.Network, l network.Lease) api.NetworkMember {
	m := api.NetworkMember{Kind: l.Kind, Host: l.Machine, Guest: l.Guest, Lease: l.Lease, Lease6: l.Lease6, VTEP: l.VTEP, MAC: l.MAC}
	if l.Machine == "" {
		if l.VTEP.IsValid() {
			m.Host = l.VTEP.String()
		}
		return m
	}
	host, ok := store.Cached[api.Machine](h.cache, l.Machine)
	if !ok || host.Metadata.UID != l.UID {
		m.Message = "its Machine is deleted; the lease goes soon"
		return m
	}
	_, m.Connected = h.hub.Heartbeat(l.Machine)
	status := host.Status.Host
	if reported, ok := h.hub.Reported(l.Machine); ok && reported.UID == l.UID {
		status = reported
	}
	if status == nil {
		return m
	}
	name := api.NetworkPartName(n.Metadata.Name)
	part, said := status.Parts[name]
	if buried, ok := status.Parts[name+"@"+n.Metadata.UID]; ok { // as nodeagent reports a tombstone
		part, said = buried, true
	}
	if m.State, m.Message = part.State, part.Message; l.Buried && m.Message == "" {
		m.Message = "it is to give the Network up, and then its lease"
	}
	if !said && !l.Buried {
		m.Message = "it has said nothing of this Network yet"
	}
	return m
}
