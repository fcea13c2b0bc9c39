package redfish

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/redfishtest"
)

// TestBMCResetIsLookedAt: a BMC that accepts its restart, and does not restart, is reported within a minute, and the restart is
// sent once.
func TestBMCResetIsLookedAt(t *testing.T) {
	for name, test := range map[string]struct {
		script []redfishtest.Answer
		err    error
	}{
		"it restarts":           {nil, nil},
		"nothing happens":       {[]redfishtest.Answer{{Status: http.StatusNoContent}}, hardware.ErrNotSeen},
		"it refuses it":         {[]redfishtest.Answer{redfishtest.Refusal(http.StatusForbidden, "Base.1.8.InsufficientPrivilege")}, errors.New("InsufficientPrivilege")},
		"it may not do it thus": {[]redfishtest.Answer{redfishtest.Refusal(http.StatusBadRequest, "Base.1.8.ActionParameterNotSupported")}, errors.New("ActionParameterNotSupported")},
	} {
		t.Run(name, func(t *testing.T) {
			s := redfishtest.StartVendor(t, "hpe-ilo5")
			b, err := dial(t.Context(), pinned(s), quiet(), s.Clock.Pause)
			if err != nil {
				t.Fatal(err)
			}
			for _, answer := range test.script {
				s.Script(http.MethodPost, "/redfish/v1/Managers/1/Actions/Manager.Reset", answer)
			}
			begun := s.Clock.Now()
			err = b.ResetBMC(t.Context())
			if (err == nil) != (test.err == nil) || err != nil && !errors.Is(err, test.err) && !strings.Contains(err.Error(), test.err.Error()) {
				t.Errorf("error %v, want %v", err, test.err)
			}
			if took := s.Clock.Now().Sub(begun); took > 61*time.Second {
				t.Errorf("it was known after %s", took)
			}
			sent := 0
			for _, what := range s.Sent(http.MethodPost) {
				if strings.Contains(what, "Manager.Reset") {
					sent++
				}
			}
			if sent > 1 {
				t.Errorf("it was sent %d times", sent)
			}
			if _, err := b.PowerState(t.Context()); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}
