package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
)

const ownTag = "row 3, u 7"

// nonceBench is a Site that requires level nonce, and a Machine whose system has a tag.
func nonceBench(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	b.bmc.tag = ownTag
	b.site(func(s *api.Site) { s.Spec.Trust.Minimum = api.TrustNonce })
	b.machine("r1u01", 1)
	return b
}

// noNonceTold fails when the nonce stands anywhere but in the BMC.
func (b *bench) noNonceTold(m *api.Machine, nonce string) {
	b.t.Helper()
	data, err := json.Marshal(m)
	if err != nil {
		b.t.Fatal(err)
	}
	if strings.Contains(string(data), nonce) || strings.Contains(fmt.Sprint(b.events.list), nonce) {
		b.t.Errorf("the nonce is told: %s, events %q", data, b.events.list)
	}
}

func TestNonceIsWrittenBeforePower(t *testing.T) {
	for _, killed := range []bool{false, true} {
		b := nonceBench(t)
		m := b.steps("r1u01", killed)
		a := m.Status.Attempt
		nonce := "nonce-" + a.ID
		if want := []string{"tag " + nonce, "boot pxe", "on"}; !slices.Equal(b.bmc.did, want) {
			t.Errorf("killed %t: the BMC was told %q, want %q", killed, b.bmc.did, want)
		}
		if a.Nonce == nil || a.Nonce.State != api.NonceWritten || m.Status.AssetTag == nil || m.Status.AssetTag.Value != ownTag {
			t.Errorf("killed %t: nonce %+v, saved tag %+v", killed, a.Nonce, m.Status.AssetTag)
		}
		b.noNonceTold(m, nonce)
	}
}

// TestAssetTagIsPutBack: whatever ends the need for the nonce, the system has its own tag again.
func TestAssetTagIsPutBack(t *testing.T) {
	ends := map[string]func(*bench){
		"Ignition has its pointer": func(b *bench) {
			b.mutate("r1u01", func(m *api.Machine) {
				Advance(m, m.Status.Attempt.ID, api.StagePointer, time.Now(), time.Hour)
			})
		},
		"the attempt fails": func(b *bench) {
			b.mutate("r1u01", func(m *api.Machine) { Fail(m, time.Now(), "the test") })
		},
		"the window ends": func(b *bench) {
			b.mutate("r1u01", func(m *api.Machine) { m.Status.Attempt.Deadline = time.Now().Add(-time.Second) })
		},
		"it is switched off": func(b *bench) {
			b.mutate("r1u01", func(m *api.Machine) { m.Spec.State = api.StateOff })
		},
		"it is put into Maintenance": func(b *bench) {
			b.mutate("r1u01", func(m *api.Machine) { m.Spec.State = api.StateMaintenance })
		},
		"the level is required no longer": func(b *bench) {
			b.site(func(s *api.Site) { s.Spec.Trust.Minimum = api.TrustToken })
			b.mutate("r1u01", func(m *api.Machine) {
				Fail(m, time.Now().Add(-time.Hour), "the test")
			})
		},
		"it is deleted": func(b *bench) {
			if err := b.store.Delete(b.t.Context(), api.KindOf(&api.Machine{}), "r1u01", ""); err != nil {
				b.t.Fatal(err)
			}
		},
	}
	for name, end := range ends {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, killed %t", name, killed), func(t *testing.T) {
				b := nonceBench(t)
				b.steps("r1u01", killed)
				if b.bmc.tag == ownTag {
					t.Fatal("the nonce was never written")
				}
				end(b)
				for range 20 {
					if killed {
						b.restart()
					}
					b.sync()
					b.reconcile("r1u01")
				}
				if b.bmc.tag != ownTag {
					t.Errorf("the system has tag %q, want its own; the BMC was told %q", b.bmc.tag, b.bmc.did)
				}
				b.sync()
				left, _, err := store.List[api.Machine](t.Context(), b.store)
				if err != nil || name == "it is deleted" && len(left) != 0 {
					t.Errorf("Machines left: %v, %v", left, err)
				}
				for _, m := range left {
					if m.Status.AssetTag != nil || slices.Contains(m.Metadata.Finalizers, TagFinalizer) {
						t.Errorf("still saved: %+v, finalizers %q", m.Status.AssetTag, m.Metadata.Finalizers)
					}
				}
			})
		}
	}
}

