package machine

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
)

// TestRestoredPower has BMCs say, in a Site that was restored, whether Machines have power: one without is accounted
// for, and whatever they say nothing is switched.
func TestRestoredPower(t *testing.T) {
	for _, c := range []struct {
		name   string
		power  hardware.PowerState
		fault  error
		status func(*api.Machine)
		reason string
		asked  bool
	}{
		{name: "off", power: hardware.PowerOff, reason: api.AccountedOff, asked: true},
		{name: "on", power: hardware.PowerOn, reason: api.AccountedWaiting, asked: true},
		{name: "in between", power: "PoweringOff", reason: api.AccountedWaiting, asked: true},
		{name: "unreachable", power: hardware.PowerOff, fault: errors.New("no route to host"), reason: api.AccountedWaiting, asked: true},
		{name: "its host is connected", power: hardware.PowerOff, reason: api.AccountedWaiting,
			status: func(m *api.Machine) {
				m.Status.Conditions.Set(time.Now(), api.CondConnected, api.True, "Connected", "")
			}},
		{name: "its host has another key", power: hardware.PowerOff, reason: api.AccountedOff, asked: true,
			status: func(m *api.Machine) {
				m.Status.Conditions.Set(time.Now(), api.CondAccounted, api.False, api.AccountedNewKey, "")
			}},
		{name: "its host has reported", power: hardware.PowerOff, reason: api.AccountedReport,
			status: func(m *api.Machine) {
				m.Status.Conditions.Set(time.Now(), api.CondAccounted, api.True, api.AccountedReport, "")
			}},
		{name: "written off", power: hardware.PowerOn, reason: api.AccountedGone,
			status: func(m *api.Machine) {
				m.Status.Conditions.Set(time.Now(), api.CondAccounted, api.True, api.AccountedGone, "")
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.machine("m", 1)
			b.mutate("m", func(m *api.Machine) {
				m.Status.Conditions.Set(time.Now(), api.CondAccounted, api.False, api.AccountedWaiting, "its host has not reported since the restore")
				if c.status != nil {
					c.status(m)
				}
			})
			b.hold(true)
			b.bmc.power, b.bmc.dialErr = c.power, c.fault
			for range 3 {
				b.sync()
				b.reconcile("m")
			}
			m := b.get("m")
			if got := m.Status.Conditions.Get(api.CondAccounted); got.Reason != c.reason || (got.Status == api.True) != (c.reason != api.AccountedWaiting) {
				t.Errorf("it is accounted for: %+v, want %s", got, c.reason)
			}
			if asked := b.bmc.dials > 0; asked != c.asked {
				t.Errorf("its BMC was asked: %v, want %v", asked, c.asked)
			}
			if len(b.bmc.did) > 0 || m.Status.Attempt != nil {
				t.Errorf("its BMC did %v, attempt %+v", b.bmc.did, m.Status.Attempt)
			}
		})
	}
}

// TestRestoredRequest has a verb that was pending at the time of the backup fail, and not be carried out once the Site
// is no longer held.
func TestRestoredRequest(t *testing.T) {
	b := newBench(t)
	b.machine("m", 1)
	b.mutate("m", func(m *api.Machine) {
		m.Spec.State = api.StateMaintenance
		m.Status.Requests = []api.Request{{ID: "r", Verb: "power", Argument: "reset", State: api.RequestPending, Time: time.Now()}}
	})
	b.hold(true)
	m := b.step("m")
	if r := m.Status.Requests[0]; r.State != api.RequestFailed {
		t.Errorf("the request is %+v", r)
	}
	b.hold(false)
	b.steps("m", true)
	if slices.Contains(b.bmc.did, "reset") {
		t.Errorf("its BMC did %v", b.bmc.did)
	}
}

// hold has the Site be one that was restored.
func (b *bench) hold(held bool) {
	b.t.Helper()
	site, err := store.Mutate(b.t.Context(), b.store, api.SiteName, func(s *api.Site) error {
		s.Status.Recovery = &api.Recovery{Restored: time.Now(), Held: held}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.cache.WaitRevision(b.t.Context(), store.RevisionOf(site)); err != nil {
		b.t.Fatal(err)
	}
}
