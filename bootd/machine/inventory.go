package machine

import (
	"fmt"
	"hash/fnv"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
)

// inventoryEvery is how often the inventory of a Machine is read where nothing else asks for it.
const inventoryEvery = 24 * time.Hour

// decideInventory has the inventory read again: after a boot, as the firmware tells the BMC in POST what it has found, and
// every day, each Machine at a time of its own.
func decideInventory(f facts, now time.Time) action {
	m, inv := f.machine, f.machine.Status.Inventory
	if m.Spec.BMC == nil || inv == nil || m.Status.Attempt.Open() || !m.Status.Conditions.Is(api.CondBMC) {
		return action{}
	}
	if left := inventoryDue(m).Sub(now); left > 0 {
		return action{again: left}
	}
	return judge{f, now}.ask(action{ask: askInventory, reading: true})
}

// inventoryDue is when it has to be read again.
func inventoryDue(m *api.Machine) time.Time {
	inv, a := m.Status.Inventory, m.Status.Attempt
	if a != nil && inv.Attempt != a.ID && (a.Result == api.ResultActive || passedPOST(a)) {
		return a.Finished
	}
	return inv.Read.Add(inventoryEvery + spread(m, inventoryEvery/4))
}

// passedPOST: the firmware has asked for an address, be it that nothing came of it.
func passedPOST(a *api.BootAttempt) bool {
	for _, s := range a.Stages {
		if s.Stage != api.StageRequested && s.Stage != api.StagePowerOn {
			return true
		}
	}
	return false
}

// spread is the Machine's own share of d, so that not all come at once.
func spread(m *api.Machine, d time.Duration) time.Duration {
	h := fnv.New32a()
	_, _ = h.Write([]byte(m.Metadata.UID)) // it cannot fail
	return time.Duration(uint64(d) * uint64(h.Sum32()) >> 32)
}

// inspected compares what the BMC says with what the spec says.
func inspected(m *api.Machine, inv hardware.Inventory) (reason, message string) {
	known := map[api.MAC]bool{}
	for _, n := range inv.NICs {
		if mac, err := api.ParseMAC(n.MAC); err == nil {
			known[mac] = true
		}
	}
	if len(known) == 0 {
		return "NoNICs", "the BMC lists no NIC, so the MACs of spec.links are taken as they are: check them; weftctl machine inspect reads the inventory again"
	}
	for _, mac := range m.MACs() {
		if !known[mac] {
			return "MACUnknown", fmt.Sprintf("the BMC lists no NIC with MAC %s: check spec.links (an add-in card that the BMC does not see is fine)", mac)
		}
	}
	return "Read", fmt.Sprintf("%s %s, serial %s, %d CPUs, %d MiB", inv.Manufacturer, inv.Model, inv.Serial, inv.CPUs.Count, inv.MemoryMiB)
}

func inventory(inv hardware.Inventory) *api.Inventory {
	out := &api.Inventory{
		Manufacturer: inv.Manufacturer, Model: inv.Model, SKU: inv.SKU, Serial: inv.Serial, UUID: inv.UUID,
		BIOSVersion: inv.BIOSVersion, BMCFirmware: inv.BMCFirmware, CPUs: api.InventoryCPUs(inv.CPUs), MemoryMiB: inv.MemoryMiB,
		Incomplete: inv.Incomplete,
	}
	for _, d := range inv.DIMMs {
		out.DIMMs = append(out.DIMMs, api.InventoryDIMM(d))
	}
	for _, g := range inv.GPUs {
		out.GPUs = append(out.GPUs, api.InventoryGPU(g))
	}
	for _, n := range inv.NICs {
		mac, _ := api.ParseMAC(n.MAC) // a port without one is listed without one
		out.NICs = append(out.NICs, api.InventoryNIC{Name: n.Name, MAC: mac, Model: n.Model, SpeedMbps: n.SpeedMbps, Link: n.Link})
	}
	for _, d := range inv.Disks {
		out.Disks = append(out.Disks, api.InventoryDisk{Name: d.Name, Model: d.Model, Serial: d.Serial, Type: d.Type, Bytes: d.Bytes, Health: d.Health})
	}
	for _, p := range inv.PSUs {
		out.PSUs = append(out.PSUs, api.InventoryPSU(p))
	}
	for _, f := range inv.Firmware {
		out.Firmware = append(out.Firmware, api.InventoryFirmware(f))
	}
	return out
}

// writeInventory keeps what was read, or that it could not be.
func (f facts) writeInventory(a action, m *api.Machine, now time.Time) {
	s, before := &m.Status, m.Status.Inventory
	if a.answer.unread == nil {
		s.Inventory = inventory(a.answer.inventory)
		s.Conditions.Set(now, api.CondInspected, api.True, a.reason, a.message)
	} else if s.Inventory != nil {
		s.Inventory.Incomplete = []string{a.answer.unread.Error()}
	}
	if s.Inventory != nil {
		s.Inventory.Read = now.UTC()
		switch {
		case !f.machine.Status.Attempt.Open():
			s.Inventory.Attempt = attemptID(f.machine)
		case before != nil:
			s.Inventory.Attempt = before.Attempt // in mid-boot: it is read again at its end
		}
	}
	if s.Phase == api.PhaseInspecting {
		s.Phase = api.PhaseAvailable
	}
	if a.request != nil {
		a.message = ""
		endRequest(m, a)
	}
}
