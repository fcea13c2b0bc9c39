package machine

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
)

// Recorder keeps what people read later: events and decisions.
type Recorder interface {
	Event(o api.Object, typ api.EventType, reason, message string)
	Decision(d api.Decision)
}

// Controller brings Machines to the state that their spec asks for.
type Controller struct {
	control.Env
	Dial     func(context.Context, hardware.Endpoint) (BMC, error)
	Decision func(d api.Decision)
	// Nonce derives the value that a BootAttempt writes to the system's AssetTag.
	Nonce func(machineUID, attemptID string) string

	// opening serialises the opening of BootAttempts, so that the brakes count
	// right: the cache is brought up to date before the next one counts.
	opening sync.Mutex
	// holds keeps BMCs from being asked too often after an error.
	holds holds
}

// Control is the controller as it runs.
func (c *Controller) Control() *control.Controller[*api.Machine] {
	c.holds.reset()
	return &control.Controller[*api.Machine]{Env: c.Env, Due: c.due, Workers: 16, Step: c.step, Gone: c.holds.forget}
}

// due names the Machines that a change may concern.
func (c *Controller) due(ch store.Change) []string {
	switch {
	case ch.Kind.Name == "Machine":
		return []string{ch.Name}
	case ch.Kind.Name == "Guest":
		return hostsOf(ch)
	case ch.Kind.Name == "Site":
		var all []string
		for _, m := range store.CachedList[api.Machine](c.Cache) {
			all = append(all, m.Metadata.Name)
		}
		return all
	case ch.Kind.Name != "Image" && sameSpec(ch.Old, ch.New):
		return nil // an Image has to be Ready, of the others the spec alone matters
	}
	return c.referrers(ch.Kind.Name, ch.Name)
}

// hostsOf are the hosts that a Guest was on and is on.
func hostsOf(ch store.Change) (hosts []string) {
	for _, o := range []api.Object{ch.Old, ch.New} {
		if g, ok := o.(*api.Guest); ok && g.Status.Host != "" {
			hosts = append(hosts, g.Status.Host)
		}
	}
	return hosts
}

func sameSpec(a, b api.Object) bool {
	return a != nil && b != nil && a.Meta().UID == b.Meta().UID && a.Meta().Generation == b.Meta().Generation
}

// referrers are the Machines that name an object, be it by their Profile.
func (c *Controller) referrers(kind, name string) (machines []string) {
	for _, o := range c.Cache.CachedReferrers(kind, name) {
		switch o := o.(type) {
		case *api.Machine:
			machines = append(machines, o.Metadata.Name)
		case *api.Profile:
			machines = append(machines, c.referrers("Profile", o.Metadata.Name)...)
		}
	}
	return machines
}

// step takes the next step of one Machine.
func (c *Controller) step(ctx context.Context, m *api.Machine) (time.Duration, error) {
	if IsDiscovered(m) {
		return c.expireDiscovered(ctx, m)
	}
	if store.Held(c.Cache) {
		return c.restored(ctx, m)
	}
	if store.Claimed(c.Cache, m) && m.Metadata.DeletionTimestamp == nil {
		return c.hold(ctx, m, "HostUnknown", fmt.Sprintf("a host of this name runs that bootd has not known since it was restored: weftctl restore accept %s, or write-off %[1]s to have it provisioned over", m.Metadata.Name))
	}
	if m.Metadata.DeletionTimestamp != nil {
		return c.remove(ctx, m)
	}
	if a := m.Status.Attempt; a.Open() && time.Now().After(a.Deadline) {
		return 0, c.expire(ctx, m)
	}
	if r := pending(m); r != nil {
		return c.serve(ctx, m, r)
	}
	if missing := c.missing(m); missing != "" {
		return 0, c.mutate(ctx, m, func(m *api.Machine) {
			m.Status.Conditions.Set(time.Now(), api.CondReferences, api.False, "Missing", missing)
			if m.Status.Attempt == nil {
				m.Status.Phase = api.PhaseRegistered
			}
		})
	}
	if !m.Status.Conditions.Is(api.CondReferences) || m.Status.ObservedGeneration != m.Metadata.Generation || m.Status.Phase == "" {
		return 0, c.mutate(ctx, m, func(now *api.Machine) {
			now.Status.ObservedGeneration = m.Metadata.Generation
			now.Status.Conditions.Set(time.Now(), api.CondReferences, api.True, "Found", "everything that the spec names exists"+c.unserved(m))
			if now.Status.Phase == "" || now.Status.Phase == api.PhaseDiscovered {
				now.Status.Phase = api.PhaseRegistered
			}
		})
	}
	if m.Spec.BMC != nil && !m.Status.Conditions.Is(api.CondInspected) && !m.Status.Attempt.Open() {
		return c.inspect(ctx, m)
	}
	wait, err := c.toState(ctx, m)
	if err != nil {
		return wait, err
	}
	if wait, err = c.putTagBack(ctx, m.Metadata.Name, wait); err != nil {
		return wait, err
	}
	return c.recheckBMC(ctx, m, wait)
}

