package redfish

import (
	"fmt"
	"path/filepath"
	"strings"
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
		got.Readings = nil // TestReadings is for them
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
			lines := readings(got.Readings)
			got.Readings = nil
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(capturedReadings()[tree], firstOfEach(lines)); diff != "" {
				t.Errorf("%s\nof %s", diff, strings.Join(lines, "\n"))
			}
			if n := len(m.requests()) - before; n > 8 {
				t.Errorf("%d requests, want 8 at most", n)
			}
		})
	}
}

// readings are lines like "temperature Inlet 21 Cel OK <42".
func readings(all []hardware.Reading) (lines []string) {
	for _, r := range all {
		line := fmt.Sprintf("%s %s %g %s %s", r.Kind, r.Name, r.Value, r.Unit, r.Health)
		if r.LowCritical != nil {
			line += fmt.Sprintf(" >%g", *r.LowCritical)
		}
		if r.HighCritical != nil {
			line += fmt.Sprintf(" <%g", *r.HighCritical)
		}
		lines = append(lines, line)
	}
	return lines
}

// firstOfEach is the first line of each kind, and how many there are.
func firstOfEach(lines []string) map[string]string {
	first, n := map[string]string{}, map[string]int{}
	for _, line := range lines {
		kind, _, _ := strings.Cut(line, " ")
		if n[kind]++; n[kind] == 1 {
			first[kind] = line
		}
	}
	for kind := range first {
		first[kind] = fmt.Sprintf("%d: %s", n[kind], first[kind])
	}
	return first
}

func capturedReadings() map[string]map[string]string {
	return map[string]map[string]string{
		"dell-xr8620t-idrac9-6.10": {"temperature": "2: temperature CPU1 Temp 45 Cel OK >3 <95", "fan": "16: fan System Board Fan1A 7080 RPM OK >480",
			"power": "1: power System Power Control 4 W ", "voltage": "4: voltage PS1 Voltage 1 204 V OK"},
		"hpe-dl325gen10plus-ilo5": {"temperature": "27: temperature 01-Inlet Ambient 17 Cel OK <42", "fan": "6: fan Fan 1 35 % OK", "power": "1: power power 0 97 W "},
		"hpe-dl360gen12-ilo7": {"temperature": "26: temperature 01-Inlet Ambient 18 Cel OK <42", "fan": "7: fan Fan 1 16 % OK", "power": "1: power power 0 217 W ",
			"voltage": "2: voltage voltage 0 0 V OK"},
		"nvidia-gh200":   {"temperature": "8: temperature TEMP_M_2_0_NVME 29 Cel ", "fan": "16: fan FAN_1_F 26568 RPM "},
		"supermicro-x10": {"power": "1: power System Power Control 0 W OK"},
	}
}

// TestReadings: what is absent, off or no number measures nothing; limits of 0 are none.
func TestReadings(t *testing.T) {
	chassis := "/redfish/v1/Chassis/1"
	m := vendorMock(t, "adapters")
	enabled, absent := map[string]any{"State": "Enabled", "Health": "OK"}, map[string]any{"State": "Absent"}
	m.mu.Lock()
	m.tree[chassis+"/Thermal"] = map[string]any{
		"Temperatures": []any{
			map[string]any{"Name": "Inlet", "ReadingCelsius": 21, "UpperThresholdCritical": 42, "LowerThresholdCritical": -7, "Status": enabled},
			map[string]any{"Name": "Outlet", "ReadingCelsius": "-3.5", "UpperThresholdCritical": 0, "Status": enabled},
			map[string]any{"Name": "CPU 2", "ReadingCelsius": 0, "Status": absent},
			map[string]any{"Name": "DIMM", "ReadingCelsius": nil, "Status": enabled},
			map[string]any{"Name": "VR", "ReadingCelsius": "N/A", "Status": enabled},
			map[string]any{"Name": "NVMe", "ReadingCelsius": 65535, "Status": enabled},
			map[string]any{"Name": "PCI", "ReadingCelsius": 99, "UpperThresholdFatal": 95, "Status": enabled},
		},
		"Fans": []any{
			map[string]any{"FanName": "Fan 1", "Reading": 7200, "ReadingUnits": "RPM", "LowerThresholdCritical": 600, "Status": enabled},
			map[string]any{"Name": "Fan 2", "Reading": 30, "ReadingUnits": "Percent", "Status": enabled},
			map[string]any{"FanName": "Fan 3", "CurrentReading": 6, "Units": "Percent", "Status": enabled},
		},
	}
	m.tree[chassis+"/Power"] = map[string]any{
		"PowerControl": []any{map[string]any{"Name": "System Power Control", "PowerConsumedWatts": 180.5}},
		"Voltages":     []any{map[string]any{"Name": "12V", "ReadingVolts": 12.1, "LowerThresholdCritical": 10.8, "UpperThresholdCritical": 13.2, "Status": enabled}},
	}
	m.mu.Unlock()
	m.set(chassis, "Thermal", map[string]any{"@odata.id": chassis + "/Thermal"})
	m.set(chassis, "Power", map[string]any{"@odata.id": chassis + "/Power"})
	b, _ := m.open(t, m.endpoint())
	got, err := b.Health(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"temperature Inlet 21 Cel OK >-7 <42", "temperature Outlet -3.5 Cel OK", "temperature PCI 99 Cel OK <95",
		"fan Fan 1 7200 RPM OK >600", "fan Fan 2 30 % OK", "fan Fan 3 6 % OK", "power System Power Control 180.5 W ", "voltage 12V 12.1 V OK >10.8 <13.2",
	}
	if diff := cmp.Diff(want, readings(got.Readings)); diff != "" {
		t.Error(diff)
	}
	if got.State != "Critical" || len(got.Failed) != 1 || got.Failed[0] != "temperature PCI: 99 Cel is beyond its critical limit" {
		t.Errorf("health %s, %q", got.State, got.Failed)
	}
}

