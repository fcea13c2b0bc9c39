package bgp

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// What a client may not do, it cannot.
func TestHostileClients(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a quarter of a minute")
	}
	t.Parallel()
	z := newZone(t, 5)
	r1 := z.reflectors[0]
	honest, hop, spoof, many, stranger := z.clients[0], z.clients[1], z.clients[2], z.clients[3], z.clients[4]
	z.tell()
	for _, h := range []*host{r1, z.reflectors[1], honest} {
		h.speak()
	}
	z.bird(hop, "route 198.19.12.0/24 via "+honest.address.String()+";")
	z.bird(spoof, fmt.Sprintf("route 198.19.13.0/24 via %s { bgp_large_community.add((64602, 1, 7)); bgp_local_pref = 4000; }; route 198.19.77.0/24 via %[1]s { bgp_large_community.add((64601, 1, 7)); };", spoof.address))
	var routes strings.Builder
	for i := range clientMaxPrefixes + 1 {
		_, _ = fmt.Fprintf(&routes, "route 198.19.%d.%d/32 via %s; ", 100+i/256, i%256, many.address)
	}
	z.bird(many, routes.String())
	// The last has another's keys.
	name := stranger.name
	stranger.name = "c1"
	part := z.part(stranger)
	stranger.name = name
	for i := range part.Neighbors {
		part.Neighbors[i].Password = "guessed"
	}
	stranger.give(part)
	stranger.speak()

	eventually(t, up(r1, "c1"), up(r1, "c2"), up(r1, "c3"),
		honest.has("198.19.13.0/24", spoof.address.String()),
		func() error {
			if s := r1.session("c4"); s.State != "limited" {
				return fmt.Errorf("the client with too many prefixes is %+v", s)
			}
			return nil
		})
	time.Sleep(8 * time.Second) // in which the stranger tries
	if s := r1.session("c5"); s.Established() {
		t.Errorf("a wrong key is taken: %+v", s)
	}
	for _, prefix := range []string{"198.19.12.0/24", "198.19.77.0/24", "198.19.100.1"} {
		for _, h := range []*host{r1, honest} {
			must(t, h.lacks(prefix)())
		}
	}
	all, err := honest.client().Routes(t.Context(), "", "")
	must(t, err)
	for _, r := range all {
		if len(r.LargeCommunities) != 1 || r.LargeCommunities[0] != mark || r.LocalPref != 100 {
			t.Errorf("communities or preference are taken over: %+v", r)
		}
	}
	// Another Zone's mark is not taken from a reflector either: the part names another.
	z.extra = func(h *host, p *api.BGPPart) {
		if h == honest {
			p.Community = "64602:1:7"
		}
	}
	z.tell()
	eventually(t, honest.lacks("198.19.13.0/24"))
}
