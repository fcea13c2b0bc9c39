package bgp

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// llgrStale is the well-known community of RFC 9494.
const llgrStale = "65535:6"

// The routes of a host whose speaker stays away longer than graceful restart has
// time for are kept as stale for as long as the Zone says, but not by neighbours
// that do not know what that is; then they go.
func TestLongLived(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	need(t, "vtysh")
	z := newZone(t, 3)
	z.reflectors = z.reflectors[:1]
	r1, c1, c2, foreign := z.reflectors[0], z.clients[0], z.clients[1], z.clients[2]
	const restart, stay = 10 * time.Second, 20 * time.Second
	z.extra = func(_ *host, p *api.BGPPart) {
		p.GracefulRestart, p.LongLived = api.Duration(restart), api.Duration(stay)
	}
	z.tell()
	for _, h := range []*host{r1, c1, c2} {
		h.speak()
	}
	z.frrClient(foreign, "bgp graceful-restart-disable")
	prefix, via := c1.own()[0].String(), c1.address.String()
	inFRR := func(want bool) func() error {
		return func() error {
			got, err := foreign.ask("vtysh", "--vty_socket", foreign.dir, "-c", "show ip bgp")
			if err == nil && strings.Contains(got, prefix) != want {
				err = fmt.Errorf("FRR has\n%s\n%s: %s", got, r1.name, r1.status().Line())
			}
			return err
		}
	}
	stale := func(want bool) func() error {
		return func() error {
			routes, err := c2.client().Routes(t.Context(), "", "")
			if err != nil {
				return err
			}
			i := slices.IndexFunc(routes, func(r Route) bool { return r.Prefix.String() == prefix })
			if i < 0 || slices.Contains(routes[i].Communities, llgrStale) != want {
				return fmt.Errorf("c2 is to have %s, stale: %v; it has %+v", prefix, want, routes)
			}
			return nil
		}
	}
	eventually(t, c2.has(prefix, via), stale(false), inFRR(true))

	c1.kill()
	killed := time.Now()
	time.Sleep(2 * time.Second)
	must(t, c2.has(prefix, via)())
	must(t, stale(false)())
	eventually(t, stale(true), inFRR(false))
	must(t, c2.has(prefix, via)())
	t.Logf("stale after %.1f s", time.Since(killed).Seconds())
	eventually(t, c2.lacks(prefix))
	if kept := time.Since(killed); kept < stay {
		t.Errorf("kept for no more than %s", kept)
	}
	c1.speak()
	eventually(t, c2.has(prefix, via), stale(false), inFRR(true))
}
