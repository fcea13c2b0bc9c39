package bgp

import (
	"fmt"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// Hosts whose reflectors are all gone go on with what they have for as long as
// their part says, graceful restart or not, and then with nothing.
func TestStaleHold(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	z := newZone(t, 3)
	z.reflectors = z.reflectors[:1]
	r1, brief, forever, other := z.reflectors[0], z.clients[0], z.clients[1], z.clients[2]
	const hold = 15 * time.Second
	z.extra = func(h *host, p *api.BGPPart) {
		p.GracefulRestart = api.Duration(2 * time.Second)
		switch h {
		case brief:
			p.StaleHold = api.Duration(hold)
		case forever:
			p.StaleHold = api.Duration(-time.Second)
		}
	}
	z.tell()
	for _, h := range []*host{r1, brief, forever, other} {
		h.speak()
	}
	prefix, via := other.own()[0].String(), other.address.String()
	eventually(t, brief.has(prefix, via), forever.has(prefix, via))

	r1.kill()
	killed := time.Now()
	for time.Since(killed) < hold/2 { // graceful restart is over meanwhile
		must(t, brief.has(prefix, via)())
		time.Sleep(500 * time.Millisecond)
	}
	if s := brief.status(); s.HeldSince.IsZero() || s.HeldUntil.IsZero() {
		t.Errorf("it does not say that it holds its routes: %s", s.Line())
	}
	eventually(t, func() error {
		if got := brief.routes(); got != "" {
			return fmt.Errorf("it still has\n%s", got)
		}
		return nil
	})
	if held := time.Since(killed); held < hold {
		t.Errorf("held for %s, not %s", held, hold)
	}
	must(t, forever.has(prefix, via)())
	r1.speak()
	eventually(t, brief.has(prefix, via), forever.has(prefix, via))
}
