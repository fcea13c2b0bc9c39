package nodeagent

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
)

// recountItems bounds the items of one frame of a recount: bootd accepts 1 MiB.
const recountItems = 500

// recount returns what this host has, as frames for a restored bootd.
func (a *Agent) recount(ctx context.Context, id string) ([]api.Recount, error) {
	var all api.Recount
	if err := a.do(ctx, func() { all = a.holdings() }); err != nil {
		return nil, err
	}
	return split(all, id), nil
}

// holdings lists the parts of the cached HostSpec, applied or not, with the
// observed state of Guests.
func (a *Agent) holdings() api.Recount {
	var all api.Recount
	hosts := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(a.spec.index.Parts)) {
		e := a.spec.index.Parts[name]
		value, err := api.DecodePart(name, e.value)
		if err != nil {
			a.log.Warn("a part is left out of the recount", "part", name, "error", err)
			continue
		}
		switch p := value.(type) {
		case *api.NetworkPart:
			all.Networks = append(all.Networks, api.HeldNetwork{Name: api.PartObject(name), UID: p.UID, VNI: p.VNI, Lease: p.Lease, Lease6: p.Lease6})
			all.Flannelds = append(all.Flannelds, peers(api.PartObject(name), p, hosts)...)
		case *api.GuestPart:
			g := api.HeldGuest{Name: api.PartObject(name), UID: p.UID, Network: p.Network, Addresses: p.Addresses, Gone: e.Gone, Transfer: p.Transfer}
			if seen := a.parts[name].Guest; seen != nil {
				g.State = seen.State
			}
			all.Guests = append(all.Guests, g)
		case *api.BGPPart:
			all.Loopbacks, all.Reflector = p.Loopbacks, p.Role == "reflector"
			for _, n := range p.Neighbors {
				if n.Role == "client" || n.Role == "reflector" {
					hosts[n.Name] = true
				}
			}
		case *api.BasePart:
			if p.Underlay.Encryption != nil {
				for _, peer := range p.Underlay.Encryption.Peers {
					hosts[peer.Host] = true
				}
			}
		}
	}
	delete(hosts, "")
	all.Hosts = slices.Sorted(maps.Keys(hosts))
	return all
}

// peers records the hosts of a Network, and returns its stock flannelds.
func peers(network string, p *api.NetworkPart, hosts map[string]bool) []api.HeldFlanneld {
	var flannelds []api.HeldFlanneld
	for _, peer := range p.Peers {
		if _, err := netip.ParseAddr(peer.Host); err != nil { // a stock flanneld is named by its VTEP's address
			hosts[peer.Host] = true
			continue
		}
		flannelds = append(flannelds, api.HeldFlanneld{Network: network, Lease: peer.Lease, VTEP: peer.VTEP, MAC: peer.MAC})
	}
	return flannelds
}

// split splits a recount into frames of a size that bootd accepts; the last one is
// marked.
func split(all api.Recount, id string) []api.Recount {
	var out []api.Recount
	for first := true; first || len(all.Networks)+len(all.Guests)+len(all.Hosts)+len(all.Flannelds) > 0; first = false {
		r := api.Recount{ID: id, Incomplete: true, Networks: cut(&all.Networks), Guests: cut(&all.Guests), Hosts: cut(&all.Hosts), Flannelds: cut(&all.Flannelds)}
		if first {
			r.Loopbacks, r.Reflector = all.Loopbacks, all.Reflector
		}
		out = append(out, r)
	}
	out[len(out)-1].Incomplete = false
	return out
}

func cut[T any](list *[]T) []T {
	n := min(len(*list), recountItems)
	head := (*list)[:n]
	*list = (*list)[n:]
	return head
}

// answerRecount passes a recount to the stream. A request during another recount is
// dropped: bootd repeats it with the next stream.
func (a *Agent) answerRecount(ctx context.Context, id string, to chan<- []api.Recount) error {
	frames, err := a.recount(ctx, id)
	if err != nil {
		return err
	}
	a.log.Info("bootd was restored: reporting what this host has", "frames", len(frames))
	select {
	case to <- frames:
	default:
	}
	return nil
}
