package bmc

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	sessionsPath = root + "/SessionService/Sessions"
	accountPath  = root + "/AccountService/Accounts/1"
)

// Login is how a client may authenticate itself.
type Login string

const (
	AnyLogin      Login = ""           // by a session or by basic authentication
	BasicOnly     Login = "basic"      // there is no session service
	BasicLicensed Login = "unlicensed" // there is one, and it asks for a licence
	SessionsOnly  Login = "sessions"   // basic authentication is off
)

type session struct {
	id      string
	created time.Time
	used    time.Time
	client  string
}

// sessions are the logins of the BMC's one account.
type sessions struct {
	config Config
	log    *slog.Logger
	faults *Faults

	mu       sync.Mutex // guards the fields below
	password string
	open     map[string]*session // by token
	serial   int
	expired  bool          // the password must be changed before anything else
	timeout  time.Duration // idle life of a session
}

func newSessions(config Config, faults *Faults, log *slog.Logger) *sessions {
	return &sessions{config: config, log: log, faults: faults, password: config.Password, open: map[string]*session{}, timeout: config.SessionTimeout}
}

func (s *sessions) setPassword(password string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.password, s.expired = password, false
}

// clear ends all sessions.
func (s *sessions) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.open)
}

// credentialsMatch compares digests, so that its time reveals neither the
// length nor the first differing byte.
func (s *sessions) credentialsMatch(username, password string) bool {
	s.mu.Lock()
	want := s.config.Username + "\x00" + s.password
	s.mu.Unlock()
	a, b := sha256.Sum256([]byte(want)), sha256.Sum256([]byte(username+"\x00"+password))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// authenticated accepts a session token or basic authentication (DSP0266 §13.3).
func (s *sessions) authenticated(r *http.Request) bool {
	token := r.Header.Get("X-Auth-Token")
	if token != "" {
		return s.touch(token)
	}
	username, password, ok := r.BasicAuth()
	return ok && s.config.Login != SessionsOnly && s.credentialsMatch(username, password)
}

func (s *sessions) touch(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	found, ok := s.open[token]
	if ok {
		found.used = time.Now()
	}
	return ok
}

// expire drops the sessions that were idle for too long. The caller holds mu.
func (s *sessions) expire() {
	for token, one := range s.open {
		if time.Since(one.used) > s.timeout {
			delete(s.open, token)
		}
	}
}

func (s *sessions) create(w http.ResponseWriter, r *http.Request) {
	switch s.config.Login {
	case BasicOnly:
		fail(w, http.StatusNotFound, missing(r.URL.Path))
		return
	case BasicLicensed:
		fail(w, http.StatusForbidden, unlicensed()) // Supermicro's words
		return
	}
	var login struct{ UserName, Password string }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&login); err != nil {
		fail(w, http.StatusBadRequest, malformedJSON())
		return
	}
	if !s.credentialsMatch(login.UserName, login.Password) {
		s.log.Warn("login refused", "bmc", s.config.Address.String(), "client", r.RemoteAddr)
		fail(w, http.StatusUnauthorized, message{ID: "Base.1.16.ResourceAtUriUnauthorized", Severity: "Critical",
			Text:       "While accessing the resource at '" + sessionsPath + "', the service received an authorization error.",
			Resolution: "Ensure that the user name and password are right."})
		return
	}
	client, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		client = r.RemoteAddr
	}
	now := time.Now()
	token := rand.Text()

	s.mu.Lock()
	s.expire()
	if len(s.open) >= s.config.MaxSessions {
		s.mu.Unlock()
		// iDRAC answers 503 with RAC0218 here; Base's message is the portable form.
		fail(w, http.StatusServiceUnavailable, message{ID: "Base.1.16.SessionLimitExceeded", Severity: "Critical",
			Text:       "The session establishment failed because the number of simultaneous sessions exceeds the limit of the implementation.",
			Resolution: "Reduce the number of other sessions before trying to establish the session."})
		return
	}
	s.serial++
	created := &session{id: strconv.Itoa(s.serial), created: now, used: now, client: client}
	s.open[token] = created
	expired := s.expired
	s.mu.Unlock()

	w.Header().Set("X-Auth-Token", token)
	body := s.resource(created)
	if expired {
		body["@Message.ExtendedInfo"] = []message{passwordChange()} // DSP0266 §13.3.7.1
	}
	if s.faults.now().anonymous {
		delete(body, "@odata.id")
		delete(body, "Id")
	} else {
		w.Header().Set("Location", sessionsPath+"/"+created.id)
	}
	reply(w, http.StatusCreated, body)
}

// changeDemanded reports whether the request must wait until the password has
// been changed (DSP0266 §13.3.7.1).
func (s *sessions) changeDemanded(r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := strings.HasPrefix(r.URL.Path, accountPath) || strings.HasPrefix(r.URL.Path, sessionsPath+"/")
	return s.expired && !own
}

func (s *sessions) remove(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	s.mu.Lock()
	defer s.mu.Unlock()
	for token, one := range s.open {
		if one.id == id {
			delete(s.open, token)
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	fail(w, http.StatusNotFound, missing(r.URL.Path))
}

func (s *sessions) resource(one *session) resource {
	return resource{
		"@odata.id": sessionsPath + "/" + one.id, "@odata.type": "#Session.v1_6_0.Session",
		"Id": one.id, "Name": "User Session", "UserName": s.config.Username, "Password": nil,
		"SessionType": "Redfish", "CreatedTime": one.created.UTC().Format(time.RFC3339),
		"ClientOriginIPAddress": one.client,
	}
}

// addTo adds the session service to the tree.
func (s *sessions) addTo(t tree) {
	if s.config.Login == BasicOnly {
		return
	}
	s.mu.Lock()
	s.expire()
	open := slices.Collect(maps.Values(s.open))
	timeout := s.timeout
	s.mu.Unlock()

	t.add("/redfish/v1/SessionService", "#SessionService.v1_1_9.SessionService", "Session Service", resource{
		"Description": fmt.Sprintf("At most %d sessions at once", s.config.MaxSessions),
		"Status":      enabled(), "ServiceEnabled": s.config.Login != BasicLicensed,
		"SessionTimeout": int(timeout / time.Second), "Sessions": link(sessionsPath),
	})
	for _, one := range open {
		t[sessionsPath+"/"+one.id] = s.resource(one)
	}
	t.collect(sessionsPath, "Session", "Session Collection")
}

// patchService changes the idle timeout: 30 to 86400 seconds (SessionService schema).
func (s *sessions) patchService(body map[string]any) *message {
	for name, value := range body {
		seconds, ok := value.(float64)
		if name != "SessionTimeout" {
			return unknownProperty(name)
		}
		if !ok || seconds < 30 || seconds > 86400 {
			return badValue(name, value)
		}
		s.mu.Lock()
		s.timeout = time.Duration(seconds) * time.Second
		s.mu.Unlock()
	}
	return nil
}

// patchAccount changes the password of the one account.
func (s *sessions) patchAccount(body map[string]any) *message {
	for name, value := range body {
		password, ok := value.(string)
		if name != "Password" {
			return unknownProperty(name)
		}
		if !ok || strings.TrimSpace(password) == "" {
			return badValue(name, "******")
		}
		s.setPassword(password)
	}
	return nil
}
