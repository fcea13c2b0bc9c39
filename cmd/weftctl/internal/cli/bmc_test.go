package cli

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

const (
	oldPrint = api.Fingerprint("sha256:1111111111111111111111111111111111111111111111111111111111111111")
	newPrint = api.Fingerprint("sha256:2222222222222222222222222222222222222222222222222222222222222222")
	sshKey   = api.HostKey("SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8")
)

// presents is a BMC that presents newPrint.
func presents(address string, pinned api.BMCPins) *api.BMCPresented {
	return &api.BMCPresented{Address: address, Pinned: pinned, Certificate: api.BMCCertificate{
		Fingerprint: newPrint, Subject: "CN=ilo\x1b[31m", Issuer: "CN=Default Issuer", Key: "RSA 2048",
		NotBefore: time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2035, 1, 2, 0, 0, 0, 0, time.UTC),
	}}
}

// rackOfBMCs is one of each: changed, new with SSH, trusted by a person, silent, pinned at the first contact, changed where the
// spec pins.
func rackOfBMCs(t *testing.T) *bootd {
	b := newBootd(t)
	b.trusts = map[string]api.BMCTrustRequest{}
	b.bmcs = map[string]*api.BMCPresented{
		"changed": presents("https://198.18.0.1", api.BMCPins{Certificate: oldPrint, By: "ann", Time: time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)}),
		"new":     presents("https://198.18.0.2", api.BMCPins{}),
		"same":    presents("https://198.18.0.3", api.BMCPins{Certificate: newPrint, By: "ann", Time: time.Now()}),
		"first":   presents("https://198.18.0.5", api.BMCPins{Certificate: newPrint, By: api.PinnedByFirstContact}),
		"spec":    presents("https://198.18.0.6", api.BMCPins{Certificate: oldPrint, By: api.PinnedBySpec}),
	}
	b.bmcs["new"].HostKey = &api.BMCHostKey{Type: "ssh-rsa", Fingerprint: sshKey}
	for _, name := range []string{"changed", "new", "same", "silent", "first", "spec"} {
		b.machine(name, func(m *api.Machine) { m.Metadata.Labels = map[string]string{"rack": "r1"} })
	}
	return b
}

func TestTrustOfMany(t *testing.T) {
	b := rackOfBMCs(t)
	r := b.run(t, "y\n", "bmc", "trust", "-l", "rack=r1")
	if r.code != exitFailed {
		t.Errorf("exit code %d", r.code)
	}
	got := withoutTimes(r.out)
	want := []string{
		"MACHINE RESULT MESSAGE",
		"same Done is trusted already: by ann, ",
		"changed Done certificate " + string(newPrint),
		"first Done certificate " + string(newPrint),
		"new Done certificate " + string(newPrint) + ", SSH host key " + string(sshKey),
		"spec Done certificate " + string(newPrint) + "; the pin in its spec was replaced: change its manifest, too",
		"silent Failed Bad Gateway: BMC does not answer",
	}
	if !slices.EqualFunc(got, want, strings.HasPrefix) {
		t.Errorf("printed\n%s", r.out)
	}
	if names := slices.Sorted(maps.Keys(b.trusts)); !slices.Equal(names, []string{"changed", "first", "new", "spec"}) {
		t.Errorf("pinned for %v", names)
	}
	if want := (api.BMCTrustRequest{Address: "https://198.18.0.2", Certificate: newPrint, HostKey: sshKey}); b.trusts["new"] != want {
		t.Errorf("pinned %+v, want %+v", b.trusts["new"], want)
	}
	for _, part := range []string{
		"changed  https://198.18.0.1\n  certificate: changed\n    presented  " + string(newPrint) + "\n    pinned     " + string(oldPrint) + "  by ann, 2026-11-02 ",
		"    subject    CN=ilo\ufffd[31m\n    issuer     CN=Default Issuer\n    valid      2020-01-02 to 2035-01-02\n    key        RSA 2048\n",
		"new  https://198.18.0.2\n  certificate: new\n",
		"  SSH host key: new\n    presented  " + string(sshKey) + "\n    key        ssh-rsa\n",
		"first  https://198.18.0.5\n  certificate: as pinned\n",
		"by first contact\n",
		"Pin this, for 4 Machines? [y/N]",
	} {
		if !strings.Contains(r.err, part) {
			t.Errorf("standard error lacks %q:\n%s", part, r.err)
		}
	}
	if strings.Contains(r.err, "same  https") {
		t.Errorf("a BMC that is trusted already is shown:\n%s", r.err)
	}
}

func TestTrustIsConfirmed(t *testing.T) {
	b := rackOfBMCs(t)
	b.run(t, "n\n", "bmc", "trust", "new").want(t, exitFailed, "", "nothing was done")
	b.run(t, "", "bmc", "trust", "new").want(t, exitUsage, "", "add --yes")
	if len(b.trusts) > 0 {
		t.Errorf("pinned %v", b.trusts)
	}
	if r := b.run(t, "", "bmc", "trust", "same"); r.code != 0 || strings.Contains(r.err, "[y/N]") {
		t.Errorf("nothing to do: %+v", r)
	}
	r := b.run(t, "", "bmc", "trust", "new", "silent", "-o", "json", "--yes")
	var report fleetReport
	if err := json.Unmarshal([]byte(r.out), &report); err != nil || r.code != exitFailed || report.Action != "trust" || len(report.Machines) != 2 ||
		report.Machines[0].Result != resultDone || report.Machines[1].Machine != "silent" || len(b.trusts) != 1 {
		t.Errorf("%v: %+v", err, r)
	}
}

func TestTrustInScripts(t *testing.T) {
	b := rackOfBMCs(t)
	trust := func(args ...string) result { return b.run(t, "", append([]string{"bmc", "trust"}, args...)...) }
	if r := trust("new", "--fingerprint", string(oldPrint)); r.code != exitFailed || !strings.Contains(r.out, "it presents certificate "+string(newPrint)+", not "+string(oldPrint)) {
		t.Errorf("another certificate: %+v", r)
	}
	if r := trust("first", "--fingerprint", string(newPrint), "--host-key", string(sshKey)); r.code != exitFailed || !strings.Contains(r.out, "no SSH server presents") {
		t.Errorf("no SSH server: %+v", r)
	}
	other := strings.Replace(string(sshKey), "n", "N", 1)
	if r := trust("new", "--fingerprint", string(newPrint), "--host-key", other); r.code != exitFailed || !strings.Contains(r.out, "not "+other) {
		t.Errorf("another host key: %+v", r)
	}
	if len(b.trusts) > 0 {
		t.Errorf("pinned %v", b.trusts)
	}
	if r := trust("new", "--fingerprint", strings.ToUpper(string(newPrint)[:6])+string(newPrint)[6:]); r.code != exitUsage {
		t.Errorf("an invalid fingerprint: %+v", r)
	}
	if r := trust("new", "--fingerprint", string(newPrint)); r.code != 0 || b.trusts["new"].HostKey != "" {
		t.Errorf("a host key that was not named: %+v, pinned %+v", r, b.trusts["new"])
	}
	if r := trust("new", "--fingerprint", string(newPrint), "--host-key", string(sshKey)); r.code != 0 || b.trusts["new"].HostKey != sshKey {
		t.Errorf("%+v, pinned %+v", r, b.trusts["new"])
	}
	for _, args := range []string{"new first --fingerprint " + string(newPrint), "-l rack=r1 --fingerprint " + string(newPrint), "new --host-key " + string(sshKey), ""} {
		if r := trust(strings.Fields(args)...); r.code != exitUsage {
			t.Errorf("%s: %+v", args, r)
		}
	}
}
