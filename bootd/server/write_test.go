package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
)

// TestOneWins puts objects in parallel of which each has something that only one
// may have, beside others that are in nobody's way.
func TestOneWins(t *testing.T) {
	r := newRig(t)
	c := r.root()
	zone := &api.Zone{Spec: api.ZoneSpec{ASN: 64999, Prefixes: testsite.Prefixes("10.200.0.0/16")}}
	zone.Metadata.Name = "yellow"
	pxe := &api.Subnet{Spec: api.SubnetSpec{Purpose: api.Provisioning, Prefixes: testsite.Prefixes("198.18.0.0/24")}}
	pxe.Metadata.Name = "pxe"
	put(t, c, zone, pxe)
	machine := func(i int) *api.Machine {
		m := testsite.NewMachine(fmt.Sprintf("m%d", i), api.MAC(fmt.Sprintf("52:54:00:00:01:%02x", i)))
		m.Spec.Links[0].Subnet = "pxe"
		return m
	}
	for _, x := range []struct {
		what   string
		object func(i int) api.Object
	}{
		{"MAC", func(i int) api.Object { m := machine(i); m.Spec.Links[0].MAC = "52:54:00:00:00:01"; return m }},
		{"address", func(i int) api.Object {
			m := machine(i)
			m.Spec.Links[0].Addresses = []netip.Addr{netip.MustParseAddr("198.18.0.7")}
			return m
		}},
		{"BMC", func(i int) api.Object {
			m := machine(i)
			m.Spec.BMC = &api.BMC{Address: []string{"https://198.18.1.1", "https://198.18.1.1:443/"}[i%2], Credentials: "bmc"}
			return m
		}},
		{"loopback", func(i int) api.Object {
			m := machine(i)
			m.Spec.Zone, m.Spec.Loopbacks = "yellow", []netip.Addr{netip.MustParseAddr("10.200.0.7")}
			return m
		}},
		{"ASN", func(i int) api.Object {
			z := &api.Zone{Spec: api.ZoneSpec{ASN: 64601}}
			z.Metadata.Name = fmt.Sprintf("z%d", i)
			return z
		}},
		{"prefix", func(i int) api.Object {
			s := &api.Subnet{Spec: api.SubnetSpec{Purpose: api.Management, Prefixes: testsite.Prefixes(fmt.Sprintf("198.19.0.0/%d", 16+i))}}
			s.Metadata.Name = fmt.Sprintf("s%d", i)
			return s
		}},
		{"VNI", func(i int) api.Object {
			n := &api.Network{Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes(fmt.Sprintf("10.%d.0.0/16", i)), VNI: 10017}}
			n.Metadata.Name = fmt.Sprintf("n%d", i)
			return n
		}},
	} {
		t.Run(x.what, func(t *testing.T) {
			var wg sync.WaitGroup
			var won atomic.Pointer[api.Object]
			for i := range 12 {
				wg.Go(func() {
					o := x.object(i)
					_, err := c.Put(t.Context(), o, false)
					switch {
					case err == nil && !won.CompareAndSwap(nil, &o):
						t.Errorf("%s and %s both have the %s", (*won.Load()).Meta().Name, o.Meta().Name, x.what)
					case err != nil:
						wantStatus(t, err, http.StatusUnprocessableEntity)
					}
				})
				wg.Go(func() {
					o := machine(100 + i)
					if _, err := c.Put(t.Context(), o, false); err != nil {
						t.Errorf("one that is in nobody's way: %v", err)
					}
				})
			}
			wg.Wait()
			if won.Load() == nil {
				t.Fatal("none has it")
			}
			o := *won.Load()
			must(t, c.Delete(t.Context(), api.KindOf(o), o.Meta().Name))
		})
	}
}

// TestWhatIsGivenUpIsFree hands one MAC from Machine to Machine: who is told that
// it was given up, may take it at once.
func TestWhatIsGivenUpIsFree(t *testing.T) {
	r := newRig(t)
	c := r.root()
	for i := range 20 {
		name := fmt.Sprintf("m%d", i%2)
		put(t, c, testsite.NewMachine(name, "52:54:00:00:00:01"))
		put(t, c, testsite.NewMachine(name, api.MAC(fmt.Sprintf("52:54:00:00:02:%02x", i))))
	}
}

// TestClientsThatLeave has clients hang up in the middle of a write: others still
// see what it came to.
func TestClientsThatLeave(t *testing.T) {
	r := newRig(t)
	c := r.root()
	for round := range 40 {
		mac := api.MAC(fmt.Sprintf("52:54:00:00:04:%02x", round))
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(round)*100*time.Microsecond)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = c.Put(ctx, testsite.NewMachine(fmt.Sprintf("left%d", round), mac), false) })
		wg.Go(func() {
			<-ctx.Done()
			_, _ = c.Put(t.Context(), testsite.NewMachine(fmt.Sprintf("next%d", round), mac), false)
		})
		wg.Wait()
		cancel()
	}
	r.stop()
	has := map[api.MAC]string{}
	for _, m := range store.CachedList[api.Machine](r.cache) {
		mac := m.Spec.Links[0].MAC
		if other, twice := has[mac]; twice {
			t.Errorf("%s and %s both have MAC %s", other, m.Metadata.Name, mac)
		}
		has[mac] = m.Metadata.Name
	}
	if len(has) != 40 {
		t.Errorf("%d of 40 MACs are with a Machine", len(has))
	}
}