// expire fails an attempt whose window is over, unless it made progress since
// it was looked at.
func (c *Controller) expire(ctx context.Context, m *api.Machine) error {
	message, failed := overdue(m, Required(c.Cache, m)), false
	err := c.mutate(ctx, m, func(fresh *api.Machine) {
		failed = attemptID(fresh) == attemptID(m) && fresh.Status.Attempt.Open() && time.Now().After(fresh.Status.Attempt.Deadline)
		if failed {
			Fail(fresh, time.Now(), message)
		}
	})
	if err == nil && failed {
		c.Event(m, api.Warning, "BootFailed", message)
	}
	return err
}

// toState takes the next step towards the state that the spec asks for.
func (c *Controller) toState(ctx context.Context, m *api.Machine) (time.Duration, error) {
	switch m.Spec.State {
	case api.StateMaintenance:
		return c.maintain(ctx, m)
	case api.StateOff:
		return c.turnOff(ctx, m)
	default:
		return c.activate(ctx, m)
	}
}

// recheckBMC asks a BMC that failed before whether it is well again, when its
// back-off is over: nothing else may need it for a long time. It returns when
// to look again, at the latest after wait (0 means never).
func (c *Controller) recheckBMC(ctx context.Context, m *api.Machine, wait time.Duration) (time.Duration, error) {
	now, ok := store.Cached[api.Machine](c.Cache, m.Metadata.Name)
	if !ok || now.Spec.BMC == nil {
		return wait, nil
	}
	if cond := now.Status.Conditions.Get(api.CondBMC); cond == nil || cond.Status != api.False {
		return wait, nil
	}
	again, err := heldOr(c.withBMC(ctx, now, "read the power state", func(ctx context.Context, b BMC) error {
		_, err := b.PowerState(ctx)
		return err
	}))
	if err != nil || again == 0 || (wait > 0 && wait < again) {
		return wait, err
	}
	return again, nil
}

// mutate changes the Machine, when fn changes anything. It fails when the Machine
// is gone: what follows on the change must not be done to its BMC.
func (c *Controller) mutate(ctx context.Context, m *api.Machine, fn func(*api.Machine)) error {
	there := false
	err := control.Write(ctx, c.Env, m, func(fresh *api.Machine) bool {
		there = true
		fn(fresh)
		return true
	})
	if err == nil && !there {
		return fmt.Errorf("write Machine %s: %w", m.Metadata.Name, store.ErrNotFound)
	}
	return err
}

// hold writes down why the Machine is held back; it is tried again when
// something changes, and every so often.
func (c *Controller) hold(ctx context.Context, m *api.Machine, reason, message string) (time.Duration, error) {
	if old := m.Status.Conditions.Get(api.CondHeld); old == nil || old.Reason != reason {
		c.Event(m, api.Warning, reason, message)
	}
	return 15 * time.Second, c.mutate(ctx, m, func(m *api.Machine) {
		m.Status.Conditions.Set(time.Now(), api.CondHeld, api.True, reason, message)
		if m.Status.Attempt == nil {
			m.Status.Phase = api.PhaseAvailable
		}
	})
}

// maintain leaves the Machine alone.
func (c *Controller) maintain(ctx context.Context, m *api.Machine) (time.Duration, error) {
	if m.Status.Phase == api.PhaseMaintenance {
		return 0, nil
	}
	return 0, c.mutate(ctx, m, func(m *api.Machine) {
		if m.Spec.State != api.StateMaintenance {
			return
		}
		Fail(m, time.Now(), "put into Maintenance")
		m.Status.Phase = api.PhaseMaintenance
	})
}

// activate opens and follows BootAttempts until one reaches Active.
func (c *Controller) activate(ctx context.Context, m *api.Machine) (time.Duration, error) {
	switch a := m.Status.Attempt; {
	case a == nil && m.Spec.BMC == nil && m.Spec.Boot.Unsolicited == api.BootAllow && time.Since(m.Status.BootAsked) < 4*bootAskedEvery:
		return c.open(ctx, m, "it boots by itself (unsolicited boots are allowed)", 0, api.StagePowerOn)
	case a == nil:
		return c.open(ctx, m, "state is Active", 0, api.StageRequested)
	case a.Open():
		return c.follow(ctx, m)
	case a.Result == api.ResultFailed:
		return c.retry(ctx, m)
	default:
		return c.watch(ctx, m)
	}
}

