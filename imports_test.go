// Package rackweft holds nothing but the test of the tree's own shape.
package rackweft

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/rackweft/rackweft/"

// rooms says what each room may import of rackweft: imports run downwards only.
// The longest prefix of a package's path counts.
func rooms() map[string][]string {
	return map[string][]string{
		"internal":        {},
		"api":             {},
		"systemd":         {"api"},
		"ignition":        {"api"},
		"hardware":        {"api"},
		"bgp":             {"api", "bgp"},
		"bootd":           {"api", "systemd", "ignition", "hardware", "bgp", "bootd"},
		"bootd/admission": {"api", "ignition", "bootd/store", "bootd/network", "bootd/machine", "bootd/trust", "bootd/internal"},
		"bootd/trust":     {"api"},
		"bootd/part":      {"api", "bootd/store"},
		// What owns a kind does not know what streams to hosts.
		"bootd/machine":  {"api", "hardware", "bootd/store", "bootd/ca", "bootd/control", "bootd/site", "bootd/trust", "bootd/internal"},
		"bootd/image":    {"api", "bootd/store", "bootd/control", "bootd/blob", "bootd/internal"},
		"bootd/network":  {"api", "bootd/ca", "bootd/store", "bootd/control", "bootd/part", "bootd/site", "bootd/internal"},
		"bootd/guest":    {"api", "ignition", "bootd/store", "bootd/control", "bootd/part", "bootd/site", "bootd/network", "bootd/machine", "bootd/internal"},
		"bootd/zone":     {"api", "bootd/store", "bootd/ca", "bootd/control", "bootd/part", "bootd/site", "bootd/network", "bootd/internal"},
		"bootd/subnet":   {"api", "bootd/store", "bootd/control", "bootd/internal"},
		"bootd/site":     {"api", "bootd/store", "bootd/internal"},
		"bootd/control":  {"api", "bootd/store", "bootd/internal"},
		"bootd/dhcp":     {},
		"bootd/tftp":     {},
		"bootd/httpboot": {},
		"bootd/blob":     {},
		"bootd/journal":  {},
		"bootd/lease":    {},
		"nodeagent":      {"api", "systemd", "bgp", "nodeagent"},
		"lab":            {"api", "lab"},
		"cmd/bootd":      {"api", "bootd", "systemd"},
		"cmd/nodeagent":  {"api", "nodeagent", "systemd", "bgp"},
		"cmd/weftctl":    {"api", "lab", "cmd/weftctl"},
		"docs":           {"api"}, // its test

		"nodeagent/overlay/dhcp": {},
	}
}

// owners names the rooms that may import each heavy dependency.
func owners() map[string][]string {
	return map[string][]string{
		"github.com/osrg/gobgp/":             {"bgp"},
		"go.etcd.io/etcd/":                   {"bootd/store"},
		"github.com/danielgtaylor/huma/":     {"bootd/server"},
		"github.com/gorilla/websocket":       {"bootd/server"},
		"github.com/insomniacslk/dhcp/":      {"bootd/dhcp", "nodeagent/overlay/dhcp"},
		"github.com/miekg/dns":               {"nodeagent/overlay/dhcp"},
		"github.com/mdlayher/ndp":            {"nodeagent/overlay/dhcp"},
		"github.com/mdlayher/packet":         {"nodeagent/overlay/dhcp"},
		"github.com/pin/tftp/":               {"bootd/tftp"},
		"github.com/coreos/butane/":          {"ignition"},
		"github.com/coreos/ignition/":        {"ignition"},
		"github.com/bmc-toolbox/":            {"hardware"},
		"github.com/stmcginnis/gofish":       {"hardware/redfish"},
		"github.com/coreos/go-systemd/":      {"systemd"},
		"github.com/go-json-experiment/json": {"api"},
		"filippo.io/age":                     {"bootd/backup"},
		"github.com/diskfs/go-diskfs/":       {"nodeagent/guest"},
		"golang.zx2c4.com/wireguard":         {"nodeagent/wireguard"},
		"github.com/vishvananda/netlink":     {"internal/kernel", "bgp/fib", "bgp/loopback", "nodeagent/nics", "nodeagent/overlay", "nodeagent/wireguard"},
		"github.com/vishvananda/netns":       {"internal/nft", "nodeagent/overlay", "nodeagent/wireguard", "lab"},
		"github.com/mdlayher/netlink":        {"nodeagent/overlay/dhcp"},
		"github.com/google/nftables":         {"internal/nft"},
	}
}

