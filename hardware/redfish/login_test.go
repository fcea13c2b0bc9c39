package redfish

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/hardware"
)

// logins counts the requests that carried the password: as session logins, and in a header of their own.
func (m *mock) passwords() (posts, basic int) {
	for _, r := range m.requests() {
		if r.Method == http.MethodPost && r.Path == sessionsPath {
			posts++
		}
		if r.Header.Get("Authorization") != "" {
			basic++
		}
	}
	return posts, basic
}

// TestBasicWhereThereAreNoSessions: a BMC without sessions, or without the licence for them, takes the password with every
// request.
func TestBasicWhereThereAreNoSessions(t *testing.T) {
	noService := func(m *mock) {
		delete(m.tree["/redfish/v1"], "Links")
		delete(m.tree["/redfish/v1"], "SessionService")
	}
	refuses := func(status int, id string) func(*mock) {
		return func(m *mock) { m.fail(http.MethodPost, sessionsPath, says(status, id)) }
	}
	for name, test := range map[string]struct {
		prepare func(*mock)
		posts   int
	}{
		"no service": {noService, 0},
		"missing":    {refuses(http.StatusNotFound, "Base.1.8.ResourceMissingAtURI"), 1},
		"no method":  {refuses(http.StatusMethodNotAllowed, "Base.1.8.OperationNotAllowed"), 1},
		"not built":  {refuses(http.StatusNotImplemented, "Base.1.8.GeneralError"), 1},
		"no licence": {refuses(http.StatusForbidden, "SMC.1.0.OemLicenseNotPassed"), 1},
	} {
		t.Run(name, func(t *testing.T) {
			m := vendorMock(t, "hpe-ilo5")
			test.prepare(m)
			b, _ := m.open(t, m.endpoint())
			if err := b.PowerOn(t.Context()); err != nil {
				t.Fatal(err)
			}
			posts, basic := m.passwords()
			if posts != test.posts || basic == 0 {
				t.Errorf("%d session logins and %d requests with the password, want %d and some", posts, basic, test.posts)
			}
			if !b.service.Spare() {
				t.Error("a BMC that keeps no login has none to spare")
			}
		})
	}
}

// TestBasicIsNoSecondTry: a password that basic authentication refuses is sent once.
func TestBasicIsNoSecondTry(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	m.fail(http.MethodPost, sessionsPath, says(http.StatusNotFound, "Base.1.8.ResourceMissingAtURI"))
	endpoint := m.endpoint()
	endpoint.Password = "wrong battery"
	_, err := Dial(t.Context(), endpoint, quiet())
	if !errors.Is(err, hardware.ErrUnauthorized) {
		t.Fatalf("error %v, want ErrUnauthorized", err)
	}
	if posts, basic := m.passwords(); posts != 1 || basic != 1 {
		t.Errorf("%d session logins and %d requests with the password, want 1 and 1", posts, basic)
	}
}

// TestSessionWithoutLocation: the session is found and ended, wherever the BMC names it.
func TestSessionWithoutLocation(t *testing.T) {
	const own = sessionsPath + "/77"
	opens := func(m *mock, header http.Header, body string) {
		m.fail(http.MethodPost, sessionsPath, func(w http.ResponseWriter, _ *http.Request) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.logins++
			m.tokens[own] = "token-77"
			w.Header().Set("X-Auth-Token", "token-77")
			for name, values := range header {
				w.Header()[name] = values
			}
			w.WriteHeader(http.StatusCreated)
			_, _ = fmt.Fprint(w, body)
		})
	}
	list := func(m *mock, others ...string) {
		members := []any{map[string]any{"@odata.id": own}}
		m.tree[own] = map[string]any{"UserName": testUser}
		for _, at := range others {
			members = append(members, map[string]any{"@odata.id": at})
		}
		m.tree[sessionsPath] = map[string]any{"Members": members}
		m.fail(http.MethodGet, own, answers(http.StatusOK, `{"UserName":"`+testUser+`"}`))
	}
	for name, prepare := range map[string]func(m *mock){
		"in the body":          func(m *mock) { opens(m, nil, `{"@odata.id":"`+own+`"}`) },
		"by its id":            func(m *mock) { opens(m, nil, `{"Id":"77"}`) },
		"Location is no path":  func(m *mock) { opens(m, http.Header{"Location": {"77"}}, `{"Id":"77"}`) },
		"Location is the list": func(m *mock) { opens(m, http.Header{"Location": {sessionsPath + "/"}}, `{"Id":"77"}`) },
		"in the list":          func(m *mock) { opens(m, nil, ``); list(m) },
		"in the list, with another": func(m *mock) {
			opens(m, nil, ``)
			m.tree[sessionsPath+"/5"] = map[string]any{"UserName": "somebody"}
			list(m, sessionsPath+"/5")
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := vendorMock(t, "hpe-ilo5")
			prepare(m)
			b, _ := m.open(t, m.endpoint()) // its cleanup looks for sessions that are left
			if _, err := b.PowerState(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, basic := m.passwords(); basic != 0 {
				t.Errorf("%d requests carried the password", basic)
			}
		})
	}
	t.Run("nowhere", func(t *testing.T) {
		m := vendorMock(t, "hpe-ilo5")
		opens(m, nil, ``)
		b, _ := m.open(t, m.endpoint())
		if _, err := b.PowerState(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.logins != 1 {
			t.Errorf("%d sessions were opened, want 1: each is left behind", m.logins)
		}
		clear(m.tokens)
	})
}