// open starts a BootAttempt when the brakes allow it.
func (c *Controller) open(ctx context.Context, m *api.Machine, reason string, retry int, stage api.Stage) (time.Duration, error) {
	if m.Spec.BMC == nil && stage == api.StageRequested {
		return c.hold(ctx, m, "NoBMC", "it has no BMC in its spec: power it on by hand; its boot is served when spec.boot.unsolicited is allow")
	}
	c.opening.Lock()
	defer c.opening.Unlock()
	if reason, message := c.brake(m); reason != "" {
		return c.hold(ctx, m, reason, message)
	}
	if Required(c.Cache, m).Level == api.TrustNonce && m.Spec.BMC != nil {
		stage = api.StageRequested // the firmware reads the AssetTag at a reset
	}
	seen := attemptID(m)
	var opened *api.BootAttempt
	err := control.Write(ctx, c.Env, m, func(fresh *api.Machine) bool {
		if opened = nil; attemptID(fresh) != seen {
			return false
		}
		if fresh.Status.Attempt.Open() {
			Fail(fresh, time.Now(), "superseded: "+reason)
		}
		openAttempt(fresh, time.Now(), reason, retry, stage, Window(c.Cache))
		c.wantNonce(fresh)
		if r := pending(fresh); r != nil && r.Verb == api.VerbReprovision {
			fresh.Status.Attempt.Request = r.ID
		}
		opened = fresh.Status.Attempt
		return true
	})
	if err != nil {
		return 0, fmt.Errorf("open a BootAttempt for %s: %w", m.Metadata.Name, err)
	}
	if opened == nil {
		return 0, nil
	}
	c.Event(m, api.Normal, "BootAttempt", fmt.Sprintf("BootAttempt %d opened: %s", opened.Number, reason))
	c.Decision(api.Decision{Machine: m.Metadata.Name, Question: "boot", Answer: "opened", Reason: reason, Attempt: opened.ID})
	return 0, nil
}

func attemptID(m *api.Machine) string {
	if m.Status.Attempt == nil {
		return ""
	}
	return m.Status.Attempt.ID
}

// brake says why no further BootAttempt may be opened now; an empty reason
// means that one may.
func (c *Controller) brake(m *api.Machine) (reason, message string) {
	s := site.Spec(c.Cache)
	if s.Paused {
		return "Paused", "the Site is paused: set spec.paused of the Site to false"
	}
	total, inRack := 0, 0
	for _, other := range store.CachedList[api.Machine](c.Cache) {
		if other.Metadata.UID == m.Metadata.UID || !other.Status.Attempt.Open() {
			continue
		}
		total++
		if other.Spec.Location.Rack == m.Spec.Location.Rack {
			inRack++
		}
	}
	limit := s.Limits.Provisioning
	if total >= limit.Total {
		return "LimitTotal", fmt.Sprintf("%d machines are being provisioned, as many as the Site's limits.provisioning.total allows", total)
	}
	if rack := m.Spec.Location.Rack; rack != "" && inRack >= limit.PerRack {
		return "LimitPerRack", fmt.Sprintf("%d machines of rack %s are being provisioned, as many as the Site's limits.provisioning.perRack allows", inRack, rack)
	}
	return "", ""
}

// follow drives an open BootAttempt: it powers the Machine on, then watches the
// stages that the boot servers record.
func (c *Controller) follow(ctx context.Context, m *api.Machine) (time.Duration, error) {
	a := m.Status.Attempt
	if a.Stage == api.StageRequested {
		return c.powerUp(ctx, m)
	}
	if ready(m) {
		done := false
		err := c.mutate(ctx, m, func(m *api.Machine) {
			if done = m.Status.Attempt.Open() && ready(m); done {
				Advance(m, m.Status.Attempt.ID, api.StageApplied, time.Now(), Window(c.Cache))
				succeed(m, time.Now())
			}
		})
		if err == nil && done {
			c.Event(m, api.Normal, "Active", fmt.Sprintf("Active %s after BootAttempt %d was opened", time.Since(a.Started).Round(time.Second), a.Number))
		}
		return 0, err
	}
	if asked := m.Status.BootAsked; a.Reached(api.StagePointer) && asked.After(a.Started) && time.Since(asked) < 4*bootAskedEvery {
		at, ok := reachedAt(a, api.StagePointer)
		if !ok {
			at = a.Started
		}
		return c.confirm(ctx, m, at, "it was reset in mid-boot")
	}
	return min(time.Until(a.Deadline)+time.Second, time.Minute), nil
}

