package recovery

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// TestBounded has hosts say what cannot be so, beside what can.
func TestBounded(t *testing.T) {
	decode := func(text string) (r api.Recount) {
		t.Helper()
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		return r
	}
	guest := func(more string) string { return `{"guests":[{"name":"web","uid":"u"` + more + `}]}` }
	transfer := func(more string) string { return guest(`,"transfer":{` + more + `}`) }
	network := func(name, lease, more string) string {
		return `{"networks":[{"name":"` + name + `","uid":"n","vni":100,"lease":"` + lease + `"` + more + `}]}`
	}
	flanneld := func(lease, vtep string) string {
		return `{"flannelds":[{"network":"blue","lease":"` + lease + `","vtep":"` + vtep + `","mac":"02:00:00:00:00:02"}]}`
	}
	for _, good := range []string{
		guest(``), guest(`,"network":"blue","state":"Running","addresses":["10.5.1.2","fd00::2"]`),
		transfer(`"id":"m","role":"Source","live":true,"peer":{"host":"b","uid":"bu","key":"` + strings.Repeat("a", 64) + `"},"address":"198.18.8.8"`),
		transfer(`"id":"m","role":"Left","peer":{"host":"","uid":""}`), transfer(`"id":"m","role":"Back","peer":{"host":"","uid":""}`),
		network("blue", "10.5.1.0/24", ``), network("blue", "10.5.1.0/24", `,"lease6":"fd00::/64"`),
		flanneld("10.5.1.0/24", "198.18.8.9"), flanneld("10.5.1.0/24", "fd00::9"),
		`{"loopbacks":["198.18.127.1","fd00::1"],"hosts":["a"],"reflector":true}`,
	} {
		if r := decode(good); !reflect.DeepEqual(bounded(r), r) {
			t.Errorf("of %s there is left %+v", good, bounded(r))
		}
	}
	for _, bad := range []string{
		guest(`,"network":"Blue"`), guest(`,"addresses":[""]`), guest(`,"addresses":["::ffff:10.5.1.2"]`), guest(`,"addresses":["fe80::1%eth0"]`),
		guest(`,"addresses":["10.5.1.1","10.5.1.2","10.5.1.3","10.5.1.4","10.5.1.5"]`), guest(`,"state":"` + strings.Repeat("x", 1000) + `"`),
		transfer(`"id":"m","role":"Thief","peer":{"host":"b","uid":"bu"}`), transfer(`"id":"m","role":"Source","peer":{"host":"b\n","uid":"bu"}`),
		transfer(`"id":"m","role":"Source","peer":{"host":"b","uid":"bu","key":"` + strings.Repeat("a", 1000) + `"}`),
		transfer(`"id":"\u001b[2J","role":"Source","peer":{"host":"b","uid":"bu"}`), transfer(`"id":"m","role":"Source","peer":{"host":"b","uid":"bu"},"address":"::ffff:10.5.1.2"`),
		network("blue", "10.0.0.0/4", ``), network("blue", "10.5.1.1/24", ``), network("blue", "fd00::/64", ``), network("blue/", "10.5.1.0/24", ``),
		network("blue", "10.5.1.0/24", `,"lease6":"::ffff:10.5.1.0/120"`),
		flanneld("10.5.1.1/32", "198.18.8.9"), flanneld("0.0.0.0/0", "198.18.8.9"), flanneld("10.5.1.0/24", ""), flanneld("10.5.1.0/24", "::ffff:10.5.1.2"),
		`{"loopbacks":["","::ffff:198.18.127.1","fe80::1%eth0"],"hosts":["","A"]}`,
	} {
		if left, err := json.Marshal(bounded(decode(bad))); err != nil || string(left) != `{"id":""}` {
			t.Errorf("of %s there is left %s, %v", bad, left, err)
		}
	}
}

// FuzzBounded has whatever a host says be fit to be stored, read back and settled.
func FuzzBounded(f *testing.F) {
	for _, seed := range []string{
		`{"id":"q","networks":[{"name":"blue","uid":"n","vni":100,"lease":"10.5.1.0/24","lease6":"fd00::/64"},{"name":"blue","uid":"o","vni":100,"lease":"10.5.1.0/24"}]}`,
		`{"guests":[{"name":"web","uid":"u","network":"blue","addresses":["10.5.1.2"],"state":"Running","transfer":{"id":"m","role":"Source","peer":{"host":"b","uid":"bu"}}},{"name":"web","uid":"v","gone":true}]}`,
		`{"loopbacks":["198.18.127.1","fe80::1%x",""],"reflector":true,"flannelds":[{"network":"blue","lease":"10.5.3.0/24","vtep":"198.18.8.9","mac":"02:00:00:00:00:02"}],"hosts":["a","B"]}`,
		`{"guests":[null,{}],"networks":[null],"hosts":[""]}`, `null`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var said api.Recount
		if json.Unmarshal(text, &said) != nil {
			return
		}
		r := bounded(said)
		raw, err := json.Marshal(stored{UID: "u", Recount: r})
		if err != nil {
			t.Fatal(err)
		}
		var back stored
		if err := json.Unmarshal(raw, &back); err != nil || !reflect.DeepEqual(bounded(back.Recount), back.Recount) {
			t.Fatalf("%s is read back as %+v, %v", raw, back.Recount, err)
		}
		by := map[string][]claim{}
		for _, g := range r.Guests {
			by[g.Name] = append(by[g.Name], claim{api.GuestPlace{Host: "a", HostUID: "au"}, g})
		}
		for name, claims := range by {
			w := locate(nil, claims, time.Now())
			g := w.part(claims[0]).Guest()
			w.apply(g)
			if api.ValidateName(g.Metadata.Name) != nil || g.Metadata.Name != name || w.uid == "" {
				t.Fatalf("Guest %s is %+v", name, w)
			}
			for _, a := range g.Status.Addresses {
				if !a.IsValid() || a != a.Unmap().WithZone("") {
					t.Fatalf("Guest %s has address %q", name, a)
				}
			}
		}
		members := map[string][]member{}
		host := new(api.Machine)
		for _, n := range r.Networks {
			members[n.Name] = append(members[n.Name], member{host, n})
		}
		owners := vniOwners(map[uint32]store.VNIClaim{}, members)
		for _, n := range r.Networks {
			if owners[n.VNI] == "" || n.Lease.Addr() == (netip.Addr{}) {
				t.Fatalf("Network %+v: VNI %d is that of %q", n, n.VNI, owners[n.VNI])
			}
		}
	})
}
