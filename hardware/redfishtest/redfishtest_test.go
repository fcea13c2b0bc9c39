package redfishtest_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/hardware/redfishtest"
)

type resource = redfishtest.Resource

// client speaks to a BMC without a network.
type client struct {
	t     *testing.T
	bmc   *redfishtest.BMC
	token string
	etag  string // to be sent with the next write
}

func newClient(t *testing.T, vendor string, traits ...redfishtest.Trait) *client {
	t.Helper()
	v, err := redfishtest.VendorOf(vendor)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := v.Tree()
	if err != nil {
		t.Fatal(err)
	}
	b, err := redfishtest.New(tree, traits...)
	if err != nil {
		t.Fatal(err)
	}
	return &client{t: t, bmc: b}
}

// do sends a request, with basic authentication where there is no session.
func (c *client) do(method, at, body string) *httptest.ResponseRecorder {
	c.t.Helper()
	r := httptest.NewRequestWithContext(c.t.Context(), method, "https://bmc"+at, strings.NewReader(body))
	if c.token != "" {
		r.Header.Set("X-Auth-Token", c.token)
	} else {
		r.SetBasicAuth(redfishtest.Username, redfishtest.Password)
	}
	if c.etag != "" {
		r.Header.Set("If-Match", c.etag)
	}
	w := httptest.NewRecorder()
	c.bmc.ServeHTTP(w, r)
	return w
}

func (c *client) want(status int, said, method, at, body string) *httptest.ResponseRecorder {
	c.t.Helper()
	w := c.do(method, at, body)
	if w.Code != status || !strings.Contains(w.Body.String(), said) {
		c.t.Errorf("%s %s %s: %d %s; want %d with %q", method, at, body, w.Code, w.Body, status, said)
	}
	return w
}

func (c *client) get(at string) resource {
	c.t.Helper()
	var r resource
	if err := json.Unmarshal(c.want(http.StatusOK, "", http.MethodGet, at, "").Body.Bytes(), &r); err != nil {
		c.t.Fatal(err)
	}
	return r
}

const (
	sys      = "/redfish/v1/Systems/1"
	reset    = sys + "/Actions/ComputerSystem.Reset"
	sessions = "/redfish/v1/SessionService/Sessions"
	login    = `{"UserName":"admin","Password":"correct horse"}`
	pxe      = `{"Boot":{"BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"UEFI","BootSourceOverrideTarget":"Pxe"}}`
	on       = `{"ResetType":"On"}`
	restart  = `{"ResetType":"ForceRestart"}`
)

// Every trait is in the list, with where it is known from, and something is done about it.
func TestTraits(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var behaviour bytes.Buffer
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if file != "trait.go" && file != "vendor.go" && !strings.HasSuffix(file, "_test.go") {
			behaviour.Write(source)
		}
	}
	source, err := os.ReadFile("trait.go")
	if err != nil {
		t.Fatal(err)
	}
	known := redfishtest.Traits()
	constants := regexp.MustCompile(`(?m)^\t(\w+) +Trait = "(.+)"$`).FindAllSubmatch(source, -1)
	if len(constants) != len(known) {
		t.Errorf("%d constants, %d in the list", len(constants), len(known))
	}
	for _, c := range constants {
		if known[redfishtest.Trait(c[2])] == "" {
			t.Errorf("%s: nothing says where it is known from", c[1])
		}
		if !regexp.MustCompile(`\bhas\(` + string(c[1]) + `\)`).Match(behaviour.Bytes()) {
			t.Errorf("%s: nothing is done about it", c[1])
		}
	}
}

// Each vendor's tree refers to nothing that is not there, with its traits as without.
func TestVendors(t *testing.T) {
	for _, v := range redfishtest.Vendors() {
		tree, err := v.Tree()
		if err != nil {
			t.Fatal(err)
		}
		b, err := redfishtest.New(tree, v.Traits...)
		if err != nil {
			t.Fatalf("%s: %v", v.Name, err)
		}
		if b.Get(v.System)["Actions"] == nil {
			t.Errorf("%s: %s has no actions", v.Name, v.System)
		}
		for at := range tree {
			for _, to := range references(b.Get(at)) {
				if b.Get(strings.TrimSuffix(to, "/")) == nil && !strings.Contains(to, "#") {
					t.Errorf("%s: %s refers to %s, which is not there", v.Name, at, to)
				}
			}
		}
	}
}

