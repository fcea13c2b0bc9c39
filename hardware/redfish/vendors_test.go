package redfish

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/redfishtest"
)

// drive sets a boot from the network and resets the server, as a BootAttempt does, and looks that the BMC saw nothing it
// should not have.
func drive(t *testing.T, s *redfishtest.Server, mode hardware.BootMode) (booted []redfishtest.Boot, err error) {
	t.Helper()
	endpoint := hardware.Endpoint{Address: s.URL, Username: redfishtest.Username, Password: redfishtest.Password, Fingerprint: s.Fingerprint}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	b, err := dial(ctx, endpoint, quiet(), s.Clock.Pause)
	if err == nil {
		err = b.SetBootOnce(ctx, hardware.Boot{Target: hardware.BootPXE, Mode: mode})
		if err == nil {
			err = b.ForceRestart(ctx)
		}
		if closeErr := b.Close(ctx); closeErr != nil {
			t.Errorf("close: %v", closeErr)
		}
	}
	if twice := s.SentTwice(); len(twice) != 0 {
		t.Errorf("accepted, and sent again: %q", twice)
	}
	if again := s.SentAgain(); len(again) != 0 {
		t.Errorf("refused, and sent again as it was: %q", again)
	}
	if s.Crowd() > 1 {
		t.Errorf("%d requests at once", s.Crowd())
	}
	if left := s.SessionsLeft(); left != 0 {
		t.Errorf("%d sessions left", left)
	}
	if s.WrongPasswords() != 0 {
		t.Errorf("%d wrong passwords", s.WrongPasswords())
	}
	for _, q := range s.Requests() {
		if strings.Contains(q.Body, "Legacy") {
			t.Errorf("%s %s %s: Legacy was not asked for", q.Method, q.Path, q.Body)
		}
	}
	return s.Booted(), err
}

func checkBoot(t *testing.T, booted []redfishtest.Boot, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
	if len(booted) != 1 || !strings.HasSuffix(booted[0].Target, "Pxe") || booted[0].Mode == "Legacy" {
		t.Errorf("booted %+v, want once from the network", booted)
	}
}

// TestVendors: every family boots from the network once, when asked once.
func TestVendors(t *testing.T) {
	for _, v := range redfishtest.Vendors() {
		t.Run(v.Name, func(t *testing.T) {
			s := redfishtest.StartVendor(t, v.Name)
			booted, err := drive(t, s, "")
			checkBoot(t, booted, err)
			t.Logf("%d requests", s.Count())
		})
	}
}

// TestCapturedVendors is the same with what real machines answered, where that lies beside the checkout.
func TestCapturedVendors(t *testing.T) {
	root := filepath.Join("..", "..", "..", "shared", "redfish")
	found := redfishtest.Captured(t, root)
	if len(found) == 0 {
		t.Skipf("no captured trees in %s: they are not the repository's to give", root)
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		t.Run(name, func(t *testing.T) {
			s := redfishtest.StartCaptured(t, filepath.Join(root, name), found[name])
			booted, err := drive(t, s, "")
			checkBoot(t, booted, err)
			t.Logf("%d requests", s.Count())
		})
	}
}

// TestEachTrait: each thing that a BMC may do differently either does not matter, or ends in the error that it is.
func TestEachTrait(t *testing.T) {
	unsupported := []error{hardware.ErrUnsupported}
	want := map[redfishtest.Trait][]error{
		redfishtest.PasswordChangeRefuses:   {hardware.ErrPasswordChange},
		redfishtest.PasswordChangeInSession: {hardware.ErrPasswordChange},
		redfishtest.ReadOnlyUser:            {hardware.ErrForbidden},
		redfishtest.NoBootOverride:          unsupported,
		redfishtest.LicenceForBoot:          unsupported,
		redfishtest.NoReset:                 unsupported,
		redfishtest.ResetDoesNothing:        {hardware.ErrNotSeen},
		redfishtest.TaskFails:               {errAny},
		redfishtest.OverrideIgnored:         {errAny},
		redfishtest.SessionsTaken:           {nil, errAny},
		redfishtest.ErrorsAreHTML:           {nil, errAny},
		redfishtest.NoBasic:                 {nil},
	}
	// No BMC asks for two things that exclude each other.
	contradict := map[string]bool{"supermicro-x11/boot mode read-only": true, "ami/boot mode read-only": true, "ami/boot mode unknown": true, "ami/If-Match refused": true}
	// Where one does, what was refused is not sent again, and it is an error.
	excluding := map[string]bool{"ami/boot mode must be another": true}
	for _, vendor := range []string{"hpe-ilo5", "dell-idrac9", "supermicro-x11", "ami", "openbmc"} {
		for _, trait := range slices.Sorted(maps.Keys(redfishtest.Traits())) {
			if contradict[vendor+"/"+string(trait)] || trait == redfishtest.Silent { // TestSilentBMCEndsWithTheContext
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", vendor, trait), func(t *testing.T) {
				t.Parallel()
				s := redfishtest.StartVendor(t, vendor, trait)
				booted, err := drive(t, s, "")
				errs := want[trait]
				if excluding[vendor+"/"+string(trait)] {
					errs = []error{errAny}
				}
				if len(errs) == 0 || errs[0] == nil && err == nil {
					checkBoot(t, booted, err)
					return
				}
				if !slices.ContainsFunc(errs, func(e error) bool { return e == errAny && err != nil || e != nil && errors.Is(err, e) }) {
					t.Errorf("error %v, want %v", err, errs)
				}
			})
		}
	}
}
