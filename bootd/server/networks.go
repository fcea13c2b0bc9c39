package server

import (
	"net/http"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
)

// networks shows the members of a Network, and the paths of packets.
type networks struct {
	cache    *store.Cache
	networks *network.Index
	hub      Hub
}

func (h *networks) routes() []route {
	return []route{
		{method: "GET", path: "/v1/networks/{name}/peers", tag: "Network", role: viewer, out: api.NetworkPeers{}, handle: h.peers,
			summary: "The leases of a Network, and each host's last report about it"},
		{method: "GET", path: "/v1/networks/{name}/explain", tag: "Network", role: viewer, out: api.NetworkPath{}, handle: h.path,
			query:   []parameter{{"from", "Source: a Guest, or an address.", "string"}, {"to", "Destination: a Guest, NETWORK/GUEST, or an address.", "string"}},
			summary: "Trace a packet through a Network"},
	}
}

// path traces a packet through a Network.
func (h *networks) path(c *call) error {
	from, to := c.r.URL.Query().Get("from"), c.r.URL.Query().Get("to")
	if from == "" || to == "" {
		return problem(http.StatusBadRequest, "from and to are both required: a Guest, NETWORK/GUEST, or an address")
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

// member is a lease with its host's last report about the Network.
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
		m.Message = "its Machine is deleted; the lease is released soon"
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
		m.Message = "the Network, and then its lease, is being removed from it"
	}
	if !said && !l.Buried {
		m.Message = "it has not reported on this Network yet"
	}
	return m
}
