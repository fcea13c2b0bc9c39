package show

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

func now() time.Time { return time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC) }

func printer() Printer {
	return Printer{Paint: func(_ terminal.Colour, s string) string { return s }, Now: now()}
}

func machine(name string, change func(*api.Machine)) *api.Machine {
	m := new(api.Machine)
	m.Metadata = api.Metadata{Name: name, CreationTimestamp: now().Add(-90 * time.Minute), Labels: map[string]string{"tier": "app", "a": "b"}}
	m.Spec = api.MachineSpec{Zone: "yellow", Location: api.Location{Rack: "r1", Unit: 7}, Profile: "worker",
		Links: []api.Link{{Name: "prod", MAC: "52:54:00:01:07:01", Addresses: []netip.Addr{netip.MustParseAddr("198.18.8.7")}}},
		BMC:   &api.BMC{Address: "https://198.18.0.7", Credentials: "r1-bmc"}}
	change(m)
	return m
}

func TestMachineTable(t *testing.T) {
	machines := []*api.Machine{
		machine("r1u07", func(m *api.Machine) {
			m.Status = api.MachineStatus{Phase: api.PhaseActive, Power: "On", Attempt: &api.BootAttempt{Stage: api.StageApplied, Result: api.ResultActive},
				Inventory: &api.Inventory{Manufacturer: "Dell", Model: "R640", Serial: "S1"},
				Host: &api.HostStatus{AgentVersion: "v1", Kernel: "6.1", Connected: true, NICs: []api.HostNIC{
					{Name: "pxe0", Addresses: []netip.Prefix{netip.MustParsePrefix("198.18.0.107/24")}},
					{Name: "prod", Addresses: []netip.Prefix{netip.MustParsePrefix("198.18.8.7/24")}}}}}
		}),
		machine("r1u08", func(m *api.Machine) {
			m.Status = api.MachineStatus{Phase: api.PhaseProvisioning, Power: "On", Addresses: []netip.Addr{netip.MustParseAddr("198.18.0.108")},
				Attempt: &api.BootAttempt{Stage: api.StageScript}}
		}),
		machine("r1u09", func(m *api.Machine) { m.Spec = api.MachineSpec{} }),
	}
	var out bytes.Buffer
	kind := api.KindOf(machines[0])
	for _, wide := range []bool{false, true} {
		table := Table{Header: printer().Header(kind, wide)}
		for _, m := range machines {
			table.Rows = append(table.Rows, printer().Row(m, wide))
		}
		if err := table.Print(&out, strings.ToUpper); err != nil {
			t.Fatal(err)
		}
	}
	want := `NAME    ZONE     RACK/U   PHASE          STAGE         POWER   ADDRESS        AGE
r1u07   yellow   r1/7     Active         -             On      198.18.8.7     1h30m
r1u08   yellow   r1/7     Provisioning   Script N/12   On      198.18.0.108   1h30m
r1u09   -        -        -              -             -       -              1h30m
NAME    ZONE     RACK/U   PHASE          STAGE         POWER   ADDRESS        BMC          PROFILE   MODEL       SERIAL   AGENT   KERNEL   AGE     LABELS
r1u07   yellow   r1/7     Active         -             On      198.18.8.7     198.18.0.7   worker    Dell R640   S1       v1      6.1      1h30m   a=b,tier=app
r1u08   yellow   r1/7     Provisioning   Script N/12   On      198.18.0.108   198.18.0.7   worker    -           -        -       -        1h30m   a=b,tier=app
r1u09   -        -        -              -             -       -              -            -         -           -        -       -        1h30m   a=b,tier=app
`
	want = strings.ReplaceAll(want, "N/12", string(rune('1'+api.StageScript.Index()))+"/12")
	if got := out.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// TestEveryKindHasColumns: none is printed without a header for each cell, or falls over when it is empty.
func TestEveryKindHasColumns(t *testing.T) {
	for _, k := range api.Kinds() {
		o := k.New()
		o.SetDefaults()
		for _, wide := range []bool{false, true} {
			header, row := printer().Header(k, wide), printer().Row(o, wide)
			if len(header) != len(row) || len(header) < 3 {
				t.Errorf("%s: %d titles, %d cells", k.Name, len(header), len(row))
			}
			for i, cell := range row {
				if cell == "" {
					t.Errorf("%s: %s is empty, not a dash", k.Name, header[i])
				}
			}
		}
	}
}

func TestTableLinesUpInColour(t *testing.T) {
	var out bytes.Buffer
	table := Table{Header: []string{"A", "B"}, Rows: [][]string{{"\x1b[31mlong red\x1b[0m", "x"}, {"äö", "y"}}}
	if err := table.Print(&out, func(s string) string { return "\x1b[1m" + s + "\x1b[0m" }); err != nil {
		t.Fatal(err)
	}
	if err := table.Add(&out, []string{"z", "later"}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		line = strings.TrimSuffix(line, "\n")
		last := line[strings.LastIndex(line, " ")+1:]
		if at := terminal.Columns(strings.TrimSuffix(line, last)); at != 11 {
			t.Errorf("the second column is at %d in %q", at, line)
		}
	}
}

func TestFields(t *testing.T) {
	for _, c := range []struct{ kind, path, typ, doc, below string }{
		{"Machine", "", "map", "", "spec"},
		{"Machine", "spec.links", "list of map", "", "mac"},
		{"Machine", "spec.links.mac", "MAC", "", ""},
		{"Machine", "spec.links.addresses", "list of address", "Pins the addresses", ""},
		{"Machine", "spec.state", "text", "", ""},
		{"Machine", "metadata.name", "text", "RFC 1123", ""},
		{"Site", "spec.limits.power", "map", "", "perRack"},
		{"Site", "spec.attemptWindow", "duration", "progress", ""},
		{"Subnet", "spec.prefixes", "list of prefix", "", ""},
		{"Image", "spec.files", "map of text to map", "kernel, initrd", "sha256"},
		{"Image", "spec.files.source", "text", "weftctl uploads", ""},
		{"Guest", "spec.memory", "quantity", "", ""},
		{"HostSpec", "parts", "map of text to any", "", ""},
	} {
		k, err := api.LookupKind(c.kind)
		if err != nil {
			t.Fatal(err)
		}
		f, err := Fields(k, c.path)
		if err != nil {
			t.Errorf("%s.%s: %v", c.kind, c.path, err)
			continue
		}
		if f.Type != c.typ || !strings.Contains(f.Doc, c.doc) {
			t.Errorf("%s.%s is %q: %q", c.kind, c.path, f.Type, f.Doc)
		}
		if c.below == "" && len(f.Fields) > 0 || c.below != "" && !hasField(f.Fields, c.below) {
			t.Errorf("%s.%s has fields %+v", c.kind, c.path, f.Fields)
		}
	}
	k, _ := api.LookupKind("Machine")
	if _, err := Fields(k, "spec.lonks"); err == nil || !strings.Contains(err.Error(), `machines.spec has no field "lonks": its fields are zone, location`) {
		t.Errorf("%v", err)
	}
	if _, err := Fields(k, "spec.zone.x"); err == nil || !strings.Contains(err.Error(), "no fields below") {
		t.Errorf("%v", err)
	}
}

func hasField(fields []Field, name string) bool {
	for _, f := range fields {
		if f.Name == name {
			return true
		}
	}
	return false
}

// TestFieldsNameWhatIsDecoded: the help knows exactly the fields that objects are written with.
func TestFieldsNameWhatIsDecoded(t *testing.T) {
	for _, k := range api.Kinds() {
		f, err := Fields(k, "")
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(k.New())
		if err != nil {
			t.Fatal(err)
		}
		var written map[string]any
		if err := json.Unmarshal(raw, &written); err != nil {
			t.Fatal(err)
		}
		for name := range written {
			if !hasField(f.Fields, name) {
				t.Errorf("%s: the help lacks %s", k.Name, name)
			}
		}
	}
}
