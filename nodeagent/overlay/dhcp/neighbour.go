package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// neighbours caches the MAC of link-local addresses: guests send to their IPv6 gateway
// from theirs, which are in no table. The kernel has learned the MAC from the preceding
// solicitation.
type neighbours struct {
	mu    sync.Mutex
	known map[netip.Addr]neighbour
	asked *rate.Limiter // of queries to the kernel: a guest may invent addresses
}

func newNeighbours() *neighbours { return &neighbours{asked: rate.NewLimiter(100, 20)} }

var errNeighbours = errors.New("too many new link-local addresses")

type neighbour struct {
	mac   MAC
	until time.Time
}

const (
	neighboursKept  = 256
	neighbourStands = 5 * time.Second
)

// find calls lookup for addresses that are not in the cache.
func (n *neighbours) find(a netip.Addr, lookup func() (MAC, error)) (MAC, error) {
	now := time.Now()
	n.mu.Lock()
	got, ok := n.known[a]
	n.mu.Unlock()
	if ok && now.Before(got.until) {
		return got.mac, nil
	}
	if !n.asked.Allow() {
		return MAC{}, errNeighbours
	}
	mac, err := lookup()
	if err != nil {
		return mac, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.known == nil || len(n.known) >= neighboursKept {
		n.known = map[netip.Addr]neighbour{}
	}
	n.known[a] = neighbour{mac, now.Add(neighbourStands)}
	return mac, nil
}

// neighbourMAC reads one entry of the neighbour table of the calling thread's
// namespace (rtnetlink(7), RTM_GETNEIGH).
func neighbourMAC(index int, a netip.Addr) (MAC, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return MAC{}, err
	}
	defer func() { _ = c.Close() }()
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NDA_DST, Data: a.AsSlice()}})
	if err != nil {
		return MAC{}, err
	}
	header := make([]byte, unix.SizeofNdMsg)
	header[0] = unix.AF_INET6
	binary.NativeEndian.PutUint32(header[4:], uint32(index))
	replies, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETNEIGH, Flags: netlink.Request}, Data: append(header, attrs...)})
	if err != nil {
		return MAC{}, fmt.Errorf("find the MAC of %s: %w", a, err)
	}
	for _, r := range replies {
		if mac, ok := linkLayer(r.Data); ok {
			return mac, nil
		}
	}
	return MAC{}, fmt.Errorf("%s has no MAC", a)
}

func linkLayer(entry []byte) (MAC, bool) {
	if len(entry) < unix.SizeofNdMsg {
		return MAC{}, false
	}
	attrs, err := netlink.UnmarshalAttributes(entry[unix.SizeofNdMsg:])
	if err != nil {
		return MAC{}, false
	}
	for _, attr := range attrs {
		if attr.Type == unix.NDA_LLADDR && len(attr.Data) == len(MAC{}) {
			return MAC(attr.Data), true
		}
	}
	return MAC{}, false
}
