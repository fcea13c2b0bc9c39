package server

import (
	"context"
	"net/http"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
)

// bmcTrust lets people see what a Machine's BMC presents, and pin it.
type bmcTrust struct {
	store   *store.Store
	present func(ctx context.Context, address string) (hardware.Presented, error)
}

func (h *bmcTrust) routes() []route {
	const one = "/v1/machines/{name}/bmc"
	return []route{
		{method: "GET", path: one, tag: "Machine", role: operator, summary: "What a Machine's BMC presents now, and what is pinned; no password is sent",
			out: api.BMCPresented{}, handle: h.show},
		{method: "POST", path: one + "/trust", tag: "Machine", role: operator, audited: true,
			summary: "Pin what a Machine's BMC presents, if it is what the body names", in: api.BMCTrustRequest{}, out: api.BMCPins{}, handle: h.trust},
	}
}

// show looks at the BMC.
func (h *bmcTrust) show(c *call) error {
	m, err := h.machine(c)
	if err != nil {
		return err
	}
	seen, err := h.look(c, m.Spec.BMC.Address)
	if err != nil {
		return err
	}
	out := api.BMCPresented{Address: m.Spec.BMC.Address, Certificate: presentedCertificate(seen.Certificate), Pinned: m.BMCPins()}
	if k := seen.HostKey; k != nil {
		out.HostKey = &api.BMCHostKey{Type: k.Type, Fingerprint: api.HostKey(k.Fingerprint)}
	}
	return c.json(http.StatusOK, out)
}

func presentedCertificate(p hardware.Certificate) api.BMCCertificate {
	return api.BMCCertificate{
		Fingerprint: api.Fingerprint(p.Fingerprint), Subject: p.Subject, Issuer: p.Issuer, NotBefore: p.NotBefore, NotAfter: p.NotAfter, Key: p.Key,
	}
}

// trust pins what the body names, if the BMC still presents that.
func (h *bmcTrust) trust(c *call) error {
	var t api.BMCTrustRequest
	raw, err := c.body(maxBoot)
	if err != nil {
		return err
	}
	if err := api.DecodeStrict(raw, &t); err != nil {
		return err
	}
	if t.Certificate == "" {
		p := problem(http.StatusUnprocessableEntity, "there is nothing to trust")
		p.Errors = api.FieldErrors{{Pointer: "/certificate", Message: "is missing: want the fingerprint that the BMC presents"}}
		return p
	}
	m, err := h.machine(c)
	if err != nil {
		return err
	}
	if err := sameBMC(m, t); err != nil {
		return err
	}
	seen, err := h.look(c, t.Address)
	if err != nil {
		return err
	}
	if err := stillPresented(t, seen); err != nil {
		return err
	}
	return h.pin(c, m, t)
}

// pin writes it down.
func (h *bmcTrust) pin(c *call, m *api.Machine, t api.BMCTrustRequest) error {
	var before api.Machine
	now, err := store.Mutate(c.r.Context(), h.store, c.name(), func(fresh *api.Machine) error {
		if fresh.Metadata.UID != m.Metadata.UID {
			return problem(http.StatusConflict, "another Machine has the name %s by now: look again", c.name())
		}
		if err := sameBMC(fresh, t); err != nil {
			return err
		}
		before = *fresh
		bmc := *fresh.Spec.BMC
		before.Spec.BMC = &bmc
		fresh.TrustBMC(t, c.who.name, time.Now())
		return nil
	})
	if err != nil {
		return err
	}
	c.changed = true
	c.diff = append(difference(&before, now), changedPins(before.BMCPins(), now.BMCPins())...)
	return c.json(http.StatusOK, now.BMCPins())
}

// changedPins are the changes of what is pinned, for the audit log. A person who trusts the pinned ones again is a change, too.
func changedPins(old, now api.BMCPins) []api.Change {
	changes := []api.Change{{Pointer: "/status/bmc/fingerprint", Old: old.Certificate, New: now.Certificate}}
	if old.HostKey != now.HostKey {
		changes = append(changes, api.Change{Pointer: "/status/bmc/hostKey", Old: old.HostKey, New: now.HostKey})
	}
	return append(changes, api.Change{Pointer: "/status/bmc/trustedBy", Old: old.By, New: now.By})
}

// machine is a Machine whose BMC presents a certificate.
func (h *bmcTrust) machine(c *call) (*api.Machine, error) {
	m, err := store.Get[api.Machine](c.r.Context(), h.store, c.name())
	if err != nil {
		return nil, err
	}
	if m.Spec.BMC == nil {
		return nil, problem(http.StatusUnprocessableEntity, "Machine %s has no BMC: set spec.bmc", c.name())
	}
	if m.Spec.BMC.Protocol == "ipmi" {
		return nil, problem(http.StatusUnprocessableEntity, "the BMC of Machine %s is spoken to in IPMI, which has no certificate to trust", c.name())
	}
	return m, nil
}

// lookTime bounds a look at a BMC: weak ones need seconds for each handshake.
const lookTime = 45 * time.Second

func (h *bmcTrust) look(c *call, address string) (hardware.Presented, error) {
	c.extend(lookTime + bodyTime)
	ctx, cancel := context.WithTimeout(c.r.Context(), lookTime)
	defer cancel()
	seen, err := h.present(ctx, address)
	if err != nil {
		return seen, problem(http.StatusBadGateway, "%s", err)
	}
	return seen, nil
}

// sameBMC refuses trust in a BMC that is not the Machine's by now.
func sameBMC(m *api.Machine, t api.BMCTrustRequest) error {
	if m.Spec.BMC == nil || m.Spec.BMC.Address != t.Address {
		return problem(http.StatusConflict, "the BMC that was looked at, %s, is not that of Machine %s: look again", t.Address, m.Metadata.Name)
	}
	return nil
}

// stillPresented refuses trust in what the BMC does not present.
func stillPresented(t api.BMCTrustRequest, seen hardware.Presented) error {
	if got := seen.Certificate.Fingerprint; got != string(t.Certificate) {
		return problem(http.StatusConflict, "%s presents certificate %s, not %s: nothing was pinned", t.Address, got, t.Certificate)
	}
	if t.HostKey == "" {
		return nil
	}
	if seen.HostKey == nil {
		return problem(http.StatusConflict, "no SSH server of %s presents host key %s: nothing was pinned", t.Address, t.HostKey)
	}
	if got := seen.HostKey.Fingerprint; got != string(t.HostKey) {
		return problem(http.StatusConflict, "the SSH server of %s presents host key %s, not %s: nothing was pinned", t.Address, got, t.HostKey)
	}
	return nil
}
