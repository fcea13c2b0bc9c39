package zone

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
)

// candidate is a Machine of a Zone that reflects, or could.
type candidate struct {
	name, uid, rack string
	// fault excludes it from BGP altogether.
	fault string
	// retire is why it should no longer reflect, or not begin to: it is drained, reprovisioned, or has been
	// unreachable for too long.
	retire string
	// unfit is why it may not be chosen now, though it could continue to reflect.
	unfit string
	// settled says that it has been healthy for a while.
	settled bool
	// applied says that its speaker has applied the reflector's part; connected, that the other hosts have
	// sessions with it.
	applied, connected bool
	// uplinks lists its sessions with uplinks, and the directions in which routes pass. It is unheard when it is
	// connected and has not reported.
	uplinks []string
	unheard bool
}

func (c *candidate) fit() bool { return c.fault == "" && c.retire == "" && c.unfit == "" }

// Reasons for which a reflector leaves, in addition to those of candidate.retire.
const (
	reasonNotNamed  = "NotNamed"  // spec.reflectors.machines names others
	reasonNotNeeded = "NotNeeded" // spec.reflectors.count is lower
	reasonSameRack  = "SameRack"  // another rack has a host for it
)

// joining is how long a reflector may wait for all of its clients before it counts as serving: an unreachable
// host must not delay a replacement.
const joining = time.Minute

// following is how long the Zone's uplinks may take to stop sending through a reflector with which they no longer
// have a session.
const following = 10 * time.Second

// choice is the chosen reflectors, and what changed.
type choice struct {
	reflectors []api.ReflectorStatus
	news       []news
	missing    []string // named, and not a host of the Zone
	lacking    int      // the number of reflectors for which there is no host
	crowded    []string // reflectors that share a rack
	// held says what the others lack for a reflector to leave, by its name.
	held map[string]string
}

// news is an event of a reflector.
type news struct {
	typ             api.EventType
	reason, message string
}

// choose decides which hosts reflect. It depends on its arguments only, and choosing again from its result
// changes nothing: a reflector stays until it no longer exists, is retired, is not needed, or another can replace
// it from a free rack. A leaving reflector stays until its replacement serves and carries the uplinks' routes,
// and then until the uplinks have followed; only one that is no longer a host of the Zone is dropped at once.
func choose(spec api.Reflectors, now time.Time, was []api.ReflectorStatus, all []candidate) choice {
	c := &chooser{choice: choice{held: map[string]string{}}, spec: spec, now: now, all: map[string]*candidate{}}
	for i := range all {
		c.all[all[i].name] = &all[i]
	}
	c.keep(was)
	if len(spec.Machines) > 0 {
		c.want = len(spec.Machines)
		c.named()
	} else {
		c.want = spec.Count
		c.retireUnwell()
		c.recover()
		c.shrink()
		c.grow(all)
		c.spread(all)
	}
	c.advance()
	c.release()
	c.finish()
	return c.choice
}

type chooser struct {
	choice
	spec api.Reflectors
	now  time.Time
	all  map[string]*candidate
	want int
}

func (c *chooser) say(typ api.EventType, reason, message string) {
	c.news = append(c.news, news{typ, reason, message})
}

// keep keeps the reflectors that are still hosts of the Zone.
func (c *chooser) keep(was []api.ReflectorStatus) {
	for _, r := range was {
		m := c.all[r.Machine]
		if m == nil || m.uid != r.UID {
			c.say(api.Warning, "ReflectorGone", r.Machine+" is no longer a host of the Zone")
			continue
		}
		c.reflectors = append(c.reflectors, r)
	}
}

func (c *chooser) of(r api.ReflectorStatus) *candidate { return c.all[r.Machine] }

func (c *chooser) move(r *api.ReflectorStatus, to api.ReflectorState, reason string) {
	r.State, r.Since, r.Reason = to, c.now, reason
}

