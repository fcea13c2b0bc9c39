package machine

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/trust"
)

func TestDiskInstallIsNotBootedLive(t *testing.T) {
	b := newBench(t)
	if _, err := store.Mutate(t.Context(), b.store, "worker", func(p *api.Profile) error {
		p.Spec.Install = &api.Install{Disk: "/dev/disk/by-id/x"}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	b.machine("r1u01", 1)
	m := b.steps("r1u01", false)
	if c := m.Status.Conditions.Get(api.CondReferences); c == nil || c.Status != api.False || !strings.Contains(c.Message, "spec.install") || m.Status.Attempt != nil {
		t.Errorf("%+v", m.Status)
	}
}

func TestProductionLinkWithoutAddress(t *testing.T) {
	b := newBench(t)
	b.create(&api.Subnet{Base: named("prod"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.8.0/24")}}})
	b.create(&api.Machine{Base: named("r1u01"), Spec: api.MachineSpec{Zone: "yellow", Profile: "worker", Links: []api.Link{
		{Name: "pxe0", MAC: "52:54:00:01:01:00"}, {Name: "prod0", MAC: "52:54:00:01:01:01", Subnet: "prod"}}}})
	m := b.steps("r1u01", false)
	if c := m.Status.Conditions.Get(api.CondReferences); c == nil || c.Status != api.True || !strings.Contains(c.Message, "links[1] pins no address") {
		t.Errorf("%+v", c)
	}
}

func TestOverdueTellsOfABrokenConfig(t *testing.T) {
	m := &api.Machine{}
	openAttempt(m, time.Now(), action{reason: "test", stage: api.StageRequested}, time.Minute)
	Advance(m, m.Status.Attempt.ID, api.StagePointer, time.Now(), time.Minute)
	m.Status.Conditions.Set(time.Now(), CondConfig, api.False, "CompileFailed", "layer \"base\" line 3")
	if text := overdue(m, trust.Requirement{Level: api.TrustToken}); !strings.Contains(text, `layer "base" line 3`) {
		t.Error(text)
	}
}
