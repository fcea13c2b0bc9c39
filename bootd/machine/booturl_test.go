package machine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
)

// urlBench is a Site that requires level bmc, and a Machine.
func urlBench(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	b.site(func(s *api.Site) { s.Spec.Trust.Minimum = api.TrustBMC })
	b.machine("r1u01", 1)
	return b
}

func TestBootURLIsGivenBeforePower(t *testing.T) {
	for _, caErr := range []error{nil, fmt.Errorf("%w: no certificates", hardware.ErrUnsupported)} {
		for _, killed := range []bool{false, true} {
			b := urlBench(t)
			b.bmc.caErr = caErr
			m := b.steps("r1u01", killed)
			url := "https://bootd/" + m.Status.Attempt.ID
			if want := []string{"trust Site", "boot http " + url, "on"}; !slices.Equal(b.bmc.did, want) {
				t.Errorf("killed %t: the BMC was told %q, want %q", killed, b.bmc.did, want)
			}
			if u := m.Status.BootURL; u == nil || u.Attempt != m.Status.Attempt.ID {
				t.Errorf("killed %t: noted is %+v", killed, u)
			}
			b.noNonceTold(m, url)
		}
	}
}

// Whatever ends the need for the URL, the BMC is to forget it, and not before.
func TestBootURLIsTakenBack(t *testing.T) {
	ends := map[string]func(*bench){
		"Ignition has its pointer": func(b *bench) { b.advance("r1u01", api.StagePointer) },
		"the attempt fails":        func(b *bench) { b.mutate("r1u01", func(m *api.Machine) { Fail(m, time.Now(), "the test") }) },
		"it is put into Maintenance": func(b *bench) {
			b.mutate("r1u01", func(m *api.Machine) { m.Spec.State = api.StateMaintenance })
		},
	}
	for name, end := range ends {
		for _, killed := range []bool{false, true} {
			b := urlBench(t)
			b.steps("r1u01", killed)
			if slices.Contains(b.bmc.did, "boot none") {
				t.Fatalf("%s: taken back too early: %q", name, b.bmc.did)
			}
			end(b)
			for range 20 {
				if killed {
					b.restart()
				}
				b.sync()
				b.reconcile("r1u01")
			}
			if m := b.get("r1u01"); !slices.Contains(b.bmc.did, "boot none") || m.Status.BootURL != nil {
				t.Errorf("%s, killed %t: the BMC was told %q, noted is %+v", name, killed, b.bmc.did, m.Status.BootURL)
			}
		}
	}
}

// A BMC that takes no URL, or a bootd that has none, fails the attempt at once, and leaves the power alone.
func TestNoBootURL(t *testing.T) {
	for what, broken := range map[string]func(*bench){
		"it takes no URL": func(b *bench) { b.bmc.httpErr = fmt.Errorf("%w: it takes no URL", hardware.ErrUnsupported) },
		"no address":      func(b *bench) { b.urlErr = errors.New("bootd has no address") },
	} {
		b := urlBench(t)
		b.bmc.mediaErr = fmt.Errorf("%w: no drive", hardware.ErrUnsupported)
		broken(b)
		m := b.step("r1u01")
		for range 5 {
			m = b.step("r1u01")
		}
		a := m.Status.Attempt
		if a == nil || a.Result != api.ResultFailed || !strings.Contains(a.Message, what) || !strings.Contains(a.Message, "no drive") || !strings.Contains(a.Message, "trust level bmc is required") || slices.Contains(b.bmc.did, "on") {
			t.Errorf("%s: attempt %+v; the BMC was told %q", what, a, b.bmc.did)
		}
	}
}

// Where the BMC takes no URL to boot from, it is given the attempt's image, and it is taken out in the end.
func TestMediaInsteadOfBootURL(t *testing.T) {
	unsupported := fmt.Errorf("%w: no such thing", hardware.ErrUnsupported)
	for what, set := range map[string]func(*bench){
		" checked": func(*bench) {},
		"":         func(b *bench) { b.bmc.mediaCAErr = unsupported },
	} {
		for _, killed := range []bool{false, true} {
			b := urlBench(t)
			b.bmc.httpErr = unsupported
			set(b)
			m := b.steps("r1u01", killed)
			image := "https://bootd/" + m.Status.Attempt.ID + "/boot.iso"
			if want := []string{"trust Site", "insert " + image + what, "boot " + string(hardware.BootMedia), "on"}; !slices.Equal(b.bmc.did, want) {
				t.Fatalf("killed %t: the BMC was told %q, want %q", killed, b.bmc.did, want)
			}
			if u := m.Status.BootURL; u == nil || !u.Media {
				t.Errorf("killed %t: noted is %+v", killed, u)
			}
			b.noNonceTold(m, image)
			b.advance("r1u01", api.StagePointer)
			for range 20 {
				if killed {
					b.restart()
				}
				b.sync()
				b.reconcile("r1u01")
			}
			if m := b.get("r1u01"); !slices.Contains(b.bmc.did, "eject "+image) || m.Status.BootURL != nil {
				t.Errorf("killed %t: the BMC was told %q, noted is %+v", killed, b.bmc.did, m.Status.BootURL)
			}
		}
	}
}

// The image has an entry for UEFI alone.
func TestNoMediaForBIOS(t *testing.T) {
	b := urlBench(t)
	b.bmc.httpErr = fmt.Errorf("%w: no such thing", hardware.ErrUnsupported)
	b.mutate("r1u01", func(m *api.Machine) { m.Spec.Boot.Firmware = "bios" })
	var m *api.Machine
	for range 6 {
		m = b.step("r1u01")
	}
	if a := m.Status.Attempt; a == nil || a.Result != api.ResultFailed || !strings.Contains(a.Message, "spec.boot.firmware is bios") || slices.Contains(b.bmc.did, "on") {
		t.Errorf("attempt %+v; the BMC was told %q", m.Status.Attempt, b.bmc.did)
	}
}

// A BMC that is lost while it takes the image out is asked again; one that has no override to take back loses the image all the same.
func TestMediaIsTakenBackInTheEnd(t *testing.T) {
	b := urlBench(t)
	b.bmc.httpErr = fmt.Errorf("%w: no such thing", hardware.ErrUnsupported)
	m := b.steps("r1u01", false)
	image := "https://bootd/" + m.Status.Attempt.ID + "/boot.iso"
	b.bmc.ejectErr = fmt.Errorf("%w: it is away", hardware.ErrUnreachable)
	b.bmc.bootErr = fmt.Errorf("%w: no override", hardware.ErrUnsupported)
	b.advance("r1u01", api.StagePointer)
	for range 3 {
		b.restart()
		b.sync()
		b.reconcile("r1u01")
	}
	if m := b.get("r1u01"); !slices.Contains(b.bmc.did, "eject "+image) || m.Status.BootURL == nil {
		t.Fatalf("the BMC was told %q, noted is %+v", b.bmc.did, m.Status.BootURL)
	}
	b.bmc.ejectErr = nil
	for range 3 {
		b.restart()
		b.sync()
		b.reconcile("r1u01")
	}
	if m := b.get("r1u01"); m.Status.BootURL != nil {
		t.Errorf("noted is %+v", m.Status.BootURL)
	}
}
