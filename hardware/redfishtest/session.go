package redfishtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// session is a login that was not ended.
type session struct {
	token string
	used  time.Time
}

// internalAddress is what a BMC calls itself behind an address translation.
const internalAddress = "https://198.18.99.99"

// door lets users in.
type door struct {
	rules
	path     string // where sessions are opened
	sessions map[string]*session
	opened   int // sessions, in all
	wrong    int // passwords
	account  string
	password string
	change   bool // the password has to be changed first
}

func newDoor(tree Tree, rules rules) *door {
	d := &door{rules: rules, path: sessionsPath, sessions: map[string]*session{}, password: Password}
	if at := str(object(tree[rootPath], "Links", "Sessions"), "@odata.id"); at != "" {
		d.path = canonical(at)
	}
	d.account = userAccount(tree)
	d.change = rules.has(PasswordChangeRefuses) || rules.has(PasswordChangeInSession)
	return d
}

// Logins is how many sessions were opened.
func (b *BMC) Logins() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.door.opened
}

// SessionsLeft is how many sessions are open.
func (b *BMC) SessionsLeft() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.door.expire(b.Clock.Now())
	return len(b.door.sessions)
}

// EndSessions ends every session, as a BMC does that was reset.
func (b *BMC) EndSessions() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.door.sessions)
}

// WrongPasswords is how often a password was refused.
func (b *BMC) WrongPasswords() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.door.wrong
}

// SetPassword changes the password behind the back of its users.
func (b *BMC) SetPassword(password string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.door.password = password
}

func (d *door) expire(now time.Time) {
	limit := 30 * time.Minute
	if d.has(SessionsEnd) {
		limit = 5 * time.Minute
	}
	for at, s := range d.sessions {
		if now.Sub(s.used) > limit {
			delete(d.sessions, at)
		}
	}
}

func (d *door) login(w *reply, q *request, now time.Time) {
	d.expire(now)
	var sent struct{ UserName, Password string }
	switch {
	case d.has(NoSessions):
		w.refuse(http.StatusNotFound, "Base.1.8.ResourceMissingAtURI", "There is no resource at "+q.path, q.path)
	case d.has(SessionsNeedLicence):
		w.refuse(http.StatusForbidden, "SMC.1.0.OemLicenseNotPassed", "Not licensed to perform this request.")
	case json.Unmarshal(q.body, &sent) != nil:
		w.malformed()
	case sent.UserName != Username || sent.Password != d.password:
		d.wrong++
		w.refuse(http.StatusUnauthorized, "Base.1.8.ResourceAtUriUnauthorized", "Invalid username or password.")
	case d.has(PasswordChangeRefuses) && d.change:
		w.refuse(http.StatusForbidden, "Base.1.8.PasswordChangeRequired", passwordChange, d.account)
	case d.has(FewSessions) && len(d.sessions) >= 3:
		w.refuse(http.StatusServiceUnavailable, "IDRAC.2.8.RAC0218", "The maximum number of user sessions is reached.")
	default:
		d.open(w, q, now)
	}
}

const passwordChange = "The password provided for this account must be changed before access is granted."

// open answers a login that is good.
func (d *door) open(w *reply, q *request, now time.Time) {
	d.opened++
	id := fmt.Sprintf("%s-%d", Username, d.opened)
	at := q.path + "/" + id
	s := &session{token: fmt.Sprintf("token-%d", d.opened), used: now}
	d.sessions[at] = s
	w.Header().Set("X-Auth-Token", s.token)
	body := Resource{"@odata.id": at, "@odata.type": "#Session.v1_1_0.Session", "Id": id, "Name": "User Session", "UserName": Username}
	switch {
	case d.has(SessionAbsoluteLocation):
		w.Header().Set("Location", internalAddress+at)
	case d.has(SessionOnlyID):
		delete(body, "@odata.id")
	case !d.has(SessionNoLocation):
		w.Header().Set("Location", at)
	}
	if d.change {
		body["@Message.ExtendedInfo"] = []any{extended("Base.1.8.PasswordChangeRequired", passwordChange, d.account)}
	}
	w.send(http.StatusCreated, body)
}

// refusesUser answers requests of those that may not.
func (d *door) refuses(w *reply, q *request, now time.Time) bool {
	d.expire(now)
	switch {
	case !d.authenticated(q, now):
		w.refuse(http.StatusUnauthorized, "Base.1.8.NoValidSession", "There is no valid session established with the implementation.")
	case d.change && q.path != d.account && !(q.Method == http.MethodDelete && d.sessions[q.path] != nil):
		w.refuse(http.StatusForbidden, "Base.1.8.PasswordChangeRequired", passwordChange, d.account)
	default:
		return false
	}
	return true
}

func (d *door) authenticated(q *request, now time.Time) bool {
	if user, password, ok := q.BasicAuth(); ok {
		if d.has(NoBasic) {
			return false
		}
		if user != Username || password != d.password {
			d.wrong++
			return false
		}
		return true
	}
	for _, s := range d.sessions {
		if s.token == q.Header.Get("X-Auth-Token") {
			s.used = now
			return true
		}
	}
	return false
}

// sessionResource is what a GET of a session or of their d.path shows; nil for any other path.
func (d *door) resource(at string) Resource {
	if at == d.path && !d.has(NoSessions) {
		list := []any{}
		for path := range d.sessions {
			list = append(list, reference(path))
		}
		return Resource{"@odata.id": at, "@odata.type": "#SessionCollection.SessionCollection", "Name": "Sessions",
			"Members": list, "Members@odata.count": len(list)}
	}
	if d.sessions[at] == nil {
		return nil
	}
	return Resource{"@odata.id": at, "@odata.type": "#Session.v1_1_0.Session", "Id": strings.TrimPrefix(at, d.path+"/"),
		"Name": "User Session", "UserName": Username}
}
