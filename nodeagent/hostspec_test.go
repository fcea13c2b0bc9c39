package nodeagent

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rackweft/rackweft/api"
)

func whole(name, value string) api.ServerFrame {
	return api.ServerFrame{Part: &api.PartUpdate{Name: name, Digest: api.PartDigest(api.Part(value)), Value: api.Part(value)}}
}

func bookmark(epoch, revision int64) api.ServerFrame {
	return api.ServerFrame{Bookmark: &api.Bookmark{Epoch: epoch, Revision: revision}}
}

func tombstone(part, uid string) api.ServerFrame {
	return api.ServerFrame{Tombstones: []api.Tombstone{{Part: part, UID: uid}}}
}

// feed handles frames and fails on an error.
func feed(t testing.TB, s *hostSpec, frames ...api.ServerFrame) {
	t.Helper()
	for _, f := range frames {
		if _, err := s.handle(f, api.Bookmark{}); err != nil {
			t.Fatal(err)
		}
	}
}

// shape renders what handlers are asked for.
func shape(s *hostSpec) []string {
	var out []string
	for _, kind := range slices.Sorted(maps.Keys(s.kinds())) {
		parts, _ := s.parts(kind)
		for _, p := range parts {
			out = append(out, p.Key()+" "+[]string{"present", "orphaned", "removed"}[p.Want])
		}
	}
	return out
}

func TestBatches(t *testing.T) {
	guest := `{"uid":"g1"}`
	tests := []struct {
		name   string
		frames []api.ServerFrame
		want   []string
		err    error
	}{
		{"nothing before the bookmark", []api.ServerFrame{whole("guest/web", guest)}, nil, nil},
		{"a batch", []api.ServerFrame{whole("base", `{}`), whole("guest/web", guest), bookmark(1, 5)},
			[]string{"base present", "guest/web present"}, nil},
		{"gone", []api.ServerFrame{whole("guest/web", guest), bookmark(1, 5), {Gone: "guest/web"}, bookmark(1, 6)},
			[]string{"guest/web orphaned"}, nil},
		{"gone and back", []api.ServerFrame{whole("guest/web", guest), bookmark(1, 5), {Gone: "guest/web"}, bookmark(1, 6),
			whole("guest/web", guest), bookmark(1, 7)}, []string{"guest/web present"}, nil},
		{"gone and back in one batch", []api.ServerFrame{{Gone: "guest/web"}, whole("guest/web", guest), bookmark(1, 5)},
			[]string{"guest/web present"}, nil},
		{"gone, never known", []api.ServerFrame{{Gone: "guest/web"}, bookmark(1, 5)}, nil, nil},
		{"tombstone", []api.ServerFrame{whole("guest/web", guest), bookmark(1, 5), {Gone: "guest/web"}, tombstone("guest/web", "g1"), bookmark(1, 6)},
			[]string{"guest/web@g1 removed"}, nil},
		{"tombstone of a namesake", []api.ServerFrame{whole("guest/web", guest), tombstone("guest/web", "g0"), bookmark(1, 5)},
			[]string{"guest/web present", "guest/web@g0 removed"}, nil},
		{"tombstone without a uid", []api.ServerFrame{whole("base", `{}`), tombstone("base", ""), bookmark(1, 5)},
			[]string{"base present"}, nil},
		{"a part after its tombstone lives", []api.ServerFrame{tombstone("guest/web", "g1"), bookmark(1, 5), whole("guest/web", guest), bookmark(1, 6)},
			[]string{"guest/web present"}, nil},
		{"lower revision", []api.ServerFrame{whole("base", `{}`), bookmark(1, 5), whole("base", `{"zone":"x"}`), whole("bgp", `{}`), bookmark(1, 4)},
			[]string{"base present"}, errStale},
		{"lower epoch", []api.ServerFrame{whole("base", `{}`), bookmark(2, 5), whole("bgp", `{}`), bookmark(1, 9)},
			[]string{"base present"}, errStale},
		{"higher epoch", []api.ServerFrame{whole("base", `{}`), tombstone("guest/web", "g1"), bookmark(1, 5), whole("bgp", `{}`), bookmark(2, 1)},
			[]string{"base present", "bgp present"}, nil},
		{"unknown kind", []api.ServerFrame{whole("quantum/q", `{}`), bookmark(1, 1)}, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := loadHostSpec(t.TempDir())
			var err error
			for _, f := range tt.frames {
				if _, err = s.handle(f, api.Bookmark{}); err != nil {
					break
				}
			}
			if !errors.Is(err, tt.err) {
				t.Fatalf("the error is %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, shape(s)); diff != "" {
				t.Error(diff)
			}
			if err := s.save(); err != nil {
				t.Fatal(err)
			}
			again, faults := loadHostSpec(s.dir)
			if diff := cmp.Diff(tt.want, shape(again)); diff != "" || len(faults) > 0 {
				t.Errorf("after a restart (%v): %s", faults, diff)
			}
		})
	}
}

