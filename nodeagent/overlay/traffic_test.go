package overlay

import (
	"net/netip"
	"sync"
	"testing"

	"github.com/vishvananda/netns"
)

// way is what traffic takes: from an address in a namespace to another address.
type way struct {
	ns       netns.NsHandle
	from, to netip.Addr
	size     int // of a ping's data, in bytes
}

// to is the way to another guest.
func (g *testGuest) to(other *testGuest) way { return way{g.ns, g.addr, other.addr, 56} }

// traffic pings on every way, each ping when the one before it is answered, until
// stop is called: every ping must be answered, and at least so many on each way.
func traffic(t testing.TB, ways ...way) (stop func(least int)) {
	t.Helper()
	stopped := make(chan struct{})
	var pingers sync.WaitGroup
	lost, sent := make([]int, len(ways)), make([]int, len(ways))
	for i, w := range ways {
		p := newPinger(t, w.ns, w.from)
		p.id += i // one socket hears the other's replies
		pingers.Go(func() {
			for {
				select {
				case <-stopped:
					return
				default:
				}
				sent[i]++
				if p.ping(w.to, w.size, patience) != nil {
					lost[i]++
				}
			}
		})
	}
	return func(least int) {
		t.Helper()
		close(stopped)
		pingers.Wait()
		for i, w := range ways {
			if lost[i] > 0 || sent[i] < least {
				t.Errorf("from %s to %s: %d of %d pings lost, want 0 of at least %d", w.from, w.to, lost[i], sent[i], least)
			}
		}
	}
}
