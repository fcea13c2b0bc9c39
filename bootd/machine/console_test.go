package machine

import (
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/trust"
)

// TestOverdueTellsOfTheConsole: the advice to open it is given where there is one, and the failure ends with its last line.
func TestOverdueTellsOfTheConsole(t *testing.T) {
	m := new(api.Machine)
	m.Metadata.Name = "r1u01"
	m.Status.Attempt = &api.BootAttempt{Stage: api.StageKernel, Stages: []api.StageTime{{Stage: api.StageKernel, Time: time.Now()}}}
	for kind, want := range map[api.ConsoleKind]string{"": "look at its screen", api.NoConsole: "look at its screen", "ssh": "read its console (weftctl console r1u01)"} {
		m.Status.BMC.Console = kind
		if text := overdue(m, trust.Requirement{Level: api.TrustToken}); !strings.HasSuffix(text, "it fetched the kernel but no initrd: "+want) && !strings.Contains(text, want+" (no serial console") {
			t.Errorf("console %q: %s", kind, text)
		}
	}
	f := facts{machine: m, required: func(*api.Machine) trust.Requirement { return trust.Requirement{Level: api.TrustToken} },
		said: func() string { return "VFS: unable to mount root \"x\"" }}
	a := judge{f, time.Now()}.expire()
	if want := `; the last on its console: "VFS: unable to mount root \"x\""`; !strings.HasSuffix(a.message, want) || a.event.message != a.message {
		t.Errorf("%+v", a)
	}
}

// TestLearnedConsole stays while the BMC stays.
func TestLearnedConsole(t *testing.T) {
	b := newBench(t)
	m := b.machine("r1u01", 1)
	if err := b.c.bmcs().well(t.Context(), m, contact{entered: true, fingerprint: "sha256:aa"}, ""); err != nil {
		t.Fatal(err)
	}
	m = b.get("r1u01")
	if err := LearnConsole(t.Context(), b.c.Env, m, "ssh", "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8"); err != nil {
		t.Fatal(err)
	}
	m = b.get("r1u01")
	if err := b.c.bmcs().well(t.Context(), m, contact{entered: true, fingerprint: "sha256:ab"}, ""); err != nil {
		t.Fatal(err)
	}
	if m = b.get("r1u01"); !m.HasConsole() || m.Status.BMC.Fingerprint != "sha256:aa" || m.BMCPins().HostKey != "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8" {
		t.Errorf("after the BMC has answered: %+v", m.Status.BMC)
	}
	old := *m
	moved := *m.Spec.BMC
	moved.Address = "https://198.18.1.99"
	b.mutate("r1u01", func(m *api.Machine) { m.Spec.BMC = &moved })
	m = b.get("r1u01")
	if err := LearnConsole(t.Context(), b.c.Env, &old, api.NoConsole, ""); err != nil {
		t.Fatal(err)
	}
	if err := b.c.bmcs().well(t.Context(), m, contact{entered: true, fingerprint: "sha256:cd"}, ""); err != nil {
		t.Fatal(err)
	}
	if m = b.get("r1u01"); m.Status.BMC.Console != "" {
		t.Errorf("another BMC has the console of the old one: %+v", m.Status.BMC)
	}
}
