package api

import (
	"testing"
	"time"
)

const (
	oldCertificate = Fingerprint("sha256:1111111111111111111111111111111111111111111111111111111111111111")
	newCertificate = Fingerprint("sha256:2222222222222222222222222222222222222222222222222222222222222222")
	oldHostKey     = HostKey("SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8")
	newHostKey     = HostKey("SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU")
)

func machineAt(address string) *Machine {
	return &Machine{Spec: MachineSpec{BMC: &BMC{Address: address}}}
}

func TestBMCPins(t *testing.T) {
	now := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	request := func(c Fingerprint, k HostKey) BMCTrustRequest {
		return BMCTrustRequest{Address: "https://a", Certificate: c, HostKey: k}
	}
	for name, test := range map[string]struct {
		do   func(m *Machine)
		want BMCPins
	}{
		"nothing is known": {func(*Machine) {}, BMCPins{}},
		"no BMC":           {func(m *Machine) { m.Spec.BMC = nil; m.LearnBMC("https://a", oldCertificate, "", now) }, BMCPins{}},
		"the first contact pins": {func(m *Machine) {
			m.LearnBMC("https://a", oldCertificate, oldHostKey, now)
		}, BMCPins{Certificate: oldCertificate, HostKey: oldHostKey, By: PinnedByFirstContact}},
		"a later contact does not": {func(m *Machine) {
			m.LearnBMC("https://a", oldCertificate, oldHostKey, now)
			m.LearnBMC("https://a", newCertificate, newHostKey, now)
		}, BMCPins{Certificate: oldCertificate, HostKey: oldHostKey, By: PinnedByFirstContact}},
		"a person replaces it": {func(m *Machine) {
			m.LearnBMC("https://a", oldCertificate, oldHostKey, now)
			m.TrustBMC(request(newCertificate, newHostKey), "alice", now)
		}, BMCPins{Certificate: newCertificate, HostKey: newHostKey, By: "alice", Time: now}},
		"a contact that began before does not put it back": {func(m *Machine) {
			m.TrustBMC(request(newCertificate, newHostKey), "alice", now)
			m.LearnBMC("https://a", oldCertificate, oldHostKey, now)
		}, BMCPins{Certificate: newCertificate, HostKey: newHostKey, By: "alice", Time: now}},
		"without a host key the pinned one stays": {func(m *Machine) {
			m.LearnBMC("https://a", oldCertificate, oldHostKey, now)
			m.TrustBMC(request(newCertificate, ""), "alice", now)
		}, BMCPins{Certificate: newCertificate, HostKey: oldHostKey, By: "alice", Time: now}},
		"the spec pins": {func(m *Machine) {
			m.TrustBMC(request(oldCertificate, oldHostKey), "alice", now)
			m.Spec.BMC.TLS.Fingerprint, m.Spec.BMC.SSH.HostKey = newCertificate, newHostKey
		}, BMCPins{Certificate: newCertificate, HostKey: newHostKey, By: PinnedBySpec}},
		"the spec pins, and the BMC has shown it": {func(m *Machine) {
			m.TrustBMC(request(oldCertificate, oldHostKey), "alice", now)
			m.Spec.BMC.TLS.Fingerprint = newCertificate
			m.LearnBMC("https://a", newCertificate, "", now)
		}, BMCPins{Certificate: newCertificate, HostKey: oldHostKey, By: PinnedBySpec}},
		"a person replaces the spec's": {func(m *Machine) {
			m.Spec.BMC.TLS.Fingerprint, m.Spec.BMC.SSH.HostKey = oldCertificate, oldHostKey
			m.TrustBMC(request(newCertificate, newHostKey), "alice", now)
		}, BMCPins{Certificate: newCertificate, HostKey: newHostKey, By: "alice", Time: now}},
		"another address starts over": {func(m *Machine) {
			m.TrustBMC(request(oldCertificate, oldHostKey), "alice", now)
			m.Spec.BMC.Address = "https://b"
		}, BMCPins{}},
		"and keeps nothing of the old one": {func(m *Machine) {
			m.TrustBMC(request(oldCertificate, oldHostKey), "alice", now)
			m.Spec.BMC.Address = "https://b"
			m.LearnBMC("https://b", newCertificate, "", now)
		}, BMCPins{Certificate: newCertificate, By: PinnedByFirstContact}},
		"a contact with the old address pins nothing": {func(m *Machine) {
			m.Spec.BMC.Address = "https://b"
			m.LearnBMC("https://a", oldCertificate, oldHostKey, now)
		}, BMCPins{}},
	} {
		t.Run(name, func(t *testing.T) {
			m := machineAt("https://a")
			test.do(m)
			if got := m.BMCPins(); got != test.want {
				t.Errorf("pinned are %+v, want %+v", got, test.want)
			}
		})
	}
}
