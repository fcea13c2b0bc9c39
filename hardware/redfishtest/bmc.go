package redfishtest

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// The user that every BMC here knows at first.
const (
	Username = "admin"
	Password = "correct horse"
)

// bodyLimit is the longest request body that is read.
const bodyLimit = 1 << 20

// BMC is a management controller: an http.Handler that serves a tree.
type BMC struct {
	// Clock is its time and its server's. It is set before the first request.
	Clock *Clock
	// Delay is how long it thinks about each request, in real time.
	Delay time.Duration
	// PostTime is how long the server's POST takes. Default: 60 seconds.
	PostTime time.Duration
	// OnBoot is called at every boot. It must not call the BMC.
	OnBoot func(Boot)

	rules
	record
	born    time.Time
	dropped sync.Map // connections

	mu       sync.Mutex
	tree     Tree
	door     *door
	hosts    map[string]*host  // by the system's path
	media    map[string]*media // by the resource's path
	tasks    tasks
	made     int                 // members of collections, by POST
	salt     map[string]int      // of a resource's etag
	moved    map[string]bool     // resources whose etag has moved
	busy     map[string]int      // refusals so far, by method and path
	parents  map[string]bool     // resources that were read
	scripted map[string][]Answer // by method and path
}

// New returns a BMC with a copy of the tree. It fails for a tree without a system and for a trait that is not known.
func New(tree Tree, traits ...Trait) (*BMC, error) {
	known := Traits()
	rules := rules{}
	for _, trait := range traits {
		if known[trait] == "" {
			return nil, fmt.Errorf("invalid trait %q: want one of Traits", trait)
		}
		rules[trait] = true
	}
	if len(tree.systems()) == 0 {
		return nil, fmt.Errorf("invalid tree: %s has no member that is there", rootPath+"/Systems")
	}
	b := &BMC{
		Clock: NewClock(start(tree)), PostTime: time.Minute, rules: rules, tree: tree.Clone(),
		hosts: map[string]*host{}, media: map[string]*media{}, tasks: tasks{rules, map[string]time.Time{}},
		salt: map[string]int{}, moved: map[string]bool{}, busy: map[string]int{}, parents: map[string]bool{}, scripted: map[string][]Answer{},
	}
	b.born = b.Clock.Now()
	b.door = newDoor(b.tree, rules)
	b.record.logins = b.door.path
	adapt(b.tree, rules)
	for _, at := range b.tree.systems() {
		b.hosts[at] = newHost(b, at)
	}
	for at, resource := range b.tree {
		if strings.HasPrefix(str(resource, "@odata.type"), "#VirtualMedia.") {
			b.media[at] = &media{rules: rules, resource: resource}
		}
	}
	return b, nil
}

// start is the time of a tree's manager.
func start(tree Tree) time.Time {
	for _, at := range tree.managers() {
		if t, err := time.Parse(time.RFC3339, str(tree[at], "DateTime")); err == nil && t.Year() > 2000 {
			return t
		}
	}
	return time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
}

// rules are the traits that a BMC has.
type rules map[Trait]bool

func (r rules) has(trait Trait) bool { return r[trait] }

// Traits are the traits that this BMC has, in order.
func (b *BMC) Traits() []Trait { return slices.Sorted(maps.Keys(b.rules)) }

// Answer is what a test has a BMC answer instead of its own.
type Answer struct {
	Status int
	Header http.Header
	Body   string
	// Do is done in place of the above.
	Do http.HandlerFunc
}

// Refusal is a Redfish error as an answer.
func Refusal(status int, id string) Answer {
	return Answer{Status: status, Body: fmt.Sprintf(
		`{"error":{"code":"Base.1.8.GeneralError","message":"see ExtendedInfo","@Message.ExtendedInfo":[{"MessageId":%q,"Message":"no"}]}}`, id)}
}

// Script has the next requests of this method and path answered as given, one each.
func (b *BMC) Script(method, at string, answers ...Answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := method + " " + at
	b.scripted[key] = append(b.scripted[key], answers...)
}

// Set changes a property of a resource, as if something on the BMC did.
func (b *BMC) Set(at, key string, value any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tree[at][key] = value
}

// Get is a copy of a resource as the BMC would show it now; nil where there is none.
func (b *BMC) Get(at string) Resource {
	b.mu.Lock()
	defer b.mu.Unlock()
	resource := b.shown(at)
	if resource == nil {
		return nil
	}
	return clone(resource).(Resource)
}