// TestOutcome looks at what an answer says that the write did.
func TestOutcome(t *testing.T) {
	r := newRig(t)
	c := r.root()
	m := testsite.NewMachine("r1", "52:54:00:00:00:01")
	off := testsite.NewMachine("r1", "52:54:00:00:00:01")
	off.Spec.State = api.StateOff
	secret := func(password string) api.Object {
		s := &api.Secret{Spec: api.SecretSpec{Data: map[string]string{"password": password}}}
		s.Metadata.Name = "bmc"
		return s
	}
	for i, x := range []struct {
		object api.Object
		dry    bool
		want   string
	}{
		{m, true, "created"}, {m, false, "created"}, {m, true, "unchanged"}, {m, false, "unchanged"},
		{off, true, "configured"}, {off, false, "configured"},
		{secret("a"), true, "created"}, {secret("a"), false, "created"}, {secret("a"), false, "unchanged"},
		{secret("a"), true, "configured"}, // nobody can say before it is sealed
		{secret("b"), false, "configured"},
	} {
		path := fmt.Sprintf("/v1/%s/%s?dryRun=%t", api.KindOf(x.object).Plural, x.object.Meta().Name, x.dry)
		resp, err := c.Do(t.Context(), http.MethodPut, path, x.object)
		must(t, err)
		must(t, resp.Body.Close())
		if got := resp.Header.Get(api.OutcomeHeader); got != x.want {
			t.Errorf("%d: PUT %s: %q, want %q", i, path, got, x.want)
		}
	}
}

// TestDeletedUnderItsReferrer deletes a Profile while Machines come that name it:
// there is a Machine that does, or it is gone.
func TestDeletedUnderItsReferrer(t *testing.T) {
	r := newRig(t)
	c := r.root()
	for round := range 10 {
		profile := &api.Profile{Spec: api.ProfileSpec{Image: "debian"}}
		profile.Metadata.Name = fmt.Sprintf("p%d", round)
		put(t, c, profile)
		m := testsite.NewMachine(fmt.Sprintf("m%d", round), api.MAC(fmt.Sprintf("52:54:00:00:03:%02x", round)))
		m.Spec.Profile = profile.Metadata.Name
		var wg sync.WaitGroup
		var deleted error
		var warned bool
		wg.Go(func() { deleted = c.Delete(t.Context(), kindOf(t, "profile"), profile.Metadata.Name) })
		wg.Go(func() {
			resp, err := c.Do(t.Context(), http.MethodPut, "/v1/machines/"+m.Metadata.Name, m)
			if err != nil {
				t.Error(err)
				return
			}
			warned = strings.Contains(resp.Header.Get("Warning"), "does not exist yet")
			must(t, resp.Body.Close())
		})
		wg.Wait()
		if gone := deleted == nil; gone != warned {
			t.Errorf("the Profile is deleted: %v (%v); the Machine was warned: %v", gone, deleted, warned)
		}
	}
}

func TestTurns(t *testing.T) { synctest.Test(t, testTurns) }

func testTurns(t *testing.T) {
	ctx := t.Context()
	turns := newTurns()
	begun := func(take func() (func(), error)) <-chan func() {
		c := make(chan func(), 1)
		go func() {
			done, err := take()
			must(t, err)
			c <- done
		}()
		return c
	}
	one := func(claims ...string) func() (func(), error) {
		return func() (func(), error) { return turns.take(ctx, claims) }
	}
	all := func() (func(), error) { return turns.takeAll(ctx) }
	waits := func(what string, c <-chan func()) {
		t.Helper()
		synctest.Wait()
		if len(c) > 0 {
			t.Errorf("%s did not wait", what)
		}
	}
	first := <-begun(one("a", "b"))
	beside := <-begun(one("c"))
	same := begun(one("b", "d"))
	waits("one with the same claim", same)
	alone := begun(all)
	waits("one that wants everything", alone)
	late := begun(one("e"))
	waits("one that came after that", late)
	first()
	waits("one that wants everything", alone)
	beside()
	done := <-alone
	waits("one with the same claim", same)
	waits("one that came after", late)
	done()
	(<-same)()
	(<-late)()

	holds := <-begun(one("a"))
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := turns.takeAll(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := turns.take(gone, []string{"a"}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	(<-begun(one("b")))() // nobody waits for those that left
	holds()
	if turns.running != 0 || len(turns.held) != 0 || turns.waiting != 0 || turns.alone {
		t.Errorf("%+v", turns)
	}
}
