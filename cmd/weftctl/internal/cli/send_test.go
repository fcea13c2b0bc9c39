package cli

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// many is a Zone behind n Machines that are in it.
func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "kind: Machine\nmetadata: {name: m%03d}\nspec:\n  zone: yellow\n  links: [{name: pxe0, mac: \"52:54:00:00:%02x:%02x\"}]\n---\n", i, i/256, i%256)
	}
	return b.String() + "kind: Zone\nmetadata: {name: yellow}\nspec: {asn: 64601}\n---\nkind: Zone\nmetadata: {name: red}\nspec: {asn: 64602}\n"
}

// TestApplySendsSideBySide holds answers back until as many objects are under way
// as may be, and lets the first of a kind be answered last.
func TestApplySendsSideBySide(t *testing.T) {
	b := newBootd(t)
	var mu sync.Mutex
	under, most, zones := 0, 0, 0
	full := make(chan struct{})
	b.putting = func(key string) func() {
		mu.Lock()
		under++
		if most = max(most, under); under == senders && strings.HasPrefix(key, "machines/") {
			select {
			case <-full:
			default:
				close(full)
			}
		}
		if strings.HasPrefix(key, "machines/") && zones != 2 {
			t.Errorf("%s is sent when %d of 2 Zones are there", key, zones)
		}
		mu.Unlock()
		if strings.HasPrefix(key, "machines/") {
			<-full
		}
		if key == "machines/m000" {
			time.Sleep(20 * time.Millisecond)
		}
		return func() {
			mu.Lock()
			defer mu.Unlock()
			under--
			if strings.HasPrefix(key, "zones/") {
				zones++
			}
		}
	}
	b.refuse["PUT /v1/machines/m007"] = &api.Problem{Status: 422, Title: "Unprocessable Content", Errors: api.FieldErrors{{Pointer: "/spec/zone", Message: "not there"}}}
	var want strings.Builder
	want.WriteString("zone/yellow created\nzone/red created\n")
	for i := range 50 {
		if i != 7 {
			fmt.Fprintf(&want, "machine/m%03d created\n", i)
		}
	}
	r := b.run(t, many(50), "apply", "-f", "-")
	r.want(t, 1, want.String(), "/spec/zone: not there", "52 objects: 51 created, 1 refused\n", "error: bootd accepted 51 of 52 objects\n")
	if most != senders {
		t.Errorf("%d objects were under way at once, want %d", most, senders)
	}
	if strings.Contains(r.err, "\x1b") {
		t.Errorf("what is no terminal is sent escape sequences: %q", r.err)
	}

	b.refuse, b.putting = map[string]*api.Problem{}, nil
	b.run(t, many(50), "apply", "-f", "-").want(t, 0, strings.NewReplacer("created", "unchanged", "machine/m008", "machine/m007 created\nmachine/m008").Replace(want.String()),
		"52 objects: 1 created, 51 unchanged\n")
	for _, q := range b.sent("GET") {
		t.Errorf("apply reads what it writes anyway: %s", q)
	}
}

// TestApplyGivesUp has bootd go away in the middle: what it took is told, and the
// rest is not tried one by one.
func TestApplyGivesUp(t *testing.T) {
	b := newBootd(t)
	var once sync.Once
	b.putting = func(key string) func() {
		if key == "machines/m020" {
			once.Do(func() { _ = os.Remove(b.socket) })
			panic(http.ErrAbortHandler)
		}
		return func() {}
	}
	r := b.run(t, many(200), "apply", "-f", "-")
	if r.code != 1 || !strings.Contains(r.out, "machine/m000 created\n") || !strings.Contains(r.err, "error: apply machine/m0") || !strings.Contains(r.err, "not sent") {
		t.Errorf("exit code %d: %s%s", r.code, r.out, r.err)
	}

	_ = os.Remove(b.socket)
	gone := b.run(t, "", "get", "machines")
	if r := b.run(t, many(200), "apply", "-f", "-"); r.code != gone.code || r.out != "" || !strings.Contains(r.err, "202 objects: 202 not sent\n") || !strings.Contains(r.err, "error: no bootd answers at") {
		t.Errorf("exit code %d, want %d: %s%s", r.code, gone.code, r.out, r.err)
	}
}
