package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/lab"
	"github.com/rackweft/rackweft/lab/bmc"
	"github.com/rackweft/rackweft/lab/rig"
)

// consoleByILO are the lab's machines, of which one has its console where iLO has it: behind a command line over SSH, for one
// client at a time.
func consoleByILO() []lab.MachineConfig {
	machines := lab.DefaultMachines()
	for i := range machines {
		if machines[i].Name == uefi {
			machines[i].BMC.Console = bmc.Console{Access: bmc.BySSH, Style: bmc.ILO}
		}
	}
	return machines
}

// consoleWasKept: with no one attached, what the machine has shown before its BootAttempt 2 failed is there to be read.
func consoleWasKept(t *testing.T, r *rig.Rig) {
	m := r.WaitMachine(uefi, "BootAttempt 3 is open", func(m *api.Machine) bool { return m.Status.Attempt.Number == 3 })
	if m.Status.BMC.Console != "ssh" {
		t.Errorf("its console was reached by %q, want ssh", m.Status.BMC.Console)
	}
	log, err := r.Client.ConsoleLog(t.Context(), uefi)
	if err != nil {
		t.Fatal(err)
	}
	booted := func(l api.ConsoleLine) bool { return l.Attempt == 2 && strings.Contains(l.Text, "ignition") }
	if !slices.ContainsFunc(log.Lines, booted) {
		t.Errorf("bootd has kept nothing that Ignition printed in BootAttempt 2: %v", log.Lines)
	}
	if out, err := r.Weftctl("explain", "machine", uefi); err != nil || !strings.Contains(out, "Console, the last 15") {
		t.Errorf("explain does not show the console (%v):\n%s", err, out)
	}
}

// badBMCs: each way in which a BMC can fail has its reason, and mending it mends the Machine.
func badBMCs(t *testing.T, r *rig.Rig) {
	server := r.Rack.Machine(stranger).BMC()
	fails := func(reason, words string) {
		t.Helper()
		if out, err := r.Weftctl("machine", "inspect", stranger, "--no-wait"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		m := r.WaitMachine(stranger, "BMCReachable is False, "+reason, func(m *api.Machine) bool {
			c := m.Status.Conditions.Get(api.CondBMC)
			return c != nil && c.Status == api.False && c.Reason == reason
		})
		if c := m.Status.Conditions.Get(api.CondBMC); !strings.Contains(c.Message, words) {
			t.Errorf("%s: %q does not say %q", reason, c.Message, words)
		}
		if m.Status.Phase != api.PhaseActive {
			t.Errorf("a BMC that fails takes an Active machine to %s", m.Status.Phase)
		}
	}
	// A person applies the right password once more; bootd sees a changed Secret and tries at once.
	mended := func() {
		t.Helper()
		for _, password := range []string{"wrong", r.Rack.BMCPassword()} {
			r.Apply(r.File("secret.yaml", "apiVersion: rackweft/v1alpha1\nkind: Secret\nmetadata: {name: r1-bmc}\nspec: {data: {username: admin, password: "+password+"}, uses: {bmc: [198.18.1.0/24]}}\n"))
		}
		r.WaitMachine(stranger, "BMCReachable is True", func(m *api.Machine) bool { return m.Status.Conditions.Is(api.CondBMC) })
	}
	server.SetUnreachable(true)
	fails("Unreachable", "198.18.1.13")
	server.SetUnreachable(false)
	mended()

	server.SetPassword("changed-behind-our-back")
	fails("Unauthorized", "admin")
	server.SetPassword(r.Rack.BMCPassword())
	mended()

	if err := server.NewCertificate(); err != nil {
		t.Fatal(err)
	}
	fails("CertificateMismatch", "weftctl bmc trust "+stranger)
	if out, err := r.Weftctl("bmc", "trust", stranger, "--fingerprint", "sha256:"+strings.Repeat("ab", 32)); err == nil {
		t.Errorf("a certificate that the BMC does not present is trusted:\n%s", out)
	}
	if out, err := r.Weftctl("bmc", "trust", stranger, "--yes"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := r.WaitMachine(stranger, "BMCReachable is True", func(m *api.Machine) bool { return m.Status.Conditions.Is(api.CondBMC) })
	if pins := m.BMCPins(); string(pins.Certificate) != server.Fingerprint() || pins.By != "root" {
		t.Errorf("pinned are %+v, want %s by root", pins, server.Fingerprint())
	}
}