func references(v any) []string {
	var list []string
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if to, ok := value.(string); ok && key == "@odata.id" {
				list = append(list, to)
			}
			list = append(list, references(value)...)
		}
	case []any:
		for _, value := range v {
			list = append(list, references(value)...)
		}
	}
	return list
}

func TestSessions(t *testing.T) {
	c := newClient(t, "hpe-ilo5", redfishtest.FewSessions, redfishtest.NoBasic)
	c.want(http.StatusUnauthorized, "NoValidSession", http.MethodGet, sys, "")
	c.want(http.StatusUnauthorized, "", http.MethodPost, sessions, `{"UserName":"admin","Password":"wrong"}`)
	for range 3 {
		c.want(http.StatusCreated, "", http.MethodPost, sessions, login)
	}
	c.want(http.StatusServiceUnavailable, "RAC0218", http.MethodPost, sessions, login)
	c.token = "token-3"
	c.get(sys)
	c.want(http.StatusNoContent, "", http.MethodDelete, sessions+"/admin-1", "")
	if c.bmc.SessionsLeft() != 2 || c.bmc.Logins() != 3 || c.bmc.WrongPasswords() != 1 {
		t.Errorf("%d sessions left of %d, %d wrong passwords", c.bmc.SessionsLeft(), c.bmc.Logins(), c.bmc.WrongPasswords())
	}
	c.bmc.Clock.Advance(31 * time.Minute)
	c.want(http.StatusUnauthorized, "", http.MethodGet, sys, "")
	if c.bmc.SessionsLeft() != 0 {
		t.Error("idle sessions are still there")
	}
}