func (b *BMC) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, bodyLimit))
	if err != nil || b.unread(r) {
		panic(http.ErrAbortHandler)
	}
	q := &request{Request: r, path: b.place(r.URL.Path), body: body}
	answer := &reply{ResponseWriter: w, rules: b.rules}
	n := b.begin(q, b.Clock.Now())
	defer func() { b.end(n, answer) }()
	if b.has(Silent) {
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
	if b.Delay > 0 && !pause(r, b.Delay) {
		panic(http.ErrAbortHandler)
	}
	if scripted, ok := b.next(q); ok {
		scripted.write(answer, r)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.has(NoClock) {
		answer.date = b.wall().UTC().Format(http.TimeFormat)
	}
	b.answer(answer, q)
}

// request is an HTTP request that was read to its end.
type request struct {
	*http.Request
	path string // without the slash at the end
	body []byte
}

func canonical(p string) string {
	if short := strings.TrimRight(p, "/"); short != "" {
		return short
	}
	return "/"
}

// place is the path of the resource that is meant.
func (b *BMC) place(p string) string {
	p = canonical(p)
	if b.tree[p] != nil || !b.has(AnyCase) {
		return p
	}
	for at := range b.tree {
		if strings.EqualFold(at, p) {
			return at
		}
	}
	return p
}

// pause waits in real time; false when the client has gone.
func pause(r *http.Request, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.Context().Done():
		return false
	case <-timer.C:
		return true
	}
}

func (b *BMC) next(q *request) (Answer, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := q.Method + " " + q.path
	list := b.scripted[key]
	if len(list) == 0 {
		return Answer{}, false
	}
	b.scripted[key] = list[1:]
	return list[0], true
}

func (a Answer) write(w http.ResponseWriter, r *http.Request) {
	if a.Do != nil {
		a.Do(w, r)
		return
	}
	maps.Copy(w.Header(), a.Header)
	w.WriteHeader(a.Status)
	_, _ = io.WriteString(w, a.Body) // a client that has gone reads nothing
}

// answer decides in the order in which a BMC does: is it able to, who is it, may it, what is it.
func (b *BMC) answer(w *reply, q *request) {
	switch {
	case b.refusesBusy(w, q), b.refusesEncoding(w, q), b.redirects(w, q):
	case q.path == "/redfish":
		w.send(http.StatusOK, Resource{"v1": rootPath + "/"})
	case q.path == rootPath && q.Method == http.MethodGet:
		b.read(w, q)
	case q.path == b.door.path && q.Method == http.MethodPost:
		b.door.login(w, q, b.Clock.Now())
	case b.door.refuses(w, q, b.Clock.Now()):
	case q.Method == http.MethodGet || q.Method == http.MethodHead:
		b.read(w, q)
	case q.Method == http.MethodDelete:
		b.remove(w, q)
	case b.has(ReadOnlyUser):
		w.refuse(http.StatusForbidden, "Base.1.8.InsufficientPrivilege", "There are insufficient privileges for the account.")
	case q.Method == http.MethodPatch, q.Method == http.MethodPut && strings.HasPrefix(str(b.tree[q.path], "@odata.type"), "#HpeTlsConfig."):
		b.patch(w, q)
	case q.Method == http.MethodPost:
		b.post(w, q)
	default:
		w.refuse(http.StatusMethodNotAllowed, "Base.1.8.OperationNotAllowed", "The HTTP method is not allowed on this resource.")
	}
}

// refusesBusy is what a BMC says that cannot take a request now, whatever it is.
func (b *BMC) refusesBusy(w *reply, q *request) bool {
	if q.path == rootPath {
		return false
	}
	age := b.Clock.Now().Sub(b.born)
	switch {
	case b.has(OneAtATime) && b.underWay() > 1:
		w.refuse(http.StatusServiceUnavailable, "Base.1.8.ServiceTemporarilyUnavailable", "The service is busy.")
	case b.has(Reloading) && age < 30*time.Second:
		w.refuse(http.StatusServiceUnavailable, "IDRAC.2.8.SYS518", "iDRAC is currently unable to display any information because data sources are unavailable.")
	case b.has(SessionsTaken) && q.path == b.door.path && q.Method == http.MethodPost && age < 40*time.Second:
		w.refuse(http.StatusServiceUnavailable, "IDRAC.2.8.RAC0218", "The maximum number of user sessions is reached.")
	case b.has(BusyRetryAfter) && b.notYet(q):
		w.Header().Set("Retry-After", "5")
		w.refuse(http.StatusServiceUnavailable, "Base.1.8.ServiceTemporarilyUnavailable", "The service is temporarily unavailable. Retry in 5 seconds.")
	case b.has(Busy) && b.notYet(q):
		w.refuse(http.StatusServiceUnavailable, "Base.1.8.ServiceInUnknownState", "The operation failed because the service is in an unknown state.")
	default:
		return false
	}
	return true
}

// notYet is true for the first two requests of each kind.
func (b *BMC) notYet(q *request) bool {
	key := q.Method + " " + q.path
	b.busy[key]++
	return b.busy[key] <= 2
}

func (b *BMC) refusesEncoding(w *reply, q *request) bool {
	if !b.has(NoIdentity) || q.Header.Get("Accept-Encoding") != "identity" {
		return false
	}
	w.refuse(http.StatusNotAcceptable, "Base.1.8.HeaderInvalid", "The header Accept-Encoding: identity is invalid.")
	return true
}

func (b *BMC) redirects(w *reply, q *request) bool {
	if !b.has(RedirectsSlash) || q.Method != http.MethodGet || strings.HasSuffix(q.URL.Path, "/") {
		return false
	}
	http.Redirect(w, q.Request, q.path+"/", http.StatusPermanentRedirect)
	return true
}