// retry opens another attempt after a failed one, a few times.
func (c *Controller) retry(ctx context.Context, m *api.Machine) (time.Duration, error) {
	a := m.Status.Attempt
	asked := m.Status.BootAsked.After(a.Finished) && time.Since(m.Status.BootAsked) < 4*bootAskedEvery
	allowed := asked && m.Spec.Boot.Unsolicited == api.BootAllow
	if a.Retry >= retries(site.Spec(c.Cache), a) {
		if a.Cause == api.CauseSecondTaker {
			return 0, c.giveUp(ctx, m)
		}
		if allowed {
			return c.open(ctx, m, "unsolicited boot, allowed by policy", a.Retry, api.StagePowerOn)
		}
		return 0, nil
	}
	if m.Spec.BMC == nil && allowed {
		return c.open(ctx, m, "it boots by itself (unsolicited boots are allowed) after: "+a.Message, a.Retry+1, api.StagePowerOn)
	}
	wait := time.Until(a.Finished.Add(30 * time.Second << a.Retry))
	if wait > 0 {
		return wait, nil
	}
	return c.open(ctx, m, fmt.Sprintf("retry %d of %d after: %s", a.Retry+1, retries(site.Spec(c.Cache), a), a.Message), a.Retry+1, api.StageRequested)
}

// giveUp says once that no further attempt is opened, and what to do.
func (c *Controller) giveUp(ctx context.Context, m *api.Machine) error {
	const reason = "TooManySecondTakers"
	if old := m.Status.Conditions.Get(api.CondTrust); old != nil && old.Reason == reason {
		return nil
	}
	news := false
	err := c.mutate(ctx, m, func(fresh *api.Machine) {
		a := fresh.Status.Attempt
		if news = attemptID(fresh) == attemptID(m) && a.Result == api.ResultFailed; news {
			fresh.Status.Conditions.Set(time.Now(), api.CondTrust, api.False, reason, a.Message+". "+remedy(fresh))
		}
	})
	if err == nil && news {
		c.Event(m, api.Warning, reason, remedy(m))
	}
	return err
}

// watch keeps an Active Machine Active.
func (c *Controller) watch(ctx context.Context, m *api.Machine) (time.Duration, error) {
	a := m.Status.Attempt
	connected := m.Status.Conditions.Get(api.CondConnected)
	asked := m.Status.BootAsked.After(a.Finished) && time.Since(m.Status.BootAsked) < 4*bootAskedEvery
	if connected != nil && connected.Status == api.True {
		if asked {
			return 4 * bootAskedEvery, c.askedBeside(ctx, m)
		}
		if asks(m) {
			return 0, c.mutate(ctx, m, askedNoMore)
		}
		if m.Status.Phase == api.PhaseActive && m.Status.Conditions.Get(api.CondHeld) == nil && m.Status.Conditions.Get(api.CondDrained) == nil {
			return 0, nil
		}
		return 0, c.mutate(ctx, m, func(m *api.Machine) {
			m.Status.Phase = api.PhaseActive
			m.Status.Conditions.Remove(api.CondHeld)
			m.Status.Conditions.Remove(api.CondDrained)
		})
	}
	if asked {
		return c.confirm(ctx, m, a.Finished, "it was reset")
	}
	if connected != nil && c.lost(m, time.Since(connected.Time)) {
		return c.fence(ctx, m)
	}
	const patience = time.Minute
	if connected != nil && time.Since(connected.Time) < patience {
		return patience - time.Since(connected.Time), nil
	}
	return c.checkPower(ctx, m)
}

// IsDiscovered reports whether the Machine is not registered.
func IsDiscovered(m *api.Machine) bool { return m.Metadata.Labels[api.DiscoveredLabel] == "true" }

const discoveredAge = 24 * time.Hour

func (c *Controller) expireDiscovered(ctx context.Context, m *api.Machine) (time.Duration, error) {
	left := discoveredAge - time.Since(m.Status.LastSeen)
	if left > 0 {
		return left, nil
	}
	if err := c.Store.Delete(ctx, api.KindOf(m), m.Metadata.Name, m.Metadata.ResourceVersion); err != nil {
		return 0, fmt.Errorf("forget discovered Machine %s: %w", m.Metadata.Name, err)
	}
	return 0, nil
}
