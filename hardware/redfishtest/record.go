package redfishtest

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Request is one that the BMC has seen.
type Request struct {
	Method string
	Path   string // without the slash at the end
	Body   string
	Header http.Header
	Status int       // of the answer; 0 where there was none
	Said   string    // message id of a refusal
	At     time.Time // by the BMC's clock
}

// IfMatch is the entity tag that came with it.
func (r Request) IfMatch() string { return r.Header.Get("If-Match") }

// record has every request.
type record struct {
	lock     sync.Mutex
	logins   string // the path of requests that open sessions
	requests []Request
	forgot   int // the first of them that counts
	inFlight int
	crowd    int
}

func (r *record) begin(q *request, now time.Time) int {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.inFlight++
	r.crowd = max(r.crowd, r.inFlight)
	r.requests = append(r.requests, Request{Method: q.Method, Path: q.path, Body: string(q.body), Header: q.Header.Clone(), At: now})
	return len(r.requests) - 1
}

func (r *record) end(n int, answer *reply) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.inFlight--
	r.requests[n].Status, r.requests[n].Said = answer.status, answer.said
}

// Forget has Requests and what counts them begin again from here.
func (r *record) Forget() {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.forgot = len(r.requests)
}

// Requests are those seen, in order.
func (r *record) Requests() []Request {
	r.lock.Lock()
	defer r.lock.Unlock()
	return slices.Clone(r.requests[r.forgot:])
}

// Count is how many requests were seen, of one method or of any.
func (r *record) Count(methods ...string) int {
	n := 0
	for _, q := range r.Requests() {
		if len(methods) == 0 || slices.Contains(methods, q.Method) {
			n++
		}
	}
	return n
}

// Sent lists the requests of a method as "path body", without logins.
func (r *record) Sent(method string) []string {
	var list []string
	for _, q := range r.Requests() {
		if q.Method == method && q.Path != r.logins {
			list = append(list, strings.TrimSpace(q.Path+" "+q.Body))
		}
	}
	return list
}

// SentTwice lists the writes that were sent once more though the same had been accepted, with nothing else written to
// that resource in between.
func (r *record) SentTwice() []string {
	last := map[string]string{}
	var list []string
	for _, q := range r.Requests() {
		if q.Method == http.MethodGet || q.Method == http.MethodHead || q.Path == r.logins {
			continue
		}
		sent := q.Method + " " + q.Body
		if before, ok := last[q.Path]; ok && before == sent {
			list = append(list, q.Method+" "+q.Path+" "+q.Body)
		}
		// An answer that never came may have been lost after the BMC had done it.
		if q.Status < http.StatusBadRequest {
			last[q.Path] = sent
		}
	}
	return list
}

// passing are refusals that pass by themselves: the same write may be sent again, later.
func passing() []string {
	return []string{"InvalidOperationForSystemState", "ActionParameterValueConflict", "UnableToModifyDuringSystemPOST", "NoValidSession"}
}

// SentAgain lists the writes that were sent once more exactly as they were, If-Match included, after a refusal that does
// not pass by itself.
func (r *record) SentAgain() []string {
	type write struct{ method, path, body, etag string }
	refused := map[write]bool{}
	var list []string
	for _, q := range r.Requests() {
		w := write{q.Method, q.Path, q.Body, q.IfMatch()}
		if refused[w] {
			list = append(list, q.Method+" "+q.Path+" "+q.Body)
		}
		passes := q.Status >= http.StatusInternalServerError || slices.ContainsFunc(passing(), func(id string) bool { return strings.HasSuffix(q.Said, id) })
		refused[w] = q.Method != http.MethodGet && q.Status >= http.StatusBadRequest && !passes
	}
	return list
}

// Crowd is how many requests were under way at the same time, at most.
func (r *record) Crowd() int {
	r.lock.Lock()
	defer r.lock.Unlock()
	return r.crowd
}

// underWay is how many requests there are right now.
func (r *record) underWay() int {
	r.lock.Lock()
	defer r.lock.Unlock()
	return r.inFlight
}
