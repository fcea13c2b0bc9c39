package redfish

import (
	stdcmp "cmp"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
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
			NICs: []hardware.NIC{{Name: "1", MAC: "02:00:00:00:05:01", SpeedMbps: 1000, Link: "LinkUp"}}},
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
		{"hpe-dl325gen10plus-ilo5", hpeSystem, "HPE iLO 5/6", true, hardware.CPUs{Count: 1, Model: "AMD EPYC 7302P 16-Core Processor", Cores: 16}, 64 << 10, 4, 2,
			"", 0, "UEFI", ""},
		{"supermicro-x10", hpeSystem, "Supermicro X10", false, hardware.CPUs{Count: 1, Model: "Intel(R) Xeon(R) CPU D-1541 @ 2.10GHz", Cores: 8}, 64 << 10, 4, 0,
			"", 0, "", ""},
	} {
		if root := filepath.Join("..", "..", "..", "shared", "redfish", want.tree); exists(root) {
			t.Run(want.tree, func(t *testing.T) { want.check(t, capturedMock(t, root)) })
		}
	}
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
	before := len(m.requests())
	inv, err := b.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("inventory by %d requests: %+v", len(m.requests())-before, inv)
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
