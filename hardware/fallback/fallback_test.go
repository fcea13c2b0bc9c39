package fallback

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// side is one way to a BMC in a test: what it answers, and what it was asked.
type side struct {
	hardware.BMC
	connect, answer error
	logins          int
	asked           []string
}

func (s *side) open(context.Context, hardware.Endpoint) (hardware.Service, error) {
	s.logins++
	if s.connect != nil {
		return nil, s.connect
	}
	return s, nil
}

func (s *side) System(context.Context, string) (hardware.BMC, error) { return s, nil }
func (s *side) Spare() bool                                          { return false }
func (s *side) Fingerprint() string                                  { return "sha256:seen" }
func (s *side) Close(context.Context) error                          { return nil }

func (s *side) ask(verb string) error {
	s.asked = append(s.asked, verb)
	return s.answer
}

func (s *side) PowerOn(context.Context) error      { return s.ask("on") }
func (s *side) ForceRestart(context.Context) error { return s.ask("restart") }
func (s *side) Consoles(context.Context) ([]hardware.ConsoleWay, error) {
	return []hardware.ConsoleWay{{}}, s.ask("consoles")
}

func (s *side) Health(context.Context) (hardware.Health, error) {
	return hardware.Health{State: "OK"}, s.ask("health")
}

func (s *side) PowerState(context.Context) (hardware.PowerState, error) {
	return hardware.PowerOn, s.ask("state")
}

// TestWays: which failures of Redfish lead to IPMI, by verb.
func TestWays(t *testing.T) {
	unsupported := &hardware.UnsupportedError{Verb: "x", Err: errors.New("no such action")}
	silent := fmt.Errorf("read: %w", hardware.ErrUnreachable)
	for _, c := range []struct {
		name             string
		connect, answer  error
		on, restart, get bool // goes by IPMI
	}{
		{"it works", nil, nil, false, false, false},
		{"not offered", nil, unsupported, true, true, true},
		{"does not answer any more", nil, silent, true, false, true},
		{"does not answer", silent, nil, true, true, true},
		{"accepted, not seen", nil, fmt.Errorf("%w: %w", hardware.ErrNotSeen, silent), false, false, false},
		{"password refused", nil, hardware.ErrUnauthorized, false, false, false},
		{"account may not", nil, hardware.ErrForbidden, false, false, false},
		{"another certificate", nil, &hardware.CertificateMismatchError{}, false, false, false},
		{"broken", nil, errors.New("500"), false, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for verb, byIPMI := range map[string]bool{"on": c.on, "restart": c.restart, "state": c.get, "health": c.get} {
				redfish, ipmi := &side{connect: c.connect, answer: c.answer}, &side{}
				b := open(t, redfish, ipmi)
				var noted []hardware.Detour
				ctx := hardware.WithDetours(t.Context(), func(d hardware.Detour) { noted = append(noted, d) })
				err := b.ask(ctx, verb)
				if succeeds := byIPMI || c.answer == nil && c.connect == nil; (err == nil) != succeeds {
					t.Errorf("%s: %v", verb, err)
				}
				if asked := slices.Contains(ipmi.asked, verb); asked != byIPMI || len(noted) > 0 != byIPMI {
					t.Errorf("%s is asked over IPMI: %t, and noted: %v", verb, asked, noted)
				}
				for _, d := range noted {
					if d.Protocol != "IPMI" || d.Verb == "" || d.Command == (verb == "state" || verb == "health") || !errors.Is(d.Why, cmp.Or(c.connect, c.answer)) {
						t.Errorf("%s is noted as %+v", verb, d)
					}
				}
			}
		})
	}
}

// asked is a BMC in a test.
type asked struct{ hardware.BMC }

func (b asked) ask(ctx context.Context, verb string) (err error) {
	switch verb {
	case "on":
		return b.PowerOn(ctx)
	case "restart":
		return b.ForceRestart(ctx)
	case "health":
		_, err = b.Health(ctx)
		return err
	}
	_, err = b.PowerState(ctx)
	return err
}

