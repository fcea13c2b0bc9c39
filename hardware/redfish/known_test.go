package redfish

import (
	"context"
	"net/http"
	"testing"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/redfishtest"
)

// look logs in, reads the power state and logs out, and counts the requests of that.
func (k *Known) look(t *testing.T, s *redfishtest.Server, endpoint hardware.Endpoint) (requests int, err error) {
	t.Helper()
	s.Forget()
	service, err := k.Connect(t.Context(), endpoint, quiet())
	if err != nil {
		return s.Count(), err
	}
	defer func() {
		if err := service.Close(t.Context()); err != nil {
			t.Error(err)
		}
		requests = s.Count()
	}()
	bmc, err := service.System(t.Context(), "")
	if err != nil {
		return 0, err
	}
	_, err = bmc.PowerState(t.Context())
	return 0, err
}

func pinned(s *redfishtest.Server) hardware.Endpoint {
	return hardware.Endpoint{Address: s.URL, Username: redfishtest.Username, Password: redfishtest.Password, Fingerprint: s.Fingerprint}
}

// TestLookAtKnown: once a BMC is known a look at the power takes login, look and logout, whoever made it.
func TestLookAtKnown(t *testing.T) {
	k := new(Known) // of all of them at the same time
	for _, v := range redfishtest.Vendors() {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			s := redfishtest.StartVendor(t, v.Name)
			first, err := k.look(t, s, pinned(s))
			if err != nil {
				t.Fatal(err)
			}
			again, err := k.look(t, s, pinned(s))
			if err != nil {
				t.Fatal(err)
			}
			if again > 3 || again >= first {
				t.Errorf("%d requests, then %d: want 3 at most", first, again)
			}
			if n := s.SessionsLeft(); n > 0 {
				t.Errorf("%d sessions are left", n)
			}
		})
	}
}

// TestKnownActs: everything works on a BMC that is known.
func TestKnownActs(t *testing.T) {
	for _, v := range redfishtest.Vendors() {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			s, k := redfishtest.StartVendor(t, v.Name), new(Known)
			if s.On(v.System) {
				s.Press(v.System)
			}
			if _, err := k.look(t, s, pinned(s)); err != nil {
				t.Fatal(err)
			}
			service, err := connect(t.Context(), pinned(s), quiet(), s.Clock.Pause, k)
			if err != nil {
				t.Fatal(err)
			}
			bmc, err := service.System(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			err = bootThenOn(hardware.Boot{Target: hardware.BootPXE})(t.Context(), bmc.(*BMC))
			checkBoot(t, s.Booted(), err)
			if err := service.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestKnownThroughConsole: a console that someone else has open says nothing about the tree.
func TestKnownThroughConsole(t *testing.T) {
	s, k := redfishtest.StartVendor(t, "openbmc"), new(Known) // which has no console behind its ConsoleURI
	service, err := k.Connect(t.Context(), pinned(s), quiet())
	if err != nil {
		t.Fatal(err)
	}
	bmc, err := service.System(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	ways, err := bmc.Consoles(t.Context())
	if err != nil || ways[0].Kind != hardware.ConsoleWebSocket {
		t.Fatalf("consoles %+v, %v", ways, err)
	}
	if _, err := ways[0].Open(t.Context()); err == nil {
		t.Fatal("a console was opened where there is none")
	}
	if err := service.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := k.look(t, s, pinned(s)); err != nil || n != 3 {
		t.Errorf("a look afterwards took %d requests, %v; want login, look and logout", n, err)
	}
}

// TestKnownThroughCancel: a call that is cancelled says nothing of the BMC.
func TestKnownThroughCancel(t *testing.T) {
	s, k := redfishtest.StartVendor(t, "openbmc"), new(Known)
	if _, err := k.look(t, s, pinned(s)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.Connect(ctx, pinned(s), quiet()); err == nil {
		t.Fatal("a cancelled login succeeds")
	}
	if n, err := k.look(t, s, pinned(s)); err != nil || n != 3 {
		t.Errorf("a look afterwards took %d requests, %v; want login, look and logout", n, err)
	}
}

// TestNotKnown: what is not certain is read again.
func TestNotKnown(t *testing.T) {
	const system = "/redfish/v1/Systems/1"
	s, k := redfishtest.StartVendor(t, "hpe-ilo5"), new(Known)
	learn := func() (first int) {
		t.Helper()
		first, err := k.look(t, s, pinned(s))
		if err != nil {
			t.Fatal(err)
		}
		return first
	}
	first := learn()

	open := pinned(s)
	open.Fingerprint = ""
	if again, err := k.look(t, s, open); err != nil || again != 4 {
		t.Errorf("no pin: %d requests, %v; want one more before the password is sent", again, err)
	}

	learn()
	s.Script(http.MethodGet, system, redfishtest.Refusal(http.StatusNotFound, "Base.1.8.ResourceMissingAtURI"))
	if again, err := k.look(t, s, pinned(s)); err != nil || again <= 3 {
		t.Errorf("a system that has moved: %d requests, %v; want it looked for", again, err)
	}

	learn()
	s.Script(http.MethodGet, system, redfishtest.Refusal(http.StatusForbidden, "Base.1.8.InsufficientPrivilege"))
	if _, err := k.look(t, s, pinned(s)); err == nil {
		t.Error("a refused look is no error")
	}
	if again := learn(); again != first {
		t.Errorf("after a failure: %d requests, want %d as at first", again, first)
	}

	wrong := pinned(s)
	wrong.Password = "wrong"
	if _, err := k.look(t, s, wrong); err == nil {
		t.Error("a wrong password is no error")
	}
	if again := learn(); again != first {
		t.Errorf("after a refused login: %d requests, want %d as at first", again, first)
	}
	if _, ok := k.of(hardware.Endpoint{Address: s.URL, Fingerprint: "sha256:00"}); ok {
		t.Error("it is known under another certificate")
	}
}
