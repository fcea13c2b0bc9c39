package bgp

import (
	"net/netip"
	"sync"

	gobgp "github.com/osrg/gobgp/v3/api"

	"github.com/rackweft/rackweft/internal/wait"
)

// events collects what GoBGP's goroutines report, for the loop.
type events struct {
	wake wait.Signal

	mu       sync.Mutex
	dirty    map[netip.Prefix]bool
	complete []netip.Addr
	peers    bool
}

// note is called by GoBGP, whose queue grows until it returns.
func (e *events) note(r *gobgp.WatchEventResponse) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.peers = e.peers || r.GetPeer() != nil
	for _, p := range r.GetTable().GetPaths() {
		if !isUnicast(p.Family) {
			continue
		}
		var x gobgp.IPAddressPrefix
		if p.Nlri == nil || p.Nlri.UnmarshalTo(&x) != nil {
			if addr, err := netip.ParseAddr(p.NeighborIp); err == nil {
				e.complete = append(e.complete, addr) // an End-of-RIB has no prefix
			}
			continue
		}
		if addr, err := netip.ParseAddr(x.Prefix); err == nil {
			e.dirty[netip.PrefixFrom(addr, int(x.PrefixLen))] = true
		}
	}
	e.wake.Set()
}

func (e *events) take() (dirty map[netip.Prefix]bool, complete []netip.Addr, peers bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	dirty, complete, peers = e.dirty, e.complete, e.peers
	e.dirty, e.complete, e.peers = map[netip.Prefix]bool{}, nil, false
	return dirty, complete, peers
}
