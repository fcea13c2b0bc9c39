package zone

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

var start = time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC)

// hosts makes well candidates out of words such as "a/r1": the name and the
// rack, and perhaps what is the matter with it, and what it has of uplinks.
func hosts(words ...string) []candidate {
	var all []candidate
	for _, w := range words {
		parts := strings.Split(w, "/")
		m := candidate{name: parts[0], uid: "uid-" + parts[0], settled: true, applied: true, connected: true}
		if len(parts) > 1 {
			m.rack = parts[1]
		}
		if len(parts) > 3 {
			m.uplinks = strings.Split(parts[3], "+")
		}
		if len(parts) > 2 {
			switch what := parts[2]; what {
			case "unheard":
				m.unheard = true
			case "fault":
				m.fault = what
			case "unfit":
				m.unfit = what
			case "fresh":
				m.settled = false
			case "slow":
				m.applied, m.connected = false, false
			case "lonely":
				m.connected = false
			case "anew":
				m.uid += "2"
			default:
				m.retire = what
			}
		}
		all = append(all, m)
	}
	return all
}

// standing makes reflectors out of words such as "a:Serving" or
// "a:Leaving:SameRack"; a bare name serves.
func standing(words ...string) []api.ReflectorStatus {
	var list []api.ReflectorStatus
	for i, w := range words {
		parts := append(strings.Split(w, ":"), "", "")
		r := api.ReflectorStatus{Machine: parts[0], UID: "uid-" + parts[0], State: api.ReflectorState(parts[1]), Reason: parts[2], Since: start.Add(time.Duration(i-100) * time.Minute)}
		if r.State == "" {
			r.State = api.ReflectorServing
		}
		list = append(list, r)
	}
	return list
}

