package redfish

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rackweft/rackweft/hardware"
)

const hpeSystem = "/redfish/v1/Systems/1"

func TestFingerprint(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	sum := sha256.Sum256(m.Certificate().Raw)
	want := "sha256:" + hex.EncodeToString(sum[:])

	b, _ := m.open(t, m.endpoint())
	if b.Fingerprint() != want {
		t.Errorf("learned %s, want %s", b.Fingerprint(), want)
	}
	pinned := m.endpoint()
	pinned.Fingerprint = strings.ToUpper(want[:6]) + want[6:]
	pinned.Fingerprint = strings.Replace(pinned.Fingerprint, "SHA256", "sha256", 1)
	m.open(t, pinned)
}

func TestOtherCertificateIsSentNothing(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	endpoint := m.endpoint()
	endpoint.Fingerprint = "sha256:" + strings.Repeat("ab", 32)
	_, err := Dial(t.Context(), endpoint, quiet())
	var mismatch *hardware.CertificateMismatchError
	if !errors.As(err, &mismatch) {
		t.Fatalf("error %v, want a certificate mismatch", err)
	}
	if mismatch.Address != m.URL || mismatch.Want != endpoint.Fingerprint || !strings.HasPrefix(mismatch.Got, "sha256:") {
		t.Errorf("mismatch %+v", mismatch)
	}
	if errors.Is(err, hardware.ErrUnreachable) {
		t.Error("a wrong certificate is not an unreachable BMC")
	}
	if seen := m.requests(); len(seen) != 0 {
		t.Errorf("the impostor saw %d requests: %+v", len(seen), seen)
	}
}

// Where a person has to trust a BMC first, one that no one has trusted is sent nothing.
func TestUntrustedBMCIsSentNothing(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	endpoint := m.endpoint()
	endpoint.PinnedOnly = true
	_, err := Dial(t.Context(), endpoint, quiet())
	var untrusted *hardware.UntrustedError
	if !errors.As(err, &untrusted) || errors.Is(err, hardware.ErrUnreachable) {
		t.Fatalf("error %v, want one of trust", err)
	}
	if untrusted.Got != hardware.FingerprintOf(m.Certificate()) || untrusted.Address != m.URL {
		t.Errorf("the error says %+v", untrusted)
	}
	if seen := m.requests(); len(seen) != 0 {
		t.Errorf("it saw %d requests: %+v", len(seen), seen)
	}
	endpoint.Fingerprint = untrusted.Got
	m.open(t, endpoint)
}

