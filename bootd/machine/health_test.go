package machine

import (
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
)

// TestHealthOfActiveMachines: what has failed is a condition with the BMC's words, told once; a Machine that boots and a
// silent BMC are not asked.
func TestHealthOfActiveMachines(t *testing.T) {
	b := newBench(t)
	b.machine("r1u01", 1)
	b.steps("r1u01", false)
	b.bmc.health = hardware.Health{State: "Critical", Failed: []string{"fan Fan 2: Critical", "temperature Inlet: Warning"}}
	if m, _ := b.reading("r1u01"); m.Status.Conditions.Get(api.CondHealthy) != nil {
		t.Fatal("asked in mid-boot")
	}
	b.advance("r1u01", api.StageDHCP, api.StageScript, api.StageKernel, api.StagePointer, api.StageConfig, api.StageJoined)
	b.applied("r1u01")
	b.steps("r1u01", false)
	m, again := b.reading("r1u01")
	is := m.Status.Conditions.Get(api.CondHealthy)
	if is == nil || is.Status != api.False || is.Reason != "Critical" || is.Message != "fan Fan 2: Critical; temperature Inlet: Warning" {
		t.Fatalf("condition %+v", is)
	}
	if again <= 0 || again > healthEvery {
		t.Errorf("again in %s", again)
	}
	dials, told := b.bmc.dials, strings.Count(strings.Join(b.events.list, "\n"), "HealthCritical")
	if b.reading("r1u01"); b.bmc.dials != dials || told != 1 {
		t.Errorf("%d more calls of the BMC at once, told %d times", b.bmc.dials-dials, told)
	}
	if _, ok := b.c.Sensors.Of("r1u01"); !ok {
		t.Error("no sensors are kept")
	}
	b.c.looks.forget("r1u01")
	b.bmc.health = hardware.Health{State: "OK"}
	if m, _ = b.reading("r1u01"); !m.Status.Conditions.Is(api.CondHealthy) {
		t.Errorf("conditions %+v", m.Status.Conditions)
	}
	b.c.looks.forget("r1u01")
	b.mutate("r1u01", func(m *api.Machine) { m.Status.Conditions.Set(noon, api.CondBMC, api.False, "Unreachable", "silent") })
	dials = b.bmc.dials
	if b.reading("r1u01"); b.bmc.dials != dials {
		t.Error("a silent BMC was asked")
	}
}