// A stream that breaks in mid-batch leaves nothing of it.
func TestResetDropsTheBatch(t *testing.T) {
	s, _ := loadHostSpec(t.TempDir())
	feed(t, s, whole("bgp", `{}`))
	s.reset()
	feed(t, s, whole("base", `{}`), bookmark(1, 1))
	if diff := cmp.Diff([]string{"base present"}, shape(s)); diff != "" {
		t.Error(diff)
	}
}

func TestPeerDelta(t *testing.T) {
	network := func(peers string) api.Part {
		var n api.NetworkPart
		text := `{"uid":"n1","vni":10017,"mtu":1450,"lease":"10.5.3.0/24","mac":"02:00:00:00:00:03","peers":[` + peers + `]}`
		if err := json.Unmarshal([]byte(text), &n); err != nil {
			t.Fatal(err)
		}
		p, err := api.EncodePart(n)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	a := `{"host":"a","lease":"10.5.4.0/24","vtep":"198.18.8.4","mac":"02:00:00:00:00:04"}`
	b := `{"host":"b","lease":"10.5.5.0/24","vtep":"198.18.8.5","mac":"02:00:00:00:00:05"}`
	c := `{"host":"c","lease":"10.5.40.0/24","vtep":"198.18.8.40","mac":"02:00:00:00:00:40"}`
	before, after := network(a+","+b), network(b+","+c)
	var delta api.PeerDelta
	if err := json.Unmarshal([]byte(`{"put":[`+c+`],"remove":["10.5.4.0/24"]}`), &delta); err != nil {
		t.Fatal(err)
	}
	update := api.ServerFrame{Part: &api.PartUpdate{Name: "network/n", Base: api.PartDigest(before), Digest: api.PartDigest(after), Delta: &delta}}

	s, _ := loadHostSpec(t.TempDir())
	feed(t, s, whole("network/n", string(before)), update, bookmark(1, 1))
	if got := s.digests()["network/n"]; got != api.PartDigest(after) {
		t.Errorf("the delta leads to %s", s.index.Parts["network/n"].value)
	}

	// To another base it does not fit: the part is asked for whole.
	if _, err := s.handle(update, api.Bookmark{}); err == nil || len(s.digests()) != 0 {
		t.Errorf("a delta to another base gives %v and announces %v", err, s.digests())
	}
	s.reset()
	feed(t, s, whole("network/n", string(after)), bookmark(1, 2))
	if len(s.digests()) != 1 {
		t.Error("a part that came whole is still in doubt")
	}
}

func cached(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	s, _ := loadHostSpec(dir)
	feed(t, s, whole("base", `{"uid":"m1"}`), whole("guest/web", `{"uid":"g1"}`), bookmark(3, 7))
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Whatever happens to the files, the agent starts, and what is left is right.
func TestDamagedCache(t *testing.T) {
	guest := api.PartDigest(api.Part(`{"uid":"g1"}`)) + ".json"
	part := func(dir string) string { return filepath.Join(dir, "parts", guest) }
	idx := func(dir string) string { return filepath.Join(dir, "index") }
	edit := func(path string, f func([]byte) []byte) {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f(raw), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(path string) {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	baseLeft := []string{"base present"}
	tests := []struct {
		name   string
		damage func(dir string)
		want   []string
		faults int
	}{
		{"none", func(string) {}, []string{"base present", "guest/web present"}, 0},
		{"part torn", func(d string) { edit(part(d), func(b []byte) []byte { return b[:4] }) }, baseLeft, 1},
		{"part empty", func(d string) { edit(part(d), func([]byte) []byte { return nil }) }, baseLeft, 1},
		{"part with a flipped bit", func(d string) { edit(part(d), func(b []byte) []byte { b[5] ^= 1; return b }) }, baseLeft, 1},
		{"part lost", func(d string) { remove(part(d)) }, baseLeft, 1},
		{"part a directory", func(d string) { remove(part(d)); _ = os.Mkdir(part(d), 0o700) }, baseLeft, 1},
		{"index torn", func(d string) { edit(idx(d), func(b []byte) []byte { return b[:len(b)-9] }) }, nil, 1},
		{"index empty", func(d string) { edit(idx(d), func([]byte) []byte { return nil }) }, nil, 1},
		{"index with a flipped bit", func(d string) { edit(idx(d), func(b []byte) []byte { b[80] ^= 1; return b }) }, nil, 1},
		{"index lost", func(d string) { remove(idx(d)) }, nil, 0},
		{"index of another shape", func(d string) {
			edit(idx(d), func([]byte) []byte { return []byte(api.PartDigest(api.Part(`[1]`)) + "\n[1]") })
		}, nil, 1},
		{"index that points outside", func(d string) {
			body := `{"parts":{"base":{"digest":"../../../../etc/passwd"}}}`
			edit(idx(d), func([]byte) []byte { return []byte(api.PartDigest(api.Part(body)) + "\n" + body) })
		}, nil, 1},
		{"all lost", func(d string) { remove(d) }, nil, 0},
		{"left over from a crash", func(d string) { _ = os.WriteFile(part(d)+".tmp", []byte("x"), 0o600) },
			[]string{"base present", "guest/web present"}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := cached(t)
			tt.damage(dir)
			s, faults := loadHostSpec(dir)
			if diff := cmp.Diff(tt.want, shape(s)); diff != "" {
				t.Error(diff)
			}
			if len(faults) != tt.faults {
				t.Errorf("faults %v, want %d", faults, tt.faults)
			}
			if len(s.digests()) != len(tt.want) {
				t.Errorf("it announces %v", s.digests())
			}
			// What bootd sends anew heals the cache.
			feed(t, s, whole("base", `{"uid":"m1"}`), whole("guest/web", `{"uid":"g1"}`), bookmark(3, 8))
			if err := s.save(); err != nil {
				t.Fatal(err)
			}
			healed, faults := loadHostSpec(dir)
			if len(healed.digests()) != 2 {
				t.Errorf("not healed: %v %v", healed.digests(), faults)
			}
		})
	}
}

func TestCacheKeepsNothingOld(t *testing.T) {
	dir := cached(t)
	s, _ := loadHostSpec(dir)
	feed(t, s, whole("guest/web", `{"uid":"g1","cpus":2}`), bookmark(3, 8))
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(filepath.Join(dir, "parts"))
	if err != nil || len(files) != 2 {
		t.Errorf("the cache holds %v (%v), want two parts", files, err)
	}
}

func FuzzLoadHostSpec(f *testing.F) {
	body := `{"epoch":1,"revision":2,"parts":{"base":{"digest":"` + api.PartDigest(api.Part(`{}`)) + `"}},"tombstones":[{"part":"guest/a","uid":"u"}]}`
	f.Add([]byte(api.PartDigest(api.Part(body))+"\n"+body), []byte(`{}`), true)
	f.Add([]byte(body), []byte(`{"uid":1}`), false)
	f.Add([]byte("\n"), []byte(nil), true)
	f.Fuzz(func(t *testing.T, idx, part []byte, sign bool) {
		dir := t.TempDir()
		if sign { // so that what lies behind the digest is reached
			idx = append([]byte(api.PartDigest(idx)+"\n"), idx...)
		}
		writeTest(t, filepath.Join(dir, "index"), string(idx))
		writeTest(t, filepath.Join(dir, "parts", api.PartDigest(part)+".json"), string(part))
		s, _ := loadHostSpec(dir)
		for name, e := range s.index.Parts {
			if api.PartDigest(e.value) != e.Digest {
				t.Errorf("part %q came through with a wrong digest", name)
			}
		}
		_ = shape(s)
		feed(t, s, whole("base", `{}`), bookmark(1<<62, 1<<62))
		if s.index.Parts["base"].Digest == "" {
			t.Error("the cache cannot be healed")
		}
	})
}

// Any bytes on the stream: no crash, and what is committed survives a restart.
func FuzzServerFrames(f *testing.F) {
	line := func(x api.ServerFrame) string {
		raw, err := json.Marshal(x)
		if err != nil {
			f.Fatal(err)
		}
		return string(raw) + "\n"
	}
	f.Add(line(whole("base", `{"uid":"m"}`)) + line(bookmark(1, 1)))
	f.Add(line(whole("guest/a", `{"uid":"g"}`)) + line(tombstone("guest/a", "g")) + line(bookmark(1, 1)) + line(api.ServerFrame{Gone: "guest/a"}) + line(bookmark(1, 2)))
	f.Add(`{"part":{"name":"network/n","digest":"","base":"","delta":{"put":[{"lease":"10.0.0.0/24"}],"remove":["x"]}}}` + "\n")
	f.Add(`{"bookmark":{"epoch":-1,"revision":9223372036854775807}}` + "\n{\"tombstones\":[{}]}\n{")
	f.Fuzz(func(t *testing.T, stream string) {
		s, _ := loadHostSpec(t.TempDir())
		for text := range strings.Lines(stream) {
			var frame api.ServerFrame
			if json.Unmarshal([]byte(text), &frame) != nil {
				continue
			}
			if _, err := s.handle(frame, api.Bookmark{}); err != nil {
				s.reset()
			}
		}
		want := shape(s)
		if err := s.save(); err != nil {
			t.Fatal(err)
		}
		again, faults := loadHostSpec(s.dir)
		if diff := cmp.Diff(want, shape(again)); diff != "" || len(faults) > 0 {
			t.Errorf("after a restart (%v): %s", faults, diff)
		}
	})
}
