package network

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/part"
)

// View is a snapshot of the peers of one Network. It is immutable, so that all hosts of a Network share one.
//
// Each host's part is the same list without the host itself. A View holds it
// encoded once: a host's digest is the hash of a few slices of it, and the part is assembled only for a host that
// must receive all of it.
type View struct {
	id      int64
	peers   []peer           // in the order of a part: by lease
	own     map[string][]int // the peers of each host, by its uid
	encoded []byte           // the peers as JSON, each followed by a comma

	mu      sync.Mutex
	digests map[string]digest // by host uid
	deltas  map[int64]steps   // from an earlier View, by its id
}

// peer is one lease and the position of its encoding.
type peer struct {
	api.NetworkPeer
	uid      string // of its host; empty for a stock flanneld
	from, to int
}

type digest struct {
	head  string // the rest of the part
	value string
}

// steps lead from one View to another.
type steps struct {
	put    []peer
	remove []peer
}

func newView(id int64, peers []peer) (*View, error) {
	slices.SortFunc(peers, func(a, b peer) int { return comparePrefix(a.Lease, b.Lease) })
	v := &View{id: id, peers: peers, own: map[string][]int{}, digests: map[string]digest{}, deltas: map[int64]steps{}}
	for i := range peers {
		if uid := peers[i].uid; uid != "" {
			v.own[uid] = append(v.own[uid], i)
		}
		raw, err := json.Marshal(peers[i].NetworkPeer)
		if err != nil {
			return nil, fmt.Errorf("encode peer %s: %w", peers[i].Lease, err)
		}
		peers[i].from, peers[i].to = len(v.encoded), len(v.encoded)+len(raw)
		v.encoded = append(append(v.encoded, raw...), ',')
	}
	return v, nil
}

// Part is a Network's part for one host while it is built: everything but its peers, and the View that contains
// them.
type Part struct {
	view       *View
	uid        string // the host's
	head, tail []byte // the encoded part before and after the list of peers
}

// NewPart builds the part of a host. p has no peers: the View's are inserted.
func (v *View) NewPart(uid string, p api.NetworkPart) (*Part, error) {
	// encoding/json decides the position of the peers in it: a mark is put there.
	mark := api.NetworkPeer{Host: "|"}
	if v.alone(uid) {
		p.Peers = nil
	} else {
		p.Peers = []api.NetworkPeer{mark}
	}
	raw, err := api.EncodePart(p)
	if err != nil {
		return nil, err
	}
	if p.Peers == nil {
		return &Part{view: v, uid: uid, head: raw}, nil
	}
	token, err := json.Marshal(mark)
	if err != nil {
		return nil, fmt.Errorf("encode a peer: %w", err)
	}
	head, tail, _ := bytes.Cut(raw, token)
	return &Part{view: v, uid: uid, head: head, tail: tail}, nil
}

// alone reports whether only the host has a lease.
func (v *View) alone(uid string) bool {
	return len(v.own[uid]) == len(v.peers)
}

// moved lists a host's leases in addition to its own.
func (v *View) moved(uid string, own netip.Prefix) []netip.Prefix {
	var list []netip.Prefix
	for _, i := range v.own[uid] {
		if lease := v.peers[i].Lease; lease != own {
			list = append(list, lease)
		}
	}
	return list
}

// pieces yields the encoded part in order.
func (p *Part) pieces(yield func([]byte)) {
	yield(p.head)
	if p.tail == nil {
		return
	}
	// Runs of others' peers, with the host's own cut out, and no comma at the end.
	var run []byte
	from := 0
	flush := func(to int) {
		if to <= from {
			return
		}
		if run != nil {
			yield(run)
		}
		run = p.view.encoded[from:to]
	}
	for _, i := range p.view.own[p.uid] {
		own := &p.view.peers[i]
		flush(own.from)
		from = own.to + 1
	}
	flush(len(p.view.encoded))
	if run != nil {
		yield(run[:len(run)-1])
	}
	yield(p.tail)
}

// Value is the part in wire format.
func (p *Part) Value() api.Part {
	var b []byte
	p.pieces(func(piece []byte) { b = append(b, piece...) })
	return b
}

// Digest is the digest of Value, without building it.
func (p *Part) Digest() string {
	head := string(p.head) + "|" + string(p.tail)
	p.view.mu.Lock()
	known, ok := p.view.digests[p.uid]
	p.view.mu.Unlock()
	if ok && known.head == head {
		return known.value
	}
	h := sha256.New()
	p.pieces(func(piece []byte) { _, _ = h.Write(piece) }) // a hash never fails
	value := hex.EncodeToString(h.Sum(nil))
	p.view.mu.Lock()
	defer p.view.mu.Unlock()
	p.view.digests[p.uid] = digest{head, value}
	return value
}

// Delta leads from an earlier part of the same host to this one; nil when more than peers changed, or so many
// that sending all of it is as cheap.
func (p *Part) Delta(from part.Part) *api.PeerDelta {
	old, _ := from.(*Part)
	if old == nil || old.uid != p.uid || !bytes.Equal(old.head, p.head) || !bytes.Equal(old.tail, p.tail) || p.tail == nil {
		return nil
	}
	c := p.view.since(old.view)
	if len(c.put)+len(c.remove) > len(p.view.peers)/2+8 {
		return nil
	}
	d := new(api.PeerDelta)
	for i := range c.put {
		if c.put[i].uid != p.uid {
			d.Put = append(d.Put, c.put[i].NetworkPeer)
		} else {
			d.Remove = append(d.Remove, c.put[i].Lease.String()) // it belonged to another
		}
	}
	for i := range c.remove {
		d.Remove = append(d.Remove, c.remove[i].Lease.String())
	}
	return d
}

// since compares two Views once for all hosts.
func (v *View) since(old *View) steps {
	v.mu.Lock()
	defer v.mu.Unlock()
	c, ok := v.deltas[old.id]
	if !ok {
		c = compare(old.peers, v.peers)
		v.deltas[old.id] = c
	}
	return c
}

func compare(old, now []peer) steps {
	var c steps
	for len(old) > 0 || len(now) > 0 {
		switch order := next(old, now); {
		case order < 0:
			c.remove = append(c.remove, old[0])
			old = old[1:]
		case order > 0:
			c.put = append(c.put, now[0])
			now = now[1:]
		default:
			if old[0].NetworkPeer != now[0].NetworkPeer || old[0].uid != now[0].uid {
				c.put = append(c.put, now[0])
			}
			old, now = old[1:], now[1:]
		}
	}
	return c
}

// next says which of two lists has the next lease.
func next(old, now []peer) int {
	switch {
	case len(old) == 0:
		return 1
	case len(now) == 0:
		return -1
	}
	return comparePrefix(old[0].Lease, now[0].Lease)
}

// Leases is the number of leases in the View, including stock flannelds'.
func (v *View) Leases() int { return len(v.peers) }

// Peers lists every lease, by prefix.
func (v *View) Peers() []api.NetworkPeer {
	list := make([]api.NetworkPeer, len(v.peers))
	for i := range v.peers {
		list[i] = v.peers[i].NetworkPeer
	}
	return list
}
