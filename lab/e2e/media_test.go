package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/lab"
	"github.com/rackweft/rackweft/lab/bmc"
	"github.com/rackweft/rackweft/lab/rig"
)

// TestFurtherMedia takes a machine to Active at trust level bmc by real firmware: its BMC has no HTTP boot, checks bootd's
// certificate with the Site's CA, and has the attempt's image in its virtual CD drive until Ignition has come from it.
func TestFurtherMedia(t *testing.T) {
	nstest.Root(t, nstest.Namespaces)
	machines := lab.DefaultMachines()[1:2]
	machines[0].BMC.Media, machines[0].BMC.NoHTTPBoot = bmc.StandardMedia, true
	r := rig.Up(t, rig.Options{
		Machines: machines, BootdConfig: []byte("advertise: [\"https://198.18.8.1:8443\"]\nipxe: " + loaders(t) + "\n"),
		Manifests: func(name string, content []byte) []byte {
			if name == "machines.yaml" {
				return bytes.Replace(content, []byte("spec:\n"), []byte("spec:\n  trust: {minimum: bmc}\n"), 1)
			}
			return content
		},
	})
	server := r.Rack.Machine(uefi)
	r.WaitMachine(uefi, "the image in its drive", func(m *api.Machine) bool {
		return m.Status.BootURL != nil && m.Status.BootURL.Media && m.Status.Attempt.Reached(api.StagePowerOn)
	})
	m := r.WaitActive(uefi)
	a := m.Status.Attempt
	if a.Number != 1 || a.Trust != api.TrustBMC {
		t.Errorf("BootAttempt %d proved %s: %s", a.Number, a.Trust, a.TrustWhy)
	}
	for _, unused := range []api.Stage{api.StageScript, api.StageKernel} {
		for _, s := range a.Stages {
			if s.Stage == unused {
				t.Errorf("it reached %s, over the network", unused)
			}
		}
	}
	r.WaitMachine(uefi, "nothing noted of its drive", func(m *api.Machine) bool { return m.Status.BootURL == nil })
	if override := server.Override(); override.Target != bmc.None && override.Target != "" {
		t.Errorf("an override is left: %+v", override)
	}
	out, err := r.Weftctl("explain", "machine", uefi)
	if err != nil || !strings.Contains(out, "from virtual media") || strings.Contains(out, "without a look") {
		t.Errorf("explain (%v):\n%s", err, out)
	}
	if strings.Contains(out, "/v1/media/") {
		t.Errorf("explain shows the image's URL:\n%s", out)
	}
}

// loaders are those of the package ipxe, with GRUB beside them.
func loaders(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("/usr/lib/ipxe")); err != nil {
		t.Fatal(err)
	}
	grub, err := os.ReadFile("/usr/lib/grub/x86_64-efi/monolithic/gcdx64.efi")
	if err != nil {
		t.Fatalf("package grub-efi-amd64-bin: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "grubx64.efi"), grub, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}