func TestWrongPasswordIsTriedOnce(t *testing.T) {
	for name, f := range map[string]fault{
		"401": nil,
		"iLO": says(http.StatusBadRequest, "iLO.2.13.UnauthorizedLoginAttempt"),
	} {
		t.Run(name, func(t *testing.T) {
			m := vendorMock(t, "hpe-ilo5")
			m.fail(http.MethodPost, sessionsPath, f)
			endpoint := m.endpoint()
			endpoint.Password = "wrong battery"
			_, err := Dial(t.Context(), endpoint, quiet())
			if !errors.Is(err, hardware.ErrUnauthorized) {
				t.Fatalf("error %v, want ErrUnauthorized", err)
			}
			if strings.Contains(err.Error(), "battery") || !strings.Contains(err.Error(), `"admin"`) || !strings.Contains(err.Error(), m.URL) {
				t.Errorf("message %q: want user and address, and no password", err)
			}
			var posts int
			for _, r := range m.requests() {
				if r.Method == http.MethodPost {
					posts++
				}
				if r.Header.Get("Authorization") != "" {
					t.Error("the password was sent as basic authentication as well")
				}
			}
			if posts != 1 {
				t.Errorf("%d login attempts, want 1", posts)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := "https://" + listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = Dial(t.Context(), hardware.Endpoint{Address: address, Username: "u", Password: "p"}, quiet())
	if !errors.Is(err, hardware.ErrUnreachable) || !strings.Contains(err.Error(), address) || strings.Contains(err.Error(), "errors occurred") {
		t.Errorf("error %v, want ErrUnreachable with the address", err)
	}
}

func TestSilentBMCEndsWithTheContext(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	b, _ := m.open(t, m.endpoint())
	ctx, cancel := context.WithCancel(t.Context())
	entered := make(chan struct{})
	m.fail(http.MethodGet, hpeSystem, func(_ http.ResponseWriter, r *http.Request) {
		m.aside() // it may end after the next one has begun
		close(entered)
		<-r.Context().Done()
		panic(http.ErrAbortHandler) // no answer at all
	})
	go func() { <-entered; cancel() }()
	if _, err := b.PowerState(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, hardware.ErrUnreachable) {
		t.Errorf("error %v, want the cancellation", err)
	}
	if _, err := b.PowerState(t.Context()); err != nil {
		t.Errorf("after a cancelled request: %v", err)
	}
}

func TestBadEndpoints(t *testing.T) {
	good := hardware.Endpoint{Address: "https://198.18.0.7", Username: "u", Password: "p"}
	for want, change := range map[string]func(*hardware.Endpoint){
		"address must be https": func(e *hardware.Endpoint) { e.Address = "http://198.18.0.7" },
		"protocol \"amt\"":      func(e *hardware.Endpoint) { e.Protocol = "amt" },
		"fingerprint":           func(e *hardware.Endpoint) { e.Fingerprint = "sha256:12" },
		"password is empty":     func(e *hardware.Endpoint) { e.Password = "" },
	} {
		endpoint := good
		change(&endpoint)
		if _, err := Dial(t.Context(), endpoint, quiet()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestNoRedfishThere(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	m.fail(http.MethodGet, "/redfish/v1", answers(http.StatusNotFound, "<html>switch</html>"))
	if _, err := Dial(t.Context(), m.endpoint(), quiet()); err == nil || !strings.Contains(err.Error(), "no Redfish service there") {
		t.Errorf("error %v", err)
	}
}

func TestMalformedJSON(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	b, _ := m.open(t, m.endpoint())
	m.fail(http.MethodGet, hpeSystem, answers(http.StatusOK, `{"PowerState": "On`))
	if _, err := b.PowerState(t.Context()); err == nil || !strings.Contains(err.Error(), "no JSON") {
		t.Errorf("error %v, want malformed JSON", err)
	}
	m.fail(http.MethodGet, hpeSystem+"/EthernetInterfaces/1", answers(http.StatusOK, `<html>`))
	if _, err := b.Inventory(t.Context()); err == nil {
		t.Error("inventory with malformed JSON in it succeeded")
	}
}

// A dial that fails after the login must not leave the session.
func TestFailedDialLogsOut(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	endpoint := m.endpoint()
	endpoint.SystemID = "2"
	_, err := Dial(t.Context(), endpoint, quiet())
	if err == nil || !strings.Contains(err.Error(), `no system "2", only 1`) {
		t.Errorf("error %v", err)
	}
	if m.logins != 1 || m.logouts != 1 {
		t.Errorf("%d logins, %d logouts, want 1 and 1", m.logins, m.logouts)
	}
}

func TestSeveralSystems(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	m.tree["/redfish/v1/Systems"]["Members"] = []any{
		map[string]any{"@odata.id": "/redfish/v1/Systems/HGX_Baseboard_0"}, map[string]any{"@odata.id": hpeSystem}}
	m.tree["/redfish/v1/Systems/HGX_Baseboard_0"] = map[string]any{"Id": "HGX_Baseboard_0", "Name": "Computer System", "PowerState": "Off",
		"Actions": map[string]any{"#ComputerSystem.Reset": map[string]any{"target": "/redfish/v1/Systems/HGX_Baseboard_0/Actions/ComputerSystem.Reset"}}}
	if _, err := Dial(t.Context(), m.endpoint(), quiet()); err == nil || !strings.Contains(err.Error(), "2 systems (HGX_Baseboard_0, 1 HPE ProLiant DL360 Gen10 serial EXAMPLE001)") {
		t.Errorf("error %v, want the choice", err)
	}
	endpoint := m.endpoint()
	endpoint.SystemID = "1"
	b, _ := m.open(t, endpoint)
	if err := b.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{hpeSystem + `/Actions/ComputerSystem.Reset {"ResetType":"On"}`}
	if diff := cmp.Diff(want, m.sent(http.MethodPost)); diff != "" {
		t.Error(diff)
	}
}

func TestSessionLimitIsWaitedFor(t *testing.T) {
	m := vendorMock(t, "dell-idrac9")
	m.fail(http.MethodPost, sessionsPath, times(2, says(http.StatusServiceUnavailable, "IDRAC.2.8.RAC0218"))...)
	_, p := m.open(t, m.endpoint())
	if diff := cmp.Diff([]time.Duration{10 * time.Second, 20 * time.Second}, p.list); diff != "" {
		t.Error(diff)
	}

	m.fail(http.MethodPost, sessionsPath, times(6, says(http.StatusServiceUnavailable, "IDRAC.2.8.RAC0218"))...)
	m.fail(http.MethodGet, sessionsPath, says(http.StatusUnauthorized, "Base.1.8.GeneralError"))
	_, err := dial(t.Context(), m.endpoint(), quiet(), (&pauses{}).pause)
	if err == nil || !strings.Contains(err.Error(), "sessions may be in use") || errors.Is(err, hardware.ErrUnauthorized) {
		t.Errorf("error %v, want the session limit", err)
	}
}

// TestNoSessionLeft: where all sessions are in use, the password goes with every request.
func TestNoSessionLeft(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	m.fail(http.MethodPost, sessionsPath, says(http.StatusServiceUnavailable, "Base.1.8.SessionLimitExceeded"))
	b, p := m.open(t, m.endpoint())
	if err := b.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if posts, basic := m.passwords(); posts != 1 || basic == 0 || len(p.list) != 0 || b.service.Spare() {
		t.Errorf("%d session logins, %d requests with the password, pauses %v, spare %t", posts, basic, p.list, b.service.Spare())
	}
}

// Supermicro ends idle sessions after five minutes, and every BMC when it restarts.
func TestLostSessionIsOpenedAgainOnce(t *testing.T) {
	m := vendorMock(t, "supermicro-x10")
	b, _ := m.open(t, m.endpoint())
	m.mu.Lock()
	clear(m.tokens)
	m.mu.Unlock()
	if _, err := b.PowerState(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.logins != 2 {
		t.Errorf("%d logins, want 2", m.logins)
	}
	m.mu.Lock()
	clear(m.tokens)
	m.mu.Unlock()
	m.fail(http.MethodPost, sessionsPath, says(http.StatusUnauthorized, "Base.1.8.InsufficientPrivilege"))
	for range 3 {
		if _, err := b.PowerState(t.Context()); !errors.Is(err, hardware.ErrUnauthorized) && !errors.Is(err, errClosed) {
			t.Errorf("error %v", err)
		}
	}
	var posts int
	for _, r := range m.requests() {
		if r.Path == sessionsPath && r.Method == http.MethodPost {
			posts++
		}
	}
	if posts != 3 {
		t.Errorf("%d logins, want 3: a password that was changed is tried once", posts)
	}
}

// A 401 for one resource is no lost session: logging in for each of them would fill the BMC with sessions.
func TestRefusedResourceIsNoLostSession(t *testing.T) {
	m := vendorMock(t, "ami")
	b, _ := m.open(t, m.endpoint())
	m.fail(http.MethodGet, "/redfish/v1/Systems/Self", times(3, says(http.StatusUnauthorized, "Base.1.8.InsufficientPrivilege"))...)
	for range 3 {
		if _, err := b.PowerState(t.Context()); !errors.Is(err, hardware.ErrForbidden) || errors.Is(err, hardware.ErrUnauthorized) {
			t.Errorf("error %v, want ErrForbidden", err)
		}
	}
	if m.logins != 1 {
		t.Errorf("%d logins, want 1", m.logins)
	}
}

// A BMC closes a kept connection at the moment that a PATCH goes out.
func TestDroppedConnection(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	b, _ := m.open(t, m.endpoint())
	m.fail(http.MethodPatch, hpeSystem, func(w http.ResponseWriter, _ *http.Request) {
		m.aside()
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			err = conn.Close()
		}
		if err != nil {
			t.Error(err)
		}
	})
	if err := b.SetBootOnce(t.Context(), hardware.Boot{Target: hardware.BootPXE}); err != nil {
		t.Fatal(err)
	}
	if got := len(m.sent(http.MethodPatch)); got != 2 {
		t.Errorf("%d patches, want 2", got)
	}
}

func TestClosedBMC(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	b, err := Dial(t.Context(), m.endpoint(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Close(t.Context()), b.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	if _, err := b.PowerState(t.Context()); !errors.Is(err, errClosed) {
		t.Errorf("error %v", err)
	}
	if m.logins != 1 || m.logouts != 1 {
		t.Errorf("%d logins, %d logouts", m.logins, m.logouts)
	}
}

// A logout that the BMC is too busy for is tried again: gofish would have swallowed it.
func TestLogoutIsMadeSureOf(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	m.open(t, m.endpoint())
	m.fail(http.MethodDelete, sessionsPath+"/1", says(http.StatusInternalServerError, "Base.1.8.InternalError"))
}

func TestRequestsTakeTurns(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	b, _ := m.open(t, m.endpoint())
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if _, err := b.Inventory(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait() // open's cleanup looks at the crowd
	for _, r := range m.requests() {
		if r.Header.Get("Accept-Encoding") != "" {
			t.Fatalf("%s %s offers encodings %q", r.Method, r.Path, r.Header.Get("Accept-Encoding"))
		}
	}
}

func TestConnectionsAreKeptUnlessTheBMCDropsThem(t *testing.T) {
	for vendor, closes := range map[string]bool{"hpe-ilo5": false, "ami": true} {
		m := vendorMock(t, vendor)
		b, _ := m.open(t, m.endpoint())
		if _, err := b.PowerState(t.Context()); err != nil {
			t.Fatal(err)
		}
		seen := m.requests()
		if last := seen[len(seen)-1]; last.Close != closes {
			t.Errorf("%s: Connection: close is %v, want %v", vendor, last.Close, closes)
		}
	}
}

func TestPower(t *testing.T) {
	const reset = "/Actions/ComputerSystem.Reset "
	kind := func(k string) string { return fmt.Sprintf(`{"ResetType":%q}`, k) }
	tests := []struct {
		vendor, system string
		restart        string
	}{
		{"hpe-ilo5", hpeSystem, "ForceRestart"},
		{"dell-idrac8", "/redfish/v1/Systems/System.Embedded.1", "ForceRestart"},
		{"dell-idrac9", "/redfish/v1/Systems/System.Embedded.1", "ForceRestart"},
		{"supermicro-x10", hpeSystem, "ForceRestart"},
		{"supermicro-x11", hpeSystem, "ForceRestart"},
		{"lenovo-xcc", hpeSystem, "PowerCycle"}, // told by ActionInfo
		{"ami", "/redfish/v1/Systems/Self", "ForceRestart"},
		{"openbmc", "/redfish/v1/Systems/system", "ForceRestart"},
	}
	for _, test := range tests {
		t.Run(test.vendor, func(t *testing.T) {
			m := vendorMock(t, test.vendor)
			b, _ := m.open(t, m.endpoint())
			expectState(t, b, hardware.PowerOff)
			for _, step := range []func(context.Context) error{
				b.PowerOff, b.GracefulShutdown, // off already: nothing is sent
				b.PowerOn, b.PowerOn, b.ForceRestart, b.GracefulShutdown,
				b.ForceRestart, // off: powers it on
				b.PowerOff,
			} {
				if err := step(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			expectState(t, b, hardware.PowerOff)
			var want []string
			for _, k := range []string{"On", test.restart, "GracefulShutdown", "On", "ForceOff"} {
				want = append(want, test.system+reset+kind(k))
			}
			if diff := cmp.Diff(want, m.sent(http.MethodPost)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func expectState(t *testing.T, b *BMC, want hardware.PowerState) {
	t.Helper()
	if got, err := b.PowerState(t.Context()); err != nil || got != want {
		t.Fatalf("power state %q, %v, want %q", got, err, want)
	}
}

func TestPowerRetries(t *testing.T) {
	hpe, dell := hpeSystem+"/Actions/ComputerSystem.Reset", "/redfish/v1/Systems/System.Embedded.1/Actions/ComputerSystem.Reset"
	tests := []struct {
		name, vendor, target string
		faults               []fault
		posts                int
		pauses               []time.Duration
		err                  string
	}{
		{"iDRAC 10 is not ready", "dell-idrac10", dell, times(3, says(409, "Base.1.12.ActionParameterValueConflict")), 4,
			[]time.Duration{10 * time.Second, 10 * time.Second, 10 * time.Second}, ""},
		{"and never is", "dell-idrac10", dell, times(6, says(409, "Base.1.12.ActionParameterValueConflict")), 6,
			times10(5), "ActionParameterValueConflict"},
		{"HPE too soon", "hpe-ilo5", hpe, times(2, says(400, "iLO.2.14.InvalidOperationForSystemState")), 3,
			[]time.Duration{5 * time.Second, 10 * time.Second}, ""},
		{"HPE in POST", "hpe-ilo5", hpe, times(4, says(400, "iLO.2.14.UnableToModifyDuringSystemPOST")), 5,
			[]time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second, 30 * time.Second}, ""},
		{"iDRAC reloading", "dell-idrac9", dell, times(1, says(503, "IDRAC.2.8.SYS518")), 2, []time.Duration{10 * time.Second}, ""},
		{"asked to come back", "hpe-ilo5", hpe, []fault{func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(503)
		}}, 2, []time.Duration{7 * time.Second}, ""},
		{"refused for good", "hpe-ilo5", hpe, times(1, says(400, "Base.1.8.PropertyValueNotInList")), 1, nil, "PropertyValueNotInList"},
		{"ExtendedInfo as object", "hpe-ilo5", hpe, []fault{answers(400,
			`{"error":{"code":"x","message":"y","@Message.ExtendedInfo":{"MessageId":"Odd.1.0.Because","Message":"of that"}}}`)}, 1, nil, "Odd.1.0.Because of that"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := vendorMock(t, test.vendor)
			b, p := m.open(t, m.endpoint())
			m.fail(http.MethodPost, test.target, test.faults...)
			err := b.PowerOn(t.Context())
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("error %v, want %q", err, test.err)
			}
			if got := len(m.sent(http.MethodPost)); got != test.posts {
				t.Errorf("%d resets sent, want %d", got, test.posts)
			}
			if diff := cmp.Diff(test.pauses, p.list); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func times10(n int) []time.Duration {
	return slices.Repeat([]time.Duration{10 * time.Second}, n)
}

// Between our look and our request somebody else powers it on.
func TestAlreadyOnIsSuccess(t *testing.T) {
	for _, status := range []int{400, 409} {
		m := vendorMock(t, "hpe-ilo5")
		b, p := m.open(t, m.endpoint())
		m.fail(http.MethodPost, hpeSystem+"/Actions/ComputerSystem.Reset", func(w http.ResponseWriter, r *http.Request) {
			m.set(hpeSystem, "PowerState", "On")
			says(status, "iLO.2.14.InvalidOperationForSystemState")(w, r)
		})
		if err := b.PowerOn(t.Context()); err != nil || len(p.list) != 0 {
			t.Errorf("%d: error %v, pauses %v", status, err, p.list)
		}
	}
}

func TestRetriesEndWithTheContext(t *testing.T) {
	m := vendorMock(t, "dell-idrac10")
	b, _ := m.open(t, m.endpoint())
	ctx, cancel := context.WithCancel(t.Context())
	b.driver.transport.pause = func(context.Context, time.Duration) error { cancel(); return ctx.Err() }
	m.fail(http.MethodPost, "/redfish/v1/Systems/System.Embedded.1/Actions/ComputerSystem.Reset",
		times(2, says(409, "Base.1.12.ActionParameterValueConflict"))...)
	if err := b.PowerOn(ctx); err == nil || !strings.Contains(err.Error(), "ActionParameterValueConflict") {
		t.Errorf("error %v, want the BMC's own words", err)
	}
	if got := len(m.sent(http.MethodPost)); got != 1 {
		t.Errorf("%d resets sent, want 1", got)
	}
}

func TestNoResetTypeAllowed(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	action := m.tree[hpeSystem]["Actions"].(map[string]any)["#ComputerSystem.Reset"].(map[string]any)
	action["ResetType@Redfish.AllowableValues"] = []any{"Nmi"}
	b, _ := m.open(t, m.endpoint())
	if err := b.PowerOn(t.Context()); !errors.Is(err, hardware.ErrUnsupported) || len(m.sent(http.MethodPost)) != 0 {
		t.Errorf("error %v, sent %v", err, m.sent(http.MethodPost))
	}
}

// bootTest is what a vendor must be sent for a PXE boot in the mode that is asked for.
type bootTest struct {
	vendor string
	boot   hardware.Boot
	path   string
	want   string // body; empty: not offered
}

func bootTests() []bootTest {
	const sd, embedded = "/redfish/v1/Systems/Self/SD", "/redfish/v1/Systems/System.Embedded.1"
	body := func(enabled, mode, target string) string {
		if mode != "" {
			mode = `"BootSourceOverrideMode":"` + mode + `",`
		}
		return `{"Boot":{"BootSourceOverrideEnabled":"` + enabled + `",` + mode + `"BootSourceOverrideTarget":"` + target + `"}}`
	}
	return []bootTest{
		{"hpe-ilo5", hardware.Boot{Target: hardware.BootPXE}, hpeSystem, body("Once", "", "Pxe")},
		{"hpe-ilo5", hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeUEFI}, hpeSystem, body("Once", "UEFI", "Pxe")},
		{"hpe-ilo5", hardware.Boot{Target: hardware.BootHTTP}, hpeSystem, body("Once", "UEFI", "UefiHttp")},
		{"hpe-ilo5", hardware.Boot{Target: hardware.BootHTTP, HTTPURL: "https://198.18.0.1:8080/x"}, hpeSystem, ""}, // no HttpBootUri
		{"hpe-dl160", hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeUEFI}, hpeSystem, body("Once", "", "Pxe")},
		{"hpe-dl160", hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeLegacy}, hpeSystem, ""},
		{"dell-idrac8", hardware.Boot{Target: hardware.BootPXE}, embedded, body("Once", "", "Pxe")},
		{"dell-idrac8", hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeUEFI}, embedded, ""}, // Legacy now, and a BIOS job to change
		{"dell-idrac9", hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeUEFI}, embedded, body("Once", "UEFI", "Pxe")},
		{"dell-idrac9", hardware.Boot{Target: hardware.BootDisk}, embedded, body("Once", "", "Hdd")},
		{"dell-idrac10", hardware.Boot{Target: hardware.BootPXE}, embedded + "/Settings", body("Once", "", "Pxe")},
		{"supermicro-x10", hardware.Boot{Target: hardware.BootPXE}, hpeSystem, body("Once", "", "Pxe")},
		{"supermicro-x10", hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeUEFI}, hpeSystem, ""},
		{"supermicro-x10", hardware.Boot{Target: hardware.BootDisk, Mode: hardware.ModeUEFI}, hpeSystem, body("Once", "", "UefiHdd")},
		{"supermicro-x10", hardware.Boot{Target: hardware.BootHTTP}, hpeSystem, ""},
		{"supermicro-x11", hardware.Boot{Target: hardware.BootPXE}, hpeSystem, body("Once", "UEFI", "Pxe")},
		{"supermicro-x11", hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeLegacy}, hpeSystem, body("Once", "Legacy", "Pxe")},
		{"lenovo-xcc", hardware.Boot{Target: hardware.BootPXE}, hpeSystem, body("Once", "", "Pxe")},
		{"lenovo-xcc", hardware.Boot{Target: hardware.BootHTTP, HTTPURL: "https://198.18.0.1/x"}, hpeSystem,
			`{"Boot":{"BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"UEFI","BootSourceOverrideTarget":"UefiHttp","HttpBootUri":"https://198.18.0.1/x"}}`},
		{"ami", hardware.Boot{Target: hardware.BootPXE}, sd, body("Once", "UEFI", "Pxe")},
		{"openbmc", hardware.Boot{Target: hardware.BootPXE}, "/redfish/v1/Systems/system", body("Once", "UEFI", "Pxe")},
	}
}

func TestSetBootOnce(t *testing.T) {
	for _, test := range bootTests() {
		t.Run(fmt.Sprintf("%s/%s%s", test.vendor, test.boot.Target, test.boot.Mode), func(t *testing.T) {
			m := vendorMock(t, test.vendor)
			b, _ := m.open(t, m.endpoint())
			if test.vendor == "ami" {
				m.fail(http.MethodPatch, "/redfish/v1/Systems/Self", says(http.StatusBadRequest, "Ami.1.0.OperationSupportedInFutureStateURI"))
			}
			err := b.SetBootOnce(t.Context(), test.boot)
			patches := m.sent(http.MethodPatch)
			if test.want == "" {
				if !errors.Is(err, hardware.ErrUnsupported) || len(patches) != 0 {
					t.Fatalf("error %v, sent %v; want it not offered, and nothing sent", err, patches)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if test.vendor == "ami" {
				if len(patches) != 2 {
					t.Fatalf("sent %v, want the refused one and the future state's", patches)
				}
				patches = patches[1:]
			}
			if diff := cmp.Diff([]string{test.path + " " + test.want}, patches); diff != "" {
				t.Error(diff)
			}

			if err := b.SetBootOnce(t.Context(), hardware.Boot{Target: hardware.BootNone}); err != nil {
				t.Fatalf("take it back: %v", err)
			}
		})
	}
}

func TestTakingBackNothingSendsNothing(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	b, _ := m.open(t, m.endpoint())
	if err := b.SetBootOnce(t.Context(), hardware.Boot{Target: hardware.BootNone}); err != nil || len(m.sent(http.MethodPatch)) != 0 {
		t.Errorf("error %v, sent %v", err, m.sent(http.MethodPatch))
	}
}

func TestBootIsReadBack(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	b, _ := m.open(t, m.endpoint())
	m.onPatch = func(_ string, boot map[string]any) { boot["BootSourceOverrideTarget"] = "None" }
	err := b.SetBootOnce(t.Context(), hardware.Boot{Target: hardware.BootPXE})
	if err == nil || !strings.Contains(err.Error(), "shows None") {
		t.Errorf("error %v, want that it did not hold", err)
	}
}

func TestSupermicroModeIsSetAgain(t *testing.T) {
	m := vendorMock(t, "supermicro-x11")
	b, _ := m.open(t, m.endpoint())
	var patches int
	m.onPatch = func(_ string, boot map[string]any) {
		if patches++; patches == 1 {
			boot["BootSourceOverrideMode"] = "Legacy"
		}
	}
	if err := b.SetBootOnce(t.Context(), hardware.Boot{Target: hardware.BootPXE}); err != nil || patches != 2 {
		t.Errorf("error %v after %d patches, want success after 2", err, patches)
	}
}

func TestIfMatch(t *testing.T) {
	tests := map[string]struct {
		takes func(string) bool
		want  []string
	}{
		"as given": {func(s string) bool { return s == `W/"0A1B2C3D"` }, []string{`W/"0A1B2C3D"`}},
		"strong":   {func(s string) bool { return s == `"0A1B2C3D"` }, []string{`W/"0A1B2C3D"`, `"0A1B2C3D"`}},
		"none":     {func(s string) bool { return s == "" }, []string{`W/"0A1B2C3D"`, `"0A1B2C3D"`, ""}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := vendorMock(t, "hpe-ilo5")
			m.etag = test.takes
			b, _ := m.open(t, m.endpoint())
			if err := b.SetBootOnce(t.Context(), hardware.Boot{Target: hardware.BootPXE}); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range m.requests() {
				if r.Method == http.MethodPatch {
					got = append(got, r.IfMatch)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestBadBoots(t *testing.T) {
	m := vendorMock(t, "lenovo-xcc")
	b, _ := m.open(t, m.endpoint())
	for want, boot := range map[string]hardware.Boot{
		"use pxe, http":  {Target: "cd"},
		"uefi or legacy": {Target: hardware.BootPXE, Mode: "bios"},
		"cannot do it":   {Target: hardware.BootHTTP, Mode: hardware.ModeLegacy},
		"without ?":      {Target: hardware.BootHTTP, HTTPURL: "https://198.18.0.1/boot?mac=1"},
		"with target":    {Target: hardware.BootPXE, HTTPURL: "https://198.18.0.1/boot"},
		"with a host":    {Target: hardware.BootHTTP, HTTPURL: "/boot"},
		"is not known":   {},
	} {
		if err := b.SetBootOnce(t.Context(), boot); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want %q", boot, err, want)
		}
	}
}

func TestMissingLicenceIsNoWrongPassword(t *testing.T) {
	m := vendorMock(t, "supermicro-x11")
	b, _ := m.open(t, m.endpoint())
	m.fail(http.MethodPatch, hpeSystem, says(http.StatusForbidden, "SMC.1.0.OemLicenseNotPassed"))
	err := b.SetBootOnce(t.Context(), hardware.Boot{Target: hardware.BootPXE})
	if !errors.Is(err, hardware.ErrUnsupported) || errors.Is(err, hardware.ErrUnauthorized) || m.logins != 1 {
		t.Errorf("error %v, %d logins: want ErrUnsupported and no new login", err, m.logins)
	}
	m.fail(http.MethodPatch, hpeSystem, says(http.StatusForbidden, "Base.1.8.InsufficientPrivilege"))
	if err := b.SetBootOnce(t.Context(), hardware.Boot{Target: hardware.BootPXE}); !errors.Is(err, hardware.ErrForbidden) || errors.Is(err, hardware.ErrUnauthorized) {
		t.Errorf("error %v, want ErrForbidden: its login is good", err)
	}
}

func TestTasks(t *testing.T) {
	const task = "/redfish/v1/TaskService/Tasks/7"
	accepted := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", task)
		w.WriteHeader(http.StatusAccepted)
	}
	state := func(s string) fault {
		return answers(http.StatusOK, `{"@odata.type":"#Task.v1_4_3.Task","TaskState":"`+s+`","Messages":[{"MessageId":"IDRAC.2.8.PR21","Message":"Failed."}]}`)
	}
	missing := says(http.StatusNotFound, "Base.1.8.ResourceMissingAtURI")
	tests := map[string]struct {
		polls []fault
		err   string
	}{
		"done":             {[]fault{state("New"), state("Running"), state("Completed")}, ""},
		"named too early":  {[]fault{missing, missing, state("Completed")}, ""},
		"at the next boot": {[]fault{state("Pending")}, ""},
		"failed":           {[]fault{state("Running"), state("Exception")}, "IDRAC.2.8.PR21 Failed."},
		"for ever":         {times(200, state("Running")), "has not ended"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := vendorMock(t, "dell-idrac9")
			b, _ := m.open(t, m.endpoint())
			m.fail(http.MethodPost, "/redfish/v1/Systems/System.Embedded.1/Actions/ComputerSystem.Reset", func(w http.ResponseWriter, r *http.Request) {
				if test.err == "" {
					m.set("/redfish/v1/Systems/System.Embedded.1", "PowerState", "On")
				}
				accepted(w, r)
			})
			m.fail(http.MethodGet, task, test.polls...)
			err := b.PowerOn(t.Context())
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("error %v, want %q", err, test.err)
			}
		})
	}
}

func TestLastReset(t *testing.T) {
	tests := []struct {
		vendor, source string
		age            time.Duration
	}{
		{"dell-idrac9", "LastResetTime", 10 * time.Minute},
		{"lenovo-xcc", "BootProgress.LastStateTime", time.Hour},
		{"hpe-ilo5", "Oem.Hpe.PostDiscoveryCompleteTimeStamp", 10 * time.Minute},
		{"openbmc", "LastResetTime", time.Minute},
		{"supermicro-x10", "", 0},
	}
	for _, test := range tests {
		m := vendorMock(t, test.vendor)
		b, _ := m.open(t, m.endpoint())
		got, err := b.LastReset(t.Context())
		age, known := got.Age()
		if err != nil || got.Source != test.source || known != (test.source != "") || age != test.age {
			t.Errorf("%s: %+v, age %s, %v; want %s by %s", test.vendor, got, age, err, test.age, test.source)
		}
		if got.Now.IsZero() {
			t.Errorf("%s: BMC tells no time", test.vendor)
		}
	}
}

func TestHPEInPOST(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	m.tree[hpeSystem]["Oem"] = map[string]any{"Hpe": map[string]any{"PostState": "InPost"}}
	b, _ := m.open(t, m.endpoint())
	got, err := b.LastReset(t.Context())
	if err != nil || got.Known || !got.InPOST() {
		t.Errorf("%+v, %v: want only that it is in POST", got, err)
	}
}

// Without Manager.DateTime the HTTP Date header tells the BMC's time.
func TestBMCClockFromDate(t *testing.T) {
	m := vendorMock(t, "ami")
	b, _ := m.open(t, m.endpoint())
	got, err := b.LastReset(t.Context())
	if err != nil || got.Known || time.Since(got.Now).Abs() > time.Hour {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestIdentify(t *testing.T) {
	for vendor, want := range map[string][]string{
		"dell-idrac9":    {`/redfish/v1/Systems/System.Embedded.1 {"LocationIndicatorActive":true}`, `/redfish/v1/Systems/System.Embedded.1 {"LocationIndicatorActive":false}`},
		"supermicro-x10": {hpeSystem + ` {"IndicatorLED":"Lit"}`, hpeSystem + ` {"IndicatorLED":"Off"}`},
	} {
		m := vendorMock(t, vendor)
		b, _ := m.open(t, m.endpoint())
		if err := errors.Join(b.Identify(t.Context(), true), b.Identify(t.Context(), false)); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, m.sent(http.MethodPatch)); diff != "" {
			t.Errorf("%s: %s", vendor, diff)
		}
	}
	m := vendorMock(t, "supermicro-x10")
	delete(m.tree[hpeSystem], "IndicatorLED")
	b, _ := m.open(t, m.endpoint())
	if err := b.Identify(t.Context(), true); !errors.Is(err, hardware.ErrUnsupported) {
		t.Errorf("error %v", err)
	}
}

func TestQuirks(t *testing.T) {
	for want, id := range map[string]identity{
		"HPE iLO 5/6":              {vendor: "HPE", model: "ProLiant DL360 Gen11", manager: "iLO 6"},
		"HP iLO 4":                 {vendor: "HP", model: "ProLiant DL360 Gen9", manager: "iLO 4"},
		"Dell iDRAC 8":             {vendor: "Dell Inc.", firmware: "2.83.83.83"},
		"Dell iDRAC 9/10":          {vendor: "Dell Inc.", firmware: "7.00.00.00"},
		"Supermicro X11 and later": {vendor: "Supermicro", bootTargets: []string{"Pxe", "UefiHttp"}},
		"Supermicro X10":           {vendor: "Supermicro", bootTargets: []string{"Pxe"}},
		"Lenovo XCC":               {vendor: "Lenovo", manager: "Lenovo XClarity Controller 2"},
		"AMI MegaRAC":              {vendor: "Example AMI"},
		"OpenBMC":                  {manager: "OpenBmc"},
		"standard":                 {vendor: "Miami Servers"},
	} {
		if got := quirkOf(id).name; got != want {
			t.Errorf("%+v is %s, want %s", id, got, want)
		}
	}
}
