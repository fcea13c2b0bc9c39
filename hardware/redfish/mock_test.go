package redfish

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/rackweft/rackweft/hardware"
)

const (
	testUser     = "admin"
	testPassword = "correct horse"
	sessionsPath = "/redfish/v1/SessionService/Sessions"
)

// request is what the mock saw.
type request struct {
	Method, Path, Body, IfMatch, Token string
	Header                             http.Header
	Close                              bool
}

// fault answers instead of the mock; nil lets the request through.
type fault func(w http.ResponseWriter, r *http.Request)

// mock is a BMC that serves a tree, with sessions, writes, power and scripted faults.
type mock struct {
	*httptest.Server
	t *testing.T

	mu       sync.Mutex
	tree     map[string]map[string]any
	seen     []request
	faults   map[string][]fault // "METHOD path" to what comes first
	tokens   map[string]string  // session path to token
	logins   int
	logouts  int
	resets   int
	inFlight int
	expands  bool                                                // answers $expand as it says
	gone     int                                                 // requests that left the crowd before they ended
	crowd    int                                                 // most requests at the same time
	onPatch  func(path string, boot map[string]any)              // what the firmware makes of a boot override
	etag     func(ifMatch string) bool                           // nil: takes any
	judge    func(at, ifMatch string, body map[string]any) fault // of a PATCH; nil takes it
}

func newMock(t *testing.T, tree map[string]map[string]any) *mock {
	t.Helper()
	m := &mock{t: t, tree: tree, faults: map[string][]fault{}, tokens: map[string]string{}}
	m.Server = httptest.NewTLSServer(m)
	m.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	t.Cleanup(func() {
		m.Server.Close()
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.tokens) != 0 {
			t.Errorf("sessions left on the BMC: %v (%d logins, %d logouts)", m.tokens, m.logins, m.logouts)
		}
		if m.crowd > 1 {
			t.Errorf("%d requests at the same time, want 1", m.crowd)
		}
	})
	return m
}

func vendorMock(t *testing.T, vendor string) *mock {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "redfish", vendor+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]map[string]any
	if err := json.Unmarshal(data, &tree); err != nil {
		t.Fatal(err)
	}
	return newMock(t, tree)
}