func written(list []api.ReflectorStatus) string {
	var words []string
	for _, r := range list {
		w := r.Machine
		if r.State != api.ReflectorServing {
			w += ":" + string(r.State)
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}

func TestChoose(t *testing.T) {
	two := api.Reflectors{Count: 2}
	for _, c := range []struct {
		name string
		spec api.Reflectors
		was  []api.ReflectorStatus
		all  []candidate
		want string
	}{
		{"none to choose from", two, nil, nil, ""},
		{"one host", two, nil, hosts("a/r1/slow"), "a:Starting"},
		{"different racks", two, nil, hosts("a/r1/slow", "b/r1/slow", "c/r2/slow"), "a:Starting c:Starting"},
		{"known racks first", two, nil, hosts("a//slow", "b/r1/slow", "c/r2/slow"), "b:Starting c:Starting"},
		{"one rack only", two, nil, hosts("a/r1/slow", "b/r1/slow"), "a:Starting b:Starting"},
		{"the unfit are passed over", two, nil, hosts("a/r1/unfit", "b/r1/Draining", "c/r2/fault", "d/r1/slow", "e/r2/slow"), "d:Starting e:Starting"},
		{"its speaker reflects", two, standing("a", "b:Starting"), hosts("a/r1", "b/r2/lonely"), "a b:Joining"},
		{"its clients come", two, standing("a", "b:Joining"), hosts("a/r1", "b/r2"), "a b"},
		{"its clients have had their time", two, standing("a", "b:Joining"), hosts("a/r1", "b/r2/lonely"), "a b"},
		{"those that serve stay", two, standing("c", "d"), hosts("a/r1", "b/r2", "c/r3", "d/r4"), "c d"},
		{"out of reach for a moment", two, standing("c", "d"), hosts("a/r1", "b/r2", "c/r3/unfit", "d/r4"), "c d"},

		{"a dead one stays until another serves", two, standing("a", "b"), hosts("a/r1/Silent", "b/r2", "c/r1/slow"), "a:Leaving b c:Starting"},
		{"and goes then", two, standing("a:Leaving:Silent", "b", "c:Joining"), hosts("a/r1/Silent", "b/r2", "c/r1"), "b c"},
		{"a dead one without a replacement stays", two, standing("a", "b"), hosts("a/r1/Silent", "b/r2"), "a:Leaving b"},
		{"it comes back in time", two, standing("a:Leaving:Silent", "b", "c:Starting"), hosts("a/r1", "b/r2", "c/r1/slow"), "a b"},
		{"it comes back too late", two, standing("a:Leaving:Silent", "b", "c"), hosts("a/r1", "b/r2", "c/r1"), "b c"},
		{"all are dead", two, standing("a", "b"), hosts("a/r1/Silent", "b/r2/Silent"), "a:Leaving b:Leaving"},
		{"one in another Zone goes at once", two, standing("a", "b"), hosts("b/r2", "c/r1/slow"), "b c:Starting"},
		{"one that was recreated goes at once", two, standing("a", "b"), hosts("a/r1/anew", "b/r2", "c/r3"), "a:Starting b"},
		{"a replacement that fails is dropped", two, standing("a:Leaving:Silent", "b", "c:Starting"), hosts("a/r1/Silent", "b/r2", "c/r1/Failed", "d/r1/slow"), "a:Leaving b d:Starting"},

		{"shared rack, and a free one", two, standing("a", "b"), hosts("a/r1", "b/r1", "c/r2/slow"), "a b:Leaving c:Starting"},
		{"shared rack, a free one just came", two, standing("a", "b"), hosts("a/r1", "b/r1", "c/r2/fresh"), "a b"},
		{"the free rack's host fails", two, standing("a", "b:Leaving:SameRack", "c:Starting"), hosts("a/r1", "b/r1", "c/r2/Failed"), "a b"},
		{"no racks are known", two, standing("a", "b"), hosts("a", "b", "c"), "a b"},

		{"fewer wanted: of a shared rack first", api.Reflectors{Count: 2}, standing("a", "b", "c"), hosts("a/r1", "b/r1", "c/r2"), "a c"},
		{"fewer wanted, and none serves yet", api.Reflectors{Count: 1}, standing("a:Joining", "b:Starting"), hosts("a/r1/lonely", "b/r2/slow"), "a b:Withdrawn"},
		{"more wanted", api.Reflectors{Count: 3}, standing("a", "b"), hosts("a/r1", "b/r2", "c/r1/slow", "d/r3/slow"), "a b d:Starting"},

		{"named", api.Reflectors{Count: 2, Machines: []string{"c"}}, standing("a", "b"), hosts("a/r1", "b/r1", "c/r1/slow"), "a:Leaving b:Leaving c:Starting"},
		{"named, and serving", api.Reflectors{Count: 2, Machines: []string{"c"}}, standing("a:Leaving", "b:Leaving", "c:Joining"), hosts("a/r1", "b/r1", "c/r1"), "c"},
		{"named, and dead", api.Reflectors{Count: 2, Machines: []string{"a", "b"}}, standing("a", "b"), hosts("a/r1/Silent", "b/r1", "c/r2"), "a b"},
		{"named, and none", api.Reflectors{Count: 2, Machines: []string{"a", "x"}}, standing("a"), hosts("a/r1"), "a"},
		{"uplinks do not carry yet", two, standing("a", "b:Joining"), hosts("a/r1//u1+u2", "b/r2/lonely/u1"), "a b"}, // its time is over
		{"a dead one has no uplinks", two, standing("a:Leaving:Silent", "b", "c"), hosts("a/r1/Silent", "b/r2//u1", "c/r1//u1"), "b c"},
		{"uplinks come by it alone", two, standing("a:Leaving:Draining", "b", "c"), hosts("a/r1/Draining/u1+u2", "b/r2//u1+u2", "c/r1//u1"), "a:Leaving b c"},
		{"uplinks come by others too", two, standing("a:Leaving:Draining", "b", "c"), hosts("a/r1/Draining/u1+u2", "b/r2//u2+u1", "c/r1//u1+u2"), "a:Withdrawn b c"},
		{"uplinks come by none", two, standing("a:Leaving:Draining", "b", "c"), hosts("a/r1/Draining", "b/r2", "c/r1"), "b c"},
		{"those of another bootd", two, standing("a:Leaving:Draining", "b", "c"), hosts("a/r1/Draining/u1", "b/r2/unheard", "c/r1/unheard"), "a:Withdrawn b c"},
		{"one of another bootd", two, standing("a:Leaving:Draining", "b", "c"), hosts("a/r1/unheard", "b/r2//u1", "c/r1//u1"), "b c"},
		{"both replaced, and one carries", api.Reflectors{Count: 2, Machines: []string{"c", "d"}}, standing("a:Leaving", "b:Leaving", "c", "d"), hosts("a/r1//u1", "b/r2//u1", "c/r1//u1", "d/r2"), "a:Leaving b:Leaving c d"},
		{"both replaced, and both carry", api.Reflectors{Count: 2, Machines: []string{"c", "d"}}, standing("a:Leaving", "b:Leaving", "c", "d"), hosts("a/r1//u1", "b/r2//u1", "c/r1//u1", "d/r2//u1"), "a:Withdrawn b:Withdrawn c d"},
		{"withdrawn for long", two, standing("a:Withdrawn:Draining", "b", "c"), hosts("a/r1/slow", "b/r2", "c/r1"), "b c"},
		{"withdrawn, and another dies", two, standing("a:Withdrawn:NotNeeded", "b", "c:Leaving:Silent"), hosts("a/r1", "b/r2", "c/r3/Silent"), "a:Joining b c:Leaving"},
		{"withdrawn, and named again", api.Reflectors{Count: 2, Machines: []string{"a", "b"}}, standing("a:Withdrawn:NotNamed", "b", "c"), hosts("a/r1/slow", "b/r2//u1", "c/r3//u1"), "a:Joining b c:Leaving"},
		{"chosen anew from named", two, standing("a"), hosts("a/r1", "b/r1/slow"), "a b:Starting"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := choose(c.spec, start, c.was, c.all)
			if s := written(got.reflectors); s != c.want {
				t.Errorf("%s, want %s (%v)", s, c.want, got.news)
			}
			again := choose(c.spec, start, got.reflectors, c.all)
			if !reflect.DeepEqual(again.reflectors, got.reflectors) {
				t.Errorf("chosen again: %s", written(again.reflectors))
			}
		})
	}
}

// A replacement goes step by step: who is new serves when it carries what comes by
// the uplinks, who is old leaves these first, and forwards until they have
// followed.
func TestChooseCarries(t *testing.T) {
	spec := api.Reflectors{Count: 1, Machines: []string{"b"}}
	was, now := standing("a"), start
	for _, step := range []struct {
		after time.Duration
		old   string // a, and b
		new   string
		want  string
	}{
		{0, "a/r1//u1+u2", "b/r2/slow", "a:Leaving b:Starting"},
		{time.Second, "a/r1//u1+u2", "b/r2/lonely", "a:Leaving b:Joining"},
		{time.Second, "a/r1//u1+u2", "b/r2", "a:Leaving b:Joining"},
		{time.Second, "a/r1/unheard", "b/r2/unheard", "a:Leaving b"}, // bootd was restarted
		{time.Second, "a/r1/unheard", "b/r2//u1+u2", "a:Leaving b"},
		{time.Second, "a/r1//u1+u2", "b/r2//u1", "a:Leaving b"},
		{time.Second, "a/r1//u1+u2", "b/r2//u1+u2", "a:Withdrawn b"},
		{following, "a/r1/slow", "b/r2//u1+u2", "a:Withdrawn b"}, // it has not heard of it yet
		{time.Second, "a/r1", "b/r2//u1+u2", "b"},
	} {
		now = now.Add(step.after)
		next := choose(spec, now, was, hosts(step.old, step.new))
		if got := written(next.reflectors); got != step.want {
			t.Fatalf("%s and %s: %s, want %s (%v)", step.old, step.new, got, step.want, next.news)
		}
		was = next.reflectors
	}
	// It does not wait for longer than hosts take.
	was = standing("a:Withdrawn:NotNamed", "b")
	was[0].Since = now
	if got := written(choose(spec, now.Add(following-time.Second), was, hosts("a/r1", "b/r2//u1")).reflectors); got != "a:Withdrawn b" {
		t.Errorf("uplinks have had no time to follow: %s", got)
	}
	if got := written(choose(spec, now.Add(joining), was, hosts("a/r1/slow", "b/r2//u1")).reflectors); got != "b" {
		t.Errorf("a host that reports nothing: %s", got)
	}
	held := choose(spec, now, standing("a:Leaving:NotNamed", "b"), hosts("a/r1//u1", "b/r2")).held["a"]
	if held != " once b has u1" {
		t.Errorf("why a stays: %q", held)
	}
}

// TestChooseUnderChurn lets a Zone of ten hosts live through 3,000 random
// events, and looks at every step for what must hold at all of them.
func TestChooseUnderChurn(t *testing.T) {
	for seed := range uint64(10) {
		random := rand.New(rand.NewPCG(seed, 1))
		var all []candidate
		for i := range 10 {
			all = append(all, hosts(fmt.Sprintf("h%d/r%d", i, i%4))...)
		}
		spec := api.Reflectors{Count: 2}
		now := start
		var was []api.ReflectorStatus
		for step := range 300 {
			now = now.Add(time.Duration(random.IntN(90)) * time.Second)
			disturb(random, all)
			if random.IntN(100) == 0 {
				spec.Count = 1 + random.IntN(3)
			}
			next := choose(spec, now, was, all)
			checkChoice(t, spec, now, was, next, all)
			if t.Failed() {
				t.Fatalf("seed %d, step %d: %s became %s; %v", seed, step, written(was), written(next.reflectors), next.news)
			}
			was = next.reflectors
		}
		// Peace: it comes to rest, and to what was asked for.
		for i := range all {
			all[i] = hosts(fmt.Sprintf("h%d/r%d", i, i%4))[0]
		}
		for range 10 {
			now = now.Add(2 * time.Minute)
			was = choose(spec, now, was, all).reflectors
		}
		last := choose(spec, now.Add(time.Hour), was, all)
		if len(last.news) > 0 || len(last.reflectors) != spec.Count || len(last.crowded) > 0 {
			t.Errorf("seed %d: %s, crowded %v; %v", seed, written(last.reflectors), last.crowded, last.news)
		}
	}
}

func disturb(random *rand.Rand, all []candidate) {
	m := &all[random.IntN(len(all))]
	fresh := hosts(m.name + "/" + m.rack)[0]
	fresh.uid = m.uid
	fresh.uplinks = []string{"u1", "u2"}[:random.IntN(3)]
	fresh.unheard = random.IntN(10) == 0
	switch random.IntN(8) {
	case 0:
		fresh.retire = "Silent"
	case 1:
		fresh.unfit = "NotConnected"
	case 2:
		fresh.fault = "no address"
	case 3:
		fresh.uid += "'"
	case 4:
		fresh.applied, fresh.connected, fresh.settled = false, false, false
	}
	*m = fresh
}

func checkChoice(t *testing.T, spec api.Reflectors, now time.Time, was []api.ReflectorStatus, next choice, all []candidate) {
	t.Helper()
	of := func(name string) candidate {
		return all[slices.IndexFunc(all, func(m candidate) bool { return m.name == name })]
	}
	state := map[string]api.ReflectorStatus{}
	serving, staying := 0, 0
	for _, r := range next.reflectors {
		if _, twice := state[r.Machine]; twice {
			t.Errorf("%s is there twice", r.Machine)
		}
		state[r.Machine] = r
		if of(r.Machine).uid != r.UID {
			t.Errorf("%s is another Machine by now", r.Machine)
		}
		if r.State == api.ReflectorServing {
			serving++
		}
		if !r.State.Goes() {
			staying++
		}
	}
	if staying > spec.Count {
		t.Errorf("%d stay", staying)
	}
	before := len(was)
	for _, r := range was {
		m, then := of(r.Machine), state[r.Machine]
		well := m.uid == r.UID && m.fault+m.retire == ""
		if then.Machine == "" && m.uid == r.UID && r.State == api.ReflectorServing && serving < spec.Count {
			t.Errorf("%s went before others served", r.Machine)
		}
		if r.State == api.ReflectorServing && well && then.State.Goes() && before <= spec.Count && then.Reason != reasonSameRack {
			t.Errorf("%s, which is well, is to leave: %s", r.Machine, then.Reason)
		}
	}
	serves := slices.ContainsFunc(next.news, func(n news) bool { return n.reason == "ReflectorServing" }) // and another may be moved for its rack
	if again := choose(spec, now, next.reflectors, all); len(again.news) > 0 && !serves {
		t.Errorf("chosen again: %s; %v", written(again.reflectors), again.news)
	}
}
