package machine

import (
	"errors"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
)

// TestInventoryAfterTheBoot: the BMC of a server that was never on knows of no processor. It is asked again when the boot
// has come to its end, not before, and then once.
func TestInventoryAfterTheBoot(t *testing.T) {
	b := newBench(t)
	b.machine("r1u01", 1)
	b.steps("r1u01", false)
	b.bmc.cpus = 2
	if m, again := b.reading("r1u01"); m.Status.Inventory.CPUs.Count != 0 || again != 0 {
		t.Fatalf("read in mid-boot: %+v, again in %s", m.Status.Inventory, again)
	}
	b.advance("r1u01", api.StageDHCP, api.StageScript, api.StageKernel, api.StagePointer, api.StageConfig, api.StageJoined)
	b.applied("r1u01")
	b.steps("r1u01", false)
	m, _ := b.reading("r1u01")
	if i := m.Status.Inventory; i.CPUs.Count != 2 || i.Attempt != m.Status.Attempt.ID || time.Since(i.Read) > time.Minute {
		t.Fatalf("not read after the boot: %+v", i)
	}
	dials := b.bmc.dials
	m, _ = b.reading("r1u01")
	if again := time.Until(inventoryDue(m)); b.bmc.dials != dials || again < 23*time.Hour || again > 30*time.Hour {
		t.Errorf("%d more calls of the BMC, again in %s", b.bmc.dials-dials, again)
	}
}

// TestInventoryThatFails: a BMC that cannot tell its inventory any more is well, keeps the old one, and is left alone
// until the next day. One that is silent is not.
func TestInventoryThatFails(t *testing.T) {
	b := newBench(t)
	b.active("r1u01", 1)
	b.mutate("r1u01", func(m *api.Machine) { m.Status.Inventory.Read = time.Now().Add(-48 * time.Hour) })
	b.bmc.inventoryErr = errors.New("GET /redfish/v1/Systems/1: BMC answers what is no JSON")
	m, _ := b.reading("r1u01")
	if i := m.Status.Inventory; i.Serial != "S1" || len(i.Incomplete) != 1 || !m.Status.Conditions.Is(api.CondBMC) || !m.Status.Conditions.Is(api.CondInspected) {
		t.Fatalf("inventory %+v, conditions %+v", i, m.Status.Conditions)
	}
	dials := b.bmc.dials
	m, _ = b.reading("r1u01")
	if again := time.Until(inventoryDue(m)); b.bmc.dials != dials || again < 23*time.Hour {
		t.Errorf("%d more calls of the BMC, again in %s", b.bmc.dials-dials, again)
	}

	b.mutate("r1u01", func(m *api.Machine) { m.Status.Inventory.Read = time.Now().Add(-48 * time.Hour) })
	b.bmc.dialErr = hardware.ErrUnreachable
	if m, _ = b.reading("r1u01"); m.Status.Conditions.Get(api.CondBMC).Reason != "Unreachable" {
		t.Errorf("conditions %+v", m.Status.Conditions)
	}
}