func (c *chooser) leave(r *api.ReflectorStatus, reason string) {
	if r.State.Goes() {
		return
	}
	to := api.ReflectorLeaving
	if r.State == api.ReflectorStarting {
		to = api.ReflectorWithdrawn // uplinks have not begun to send through it
	}
	c.move(r, to, reason)
	c.say(api.Normal, "ReflectorLeaving", r.Machine+" will stop reflecting: "+reason)
}

func (c *chooser) start(m *candidate, why string) {
	c.reflectors = append(c.reflectors, api.ReflectorStatus{Machine: m.name, UID: m.uid, State: api.ReflectorStarting, Since: c.now})
	c.say(api.Normal, "ReflectorChosen", m.name+" will reflect: "+why)
}

func (c *chooser) has(name string) *api.ReflectorStatus {
	i := slices.IndexFunc(c.reflectors, func(r api.ReflectorStatus) bool { return r.Machine == name })
	if i < 0 {
		return nil
	}
	return &c.reflectors[i]
}

// count is the number of reflectors in one of the states.
func (c *chooser) count(states ...api.ReflectorState) int {
	n := 0
	for _, r := range c.reflectors {
		if slices.Contains(states, r.State) {
			n++
		}
	}
	return n
}

// staying is the number of reflectors that do not leave.
func (c *chooser) staying() int {
	return len(c.reflectors) - c.count(api.ReflectorLeaving, api.ReflectorWithdrawn)
}

// named makes the reflectors those that the spec names, healthy or not.
func (c *chooser) named() {
	for _, name := range c.spec.Machines {
		m := c.all[name]
		switch r := c.has(name); {
		case m == nil:
			c.missing = append(c.missing, name)
		case r == nil:
			c.start(m, "it is named")
		case r.State.Goes():
			c.back(r, "it is named")
		}
	}
	for i := range c.reflectors {
		if !slices.Contains(c.spec.Machines, c.reflectors[i].Machine) {
			c.leave(&c.reflectors[i], reasonNotNamed)
		}
	}
}

// back lets a leaving reflector stay: all hosts are still its peers.
func (c *chooser) back(r *api.ReflectorStatus, why string) {
	c.move(r, api.ReflectorJoining, "")
	c.say(api.Normal, "ReflectorStays", r.Machine+" stays: "+why)
}

// retireUnwell makes unhealthy reflectors leave. One that has not begun is dropped at once, and so is one whose
// clients are served by others.
func (c *chooser) retireUnwell() {
	serving := c.count(api.ReflectorServing)
	c.reflectors = slices.DeleteFunc(c.reflectors, func(r api.ReflectorStatus) bool {
		m := c.of(r)
		gone := m.fault+m.retire != "" && (r.State == api.ReflectorStarting || r.State == api.ReflectorJoining && serving > 0)
		if gone {
			c.say(api.Normal, "ReflectorDropped", r.Machine+" never served: "+cmp.Or(m.retire, m.fault))
		}
		return gone
	})
	for i := range c.reflectors {
		r := &c.reflectors[i]
		if m := c.of(*r); m.fault != "" || m.retire != "" {
			c.leave(r, cmp.Or(m.retire, m.fault))
		}
	}
}

// recover lets a reflector that is healthy again stay, if none serves in its place yet. A replacement that is
// only starting is dropped.
func (c *chooser) recover() {
	for i := range c.reflectors {
		r := &c.reflectors[i]
		m := c.of(*r)
		if !r.State.Goes() || m.fault+m.retire != "" || c.count(api.ReflectorServing) >= c.want ||
			(r.Reason == reasonSameRack || r.Reason == reasonNotNeeded) && c.staying() >= c.want {
			continue
		}
		withdrawn := r.State == api.ReflectorWithdrawn
		c.back(r, "it is healthy again, and none serves in its place yet")
		if !withdrawn {
			r.State = api.ReflectorServing // its sessions never dropped
		}
		if c.staying() > c.want {
			c.dropYoungest()
			c.recover() // the list has changed
			return
		}
	}
}

