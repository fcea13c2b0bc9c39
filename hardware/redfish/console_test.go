package redfish

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/sshconsole"
)

func TestWebSocketConsole(t *testing.T) {
	for _, test := range []struct{ vendor, path string }{{"openbmc", "/console0"}, {"hpe-ilo5", "/serial/1"}} {
		m := vendorMock(t, test.vendor)
		if test.vendor == "hpe-ilo5" { // told by the tree, not by the table
			m.tree[hpeSystem]["SerialConsole"] = map[string]any{"WebSocket": map[string]any{"ServiceEnabled": true, "ConsoleURI": test.path}}
		}
		m.serveConsole(test.path)
		b, _ := m.open(t, m.endpoint())
		ways, err := b.Consoles(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		console, err := ways[0].Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sent := bytes.Repeat([]byte{0, 'x', 0xff}, 3000)
		if _, err := console.Write(sent); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(console, got); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%s: echo differs, %v", test.vendor, err)
		}
		if _, err := b.PowerState(t.Context()); err != nil {
			t.Errorf("beside an open console: %v", err)
		}
		if err := console.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestConsoleKinds: what the trees of the vendors tell leads to the ways that the vendors have. The pieces of trees are as
// captured.
func TestConsoleKinds(t *testing.T) {
	const shell, both = `{"ServiceEnabled":true,"ConnectTypesSupported":["SSH","Oem"]}`, `{"ServiceEnabled":true,"ConnectTypesSupported":["SSH","IPMI","Oem"]}`
	const off = `{"ServiceEnabled":false,"ConnectTypesSupported":[]}`
	ilo, openBMC := viaILO(), viaOpenBMC()
	unknown := sshconsole.Way{Port: 22, Commands: []string{"cd /host", "tty"}, Leave: []string{"\x1b(", "\x1bT", "\x1bt", "\x1c", "\x1d"}}
	for name, test := range map[string]struct {
		system, manager, commands string
		vendor                    sshconsole.Way
		want                      *sshconsole.Way
	}{
		"HPE iLO 5 to 7":          {manager: both, commands: shell, vendor: ilo, want: &ilo},
		"Dell iDRAC 9":            {manager: off, commands: shell, vendor: viaIDRAC(), want: ptr(viaIDRAC())},
		"Supermicro X10":          {manager: both, commands: shell, vendor: viaSMASH(), want: ptr(viaSMASH())},
		"NVIDIA GH200":            {system: `{"SSH":{"HotKeySequenceDisplay":"Press ~. to exit console","Port":2200,"ServiceEnabled":true}}`, want: &openBMC},
		"switched off":            {manager: `{"ServiceEnabled":false,"ConnectTypesSupported":["SSH"]}`, vendor: ilo},
		"switched off in system":  {system: `{"SSH":{"Port":2200,"ServiceEnabled":false}}`, manager: both, vendor: openBMC},
		"IPMI only":               {manager: `{"ServiceEnabled":true,"ConnectTypesSupported":["IPMI"]}`, vendor: ilo},
		"nothing told":            {vendor: ilo},
		"no vendor that is known": {manager: both, commands: shell},
		"the standard alone":      {system: `{"SSH":{"Port":22,"ConsoleEntryCommand":"cd /host; tty","ServiceEnabled":true}}`, want: &unknown},
		"a command of two lines":  {system: `{"SSH":{"Port":22,"ConsoleEntryCommand":"tty\nreset","ServiceEnabled":true}}`},
		"of wrong types":          {system: `{"SSH":{"Port":"N/A","ConsoleEntryCommand":7}}`, manager: `{"ConnectTypesSupported":"SSH"}`, vendor: ilo},
	} {
		var s serial
		for from, into := range map[string]*serialConsoles{test.system: &s.system, test.manager: &s.manager, test.commands: &s.commands} {
			if from == "" {
				continue
			}
			if err := decode([]byte(from), into); err != nil {
				t.Fatal(err)
			}
		}
		way, ok := s.ssh(test.vendor)
		if ok != (test.want != nil) {
			t.Errorf("%s: by SSH %v", name, ok)
		} else if ok {
			if diff := cmp.Diff(*test.want, way); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestConsolesOfABMC(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	b, _ := m.open(t, m.endpoint())
	if ways, err := b.Consoles(t.Context()); !errors.Is(err, hardware.ErrUnsupported) {
		t.Errorf("ways %v, error %v, want ErrUnsupported", ways, err)
	}
	m.tree["/redfish/v1/Managers/1"]["SerialConsole"] = map[string]any{"ServiceEnabled": true, "ConnectTypesSupported": []any{"SSH", "IPMI"}}
	before := len(m.requests())
	b, _ = m.open(t, m.endpoint())
	logged := len(m.requests()) - before
	ways, err := b.Consoles(t.Context())
	if err != nil || len(ways) != 1 || ways[0].Kind != hardware.ConsoleSSH || ways[0].Login {
		t.Errorf("ways %+v, %v", ways, err)
	}
	if asked := len(m.requests()) - before - logged; asked != 0 {
		t.Errorf("%d requests were made for what was known", asked)
	}
}

// FuzzSerialConsole: whatever a tree tells, the commands are lines that can be typed.
func FuzzSerialConsole(f *testing.F) {
	f.Add([]byte(`{"SSH":{"Port":2200,"ConsoleEntryCommand":"cd system1/sol1; start","ServiceEnabled":true}}`))
	f.Add([]byte(`{"SSH":{"Port":1e9,"ConsoleEntryCommand":"\u0000;;"}}`))
	f.Fuzz(func(t *testing.T, tree []byte) {
		var s serial
		if decode(tree, &s.system) != nil || json.Unmarshal(tree, &s.manager) != nil {
			return
		}
		way, ok := s.ssh(viaILO())
		if !ok {
			return
		}
		if way.Port < 0 || way.Port > 65535 || len(way.Commands) == 0 || len(way.Leave) == 0 {
			t.Errorf("%+v", way)
		}
		for _, command := range way.Commands {
			if bytes.ContainsAny([]byte(command), "\r\n\x1b") {
				t.Errorf("types %q", command)
			}
		}
	})
}
