package server

import (
	"context"
	"net/http"
	"sync"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/redfishtest"
)

const hostKeyA, hostKeyB = "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8", "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"

// shellOf has BMCs show an SSH host key besides their certificate.
type shellOf struct {
	mu  sync.Mutex
	key string // empty: no SSH server
}

func (s *shellOf) set(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key = key
}

func (s *shellOf) present(ctx context.Context, address string) (hardware.Presented, error) {
	seen, err := hardware.Present(ctx, address)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && s.key != "" {
		seen.HostKey = &hardware.HostKey{Type: "ssh-rsa", Fingerprint: s.key}
	}
	return seen, err
}

func TestTrustOfABMC(t *testing.T) {
	shell := &shellOf{key: hostKeyA}
	r := newRig(t, func(c *Config) { c.Present = shell.present })
	server := redfishtest.StartVendor(t, "hpe-ilo5")
	m := testsite.NewMachine("r1", "52:54:00:00:00:01")
	m.Spec.BMC = &api.BMC{Address: server.URL, Credentials: "bmc"}
	ipmi := testsite.NewMachine("r3", "52:54:00:00:00:03")
	ipmi.Spec.BMC = &api.BMC{Address: "ipmi://198.18.0.3", Protocol: "ipmi", Credentials: "bmc"}
	put(t, r.root(), m, testsite.NewMachine("r2", "52:54:00:00:00:02"), ipmi)
	oli := r.person("oli", "operator")

	look := func() api.BMCTrustRequest {
		t.Helper()
		p, err := oli.PresentedBMC(t.Context(), "r1")
		must(t, err)
		if string(p.Certificate.Fingerprint) != server.Fingerprint || p.Certificate.Subject != "CN=bmc" || p.Certificate.NotAfter.IsZero() || p.Address != server.URL {
			t.Errorf("it presents %+v, want %s", p, server.Fingerprint)
		}
		request := api.BMCTrustRequest{Address: p.Address, Certificate: p.Certificate.Fingerprint}
		if p.HostKey != nil {
			request.HostKey = p.HostKey.Fingerprint
		}
		return request
	}
	pinned := func(want api.BMCTrustRequest) {
		t.Helper()
		m, err := store.Get[api.Machine](t.Context(), r.store, "r1")
		must(t, err)
		pins := m.BMCPins()
		if pins.Certificate != want.Certificate || pins.HostKey != want.HostKey || want.Certificate != "" && (pins.By != "oli" || pins.Time.IsZero()) {
			t.Errorf("pinned are %+v, want %+v of oli", pins, want)
		}
	}
	refused := func(request api.BMCTrustRequest, words ...string) {
		t.Helper()
		_, err := oli.TrustBMC(t.Context(), "r1", request)
		wantStatus(t, err, http.StatusConflict, words...)
	}

	first := look()
	pinned(api.BMCTrustRequest{})
	pins, err := oli.TrustBMC(t.Context(), "r1", first)
	must(t, err)
	if pins.Certificate != first.Certificate || pins.HostKey != hostKeyA || pins.By != "oli" {
		t.Errorf("the answer is %+v", pins)
	}
	pinned(first)

	// What was shown is not what it presents any more: neither is pinned.
	server.NewCertificate(t)
	refused(first, server.Fingerprint, string(first.Certificate), "nothing was pinned")
	shell.set(hostKeyB)
	second := look()
	pinned(first)
	shell.set(hostKeyA)
	refused(second, hostKeyA, hostKeyB)
	shell.set("")
	refused(second, hostKeyB, "SSH")
	refused(api.BMCTrustRequest{Address: "https://198.18.0.9", Certificate: second.Certificate}, "look again")
	pinned(first)
	shell.set(hostKeyB)
	_, err = oli.TrustBMC(t.Context(), "r1", second)
	must(t, err)
	pinned(second)

	_, err = oli.TrustBMC(t.Context(), "r1", api.BMCTrustRequest{Address: server.URL})
	wantStatus(t, err, http.StatusUnprocessableEntity, "/certificate")
	_, err = oli.PresentedBMC(t.Context(), "r2")
	wantStatus(t, err, http.StatusUnprocessableEntity, "has no BMC")
	_, err = oli.PresentedBMC(t.Context(), "r3")
	wantStatus(t, err, http.StatusUnprocessableEntity, "IPMI")
	if n := server.Count(); n > 0 {
		t.Errorf("the BMC saw %d requests: looking at it needs none", n)
	}
	audits := r.auditsOf("/v1/machines/r1/bmc/trust")
	if len(audits) != 2 || audits[1].Who != "oli" {
		t.Fatalf("the audit has %+v", audits)
	}
	want := api.Change{Pointer: "/status/bmc/fingerprint", Old: first.Certificate, New: second.Certificate}
	if audits[1].Diff[0] != want || len(audits[1].Diff) != 3 {
		t.Errorf("the audit has %+v, want first %+v", audits[1].Diff, want)
	}
}

// The spec's pins are replaced, or the BMC would stay refused; the audit shows it.
func TestTrustReplacesThePinsOfTheSpec(t *testing.T) {
	shell := &shellOf{key: hostKeyB}
	r := newRig(t, func(c *Config) { c.Present = shell.present })
	server := redfishtest.StartVendor(t, "hpe-ilo5")
	old := api.Fingerprint(server.Fingerprint)
	m := testsite.NewMachine("r1", "52:54:00:00:00:01")
	m.Spec.BMC = &api.BMC{Address: server.URL, Credentials: "bmc", TLS: api.BMCTLS{Fingerprint: old}, SSH: api.BMCSSH{HostKey: hostKeyA}}
	put(t, r.root(), m)
	server.NewCertificate(t)
	_, err := r.root().TrustBMC(t.Context(), "r1", api.BMCTrustRequest{Address: server.URL, Certificate: api.Fingerprint(server.Fingerprint), HostKey: hostKeyB})
	must(t, err)
	now, err := store.Get[api.Machine](t.Context(), r.store, "r1")
	must(t, err)
	if b := now.Spec.BMC; string(b.TLS.Fingerprint) != server.Fingerprint || b.SSH.HostKey != hostKeyB || now.Metadata.Generation != 2 {
		t.Errorf("the spec pins %+v in generation %d", b, now.Metadata.Generation)
	}
	diff := r.auditsOf("/v1/machines/r1/bmc/trust")[0].Diff
	if len(diff) < 2 || diff[0].Pointer != "/spec/bmc/ssh/hostKey" || diff[1].Pointer != "/spec/bmc/tls/fingerprint" || diff[1].Old != string(old) {
		t.Errorf("the audit has %+v", diff)
	}
}

func TestPresentedBySilentBMC(t *testing.T) {
	r := newRig(t)
	m := testsite.NewMachine("r1", "52:54:00:00:00:01")
	m.Spec.BMC = &api.BMC{Address: "https://127.0.0.1:9", Credentials: "bmc"}
	put(t, r.root(), m)
	_, err := r.root().PresentedBMC(t.Context(), "r1")
	wantStatus(t, err, http.StatusBadGateway, "127.0.0.1:9", "check its address")
}
