package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/redfish"
	"github.com/rackweft/rackweft/hardware/redfishtest"
)

// driven has the bench's BMCs be spoken to by the driver, with a login for each call.
func (b *bench) driven() {
	log := slog.New(slog.DiscardHandler)
	b.create(&api.Secret{Base: named("login"), Spec: api.SecretSpec{Data: map[string]string{"username": redfishtest.Username, "password": redfishtest.Password}}})
	b.c.Use = func(ctx context.Context, e hardware.Endpoint, _ string, call func(context.Context, BMC) error) error {
		bmc, err := redfish.Dial(ctx, e, log)
		if err != nil {
			return err
		}
		return errors.Join(call(ctx, bmc), bmc.Close(ctx))
	}
}

// behind registers a Machine that is to be off, with a BMC.
func (b *bench) behind(name, mac string, server *redfishtest.Server) {
	b.create(&api.Machine{Base: named(name), Spec: api.MachineSpec{
		Zone: "yellow", State: api.StateOff, Links: []api.Link{{Name: "pxe0", MAC: api.MAC(mac)}},
		BMC: &api.BMC{Address: server.URL, Credentials: "login"},
	}})
}

// bmc is the condition of the Machine's BMC after a few steps; words must be in its message.
func (b *bench) bmcIs(name string, status api.ConditionStatus, reason string, words ...string) {
	b.t.Helper()
	for range 3 {
		b.step(name)
	}
	c := b.get(name).Status.Conditions.Get(api.CondBMC)
	if c == nil || c.Status != status || c.Reason != reason {
		b.t.Fatalf("the BMC of %s is %+v, want %s %s", name, c, status, reason)
	}
	for _, w := range words {
		if !strings.Contains(c.Message, w) {
			b.t.Errorf("%q is missing in: %s", w, c.Message)
		}
	}
}

func (b *bench) trust(name string, server *redfishtest.Server) {
	b.mutate(name, func(m *api.Machine) {
		m.TrustBMC(api.BMCTrustRequest{Address: m.Spec.BMC.Address, Certificate: api.Fingerprint(server.Fingerprint)}, "oli", time.Now())
	})
}

// sawNothing: no request has reached the BMC, so no password has.
func sawNothing(t *testing.T, server *redfishtest.Server) {
	t.Helper()
	for _, q := range server.Requests() {
		t.Errorf("it was sent %s %s %q %s", q.Method, q.Path, q.Header.Get("Authorization"), q.Body)
	}
}

func TestChangedCertificateIsRefusedUntilAPersonTrustsIt(t *testing.T) {
	b := newBench(t)
	b.driven()
	server := redfishtest.StartVendor(t, "hpe-ilo5")
	b.behind("r1", "52:54:00:01:01:00", server)
	b.bmcIs("r1", api.True, "Reachable", "pinned at the first contact", "weftctl bmc trust r1")

	old := server.Fingerprint
	server.NewCertificate(t)
	server.Forget()
	b.mutate("r1", func(m *api.Machine) {
		m.Status.Conditions.Set(time.Now(), api.CondBMC, api.False, "Error", "to be asked again")
	})
	b.bmcIs("r1", api.False, "CertificateMismatch", old, server.Fingerprint, "weftctl bmc trust r1")
	sawNothing(t, server)
	if got := b.get("r1").Status.BMC.Fingerprint; got != old {
		t.Errorf("pinned is %s, want %s", got, old)
	}

	b.trust("r1", server)
	b.bmcIs("r1", api.True, "Reachable", "oli trusts its certificate")
	if server.Count() == 0 {
		t.Error("the BMC was not asked")
	}
	if pins := b.get("r1").BMCPins(); string(pins.Certificate) != server.Fingerprint || pins.By != "oli" {
		t.Errorf("pinned are %+v", pins)
	}
}

func TestBMCsThatAPersonHasToTrust(t *testing.T) {
	b := newBench(t)
	b.driven()
	if _, err := store.Mutate(t.Context(), b.store, api.SiteName, func(s *api.Site) error { s.Spec.Trust.BMC = api.BMCTrustPerson; return nil }); err != nil {
		t.Fatal(err)
	}
	first, second := redfishtest.StartVendor(t, "hpe-ilo5"), redfishtest.StartVendor(t, "dell-idrac9")
	b.behind("r1", "52:54:00:01:01:00", first)
	b.bmcIs("r1", api.False, "Untrusted", first.Fingerprint, "weftctl bmc trust r1", "spec.trust.bmc")
	sawNothing(t, first)
	b.trust("r1", first)
	b.bmcIs("r1", api.True, "Reachable", "oli trusts its certificate")

	// Another address starts over.
	b.mutate("r1", func(m *api.Machine) { m.Spec.BMC.Address = second.URL })
	b.mutate("r1", func(m *api.Machine) {
		m.Status.Conditions.Set(time.Now(), api.CondBMC, api.False, "Error", "to be asked again")
	})
	b.bmcIs("r1", api.False, "Untrusted", second.Fingerprint)
	sawNothing(t, second)

	// The spec is a person's word, too.
	b.mutate("r1", func(m *api.Machine) { m.Spec.BMC.TLS.Fingerprint = api.Fingerprint(second.Fingerprint) })
	b.bmcIs("r1", api.True, "Reachable")
	if c := b.get("r1").Status.Conditions.Get(api.CondBMC); strings.Contains(c.Message, "trust") {
		t.Errorf("the spec pins it: %s", c.Message)
	}

	// One that the first contact has pinned before stays.
	third := redfishtest.StartVendor(t, "hpe-ilo5")
	b.behind("r2", "52:54:00:01:02:00", third)
	b.mutate("r2", func(m *api.Machine) { m.LearnBMC(third.URL, api.Fingerprint(third.Fingerprint), "", time.Now()) })
	b.bmcIs("r2", api.True, "Reachable", "pinned at the first contact")
}

func TestReasonsOfDistrust(t *testing.T) {
	for reason, err := range map[string]error{
		"CertificateMismatch": &hardware.CertificateMismatchError{},
		"HostKeyMismatch":     &hardware.HostKeyMismatchError{},
		"Untrusted":           &hardware.UntrustedError{What: "SSH host key"},
	} {
		if got := reasonOf(fmt.Errorf("log in: %w", err)); got != reason {
			t.Errorf("%v is called %s, want %s", err, got, reason)
		}
	}
}
