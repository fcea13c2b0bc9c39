package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/nodeagent/speaker"
	"github.com/rackweft/rackweft/systemd"
)

// The speaker that tenants' guests talk to has the whole sandbox of the host's
// own speaker, and differs from it only where it must.
func TestInsideUnit(t *testing.T) {
	unit, err := insideUnit("/run/rackweft/nodeagent/speakers", speaker.InsideService{UID: "u1", Network: "red", Namespace: "/run/netns/red"})
	if err != nil {
		t.Fatal(err)
	}
	own, err := systemd.Properties(speakerUnit)
	if err != nil {
		t.Fatal(err)
	}
	const more = "NetworkNamespacePath=/run/netns/red ReadWritePaths=/run/rackweft/nodeagent/speakers StartLimitIntervalSec=0"
	if got := strings.Join(without(unit.Properties, own), " "); got != more {
		t.Errorf("it has beyond %s:\n%s\nwant\n%s", speakerUnit, got, more)
	}
	var names []string
	for _, p := range without(own, unit.Properties) {
		name, _, _ := strings.Cut(p, "=")
		names = append(names, name)
	}
	if want := insideDiffers(); !slices.Equal(names, want) {
		t.Errorf("it lacks %q, want %q", names, want)
	}
	for _, p := range []string{"SystemCallFilter=@system-service", "SystemCallArchitectures=native", "ProtectKernelModules=yes", "ProtectKernelTunables=yes",
		"ProtectControlGroups=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes", "LimitNOFILE=65536", "RestartPreventExitStatus=78", "NoNewPrivileges=yes"} {
		if !slices.Contains(unit.Properties, p) {
			t.Errorf("it lacks %s", p)
		}
	}
	verify(t, unit)
}

// without lists the elements of a that are not in b.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(p string) bool { return slices.Contains(b, p) })
}

// verify has systemd read the unit.
func verify(t *testing.T, unit systemd.Service) {
	t.Helper()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed: the unit is not verified by systemd")
	}
	path := filepath.Join(t.TempDir(), unit.Name)
	text := "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=notify\nExecStart=/bin/true\n"
	for _, p := range unit.Properties {
		if !strings.HasPrefix(p, "StartLimit") { // systemd-run sorts it out itself
			text += p + "\n"
		}
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(analyze, "verify", "--man=no", path)
	var said strings.Builder // warnings, which leave its exit code at 0
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil || strings.Contains(said.String(), unit.Name) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, said.String())
	}
}