// capturedMock serves a tree captured from a real machine.
func capturedMock(t *testing.T, root string) *mock {
	t.Helper()
	tree := map[string]map[string]any{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Name() != "index.json" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var resource map[string]any
		if err := json.Unmarshal(data, &resource); err != nil {
			return nil // a list or a page: nothing that is asked for
		}
		at, err := filepath.Rel(root, filepath.Dir(path))
		tree["/"+filepath.ToSlash(at)] = resource
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	service := tree["/redfish/v1"] // two of them are partial
	service["Links"] = map[string]any{"Sessions": map[string]any{"@odata.id": sessionsPath}}
	for _, name := range []string{"Systems", "Managers"} {
		service[name] = map[string]any{"@odata.id": "/redfish/v1/" + name}
	}
	return newMock(t, tree)
}

func (m *mock) fail(method, path string, faults ...fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults[method+" "+path] = append(m.faults[method+" "+path], faults...)
}

func times(n int, f fault) []fault {
	faults := make([]fault, n)
	for i := range faults {
		faults[i] = f
	}
	return faults
}

// says is a Redfish error.
func says(status int, id string) fault {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"error":{"code":"Base.1.8.GeneralError","message":"see ExtendedInfo","@Message.ExtendedInfo":[{"MessageId":%q,"Message":"no"}]}}`, id)
	}
}

func answers(status int, body string) fault {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func (m *mock) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	at := strings.TrimSuffix(r.URL.Path, "/")
	m.mu.Lock()
	m.inFlight++
	m.crowd = max(m.crowd, m.inFlight)
	m.seen = append(m.seen, request{Method: r.Method, Path: at, Body: string(body), IfMatch: r.Header.Get("If-Match"),
		Token: r.Header.Get("X-Auth-Token"), Header: r.Header.Clone(), Close: r.Close})
	var f fault
	key := r.Method + " " + at
	queued := len(m.faults[key]) > 0
	if queued {
		f, m.faults[key] = m.faults[key][0], m.faults[key][1:]
	}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.inFlight--
		m.mu.Unlock()
	}()
	if f != nil {
		f(w, r)
		return
	}
	m.serve(w, r, at, body)
}

func (m *mock) serve(w http.ResponseWriter, r *http.Request, at string, body []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.Method == http.MethodPost && at == sessionsPath {
		m.login(w, body)
		return
	}
	if at != "/redfish/v1" && !m.known(r.Header.Get("X-Auth-Token")) && !m.basicLogin(r) {
		says(http.StatusUnauthorized, "Base.1.8.NoValidSession")(w, r)
		return
	}
	if _, ok := m.tokens[at]; ok && r.Method == http.MethodDelete {
		delete(m.tokens, at)
		m.logouts++
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if _, ok := m.tokens[at]; ok {
		_, _ = fmt.Fprintf(w, `{"@odata.id":%q}`, at)
		return
	}
	if r.Method == http.MethodPost && strings.HasSuffix(at, "/Actions/ComputerSystem.Reset") {
		m.reset(w, r, strings.TrimSuffix(at, "/Actions/ComputerSystem.Reset"), body)
		return
	}
	resource, ok := m.tree[at]
	if !ok {
		says(http.StatusNotFound, "Base.1.8.ResourceMissingAtURI")(w, r)
		return
	}
	if r.Method == http.MethodPatch {
		m.patch(w, r, at, resource, body)
		return
	}
	if r.URL.Query().Has("$expand") && m.expands {
		resource = m.expanded(resource)
	}
	_ = json.NewEncoder(w).Encode(resource)
}

// expanded puts the members into a collection.
func (m *mock) expanded(resource map[string]any) map[string]any {
	list, ok := resource["Members"].([]any)
	if !ok {
		return resource
	}
	var members []any
	for _, member := range list {
		members = append(members, m.tree[member.(map[string]any)["@odata.id"].(string)])
	}
	resource = maps.Clone(resource)
	resource["Members"] = members
	return resource
}

func (m *mock) known(token string) bool {
	for _, t := range m.tokens {
		if t == token {
			return true
		}
	}
	return false
}

// basicLogin judges a request's own password.
func (m *mock) basicLogin(r *http.Request) bool {
	user, password, ok := r.BasicAuth()
	return ok && user == testUser && password == testPassword
}

func (m *mock) login(w http.ResponseWriter, body []byte) {
	m.logins++
	var sent struct{ UserName, Password string }
	if json.Unmarshal(body, &sent) != nil || sent.UserName != testUser || sent.Password != testPassword {
		says(http.StatusUnauthorized, "Base.1.8.InsufficientPrivilege")(w, nil)
		return
	}
	at := fmt.Sprintf("%s/%d", sessionsPath, m.logins)
	m.tokens[at] = fmt.Sprintf("token-%d", m.logins)
	w.Header().Set("X-Auth-Token", m.tokens[at])
	w.Header().Set("Location", "https://198.18.99.99"+at) // as an iLO behind NAT does
	w.WriteHeader(http.StatusCreated)
	_, _ = fmt.Fprintf(w, `{"@odata.id":%q}`, at)
}

func (m *mock) reset(w http.ResponseWriter, r *http.Request, at string, body []byte) {
	var sent struct{ ResetType string }
	_ = json.Unmarshal(body, &sent)
	sys := m.tree[at]
	on := sys["PowerState"] == "On"
	switch sent.ResetType {
	case "On", "ForceOn":
		if on {
			says(http.StatusConflict, "Base.1.8.ActionNotSupportedInState")(w, r)
			return
		}
		sys["PowerState"] = "On"
	case "ForceOff", "GracefulShutdown":
		sys["PowerState"] = "Off"
	case "ForceRestart", "PowerCycle", "PushPowerButton":
		m.shows(sys)
	default:
		says(http.StatusBadRequest, "Base.1.8.ActionParameterNotSupported")(w, r)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// shows has a system show that it was reset, wherever it tells of that.
func (m *mock) shows(sys map[string]any) {
	m.resets++
	if sys["LastResetTime"] != nil {
		sys["LastResetTime"] = fmt.Sprintf("2026-11-01T00:00:%02dZ", m.resets)
	}
	if progress, ok := sys["BootProgress"].(map[string]any); ok {
		progress["LastState"] = fmt.Sprint("State ", m.resets)
	}
	if oem, ok := sys["Oem"].(map[string]any); ok {
		if hpe, ok := oem["Hpe"].(map[string]any); ok {
			hpe["PostState"] = "InPost"
		}
	}
}

func (m *mock) patch(w http.ResponseWriter, r *http.Request, at string, resource map[string]any, body []byte) {
	if m.etag != nil && !m.etag(r.Header.Get("If-Match")) {
		says(http.StatusPreconditionFailed, "Base.1.8.PreconditionFailed")(w, r)
		return
	}
	var sent map[string]any
	if json.Unmarshal(body, &sent) != nil {
		says(http.StatusBadRequest, "Base.1.8.MalformedJSON")(w, r)
		return
	}
	if m.judge != nil {
		if f := m.judge(at, r.Header.Get("If-Match"), sent); f != nil {
			f(w, r)
			return
		}
	}
	for key, value := range sent {
		if part, ok := value.(map[string]any); ok {
			if resource[key] == nil {
				resource[key] = map[string]any{}
			}
			maps.Copy(resource[key].(map[string]any), part)
			continue
		}
		resource[key] = value
	}
	if boot, ok := resource["Boot"].(map[string]any); ok && m.onPatch != nil {
		m.onPatch(at, boot)
	}
	w.WriteHeader(http.StatusOK)
	_ = json.NewEncoder(w).Encode(resource)
}

// sent lists requests of a method as "path body".
func (m *mock) sent(method string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []string
	for _, r := range m.seen {
		if r.Method == method && r.Path != sessionsPath {
			list = append(list, strings.TrimSpace(r.Path+" "+r.Body))
		}
	}
	return list
}

func (m *mock) requests() []request {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]request(nil), m.seen...)
}

func (m *mock) set(at, key string, value any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tree[at][key] = value
}

func (m *mock) endpoint() hardware.Endpoint {
	return hardware.Endpoint{Address: m.URL, Protocol: "redfish", Username: testUser, Password: testPassword}
}

// pauses records what would have been waited.
type pauses struct {
	mu   sync.Mutex
	list []time.Duration
}

func (p *pauses) pause(ctx context.Context, d time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list = append(p.list, d)
	return ctx.Err()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// open dials, and closes at the end; the mock then proves that no session was left behind.
func (m *mock) open(t *testing.T, endpoint hardware.Endpoint) (*BMC, *pauses) {
	t.Helper()
	p := &pauses{}
	b, err := dial(t.Context(), endpoint, quiet(), p.pause)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() {
		over, cancel := context.WithCancel(context.Background())
		cancel() // closing works without time, too
		if err := b.Close(over); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b, p
}

// aside takes the calling request out of the crowd: others may run beside it from now on.
func (m *mock) aside() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inFlight--
	m.gone++
}

func (m *mock) serveConsole(path string) {
	handler := websocket.Server{Handler: func(socket *websocket.Conn) { _, _ = io.Copy(socket, socket) }}
	m.fail(http.MethodGet, path, func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		known := m.known(r.Header.Get("X-Auth-Token"))
		m.mu.Unlock()
		m.aside() // a console stays open beside the requests
		if !known {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	})
}
