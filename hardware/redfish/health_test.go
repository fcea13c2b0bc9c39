package redfish

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rackweft/rackweft/hardware"
)

// What is not well is named in the BMC's words, in Thermal and Power as well as in the subsystems after them. An empty bay
// that the BMC does not call a fault is not one.
func TestHealth(t *testing.T) {
	chassis := "/redfish/v1/Chassis/1"
	status := func(state, health string) map[string]any { return map[string]any{"State": state, "Health": health} }
	m := vendorMock(t, "adapters")
	m.set(hpeSystem, "Status", map[string]any{"State": "Enabled", "HealthRollup": "Warning"})
	b, _ := m.open(t, m.endpoint())
	check := func(want hardware.Health) {
		t.Helper()
		got, err := b.Health(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	check(hardware.Health{State: "Warning"})
	m.set(chassis+"/PowerSubsystem/PowerSupplies/0", "Status", status("Enabled", "Critical"))
	check(hardware.Health{State: "Critical", Failed: []string{"power supply PSU 1: Critical"}})

	m.mu.Lock()
	m.tree[chassis+"/Thermal"] = map[string]any{"Temperatures": []any{map[string]any{"Name": "Inlet\x1b[2J", "Status": status("Enabled", "Warning")}},
		"Fans": []any{map[string]any{"FanName": "Fan 1", "Status": status("Absent", "")}, map[string]any{"Name": "Fan 2", "Status": status("Enabled", "Critical")}}}
	m.tree[chassis+"/Power"] = map[string]any{"PowerSupplies": []any{map[string]any{"Name": "PS2 Status", "Status": status("Absent", "Critical")}}}
	m.mu.Unlock()
	m.set(chassis, "Thermal", map[string]any{"@odata.id": chassis + "/Thermal"})
	m.set(chassis, "Power", map[string]any{"@odata.id": chassis + "/Power"})
	check(hardware.Health{State: "Critical", Failed: []string{"temperature Inlet\ufffd[2J: Warning", "fan Fan 2: Critical", "power supply PS2 Status: Critical (Absent)"}})
}

// TestSuppliesBesideAnEmptyPower: some BMCs have a Power without power supplies, and these in PowerSubsystem.
func TestSuppliesBesideAnEmptyPower(t *testing.T) {
	chassis := "/redfish/v1/Chassis/1"
	m := vendorMock(t, "adapters")
	m.set(chassis+"/PowerSubsystem/PowerSupplies/0", "Status", map[string]any{"State": "Enabled", "Health": "Critical"})
	m.mu.Lock()
	m.tree[chassis+"/Power"] = map[string]any{"PowerControl": []any{}, "PowerSupplies": []any{}}
	m.mu.Unlock()
	m.set(chassis, "Power", map[string]any{"@odata.id": chassis + "/Power"})
	b, _ := m.open(t, m.endpoint())
	health, err := b.Health(t.Context())
	if err != nil || health.State != "Critical" || len(health.Failed) != 1 {
		t.Errorf("health %+v, %v; want a critical power supply", health, err)
	}
	inventory, err := b.Inventory(t.Context())
	if err != nil || len(inventory.PSUs) == 0 {
		t.Errorf("power supplies %+v, %v", inventory.PSUs, err)
	}
}

func TestCapturedHealth(t *testing.T) {
	for tree, want := range map[string]hardware.Health{
		"dell-xr8620t-idrac9-6.10": {State: "Critical", Failed: []string{"power supply PS2 Status: Critical (Absent)"}},
		"hpe-dl325gen10plus-ilo5":  {State: "OK"},
		"hpe-dl360gen12-ilo7":      {State: "OK"},
		"nvidia-gh200":             {State: "OK"},
		"supermicro-x10":           {State: "OK"},
	} {
		root := filepath.Join("..", "..", "..", "shared", "redfish", tree)
		if !exists(root) {
			t.Logf("%s does not lie beside the checkout", root)
			continue
		}
		t.Run(tree, func(t *testing.T) {
			m := capturedMock(t, root)
			b, _ := m.open(t, m.endpoint())
			before := len(m.requests())
			got, err := b.Health(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if n := len(m.requests()) - before; n > 6 {
				t.Errorf("%d requests, want 6 at most", n)
			}
		})
	}
}