// TestReadingsOfSubsystems: the successors of Thermal and Power.
func TestReadingsOfSubsystems(t *testing.T) {
	chassis := "/redfish/v1/Chassis/1"
	m := vendorMock(t, "adapters")
	at := func(path string) map[string]any { return map[string]any{"@odata.id": chassis + path} }
	m.mu.Lock()
	m.tree[chassis+"/ThermalSubsystem"] = map[string]any{"Fans": at("/ThermalSubsystem/Fans"), "ThermalMetrics": at("/ThermalSubsystem/ThermalMetrics")}
	m.tree[chassis+"/ThermalSubsystem/Fans"] = map[string]any{"Members": []any{at("/ThermalSubsystem/Fans/0")}}
	m.tree[chassis+"/ThermalSubsystem/Fans/0"] = map[string]any{"Id": "0", "Name": "Fan 0", "SpeedPercent": map[string]any{"Reading": 40, "SpeedRPM": 9000}}
	m.tree[chassis+"/ThermalSubsystem/ThermalMetrics"] = map[string]any{"TemperatureReadingsCelsius": []any{
		map[string]any{"DeviceName": "GPU_0", "DataSourceUri": "/redfish/v1/Chassis/1/Sensors/GPU_0_Temp_1", "Reading": 54},
		map[string]any{"DeviceName": "01-Inlet Ambient", "PhysicalContext": "Intake", "Reading": 18}, map[string]any{"DeviceName": "off", "Reading": nil}, 7}}
	m.tree[chassis+"/EnvironmentMetrics"] = map[string]any{"PowerWatts": map[string]any{"Reading": 311}, "FanSpeedsPercent": []any{map[string]any{"DeviceName": "unused", "SpeedRPM": 1}}}
	m.mu.Unlock()
	m.set(chassis, "ThermalSubsystem", at("/ThermalSubsystem"))
	m.set(chassis, "EnvironmentMetrics", at("/EnvironmentMetrics"))
	b, _ := m.open(t, m.endpoint())
	got, err := b.Health(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"fan Fan 0 9000 RPM ", "temperature GPU_0_Temp_1 54 Cel ", "temperature 01-Inlet Ambient 18 Cel ", "temperature temperature 7 Cel ", "power power 311 W "}
	if diff := cmp.Diff(want, readings(got.Readings)); diff != "" {
		t.Error(diff)
	}
}

// TestFansOfAnEnvironment: where nothing else reports fans, EnvironmentMetrics does, each with its own unit.
func TestFansOfAnEnvironment(t *testing.T) {
	chassis := "/redfish/v1/Chassis/1"
	m := vendorMock(t, "adapters")
	m.mu.Lock()
	m.tree[chassis+"/EnvironmentMetrics"] = map[string]any{"FanSpeedsPercent": []any{
		map[string]any{"DeviceName": "Fan 1", "Reading": 40, "SpeedRPM": 9000}, map[string]any{"DeviceName": "Fan 2", "Reading": 35}}}
	m.mu.Unlock()
	m.set(chassis, "EnvironmentMetrics", map[string]any{"@odata.id": chassis + "/EnvironmentMetrics"})
	b, _ := m.open(t, m.endpoint())
	got, err := b.Health(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"fan Fan 1 9000 RPM ", "fan Fan 2 35 % "}, readings(got.Readings)); diff != "" {
		t.Error(diff)
	}
}
