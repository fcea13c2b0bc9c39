package redfish

import (
	stdcmp "cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rackweft/rackweft/hardware"
)

func TestInventory(t *testing.T) {
	tests := map[string]hardware.Inventory{
		"hpe-ilo5": {Manufacturer: "HPE", Model: "ProLiant DL360 Gen10", Serial: "EXAMPLE001", UUID: "11111111-0000-4000-8000-000000000001",
			SKU: "EX-100", BIOSVersion: "U32 v2.90", BMCFirmware: "iLO 5 v2.96", CPUs: hardware.CPUs{Count: 2, Model: "Example Xeon", Cores: 40}, MemoryMiB: 384 << 10,
			NICs:  []hardware.NIC{{Name: "1", MAC: "02:00:00:00:01:01", SpeedMbps: 25000, Link: "LinkUp"}, {Name: "2", MAC: "02:00:00:00:01:02", SpeedMbps: 0, Link: ""}},
			Disks: []hardware.Disk{{Name: "2556", Bytes: 480103981056, Serial: "EXDISK1", Type: "SSD"}}},
		"dell-idrac9": {Manufacturer: "Dell Inc.", Model: "PowerEdge R660", Serial: "EXAMPLE2", UUID: "22222222-0000-4000-8000-000000000002",
			SKU: "EX2", BIOSVersion: "1.6.0", BMCFirmware: "6.10.80.00", CPUs: hardware.CPUs{Count: 1, Model: "Example Gold", Cores: 32}, MemoryMiB: 128 << 10,
			GPUs:  []hardware.GPU{{Name: "ProcAccelerator.Slot.1-1", Model: "Example Accelerator"}},
			NICs:  []hardware.NIC{{Name: "NIC.Slot.2-1-1", MAC: "02:00:00:00:02:01", SpeedMbps: 25000, Link: "LinkUp"}},
			Disks: []hardware.Disk{{Name: "Disk.0", Bytes: 960197124096, Serial: "EXDISK2", Type: "NVMe"}}},
		"supermicro-x10": {Manufacturer: "Supermicro", Model: "Super Server", UUID: "33333333-0000-4000-8000-000000000003",
			BIOSVersion: "1.2", BMCFirmware: "4.0", CPUs: hardware.CPUs{Count: 1, Model: "Example D-1541", Cores: 8}, MemoryMiB: 64 << 10,
			NICs:  []hardware.NIC{{Name: "1", MAC: "02:00:00:00:03:01", SpeedMbps: 0, Link: ""}},
			Disks: []hardware.Disk{{Name: "SATA Disk 1", Bytes: 8000000000, Serial: "", Type: ""}}},
		"lenovo-xcc": {Manufacturer: "Lenovo", Model: "ThinkSystem SR650", Serial: "EXAMPLE4", UUID: "44444444-0000-4000-8000-000000000004",
			BIOSVersion: "IVE160", BMCFirmware: "CDI3A8N", CPUs: hardware.CPUs{Count: 2, Model: "Example", Cores: 32}, MemoryMiB: 256 << 10,
			NICs: []hardware.NIC{{Name: "NIC1", MAC: "02:00:00:00:04:01", SpeedMbps: 10000, Link: "LinkUp"}}},
		"ami": {Manufacturer: "ASRockRack", Model: "1U4LW", Serial: "EXAMPLE5", UUID: "55555555-0000-4000-8000-000000000005",
			BIOSVersion: "L3", BMCFirmware: "1.20.00", CPUs: hardware.CPUs{Count: 1, Model: "Example", Cores: 16}, MemoryMiB: 32 << 10,
			DIMMs: []hardware.DIMM{{Slot: "A1", MiB: 32768}},
			NICs:  []hardware.NIC{{Name: "1", MAC: "02:00:00:00:05:01", SpeedMbps: 1000, Link: "LinkUp"}}},
		"adapters": adapters(),
	}
	for vendor, want := range tests {
		m := vendorMock(t, vendor)
		b, _ := m.open(t, m.endpoint())
		got, err := b.Inventory(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", vendor, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", vendor, diff)
		}
	}
}