// dropYoungest drops the reflector that was chosen last and does not serve yet.
func (c *chooser) dropYoungest() {
	for i, r := range slices.Backward(c.reflectors) {
		if r.State == api.ReflectorStarting || r.State == api.ReflectorJoining {
			c.reflectors = slices.Delete(c.reflectors, i, i+1)
			c.say(api.Normal, "ReflectorDropped", r.Machine+" is no longer needed")
			return
		}
	}
}

// shrink makes surplus reflectors leave: first those that share a rack, then the youngest.
func (c *chooser) shrink() {
	for c.staying() > c.want {
		at := c.sharing()
		if at < 0 {
			for i, r := range c.reflectors {
				if !r.State.Goes() && (at < 0 || worse(r, c.reflectors[at])) {
					at = i
				}
			}
		}
		c.leave(&c.reflectors[at], reasonNotNeeded)
	}
}

// worse orders reflectors by how little is lost with them.
func worse(a, b api.ReflectorStatus) bool {
	if serves := a.State == api.ReflectorServing; serves != (b.State == api.ReflectorServing) {
		return !serves
	}
	if !a.Since.Equal(b.Since) {
		return a.Since.After(b.Since)
	}
	return a.Machine > b.Machine
}

// sharing finds the worst of the staying reflectors that share a rack; -1 for none. A Machine without a rack
// counts as sharing none.
func (c *chooser) sharing() int {
	worst := -1
	for i, r := range c.reflectors {
		rack := c.of(r).rack
		if r.State.Goes() || rack == "" || len(c.racks()[rack]) < 2 {
			continue
		}
		if worst < 0 || worse(r, c.reflectors[worst]) {
			worst = i
		}
	}
	return worst
}

// racks are the staying reflectors by their racks.
func (c *chooser) racks() map[string][]string {
	racks := map[string][]string{}
	for _, r := range c.reflectors {
		if rack := c.of(r).rack; !r.State.Goes() && rack != "" {
			racks[rack] = append(racks[rack], r.Machine)
		}
	}
	return racks
}

// grow chooses the missing reflectors: in free racks as long as there are any.
func (c *chooser) grow(all []candidate) {
	for c.staying() < c.want {
		best := c.best(all, func(m *candidate) bool { return m.fit() })
		if best == nil {
			c.lacking = c.want - c.staying()
			return
		}
		c.start(best, "an Active host in "+inRack(best.rack))
	}
}

func inRack(rack string) string {
	if rack == "" {
		return "an unknown rack"
	}
	return "rack " + rack
}

// best is the best host that is not chosen, by its rack: a free one, an unknown one, one that is shared; then by
// name.
func (c *chooser) best(all []candidate, may func(*candidate) bool) *candidate {
	racks := c.racks()
	rank := func(m *candidate) int {
		switch {
		case m.rack == "":
			return 1
		case len(racks[m.rack]) == 0:
			return 0
		}
		return 1 + len(racks[m.rack])
	}
	var best *candidate
	for i := range all {
		m := &all[i]
		if c.has(m.name) != nil || !may(m) {
			continue
		}
		if best == nil || cmp.Or(cmp.Compare(rank(m), rank(best)), strings.Compare(m.name, best.name)) < 0 {
			best = m
		}
	}
	return best
}

// spread moves one of those that share a rack into a free one, when all else is
// well and a host there has been well for a while.
func (c *chooser) spread(all []candidate) {
	at := c.sharing()
	if at < 0 || c.count(api.ReflectorServing) != c.want || len(c.reflectors) != c.want {
		return
	}
	racks := c.racks()
	best := c.best(all, func(m *candidate) bool {
		return m.fit() && m.settled && m.rack != "" && len(racks[m.rack]) == 0
	})
	if best == nil {
		return
	}
	c.leave(&c.reflectors[at], reasonSameRack)
	c.start(best, "it is in "+inRack(best.rack)+", which has no reflector")
}