func TestSessionAddresses(t *testing.T) {
	for _, test := range []struct {
		trait          redfishtest.Trait
		location, body string
	}{
		{"", sessions + "/admin-1", sessions + "/admin-1"},
		{redfishtest.SessionAbsoluteLocation, "https://198.18.99.99" + sessions + "/admin-1", sessions + "/admin-1"},
		{redfishtest.SessionNoLocation, "", sessions + "/admin-1"},
		{redfishtest.SessionOnlyID, "", ""},
	} {
		var traits []redfishtest.Trait
		if test.trait != "" {
			traits = append(traits, test.trait)
		}
		c := newClient(t, "hpe-ilo5", traits...)
		w := c.want(http.StatusCreated, "", http.MethodPost, sessions, login)
		var body struct {
			ID string `json:"@odata.id"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
			t.Fatal(err)
		}
		if w.Header().Get("Location") != test.location || body.ID != test.body {
			t.Errorf("%s: Location %q, body %q", test.trait, w.Header().Get("Location"), body.ID)
		}
	}
}

func TestPasswordChange(t *testing.T) {
	const account = "/redfish/v1/AccountService/Accounts/1"
	for trait, status := range map[redfishtest.Trait]int{redfishtest.PasswordChangeRefuses: 403, redfishtest.PasswordChangeInSession: 201} {
		c := newClient(t, "hpe-ilo5", trait)
		c.want(status, "PasswordChangeRequired", http.MethodPost, sessions, login)
		c.want(http.StatusForbidden, "PasswordChangeRequired", http.MethodGet, sys, "")
		c.get(account)
		c.want(http.StatusOK, "", http.MethodPatch, account, `{"Password":"battery staple"}`)
		c.want(http.StatusCreated, "", http.MethodPost, sessions, strings.Replace(login, "correct horse", "battery staple", 1))
	}
}

func TestPreconditions(t *testing.T) {
	c := newClient(t, "hpe-ilo5", redfishtest.WeakETags, redfishtest.StrongCompare, redfishtest.IfMatchRequired)
	c.want(http.StatusPreconditionRequired, "PreconditionRequired", http.MethodPatch, sys, pxe)
	tag := c.want(http.StatusOK, "", http.MethodGet, sys, "").Header().Get("ETag")
	if !strings.HasPrefix(tag, `W/"`) {
		t.Errorf("tag %s is not weak", tag)
	}
	c.etag = tag
	c.want(http.StatusPreconditionFailed, "PreconditionFailed", http.MethodPatch, sys, pxe)
	c.etag = strings.TrimPrefix(tag, "W/")
	c.want(http.StatusOK, "Once", http.MethodPatch, sys, pxe)
	c.want(http.StatusPreconditionFailed, "", http.MethodPatch, sys, pxe) // it has changed

	c = newClient(t, "hpe-ilo5", redfishtest.ETagMoves)
	c.etag = c.want(http.StatusOK, "", http.MethodGet, sys, "").Header().Get("ETag")
	c.want(http.StatusPreconditionFailed, "", http.MethodPatch, sys, pxe)
	c.etag = c.want(http.StatusOK, "", http.MethodGet, sys, "").Header().Get("ETag")
	c.want(http.StatusOK, "", http.MethodPatch, sys, pxe)
}

// A boot consumes the override, writes down when it was, and shows POST.
func TestBoots(t *testing.T) {
	c := newClient(t, "hpe-ilo5", redfishtest.RefusesInPOST)
	c.want(http.StatusOK, "", http.MethodPatch, sys, pxe)
	c.want(http.StatusOK, "", http.MethodPatch, sys, `{"AssetTag":"tag-1"}`)
	c.want(http.StatusNoContent, "", http.MethodPost, reset, on)
	booted := c.bmc.Booted()
	if len(booted) != 1 || booted[0].Target != "Pxe" || booted[0].Mode != "UEFI" || booted[0].AssetTag != "tag-1" {
		t.Fatalf("booted %+v", booted)
	}
	c.want(http.StatusBadRequest, "UnableToModifyDuringSystemPOST", http.MethodPatch, sys, pxe)
	for post, after := range map[string]time.Duration{"InPost": 0, "InPostDiscoveryComplete": time.Minute, "FinishedPost": time.Minute} {
		c := newClient(t, "hpe-ilo5")
		c.want(http.StatusNoContent, "", http.MethodPost, reset, on)
		c.bmc.Clock.Advance(after)
		if post == "FinishedPost" {
			c.bmc.Clock.Advance(time.Minute)
		}
		c.want(http.StatusOK, `"PostState":"`+post+`"`, http.MethodGet, sys, "")
	}
	c.bmc.Clock.Advance(2 * time.Minute)
	c.want(http.StatusNoContent, "", http.MethodPost, reset, restart)
	if booted := c.bmc.Booted(); len(booted) != 2 || booted[1].Target != "None" {
		t.Errorf("booted %+v, want from the boot order at last", booted)
	}
	if twice := c.bmc.SentTwice(); len(twice) != 0 {
		t.Errorf("sent twice: %s", twice)
	}
	c.want(http.StatusNoContent, "", http.MethodPost, reset, restart)
	if twice := c.bmc.SentTwice(); len(twice) != 1 {
		t.Errorf("sent twice: %s, want the second restart", twice)
	}
}

func TestBootRefusals(t *testing.T) {
	body := func(properties string) string { return `{"Boot":{` + properties + `}}` }
	for trait, test := range map[redfishtest.Trait]struct {
		body   string
		status int
		said   string
	}{
		redfishtest.ModeUnknown:        {pxe, 400, "PropertyUnknown"},
		redfishtest.ModeReadOnly:       {pxe, 400, "PropertyNotWritable"},
		redfishtest.BootNeedsAll:       {body(`"BootSourceOverrideTarget":"Pxe"`), 400, "PropertyMissing"},
		redfishtest.BootInFutureState:  {pxe, 400, sys + "/SD"},
		redfishtest.BootInSettings:     {pxe, 400, "PropertyNotWritable"},
		redfishtest.OnceOrDisabled:     {body(`"BootSourceOverrideEnabled":"Continuous"`), 400, "PropertyValueNotInList"},
		redfishtest.OnlyUefiPxe:        {pxe, 400, "PropertyValueNotInList"},
		redfishtest.NoBootOverride:     {pxe, 400, "PropertyUnknown"},
		redfishtest.LicenceForBoot:     {pxe, 403, "OemLicenseNotPassed"},
		redfishtest.PatchNoContent:     {pxe, 204, ""},
		redfishtest.OverrideIgnored:    {pxe, 200, `"BootSourceOverrideEnabled":"Disabled"`},
		redfishtest.OverrideLate:       {pxe, 200, `"BootSourceOverrideEnabled":"Disabled"`},
		redfishtest.ModeFallsBack:      {body(`"BootSourceOverrideEnabled":"Once","BootSourceOverrideTarget":"Pxe"`), 200, `"BootSourceOverrideMode":"Legacy"`},
		redfishtest.ReadOnlyUser:       {pxe, 403, "InsufficientPrivilege"},
		redfishtest.InfoObject:         {body(`"X":1`), 400, `"@Message.ExtendedInfo":{"@odata.type"`},
		redfishtest.InfoAtTop:          {body(`"X":1`), 400, `{"@Message.ExtendedInfo":[`},
		redfishtest.ErrorsAreHTML:      {body(`"X":1`), 400, "<html>"},
		redfishtest.BusyRetryAfter:     {pxe, 503, "ServiceTemporarilyUnavailable"},
		redfishtest.Reloading:          {pxe, 503, "SYS518"},
		redfishtest.FutureStateUnnamed: {body(`"BootSourceOverrideTarget":"Floppy"`), 400, "PropertyValueNotInList"},
	} {
		newClient(t, "hpe-ilo5", trait).want(test.status, test.said, http.MethodPatch, sys, test.body)
	}
	for _, trait := range []redfishtest.Trait{redfishtest.BootInFutureState, redfishtest.BootInSettings} {
		c := newClient(t, "hpe-ilo5", trait)
		pending := c.get(sys)["@Redfish.Settings"].(resource)["SettingsObject"].(resource)["@odata.id"].(string)
		c.want(http.StatusOK, "Once", http.MethodPatch, pending, pxe)
		c.want(http.StatusNoContent, "", http.MethodPost, reset, on)
		if booted := c.bmc.Booted(); len(booted) != 1 || booted[0].Target != "Pxe" {
			t.Errorf("%s: booted %+v", trait, booted)
		}
	}
}

func TestResets(t *testing.T) {
	for trait, test := range map[redfishtest.Trait]struct {
		first, second int // On, twice
		boots         int
	}{
		redfishtest.PatchNoContent:    {204, 204, 1},
		redfishtest.AlreadyConflict:   {204, 409, 1},
		redfishtest.AlreadyBadRequest: {204, 400, 1},
		redfishtest.TooSoon:           {204, 400, 1},
		redfishtest.ConflictAtFirst:   {409, 409, 0},
		redfishtest.ResetDoesNothing:  {204, 204, 0},
		redfishtest.ResetTask:         {202, 202, 1},
		redfishtest.TaskFails:         {202, 202, 0},
		redfishtest.NoReset:           {400, 400, 0},
	} {
		c := newClient(t, "hpe-ilo5", trait)
		c.want(test.first, "", http.MethodPost, reset, on)
		c.want(test.second, "", http.MethodPost, reset, on)
		if n := len(c.bmc.Booted()); n != test.boots {
			t.Errorf("%s: %d boots, want %d", trait, n, test.boots)
		}
	}
	c := newClient(t, "lenovo-xcc") // lists its reset types in an ActionInfo
	c.want(http.StatusBadRequest, "ActionParameterNotSupported", http.MethodPost, reset, `{"ResetType":"PowerCycle"}`)
	c.want(http.StatusConflict, "ActionNotSupportedInState", http.MethodPost, reset, restart)
	c.want(http.StatusNoContent, "", http.MethodPost, reset, on)
}

func TestTasks(t *testing.T) {
	for trait, states := range map[redfishtest.Trait][]string{ // at once, after 10 and after 30 seconds
		redfishtest.ResetTask:     {"Running", "Completed", "Completed"},
		redfishtest.TaskFails:     {"Running", "Exception", "Exception"},
		redfishtest.TaskNeverEnds: {"Running", "Running", "Running"},
		redfishtest.TaskLate:      {"ResourceMissing", "ResourceMissing", "Completed"},
		redfishtest.TaskVanishes:  {"Running", "ResourceMissing", "ResourceMissing"},
		redfishtest.TaskInBody:    {"Running", "Completed", "Completed"},
	} {
		c := newClient(t, "hpe-ilo5", trait)
		at := c.want(http.StatusAccepted, "", http.MethodPost, reset, on).Header().Get("Location")
		if (at == "") != (trait == redfishtest.TaskInBody) {
			t.Errorf("%s: Location %q", trait, at)
		}
		for i, state := range states {
			c.bmc.Clock.Advance([]time.Duration{0, 10 * time.Second, 20 * time.Second}[i])
			if w := c.do(http.MethodGet, "/redfish/v1/TaskService/Tasks/1", ""); !strings.Contains(w.Body.String(), state) {
				t.Errorf("%s: %s, want %s", trait, w.Body, state)
			}
		}
	}
}

func TestClocks(t *testing.T) {
	read := func(c *client) (reset, now time.Time) {
		reset, _ = time.Parse(time.RFC3339, c.get(sys)["LastResetTime"].(string))
		now, _ = time.Parse(time.RFC3339, c.get("/redfish/v1/Managers/1")["DateTime"].(string))
		return reset, now
	}
	for trait, want := range map[redfishtest.Trait]time.Duration{ // the reset's age after a minute
		redfishtest.PatchNoContent: time.Minute,
		redfishtest.ClockBehind:    -9 * time.Minute,
		redfishtest.ClockJumps:     6*time.Hour + time.Minute,
	} {
		c := newClient(t, "hpe-ilo5", trait)
		c.bmc.Set(sys, "LastResetTime", "2025-01-01T00:00:00Z")
		c.want(http.StatusNoContent, "", http.MethodPost, reset, on)
		c.bmc.Clock.Advance(time.Minute)
		if at, now := read(c); now.Sub(at) != want {
			t.Errorf("%s: %s by %s, want an age of %s", trait, at, now, want)
		}
	}
	c := newClient(t, "hpe-ilo5", redfishtest.NoClock, redfishtest.NoResetTime)
	w := c.want(http.StatusOK, "", http.MethodGet, "/redfish/v1/Managers/1", "")
	if strings.Contains(w.Body.String(), "DateTime") || len(w.Header()["Date"]) != 0 {
		t.Errorf("%s %v tells the time", w.Body, w.Header())
	}
}

func TestMedia(t *testing.T) {
	const cd = "/redfish/v1/Managers/1/VirtualMedia/2"
	insert, eject := cd+"/Actions/VirtualMedia.InsertMedia", cd+"/Actions/VirtualMedia.EjectMedia"
	image := `{"Image":"https://198.18.0.1/boot.iso"}`
	full := `{"Image":"https://198.18.0.1/boot.iso","Inserted":true,"WriteProtected":true}`
	for _, test := range []struct {
		trait          redfishtest.Trait
		method, at     string
		body           string
		status, ejects int
	}{
		{redfishtest.PatchNoContent, "POST", insert, full, 204, 204},
		{redfishtest.EjectNeedsBody, "POST", insert, full, 204, 400},
		{redfishtest.InsertImageOnly, "POST", insert, full, 400, 204},
		{redfishtest.InsertImageOnly, "POST", insert, image, 204, 204},
		{redfishtest.MediaByPatch, "POST", insert, full, 400, 400},
		{redfishtest.MediaByPatch, "PATCH", cd, full, 200, 400},
		{redfishtest.MediaByPatch, "PATCH", cd, image, 400, 400},
		{redfishtest.PatchNoContent, "PATCH", cd, full, 400, 204},
		{redfishtest.InsertNeedsProtocol, "POST", insert, full, 400, 204},
		{redfishtest.InsertNeedsStream, "POST", insert, full, 400, 204},
		{redfishtest.LicenceForMedia, "POST", insert, full, 403, 204},
		{redfishtest.NoMedia, "POST", insert, full, 404, 404},
		{redfishtest.MediaInSystem, "POST", insert, full, 404, 404},
		{redfishtest.MediaInSystem, "POST", strings.Replace(insert, "Managers", "Systems", 1), full, 204, 404},
	} {
		c := newClient(t, "hpe-ilo5", test.trait)
		c.want(test.status, "", test.method, test.at, test.body)
		c.want(test.ejects, "", http.MethodPost, eject, "")
	}
	c := newClient(t, "hpe-ilo5")
	c.want(http.StatusNoContent, "", http.MethodPost, insert, full)
	c.want(http.StatusOK, "", http.MethodPatch, sys, strings.Replace(pxe, "Pxe", "Cd", 1))
	c.want(http.StatusNoContent, "", http.MethodPost, reset, on)
	if booted := c.bmc.Booted(); len(booted) != 1 || booted[0].URI != "https://198.18.0.1/boot.iso" {
		t.Errorf("booted %+v, want the image", booted)
	}
}

// Requests at the same time are counted.
func TestServer(t *testing.T) {
	s := redfishtest.StartVendor(t, "hpe-ilo5", redfishtest.DropsKeepAlive)
	var both sync.WaitGroup
	both.Add(2)
	meet := redfishtest.Answer{Do: func(w http.ResponseWriter, _ *http.Request) {
		both.Done()
		both.Wait()
		w.WriteHeader(http.StatusNoContent)
	}}
	s.Script(http.MethodGet, "/redfish/v1", meet, meet)
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	done := make(chan error)
	for range 2 {
		go func() {
			response, err := (&http.Client{Transport: transport}).Get(s.URL + "/redfish/v1/")
			if err == nil {
				_ = response.Body.Close()
			}
			done <- err
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if s.Crowd() != 2 || s.Count() != 2 || !strings.HasPrefix(s.Fingerprint, "sha256:") {
		t.Errorf("crowd %d, %d requests, certificate %s", s.Crowd(), s.Count(), s.Fingerprint)
	}
}

func TestCapturedTrees(t *testing.T) {
	dir := filepath.Join("..", "..", "..", "shared", "redfish")
	captured := redfishtest.Captured(t, dir)
	if len(captured) == 0 {
		t.Skip("no captured trees in " + dir)
	}
	for folder, v := range captured {
		s := redfishtest.StartCaptured(t, filepath.Join(dir, folder), v)
		if s.Get(v.System)["Actions"] == nil {
			t.Errorf("%s: %s has no actions", folder, v.System)
		}
	}
}

// What comes in from outside, a tree or a request, is answered and never ends the BMC.
func FuzzBMC(f *testing.F) {
	tree := `{"/redfish/v1/Systems":{"Members":[{"@odata.id":"/redfish/v1/Systems/1"}]},"/redfish/v1/Systems/1":{"Boot":{"BootSourceOverrideTarget":"None"},"Actions":{}}}`
	f.Add([]byte(tree), http.MethodPatch, sys, []byte(pxe), uint64(0))
	f.Add([]byte(tree), http.MethodPost, reset, []byte(on), uint64(1)<<40)
	f.Add([]byte(tree), http.MethodPost, sessions, []byte(login), ^uint64(0))
	f.Add([]byte(tree), http.MethodPatch, sys, []byte(`{"AssetTag":"x","Boot":7}`), uint64(3))
	all := make([]redfishtest.Trait, 0, len(redfishtest.Traits()))
	for trait := range redfishtest.Traits() {
		if trait != redfishtest.Silent && trait != redfishtest.ResetAnswerLost {
			all = append(all, trait)
		}
	}
	slices.Sort(all)
	f.Fuzz(func(t *testing.T, data []byte, method, at string, body []byte, pick uint64) {
		tree, err := redfishtest.ParseTree(data)
		if err != nil {
			return
		}
		var traits []redfishtest.Trait
		for i, trait := range all {
			if pick>>(i%64)&1 == 1 {
				traits = append(traits, trait)
			}
		}
		b, err := redfishtest.New(tree, traits...)
		if err != nil {
			return
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://bmc/", bytes.NewReader(body))
		r.Method, r.URL.Path = method, at
		r.SetBasicAuth(redfishtest.Username, redfishtest.Password)
		w := httptest.NewRecorder()
		b.ServeHTTP(w, r)
		if w.Code < 200 || w.Code > 599 {
			t.Errorf("%s %s: status %d", method, at, w.Code)
		}
		if got := b.Requests(); len(got) != 1 || got[0].Status != w.Code {
			t.Errorf("recorded %+v, answered %d", got, w.Code)
		}
	})
}