func open(t *testing.T, redfish, ipmi *side) asked {
	t.Helper()
	s, err := New(t.Context(), hardware.Endpoint{}, redfish.open, ipmi.open, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.System(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return asked{b}
}

// TestSilentRedfishIsLeftAlone for a minute, in which everything goes over IPMI, whether it was silent from the beginning or
// later: each verb would wait for it.
func TestSilentRedfishIsLeftAlone(t *testing.T) {
	silent := fmt.Errorf("read: %w", hardware.ErrUnreachable)
	for _, redfish := range []*side{{connect: silent}, {answer: silent}} {
		synctest.Test(t, func(t *testing.T) {
			ipmi := &side{}
			b := open(t, redfish, ipmi)
			for _, verb := range []string{"state", "restart", "on"} {
				if err := b.ask(t.Context(), verb); err != nil {
					t.Error(err)
				}
			}
			if tries := redfish.logins + len(redfish.asked); tries > 2 || len(ipmi.asked) != 3 {
				t.Errorf("within a minute Redfish was tried %d times (%v), and IPMI asked %v", tries, redfish.asked, ipmi.asked)
			}
			time.Sleep(downFor)
			redfish.connect, redfish.answer = nil, nil
			if err := b.ask(t.Context(), "on"); err != nil || !slices.Contains(redfish.asked, "on") {
				t.Errorf("after a minute Redfish was asked %v (%v)", redfish.asked, err)
			}
		})
	}
}

// TestRefusedLoginIsFinal: the password that Redfish refuses is not tried over IPMI.
func TestRefusedLoginIsFinal(t *testing.T) {
	for _, refused := range []error{hardware.ErrUnauthorized, hardware.ErrPasswordChange, &hardware.UntrustedError{}} {
		redfish, ipmi := &side{connect: refused}, &side{}
		_, err := New(t.Context(), hardware.Endpoint{}, redfish.open, ipmi.open, slog.New(slog.DiscardHandler))
		if !errors.Is(err, refused) || ipmi.logins != 0 {
			t.Errorf("%v: got %v after %d logins over IPMI", refused, err, ipmi.logins)
		}
	}
}

// TestBothFail: callers branch on what the second way said, unless that was only that it cannot.
func TestBothFail(t *testing.T) {
	for _, c := range []struct{ redfish, ipmi, is, not error }{
		{hardware.ErrUnreachable, hardware.ErrUnsupported, hardware.ErrUnreachable, hardware.ErrUnsupported},
		{hardware.ErrUnreachable, hardware.ErrUnauthorized, hardware.ErrUnauthorized, hardware.ErrUnreachable},
		{hardware.ErrUnsupported, hardware.ErrUnreachable, hardware.ErrUnsupported, hardware.ErrUnreachable},
		{hardware.ErrUnsupported, hardware.ErrNotSeen, hardware.ErrNotSeen, hardware.ErrUnsupported},
	} {
		if err := both(c.redfish, c.ipmi); !errors.Is(err, c.is) || errors.Is(err, c.not) {
			t.Errorf("%v is %v: %t, %v: %t", err, c.is, errors.Is(err, c.is), c.not, errors.Is(err, c.not))
		}
	}
}

// TestPinStays: while Redfish does not answer, its pinned certificate is not forgotten.
func TestPinStays(t *testing.T) {
	redfish, ipmi := &side{connect: hardware.ErrUnreachable}, &side{}
	s, err := New(t.Context(), hardware.Endpoint{Fingerprint: "sha256:pinned"}, redfish.open, ipmi.open, slog.New(slog.DiscardHandler))
	if err != nil || s.Fingerprint() != "sha256:pinned" {
		t.Errorf("the fingerprint is %q (%v)", s.Fingerprint(), err)
	}
}

// TestConsolesOfBoth: one way to the console is enough.
func TestConsolesOfBoth(t *testing.T) {
	for _, c := range []struct {
		redfish, ipmi error
		ways          int
		fails         bool
	}{
		{nil, nil, 2, false},
		{nil, hardware.ErrUnreachable, 2, false},
		{hardware.ErrUnsupported, nil, 2, false},
		{hardware.ErrUnsupported, hardware.ErrUnreachable, 0, true},
	} {
		redfish, ipmi := &side{answer: c.redfish}, &side{answer: c.ipmi}
		s, err := New(t.Context(), hardware.Endpoint{}, redfish.open, ipmi.open, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ways, err := (&BMC{s}).Consoles(t.Context())
		if len(ways) != c.ways || (err != nil) != c.fails {
			t.Errorf("%v, %v: %d ways, %v", c.redfish, c.ipmi, len(ways), err)
		}
	}
}