// adapters is a server with a GPU baseboard beside it, whose ports only its adapters tell, and whose drives are in HPE's own
// tree. Interfaces to the BMC, VLANs, empty slots and Fibre Channel are listed as well.
func adapters() hardware.Inventory {
	return hardware.Inventory{Manufacturer: "Example", Model: "Server", Serial: "EXAMPLE9", UUID: "99999999-0000-4000-8000-000000000009",
		BIOSVersion: "1.0\ufffd[2J", BMCFirmware: "3.1", CPUs: hardware.CPUs{Count: 1, Model: "Example CPU", Cores: 16}, MemoryMiB: 64 << 10,
		DIMMs: []hardware.DIMM{{Slot: "DIMM A1", MiB: 32 << 10, Type: "DDR5", Part: "EXPART", Serial: "EXDIMM1", Health: "OK"},
			{Slot: "DIMM B1", MiB: 32 << 10, Type: "DDR5", Part: "EXPART", Serial: "EXDIMM2", Health: "Warning"}},
		GPUs: []hardware.GPU{{Name: "GPU0", Model: "Example GPU", Serial: "EXGPU0", Health: "OK"}},
		NICs: []hardware.NIC{{Name: "1", MAC: "02:00:00:00:09:01", Model: "Example 25G 2-port", SpeedMbps: 25000, Link: "LinkUp"},
			{Name: "OCP/1", MAC: "02:00:00:00:09:02", Model: "Example 25G 2-port", Link: "LinkDown"}},
		Disks:    []hardware.Disk{{Name: "1I:1:1", Model: "EXSSD", Bytes: 457862 << 20, Serial: "EXDISK9", Type: "SSD", Health: "OK"}},
		PSUs:     []hardware.PSU{{Name: "PSU 1", Model: "EX800", Serial: "EXPSU1", Firmware: "1.1", Watts: 800, Health: "OK"}},
		Firmware: []hardware.Firmware{{Name: "Example NIC", Version: "2.2"}},
	}
}

// A BMC that expands collections is asked for each of them once, with what is in it.
func TestInventoryExpanded(t *testing.T) {
	m := vendorMock(t, "adapters")
	m.expands = true
	b, _ := m.open(t, m.endpoint())
	before := len(m.requests())
	got, err := b.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(adapters(), got); diff != "" {
		t.Error(diff)
	}
	if n := len(m.requests()) - before; n > 29 {
		t.Errorf("%d requests, want 29 at most", n)
	}
}

// A BMC that says it expands collections and refuses to is asked without.
func TestInventoryExpandRefused(t *testing.T) {
	m := vendorMock(t, "adapters")
	m.fail(http.MethodGet, "/redfish/v1/Systems", func(w http.ResponseWriter, r *http.Request) { m.serve(w, r, r.URL.Path, nil) }, // at the login
		says(http.StatusNotImplemented, "Base.1.8.QueryNotSupported"))
	b, _ := m.open(t, m.endpoint())
	got, err := b.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(adapters(), got); diff != "" {
		t.Error(diff)
	}
}

// A card that is no GPU by its name is not asked for its class; one whose class is another is not a GPU.
func TestCards(t *testing.T) {
	m := vendorMock(t, "adapters")
	for at := range m.tree {
		if strings.HasPrefix(at, "/redfish/v1/Systems/Baseboard/Processors/") {
			delete(m.tree[at], "ProcessorType")
		}
	}
	b, _ := m.open(t, m.endpoint())
	got, err := b.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]hardware.GPU{{Name: "5", Model: "Example Tesla", Serial: "EXCARD", Health: "Critical"}}, got.GPUs); diff != "" {
		t.Error(diff)
	}
}

