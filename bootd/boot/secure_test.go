package boot

import (
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/httpboot"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

// TestBootURL: who presents the boot URL of the attempt, from an address of the
// Machine, has reached level bmc; nobody else has, and what it was given goes on
// over TLS alone.
func TestBootURL(t *testing.T) {
	b := newBench(t)
	at := b.lease(hostMAC)
	stranger := b.lease("52:54:00:ff:00:01")
	fresh := func(stage api.Stage) *api.Machine {
		b.d.attempts.takes = newTakes()
		return b.Change(host, func(m *api.Machine) {
			m.Spec.Trust.Minimum, m.Status.Conditions = api.TrustBMC, nil
			m.Status.Attempt = testsite.Attempt("try-1", stage)
		})
	}
	m := fresh(api.StageDHCP)
	base := b.d.scripts.bootURL(m, addr("198.18.0.2"))
	key, ok := strings.CutPrefix(base, "https://198.18.0.2:8443/v1/boot/"+host+"/")
	if !ok || len(key) < 40 {
		t.Fatalf("the boot URL is %s", base)
	}
	if _, err := b.d.Script(t.Context(), boots(hostMAC, at.String())); err == nil || !strings.Contains(err.Error(), "trust level bmc is required") {
		t.Errorf("the script over plain HTTP: %v", err)
	}
	for name, try := range map[string]func() error{
		"a guessed key":   func() error { _, err := b.d.SecureScript(t.Context(), host, "guessed", at); return err },
		"another Machine": func() error { _, err := b.d.SecureScript(t.Context(), "nobody", key, at); return err },
		"a stranger":      func() error { _, err := b.d.SecureScript(t.Context(), host, key, stranger); return err },
		"a pointer's key": func() error {
			_, err := b.d.SecureScript(t.Context(), host, b.d.keys.secret(m, ca.PurposePointer, api.TrustBMC), at)
			return err
		},
		"a stranger's blob": func() error { return b.d.SecureBlob(t.Context(), host, key, stranger, digest("a")) },
	} {
		if err := try(); testsite.Status(err) != 403 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.d.SecureBlob(t.Context(), host, key, at, digest("e")); testsite.Status(err) != 404 {
		t.Errorf("a blob that no Image names: %v", err)
	}
	if err := b.d.SecureBlob(t.Context(), host, key, at, digest("a")); err != nil {
		t.Errorf("the kernel: %v", err)
	}
	given, err := b.d.BootURL(m)
	if err != nil || !strings.HasSuffix(given, "/v1/boot/"+host+"/"+key+"/snponly.efi") {
		t.Errorf("its BMC is given %s, %v", given, err)
	}
	for file, status := range map[string]int{"snponly.efi": 0, "ipxe.efi": 404} {
		if err := b.d.SecureLoader(t.Context(), host, key, file, at); testsite.Status(err) != status {
			t.Errorf("loader %s: %v, want status %d", file, err, status)
		}
	}
	if err := b.d.SecureLoader(t.Context(), host, key, "snponly.efi", stranger); testsite.Status(err) != 403 {
		t.Errorf("a stranger's loader: %v", err)
	}
	script, err := b.d.SecureScript(t.Context(), host, key, at)
	if err != nil {
		t.Fatal(err)
	}
	b.Sync()
	pointerKey := b.d.keys.secret(m, ca.PurposePointer, api.TrustBMC)
	for _, want := range []string{base + "/blobs/sha256:" + strings.Repeat("a", 64), base + "/blobs/sha256:" + strings.Repeat("b", 64),
		"ignition.config.url=https://198.18.0.2:8443/v1/pointer/" + host + "/" + pointerKey, "rackweft.rootfs.sha256=" + strings.Repeat("c", 64)} {
		if !strings.Contains(script, want) {
			t.Errorf("%s is not in\n%s", want, script)
		}
	}
	ask := b.asks(at.String())
	if _, err := b.d.SecurePointer(t.Context(), ask); testsite.Status(err) != 403 {
		t.Errorf("the pointer with a key of plain HTTP: %v", err)
	}
	ask.Key = pointerKey
	if _, err := b.d.Pointer(t.Context(), ask); err == nil {
		t.Error("the pointer is given over plain HTTP")
	}
	p, err := b.d.SecurePointer(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	p.Sent(true)
	b.Sync()
	again := httpboot.PointerRequest{Machine: host, Key: pointerKey, Peer: at, Accept: accept, Conn: "another"}
	get := b.fetches(at.String())
	get.Key, get.Token = b.d.keys.secret(m, ca.PurposeConfigURL, api.TrustBMC), b.d.keys.secret(m, ca.PurposeConfig, api.TrustBMC)
	if !strings.Contains(string(p.Config), get.Token) {
		t.Errorf("the pointer is %s", p.Config)
	}
	if _, err := b.config(get); err != nil {
		t.Fatal(err)
	}
	if a := b.Machine(host).Status.Attempt; a.Trust != api.TrustBMC || !strings.Contains(a.TrustWhy, "over TLS") {
		t.Errorf("%s: %s", a.Trust, a.TrustWhy)
	}
	if _, err := b.d.SecureScript(t.Context(), host, key, at); testsite.Status(err) != 503 {
		t.Errorf("the script again, after the pointer: %v", err)
	}
	if _, err := b.d.SecurePointer(t.Context(), again); testsite.Status(err) != 503 {
		t.Errorf("a second taker: %v", err)
	}
	b.wantSecond(thePointer, 1)
	b.Sync()
	if _, err := b.d.SecureScript(t.Context(), host, key, at); testsite.Status(err) != 403 || b.Happened("SpentSecret") != 1 {
		t.Errorf("the boot URL of an attempt that is over: %v", err)
	}
}