func TestImportsRunDownwards(t *testing.T) {
	checked := 0
	eachFile(t, parser.ImportsOnly, func(file string, f *ast.File) {
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			checked++
			for _, complaint := range faults(file, imported) {
				t.Errorf("%s imports %s: %s", file, imported, complaint)
			}
		}
	})
	if checked < 500 {
		t.Errorf("only %d imports were checked: the walk does not see the tree", checked)
	}
}

// eachFile parses every Go file of the tree's rooms.
func eachFile(t *testing.T, mode parser.Mode, look func(file string, f *ast.File)) {
	t.Helper()
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && file != "." || d.Name() == "testdata" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(file, ".go") || filepath.Dir(file) == "." {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, mode)
		if err != nil {
			return err
		}
		look(filepath.ToSlash(file), f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFaultsAreFound(t *testing.T) {
	for _, c := range []struct{ file, imported string }{
		{"api/x.go", module + "bootd/store"},
		{"bootd/x.go", module + "nodeagent"},
		{"nodeagent/x.go", module + "bootd"},
		{"lab/x.go", module + "bootd/server"},
		{"bootd/dhcp/x.go", module + "bootd/store"},
		{"bootd/admission/x.go", module + "bootd/server"},
		{"bootd/zone/x.go", module + "bootd/hostspec"},
		{"bootd/network/x.go", module + "bootd/hostspec"},
		{"cmd/weftctl/x.go", module + "bootd"},
		{"bootd/machine/x.go", "go.etcd.io/etcd/client/v3"},
		{"nodeagent/x.go", "github.com/osrg/gobgp/v3/pkg/server"},
		{"attic/x.go", module + "api"},
		{"internal/x.go", module + "api"},
		{"bootd/x.go", module + "hardware/redfishtest"},
		{"bootd/x.go", "github.com/vishvananda/netlink"},
		{"nodeagent/x.go", "github.com/google/nftables/expr"},
	} {
		if len(faults(c.file, c.imported)) == 0 {
			t.Errorf("%s may import %s, and must not", c.file, c.imported)
		}
	}
}

func faults(file, imported string) []string {
	dir := path.Dir(file)
	test := strings.HasSuffix(file, "_test.go")
	var found []string
	if below, own := strings.CutPrefix(imported, module); own {
		room, allowed := roomOf(dir)
		switch {
		case room == "":
			found = append(found, "no room is called "+dir)
		case !test && below == "hardware/redfishtest":
			found = append(found, "only tests may")
		case within(below, dir) || within(below, room) && !strings.HasPrefix(room, "cmd"):
		case within(below, "internal"): // small tools that every room shares
		case test && (room == "hardware" || within(room, "bootd")) && within(below, "lab/bmc"): // the lab's BMC is a peer to test against
		case test && room == "nodeagent" && below == "lab/guestos": // what its Guests boot
		case test && room == "lab" && below == "hardware/redfishtest": // BMCs by the thousand
		case !slices.ContainsFunc(allowed, func(a string) bool { return within(below, a) }):
			found = append(found, "imports run downwards only: see docs/architecture.md")
		}
	}
	for prefix, rooms := range owners() {
		owned := slices.ContainsFunc(rooms, func(room string) bool { return within(dir, room) })
		if !test && strings.HasPrefix(imported, prefix) && !owned {
			found = append(found, "only "+strings.Join(rooms, " and ")+" may")
		}
	}
	return found
}

// roomOf finds the rule for a directory.
func roomOf(dir string) (room string, allowed []string) {
	for name, may := range rooms() {
		if within(dir, name) && len(name) > len(room) {
			room, allowed = name, may
		}
	}
	return room, allowed
}

func within(dir, room string) bool { return dir == room || strings.HasPrefix(dir, room+"/") }
