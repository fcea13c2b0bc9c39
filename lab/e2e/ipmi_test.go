package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/lab"
	"github.com/rackweft/rackweft/lab/bmc"
	"github.com/rackweft/rackweft/lab/bmc/ipmibmc"
	"github.com/rackweft/rackweft/lab/rig"
)

// TestFurtherIPMI takes two machines from off to Active over IPMI and cipher suite 17: a BIOS machine whose BMC speaks nothing
// else, and a UEFI machine whose BMC was inspected over Redfish, does not answer there any more, and may be asked over IPMI
// then. Both consoles are SOL.
func TestFurtherIPMI(t *testing.T) {
	r := rig.Up(t, rig.Options{Machines: lab.DefaultMachines()[:2], NoManifests: true})
	password := r.Rack.BMCPassword()[:20] // the longest that IPMI takes
	serveIPMI(t, r, bios, bmc.Legacy, password)
	serveIPMI(t, r, uefi, bmc.UEFI, password)
	r.Apply(overIPMI(t, r, password)...)
	showsLoader(t, r, bios)
	r.WaitMachine(uefi, "Inspected", func(m *api.Machine) bool { return m.Status.Conditions.Is(api.CondInspected) })
	r.Rack.Machine(uefi).BMC().SetUnreachable(true)
	r.Apply(filepath.Join(r.Rack.Dir(), "active.yaml"))
	r.WaitMachine(uefi, "BMCReachable says over IPMI", func(m *api.Machine) bool {
		c := m.Status.Conditions.Get(api.CondBMC)
		return c != nil && c.Status == api.True && strings.Contains(c.Message, "; over IPMI, for Redfish did not ")
	})
	showsLoader(t, r, uefi)
	for _, name := range []string{bios, uefi} {
		m := r.WaitActive(name)
		if m.Status.BMC.Console != "sol" || m.Status.Attempt.Number != 1 {
			t.Errorf("%s: console %q, BootAttempt %d", name, m.Status.BMC.Console, m.Status.Attempt.Number)
		}
		if override := r.Rack.Machine(name).Override(); override.Target != bmc.None && override.Target != "" {
			t.Errorf("%s was not booted by the device that was set over IPMI: %+v is left", name, override)
		}
	}
	out, err := r.Weftctl("explain", "machine", uefi)
	for _, want := range []string{"BMCFallback", "set next boot was done over IPMI; Redfish: ", "power on was done over IPMI; Redfish: "} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("explain does not say %q (%v):\n%s", want, err, out)
		}
	}
	if out, err := r.Weftctl("explain", "machine", bios); err != nil || strings.Contains(out, "BMCFallback") {
		t.Errorf("of a BMC without Redfish nothing is a fallback (%v):\n%s", err, out)
	}
	if out, err := r.Weftctl("machine", "power", "off", bios); err != nil || r.Rack.Machine(bios).Power() != bmc.Off {
		t.Errorf("power off over IPMI (%v): %s\n%s", err, r.Rack.Machine(bios).Power(), out)
	}
}

// showsLoader waits for the boot script, and sees that what asked for it came over the console.
func showsLoader(t *testing.T, r *rig.Rig, name string) {
	t.Helper()
	r.WaitMachine(name, "the boot script", func(m *api.Machine) bool { return m.Status.Attempt.Reached(api.StageScript) })
	shown := func(l api.ConsoleLine) bool { return l.Attempt == 1 && strings.Contains(l.Text, "iPXE") }
	if log, err := r.Client.ConsoleLog(t.Context(), name); err != nil || !slices.ContainsFunc(log.Lines, shown) {
		t.Errorf("nothing of iPXE came over the console of %s (%v): %v", name, err, log)
	}
}

// serveIPMI has the machine's BMC speak IPMI until the test ends, and take that password in either protocol.
func serveIPMI(t *testing.T, r *rig.Rig, name string, firmware bmc.Firmware, password string) {
	t.Helper()
	m := r.Rack.Machine(name)
	m.BMC().SetPassword(password)
	conn, err := lab.ListenPacket(m, 623)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- ipmibmc.Serve(ctx, conn, ipmibmc.Config{Machine: lab.Hardware(m), Firmware: firmware, Username: lab.BMCUser, Password: password, Suites: []int{17}})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// overIPMI is the rack's manifests with the first machine's BMC over IPMI alone, and the second's over IPMI where Redfish fails.
// The second is Off, until active.yaml is applied.
func overIPMI(t *testing.T, r *rig.Rig, password string) (paths []string) {
	t.Helper()
	for _, path := range r.Rack.Manifests() {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		switch name := filepath.Base(path); name {
		case "machines.yaml":
			docs := bytes.SplitN(content, []byte("\n---\n"), 2)
			only := strings.NewReplacer("https://", "ipmi://", "protocol: redfish", "protocol: ipmi", "  state: Active", "  boot: {firmware: bios}\n  state: Active").Replace(string(docs[0]))
			lines := slices.DeleteFunc(strings.Split(only, "\n"), func(l string) bool { return strings.Contains(l, "tls:") })
			either := strings.Replace(string(docs[1]), "protocol: redfish", "protocol: redfish\n    fallback: ipmi", 1)
			r.File("active.yaml", either)
			path = r.File("ipmi-"+name, strings.Join(lines, "\n")+"\n---\n"+strings.Replace(either, "state: Active", "state: Off", 1))
		case "secret.yaml":
			path = r.File("ipmi-"+name, fmt.Sprintf("apiVersion: rackweft/v1alpha1\nkind: Secret\nmetadata: {name: r1-bmc}\nspec: {data: {username: %s, password: %s}, uses: {bmc: [198.18.1.0/24]}}\n", lab.BMCUser, password))
		}
		paths = append(paths, path)
	}
	return paths
}