// advance moves on what has come further, by one step: with each, the part may be
// another, which the host has still to apply.
func (c *chooser) advance() {
	for i := range c.reflectors {
		r := &c.reflectors[i]
		m := c.of(*r)
		since := c.now.Sub(r.Since)
		switch {
		case !m.applied || since <= 0:
		case r.State == api.ReflectorStarting:
			c.move(r, api.ReflectorJoining, "")
		case r.State == api.ReflectorJoining && (m.connected && c.lacks(*r, c.reflectors) == "" || since >= joining):
			c.move(r, api.ReflectorServing, "")
			c.say(api.Normal, "ReflectorServing", r.Machine+" reflects the Zone's routes")
		}
	}
}

// lacks is a session or direction of an uplink that other reflectors have and r has not, "" when there is none.
func (c *chooser) lacks(r api.ReflectorStatus, others []api.ReflectorStatus) string {
	m := c.of(r)
	if m.unheard && c.now.Sub(r.Since) >= joining {
		return "" // it reports to another bootd
	}
	for _, other := range others {
		for _, x := range c.of(other).uplinks {
			if !slices.Contains(m.uplinks, x) {
				return x
			}
		}
	}
	return ""
}

// release releases leaving reflectors, once enough others serve. Where fewer can serve, those that are left
// continue. First the others carry the uplinks' traffic, then the uplink sessions end, then it stops forwarding.
func (c *chooser) release() {
	enough := max(c.want-len(c.missing), 1)
	if c.count(api.ReflectorServing) < enough {
		return
	}
	c.reflectors = slices.DeleteFunc(c.reflectors, func(r api.ReflectorStatus) bool {
		gone := r.State == api.ReflectorLeaving && c.carriesNothing(r) || r.State == api.ReflectorWithdrawn && c.followed(r)
		if gone {
			c.say(api.Normal, "ReflectorRemoved", r.Machine+" no longer reflects: "+r.Reason)
		}
		return gone
	})
	for i := range c.reflectors {
		r := &c.reflectors[i]
		if r.State == api.ReflectorLeaving && c.carried(*r, enough) {
			c.move(r, api.ReflectorWithdrawn, r.Reason)
			c.say(api.Normal, "ReflectorWithdrawn", r.Machine+" is withdrawn from the uplinks, whose routes others carry now")
		}
	}
}

// carriesNothing reports whether no uplink is known to have a session with a reflector.
func (c *chooser) carriesNothing(r api.ReflectorStatus) bool {
	m := c.of(r)
	return len(m.uplinks) == 0 && (!m.unheard || c.now.Sub(r.Since) >= joining)
}

// carried reports whether enough others have r's sessions and directions of uplinks.
func (c *chooser) carried(r api.ReflectorStatus, enough int) bool {
	if c.of(r).unheard {
		return false
	}
	n := 0
	for _, other := range c.reflectors {
		if other.State != api.ReflectorServing {
			continue
		}
		what := c.lacks(other, []api.ReflectorStatus{r})
		if what == "" {
			n++
		} else if c.held[r.Machine] == "" {
			c.held[r.Machine] = fmt.Sprintf(" once %s has %s", other.Machine, what)
		}
	}
	return n >= enough
}

// followed reports whether uplinks have stopped sending through a reflector that is Withdrawn.
func (c *chooser) followed(r api.ReflectorStatus) bool {
	since := c.now.Sub(r.Since)
	return c.of(r).applied && since >= following || since >= joining
}

func (c *chooser) finish() {
	slices.SortFunc(c.reflectors, func(a, b api.ReflectorStatus) int { return strings.Compare(a.Machine, b.Machine) })
	for _, names := range c.racks() {
		if len(names) > 1 {
			c.crowded = append(c.crowded, names...)
		}
	}
	slices.Sort(c.crowded)
}
