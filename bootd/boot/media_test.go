package boot

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/internal/command"
)

// TestMedium: who presents the URL of the attempt's image has what a boot at level bmc needs, from any address.
func TestMedium(t *testing.T) {
	b := newBench(t)
	bmc := addr("198.18.77.7")
	m := b.Change(host, func(m *api.Machine) {
		m.Spec.BMC = &api.BMC{Address: "https://198.18.77.7", Credentials: "bmc"}
		m.Spec.Trust.Minimum = api.TrustBMC
		m.Status.Attempt = testsite.Attempt("try-1", api.StagePowerOn)
	})
	url, err := b.d.MediaURL(m)
	if err != nil {
		t.Fatal(err)
	}
	key, ok := strings.CutPrefix(strings.TrimSuffix(url, "/boot.iso"), "https://198.18.9.1:8443/v1/media/"+host+"/")
	if !ok || len(key) < 40 {
		t.Fatalf("the image's URL is %s", url)
	}
	for name, key := range map[string]string{
		"a guessed key":      "guessed",
		"the boot URL's key": b.d.keys.secret(m, ca.PurposeBoot, api.TrustBMC),
		"a pointer's key":    b.d.keys.secret(m, ca.PurposePointer, api.TrustBMC),
	} {
		if _, err := b.d.Medium(t.Context(), host, key, bmc); testsite.Status(err) != 403 || strings.Contains(err.Error(), "BootAttempt") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := b.d.Medium(t.Context(), "nobody", key, bmc); testsite.Status(err) != 403 {
		t.Errorf("another Machine: %v", err)
	}
	medium, err := b.d.Medium(t.Context(), host, key, bmc)
	if err != nil {
		t.Fatal(err)
	}
	if medium.Kernel != digest("a") || medium.Initrd != digest("b") {
		t.Errorf("it has %s and %s", medium.Kernel, medium.Initrd)
	}
	for _, want := range []string{"linux /KERNEL.IMG ", " 'ignition.config.url=https://198.18.0.2:8443/v1/pointer/" + host + "/" + b.d.keys.secret(m, ca.PurposePointer, api.TrustBMC) + "'",
		"BOOTIF=" + hostMAC, "initrd /INITRD.IMG /SITE_CA.IMG\nboot\n"} {
		if !strings.Contains(string(medium.Config), want) {
			t.Errorf("%q is not in\n%s", want, medium.Config)
		}
	}
	b.Sync()
	if a := b.Machine(host).Status.Attempt; a.Stage != api.StageLoader {
		t.Errorf("the attempt is at %s", a.Stage)
	}
	b.Change(host, func(m *api.Machine) { m.Spec.State = api.StateMaintenance })
	if _, err := b.d.Medium(t.Context(), host, key, bmc); testsite.Status(err) != 503 || !strings.Contains(err.Error(), "state Maintenance") {
		t.Errorf("in Maintenance: %v", err)
	}
	b.Change(host, func(m *api.Machine) {
		m.Spec.State = api.StateActive
		m.Status.Attempt.Result = api.ResultFailed
	})
	if _, err := b.d.Medium(t.Context(), host, key, bmc); testsite.Status(err) != 403 || b.Happened("SpentSecret") != 1 {
		t.Errorf("the image of an attempt that is over: %v", err)
	}
}

// TestMediaURLs: at which address a BMC reaches bootd.
func TestMediaURLs(t *testing.T) {
	b := newBench(t)
	m := b.Machine(host)
	m.Status.Attempt = testsite.Attempt("try-1", api.StagePowerOn)
	for address, want := range map[string]string{
		"https://198.18.77.7:8000":   "https://198.18.9.1:8443/v1/media/",
		"https://bmc.example:443":    "give the BMC's IP address, or advertise a URL",
		"https://[2001:db8::7]:8000": "https://198.18.9.1:8443/v1/media/", // by the routes, which the bench has one of
	} {
		m.Spec.BMC = &api.BMC{Address: address, Credentials: "bmc"}
		url, err := b.d.MediaURL(m)
		if err != nil {
			url = err.Error()
		}
		if !strings.Contains(url, want) {
			t.Errorf("%s: %s", address, url)
		}
	}
	b.d.own.advertise = []string{"https://boot.example:8443"}
	m.Spec.BMC.Address = "https://bmc.example"
	if url, err := b.d.MediaURL(m); err != nil || !strings.HasPrefix(url, "https://boot.example:8443/v1/media/") {
		t.Errorf("advertised: %s, %v", url, err)
	}
}

func TestGRUBConfig(t *testing.T) {
	got := string(grubConfig(false, []string{"quiet", "a=$b;c {x} | y\\", "it's"}))
	if want := "linux /KERNEL.IMG 'quiet' 'a=$b;c {x} | y\\' 'it'\\''s'\ninitrd /SITE_CA.IMG\nboot\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	path, err := exec.LookPath("grub-script-check")
	if err != nil {
		t.Skip("needs grub-script-check")
	}
	cmd := exec.CommandContext(t.Context(), path)
	cmd.Stdin = strings.NewReader(got)
	if _, err := command.Output(cmd); err != nil {
		t.Errorf("grub-script-check: %v", err)
	}
}

// TestInitrdWith has cpio(1) unpack it.
func TestInitrdWith(t *testing.T) {
	path, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("needs cpio")
	}
	for _, content := range []string{"", "a", "abcd", strings.Repeat("x", 1001)} {
		dir := t.TempDir()
		cmd := exec.CommandContext(t.Context(), path, "--extract", "--quiet")
		cmd.Dir, cmd.Stdin = dir, bytes.NewReader(initrdWith("etc/pki/ca.pem", []byte(content)))
		if _, err := command.Output(cmd); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "etc/pki/ca.pem")); err != nil || string(got) != content {
			t.Errorf("got %q, %v", got, err)
		}
	}
}