// TestPasswordChangeRequired comes in two shapes, and is neither a wrong password nor a fault.
func TestPasswordChangeRequired(t *testing.T) {
	const words = `{"@Message.ExtendedInfo":[{"MessageId":"Base.1.8.PasswordChangeRequired","Message":"change it"}]}`
	for name, prepare := range map[string]func(m *mock){
		"the login is refused": func(m *mock) {
			m.fail(http.MethodPost, sessionsPath, answers(http.StatusForbidden, `{"error":`+words+`}`))
		},
		"the session says so": func(m *mock) {
			m.fail(http.MethodPost, sessionsPath, func(w http.ResponseWriter, _ *http.Request) {
				m.mu.Lock()
				defer m.mu.Unlock()
				m.tokens[sessionsPath+"/9"] = "token-9"
				w.Header().Set("X-Auth-Token", "token-9")
				w.Header().Set("Location", sessionsPath+"/9")
				w.WriteHeader(http.StatusCreated)
				_, _ = fmt.Fprint(w, words)
			})
		},
		"all else is refused": func(m *mock) {
			m.fail(http.MethodGet, "/redfish/v1/Systems", answers(http.StatusForbidden, `{"error":`+words+`}`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := vendorMock(t, "hpe-ilo5")
			prepare(m)
			_, err := Dial(t.Context(), m.endpoint(), quiet())
			if !errors.Is(err, hardware.ErrPasswordChange) || errors.Is(err, hardware.ErrUnauthorized) || errors.Is(err, hardware.ErrForbidden) {
				t.Errorf("error %v, want ErrPasswordChange alone", err)
			}
			if posts, basic := m.passwords(); posts != 1 || basic != 0 {
				t.Errorf("%d session logins and %d requests with the password, want 1 and 0", posts, basic)
			}
		})
	}
}

// TestResettableSystem: of two systems the one that has a power of its own is meant.
func TestResettableSystem(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	m.tree["/redfish/v1/Systems"]["Members"] = []any{
		map[string]any{"@odata.id": "/redfish/v1/Systems/HGX_Baseboard_0"}, map[string]any{"@odata.id": hpeSystem}}
	m.tree["/redfish/v1/Systems/HGX_Baseboard_0"] = map[string]any{"Id": "HGX_Baseboard_0", "PowerState": "On"}
	b, _ := m.open(t, m.endpoint())
	if id, err := b.Identity(t.Context()); err != nil || id.System != "1" || id.Serial != "EXAMPLE001" || !strings.HasPrefix(id.Firmware, "iLO 5") {
		t.Errorf("identity %+v, %v", id, err)
	}
}

func FuzzSessionOf(f *testing.F) {
	for _, seed := range [][2]string{
		{sessionsPath + "/1", ``}, {"https://198.18.99.99" + sessionsPath + "/1", `{}`}, {"", `{"@odata.id":"` + sessionsPath + `/1"}`},
		{sessionsPath, `{"Id":"../x"}`}, {"77", `{"Id":""}`}, {"", `[`},
	} {
		f.Add(seed[0], []byte(seed[1]))
	}
	f.Fuzz(func(t *testing.T, location string, body []byte) {
		answer := reply{status: http.StatusCreated, header: http.Header{"Location": {location}}, body: body}
		at := sessionOf(sessionsPath, answer)
		if at != "" && (at[0] != '/' || strings.Trim(at, "/") == strings.Trim(sessionsPath, "/")) {
			t.Errorf("a session at %q", at)
		}
		wantsPasswordChange(&answer)
	})
}
