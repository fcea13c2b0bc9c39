package machine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
)

// overIPMIOnly is a BMC without a certificate.
type overIPMIOnly struct{ *fakeBMC }

func (overIPMIOnly) Fingerprint() string { return "" }

// TestDetoursAreSaid: a command that went over IPMI is an event with the reason, and the condition says it while it is so.
func TestDetoursAreSaid(t *testing.T) {
	b := newBench(t)
	redfish := b.c.Use
	silent := fmt.Errorf("%w: no route", hardware.ErrUnreachable)
	b.c.Use = func(ctx context.Context, _ hardware.Endpoint, _ string, call func(context.Context, BMC) error) error {
		for _, d := range []hardware.Detour{{Verb: "set next boot", Command: true}, {Verb: "read power state"}} {
			d.Protocol, d.Why = "IPMI", silent
			hardware.NoteDetour(ctx, d)
		}
		return call(ctx, overIPMIOnly{b.bmc})
	}
	b.machine("r1u01", 1)
	m := b.steps("r1u01", false)
	want := "BMCFallback: set next boot was done over IPMI; Redfish: BMC does not answer: no route"
	if !slices.Contains(b.events.list, want) || slices.ContainsFunc(b.events.list, func(e string) bool { return strings.Contains(e, "read power state was") }) {
		t.Errorf("events %q", b.events.list)
	}
	const says = "over IPMI, for Redfish did not read power state: BMC does not answer: no route"
	if c := m.Status.Conditions.Get(api.CondBMC); c == nil || c.Status != api.True || !strings.Contains(c.Message, says) {
		t.Errorf("the condition is %+v", c)
	}
	b.c.Use = redfish
	b.ask("r1u01", api.VerbIdentify, "on")
	m = b.steps("r1u01", false)
	if c := m.Status.Conditions.Get(api.CondBMC); strings.Contains(c.Message, "IPMI") {
		t.Errorf("Redfish answers again, and the condition is %+v", c)
	}
}

// TestRefusedOverIPMI: what a BMC without a certificate refuses says nothing of the BMC's other verbs.
func TestRefusedOverIPMI(t *testing.T) {
	b := newBench(t)
	b.bmc.bootErr = fmt.Errorf("%w: in the BMC's words", hardware.ErrForbidden)
	b.c.Use = func(ctx context.Context, _ hardware.Endpoint, _ string, call func(context.Context, BMC) error) error {
		return call(ctx, overIPMIOnly{b.bmc})
	}
	b.machine("r1u01", 1)
	m := b.steps("r1u01", false)
	if c := m.Status.Conditions.Get(api.CondObeys); c == nil || c.Reason != "Forbidden" || !m.Status.Conditions.Is(api.CondBMC) {
		t.Errorf("BMCObeys %+v, BMCReachable %+v", c, m.Status.Conditions.Get(api.CondBMC))
	}
}