// What is urgent has its turn within an inventory.
func TestInventoryYields(t *testing.T) {
	m := vendorMock(t, "adapters")
	b, _ := m.open(t, m.endpoint())
	turns := 0
	ctx := hardware.WithYield(t.Context(), func() {
		if _, err := b.PowerState(t.Context()); err != nil {
			t.Error(err)
		}
		turns++
	})
	got, err := b.Inventory(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(adapters(), got); diff != "" {
		t.Error(diff)
	}
	if turns < 30 {
		t.Errorf("%d turns for others, want one before each request", turns)
	}
}

func TestInventoryNamesWhatIsRefused(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	b, _ := m.open(t, m.endpoint())
	m.fail(http.MethodGet, hpeSystem+"/Storage/0", says(http.StatusInternalServerError, "iLO.2.14.StorageNotReady"))
	got, err := b.Inventory(t.Context())
	if err != nil || len(got.NICs) != 2 || len(got.Disks) != 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	want := []string{"GET " + hpeSystem + "/Storage/0: 500 iLO.2.14.StorageNotReady no"}
	if diff := cmp.Diff(want, got.Incomplete); diff != "" {
		t.Error(diff)
	}
}

// traits are what a BMC shows and how it is written to.
type traits struct {
	tree, system, quirk string
	serial              bool
	cpus                hardware.CPUs
	memoryMiB           int64
	nics, disks         int
	source              string
	age                 time.Duration
	mode                string // of the boot once; empty where it cannot be set
	reset               string // what it takes for a forced restart. Default: ForceRestart
}

const dellSystem = "/redfish/v1/Systems/System.Embedded.1"

// Trees written by hand, one for each family.
func TestTraits(t *testing.T) {
	for _, want := range []traits{
		{"dell-idrac9", dellSystem, "Dell iDRAC 9/10", true, hardware.CPUs{Count: 1, Model: "Example Gold", Cores: 32}, 128 << 10, 1, 1, "LastResetTime", 10 * time.Minute, "UEFI", ""},
		{"hpe-ilo5", hpeSystem, "HPE iLO 5/6", true, hardware.CPUs{Count: 2, Model: "Example Xeon", Cores: 40}, 384 << 10, 2, 1, "Oem.Hpe.PostDiscoveryCompleteTimeStamp", 10 * time.Minute, "UEFI", ""},
		{"lenovo-xcc", hpeSystem, "Lenovo XCC", true, hardware.CPUs{Count: 2, Model: "Example", Cores: 32}, 256 << 10, 1, 0, "BootProgress.LastStateTime", time.Hour, "UEFI", "PowerCycle"},
		{"supermicro-x10", hpeSystem, "Supermicro X10", false, hardware.CPUs{Count: 1, Model: "Example D-1541", Cores: 8}, 64 << 10, 1, 1, "", 0, "", ""},
		{"supermicro-x11", hpeSystem, "Supermicro X11 and later", false, hardware.CPUs{Count: 1, Model: "Example D-1541", Cores: 8}, 64 << 10, 1, 1, "", 0, "UEFI", ""},
	} {
		t.Run(want.tree, func(t *testing.T) {
			m := vendorMock(t, want.tree)
			m.tree[want.system]["PowerState"] = "On"
			want.check(t, m)
		})
	}
}

// The trees of real machines, as they came, faults and all, where they lie
// beside the checkout: they are not the repository's to give.
func TestCaptured(t *testing.T) {
	for _, want := range []traits{
		{"dell-xr8620t-idrac9-6.10", dellSystem, "Dell iDRAC 9/10", true, hardware.CPUs{Count: 1, Model: "Intel(R) Xeon(R) Gold 6421N", Cores: 32}, 128 << 10, 8, 2,
			"LastResetTime", 99*24*time.Hour + 21*time.Hour + 7*time.Minute + 5*time.Second, "UEFI", ""},
		{"hpe-dl360gen10-ilo5-2.96", hpeSystem, "HPE iLO 5/6", true, hardware.CPUs{Count: 2, Model: "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz", Cores: 0}, 384 << 10, 2, 0,
			"Oem.Hpe.PostDiscoveryCompleteTimeStamp", 0, "UEFI", ""},
		{"hpe-dl325gen10plus-ilo5", hpeSystem, "HPE iLO 5/6", true, hardware.CPUs{Count: 1, Model: "AMD EPYC 7302P 16-Core Processor", Cores: 16}, 64 << 10, 8, 2,
			"", 0, "UEFI", ""},
		{"supermicro-x10", hpeSystem, "Supermicro X10", false, hardware.CPUs{Count: 1, Model: "Intel(R) Xeon(R) CPU D-1541 @ 2.10GHz", Cores: 8}, 64 << 10, 4, 0,
			"", 0, "", ""},
	} {
		if root := filepath.Join("..", "..", "..", "shared", "redfish", want.tree); exists(root) {
			t.Run(want.tree, func(t *testing.T) { want.check(t, capturedMock(t, root)) })
		}
	}
}

// What is in the trees of real machines, and what it takes to read it: with each member read by itself, and expanded.
func TestCapturedInventory(t *testing.T) {
	for tree, want := range map[string]string{
		"dell-xr8620t-idrac9-6.10": "1 CPUs, 32 cores, 131072 MiB, 8 DIMMs of 131072 MiB, 0 GPUs, 8 NICs (8 up), 2 disks (2 well), 1 PSUs of 0 W, 21 firmware, 0 incomplete; 99 requests, 26 expanded",
		"hpe-dl325gen10plus-ilo5":  "1 CPUs, 16 cores, 65536 MiB, 4 DIMMs of 65536 MiB, 0 GPUs, 8 NICs (6 up), 2 disks (2 well), 2 PSUs of 1000 W, 12 firmware, 0 incomplete; 69 requests, 20 expanded",
		"hpe-dl360gen10-ilo5-2.96": "2 CPUs, 0 cores, 393216 MiB, 0 DIMMs of 0 MiB, 0 GPUs, 2 NICs (0 up), 0 disks (0 well), 0 PSUs of 0 W, 0 firmware, 7 incomplete; 17 requests, 17 expanded",
		"hpe-dl360gen12-ilo7":      "2 CPUs, 32 cores, 262144 MiB, 16 DIMMs of 262144 MiB, 0 GPUs, 2 NICs (0 up), 2 disks (2 well), 2 PSUs of 2000 W, 14 firmware, 0 incomplete; 91 requests, 21 expanded",
		"nvidia-gh200":             "2 CPUs, 144 cores, 983040 MiB, 2 DIMMs of 983040 MiB, 2 GPUs, 0 NICs (0 up), 0 disks (0 well), 0 PSUs of 0 W, 9 firmware, 0 incomplete; 46 requests, 13 expanded",
		"supermicro-x10":           "1 CPUs, 8 cores, 65536 MiB, 4 DIMMs of 65536 MiB, 0 GPUs, 4 NICs (0 up), 0 disks (0 well), 0 PSUs of 0 W, 0 firmware, 1 incomplete; 20 requests, 20 expanded",
	} {
		root := filepath.Join("..", "..", "..", "shared", "redfish", tree)
		if !exists(root) {
			t.Logf("%s does not lie beside the checkout", root)
			continue
		}
		t.Run(tree, func(t *testing.T) {
			plain, requests := capturedInventory(t, capturedMock(t, root))
			m := capturedMock(t, root)
			m.expands = true
			expanded, fewer := capturedInventory(t, m)
			if diff := cmp.Diff(plain, expanded); diff != "" {
				t.Errorf("expanded: %s", diff)
			}
			if got := fmt.Sprintf("%s; %d requests, %d expanded", summary(plain), requests, fewer); got != want {
				t.Errorf("%s\nwant\n%s", got, want)
			}
		})
	}
}

func capturedInventory(t *testing.T, m *mock) (hardware.Inventory, int) {
	t.Helper()
	b, _ := m.open(t, m.endpoint())
	before := len(m.requests())
	inv, err := b.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return inv, len(m.requests()) - before
}

// summary counts what was found, and what of it has a name, a serial number and is well.
func summary(inv hardware.Inventory) string {
	var memory int64
	for _, d := range inv.DIMMs {
		memory += d.MiB
	}
	linked, well, watts := 0, 0, 0
	for _, n := range inv.NICs {
		if n.Link == "LinkUp" {
			linked++
		}
	}
	for _, d := range inv.Disks {
		if d.Health == "OK" && d.Serial != "" && d.Bytes > 0 {
			well++
		}
	}
	for _, p := range inv.PSUs {
		watts += p.Watts
	}
	return fmt.Sprintf("%d CPUs, %d cores, %d MiB, %d DIMMs of %d MiB, %d GPUs, %d NICs (%d up), %d disks (%d well), %d PSUs of %d W, %d firmware, %d incomplete",
		inv.CPUs.Count, inv.CPUs.Cores, inv.MemoryMiB, len(inv.DIMMs), memory, len(inv.GPUs), len(inv.NICs), linked, len(inv.Disks), well, len(inv.PSUs), watts, len(inv.Firmware), len(inv.Incomplete))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (want traits) check(t *testing.T, m *mock) {
	b, _ := m.open(t, m.endpoint())
	if got := b.driver.quirk.name; got != want.quirk {
		t.Errorf("quirk %s, want %s", got, want.quirk)
	}
	inv, err := b.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if (inv.Serial != "") != want.serial || inv.CPUs != want.cpus || inv.MemoryMiB != want.memoryMiB ||
		len(inv.NICs) != want.nics || len(inv.Disks) != want.disks || inv.BMCFirmware == "" {
		t.Errorf("inventory %+v, want %+v", inv, want)
	}
	reset, err := b.LastReset(t.Context())
	if age, _ := reset.Age(); err != nil || reset.Source != want.source || want.age != 0 && age != want.age {
		t.Errorf("last reset %+v, age %s, %v", reset, age, err)
	}
	boot, mode := hardware.Boot{Target: hardware.BootPXE}, ""
	if want.mode != "" {
		boot.Mode, mode = hardware.ModeUEFI, `"BootSourceOverrideMode":"`+want.mode+`",`
	}
	if err := b.SetBootOnce(t.Context(), boot); err != nil {
		t.Fatal(err)
	}
	if err := b.ForceRestart(t.Context()); err != nil {
		t.Fatal(err)
	}
	sent := []string{
		want.system + ` {"Boot":{"BootSourceOverrideEnabled":"Once",` + mode + `"BootSourceOverrideTarget":"Pxe"}}`,
		want.system + `/Actions/ComputerSystem.Reset {"ResetType":"` + stdcmp.Or(want.reset, "ForceRestart") + `"}`,
	}
	if diff := cmp.Diff(sent, append(m.sent(http.MethodPatch), m.sent(http.MethodPost)...)); diff != "" {
		t.Error(diff)
	}
}

func FuzzSystem(f *testing.F) {
	for _, seed := range []string{
		`{"Id":"1","PowerState":"On","Boot":{"BootSourceOverrideTarget":"None","BootSourceOverrideTarget@Redfish.AllowableValues":["Pxe"]}}`,
		`{"Boot":"none","Links":{"ManagedBy":{"@odata.id":"/m"}},"ProcessorSummary":{"Count":"2","CoreCount":-1},"MemorySummary":{"TotalSystemMemoryGiB":1e400}}`,
		`{"Oem":{"Hpe":{"PostState":"InPost"}},"LastResetTime":"0000-00-00T00:00:00Z","Actions":null,"SerialNumber":7}`,
		`[]`, `{`, `null`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var sys system
		if decode(data, &sys) != nil {
			return
		}
		now := time.Unix(1700000000, 0)
		if e := evidence(sys, "+00:00", now); e.Known == (e.Source == "") || e.Known && e.At.IsZero() {
			t.Errorf("evidence %+v", e)
		}
		if sys.MemorySummary.GiB < 0 || sys.ProcessorSummary.Count < 0 || int64(sys.MemorySummary.GiB*1024) < 0 {
			t.Errorf("negative amounts: %+v", sys)
		}
		for _, q := range quirks() {
			patch, err := q.bootPatch(hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeUEFI}, sys.Boot)
			if err == nil && (patch.Target != "Pxe" || patch.Enabled != "Once") {
				t.Errorf("%s writes %+v", q.name, patch)
			}
			if _, err := json.Marshal(patch); err != nil {
				t.Error(err)
			}
		}
		if at := sys.SerialConsole.path(); at != "" && at[0] != '/' {
			t.Errorf("console at %q", at)
		}
	})
}

func FuzzErrorBody(f *testing.F) {
	for _, seed := range []string{
		`{"error":{"code":"c","message":"m","@Message.ExtendedInfo":[{"MessageId":"A.1.0.B","Message":"no","Resolution":"do"}]}}`,
		`{"error":{"@Message.ExtendedInfo":{"MessageId":"A.1.0.B"}}}`,
		`{"@Message.ExtendedInfo":[{"MessageId":"A.1.0.B"}]}`,
		`{"error":"no"}`, `<html>`, ``,
	} {
		f.Add([]byte(seed), `W/"1"`)
	}
	f.Fuzz(func(t *testing.T, body []byte, etag string) {
		no := &refusal{method: "GET", path: "/", status: 400, messages: parseMessages(body)}
		if no.Error() == "" {
			t.Error("no words")
		}
		if outcome, over := taskOutcome(reply{status: 202, header: http.Header{}, body: body}); over && outcome.status == 0 {
			t.Error("a task is over without an outcome")
		}
		if list := ifMatches(etag); len(list) == 0 || list[len(list)-1] != "" {
			t.Errorf("If-Match %q leads to %q", etag, list)
		}
		if p := pathOf(etag); p != "" && p[0] != '/' {
			t.Errorf("path %q", p)
		}
	})
}