// TestOwnTagOutlivesAWriteThatBrokeOff: what the BMC shows after that is a nonce, which must not be taken for the
// system's own tag.
func TestOwnTagOutlivesAWriteThatBrokeOff(t *testing.T) {
	b := nonceBench(t)
	b.bmc.tagErr, b.bmc.taken = errors.New("the connection broke"), true
	b.steps("r1u01", true)
	if !strings.HasPrefix(b.bmc.tag, "nonce-") {
		t.Fatalf("the system has tag %q", b.bmc.tag)
	}
	b.bmc.tagErr = nil
	b.mutate("r1u01", func(m *api.Machine) { Fail(m, time.Now().Add(-time.Hour), "the test") }) // the next attempt has another nonce
	m := b.steps("r1u01", true)
	if m.Status.AssetTag == nil || m.Status.AssetTag.Value != ownTag || b.bmc.tag != "nonce-"+m.Status.Attempt.ID {
		t.Errorf("saved %+v, the system has %q in attempt %s", m.Status.AssetTag, b.bmc.tag, m.Status.Attempt.ID)
	}
}

// TestNonceOfAnAttemptThatIsOver: what is not saved is not written over, also
// when the attempt changes while the BMC is asked.
func TestNonceOfAnAttemptThatIsOver(t *testing.T) {
	b := nonceBench(t)
	b.bmc.read = func() {
		b.bmc.read = nil
		b.mutate("r1u01", func(m *api.Machine) { m.Status.Attempt.ID = "another" })
	}
	for range 20 {
		b.sync()
		b.reconcile("r1u01")
		m, err := store.Get[api.Machine](t.Context(), b.store, "r1u01")
		if err != nil {
			t.Fatal(err)
		}
		if b.bmc.tag != ownTag && (m.Status.AssetTag == nil || m.Status.AssetTag.Value != ownTag) {
			t.Fatalf("the system has tag %q, and its own is not saved: %+v", b.bmc.tag, m.Status.AssetTag)
		}
	}
	if b.bmc.read != nil || b.bmc.tag != "nonce-another" {
		t.Errorf("the system has tag %q", b.bmc.tag)
	}
}

// TestLevelIsNotLoweredByABMCThatRefuses: the attempt fails and says why, and nothing is powered on.
func TestLevelIsNotLoweredByABMCThatRefuses(t *testing.T) {
	b := nonceBench(t)
	b.bmc.tagErr = fmt.Errorf("%w: asset tag", hardware.ErrUnsupported)
	m := b.steps("r1u01", false)
	a := m.Status.Attempt
	if a.Open() || a.Nonce.State != api.NonceFailed || !strings.Contains(a.Message, "trust level nonce is required (by the Site)") {
		t.Errorf("attempt %+v, nonce %+v", a, a.Nonce)
	}
	if slices.ContainsFunc(b.bmc.did, func(did string) bool { return did == "on" || did == "reset" }) {
		t.Errorf("the BMC was told %q", b.bmc.did)
	}
	if c := m.Status.Conditions.Get(api.CondBMC); c == nil || c.Status != api.True {
		t.Errorf("a refused tag speaks against the BMC: %+v", c)
	}
}

// TestResetBeforeTheNonceIsNotTheAttempts: such a boot does not show the nonce, so the power action is still due.
func TestResetBeforeTheNonceIsNotTheAttempts(t *testing.T) {
	b := nonceBench(t)
	b.bmc.power = hardware.PowerOn
	for !nonceWritten(b.step("r1u01")) {
	}
	b.mutate("r1u01", func(m *api.Machine) {
		m.Status.Attempt.Started = time.Now().Add(-time.Minute)
		m.Status.Attempt.Nonce.Time = time.Now().Add(-10 * time.Second)
	})
	b.bmc.lastReset = time.Now().Add(-30 * time.Second)
	b.steps("r1u01", false)
	if !slices.Contains(b.bmc.did, "reset") {
		t.Errorf("the BMC was told %q, want a reset", b.bmc.did)
	}
}

func nonceWritten(m *api.Machine) bool {
	a := m.Status.Attempt
	return a != nil && a.Nonce != nil && a.Nonce.State == api.NonceWritten
}
