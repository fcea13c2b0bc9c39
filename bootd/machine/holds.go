package machine

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
)

// holds remembers until when something is not asked again after an error: the
// BMC of some Machines whose login is refused or that is silent, all that one
// Machine asks, or one question of one Machine.
type holds struct {
	mu sync.Mutex
	by map[scope]hold
}

// scope is what a hold is about. A question that a BMC refuses says nothing about
// the others.
type scope struct {
	bmc      string // address and credentials; empty for one Machine alone
	machine  string
	question string // empty for all
}

type hold struct {
	key   string // what the failed call was made with: a change tries again at once
	until time.Time
	fails int
	// login says that the password or the certificate is wrong: asking once more
	// could lock the account.
	login  bool
	reason string // as a condition calls it
	why    string
}

// call is what a BMC is asked with.
type call struct {
	machine string
	bmc     string // address and credentials
	key     string // of the Machine's questions
	login   string // of the BMC
	action  action
}

// urgent reports whether the call does not wait because of what others met: a
// person asks, or a lost host is to be fenced.
func (c call) urgent() bool {
	return c.action.ask == askFence || c.action.request != nil && c.action.request.Verb != api.VerbReprovision
}

func (c call) onBMC() scope     { return scope{bmc: c.bmc} }
func (c call) onMachine() scope { return scope{machine: c.machine} }
func (c call) onQuestion() scope {
	return scope{machine: c.machine, question: c.action.doing()}
}

func (h *holds) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.by = map[scope]hold{}
}

// forget drops what is remembered of a Machine that is gone.
func (h *holds) forget(machine string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.by {
		if s.machine == machine {
			delete(h.by, s)
		}
	}
}

// answered drops what a call has shown to be over. One that was refused leaves
// its own hold.
func (h *holds) answered(c call, refused bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.by, c.onBMC())
	delete(h.by, c.onMachine())
	if !refused {
		delete(h.by, c.onQuestion())
	}
}

// of is the hold that keeps a call back for the longest time; a zero one when none does.
func (h *holds) of(c call) hold {
	h.mu.Lock()
	defer h.mu.Unlock()
	var found []hold
	if x, ok := h.by[c.onBMC()]; ok && x.key == c.login && (x.login || !c.urgent()) {
		found = append(found, x)
	}
	if x, ok := h.by[c.onMachine()]; ok && x.key == c.key && !c.urgent() {
		found = append(found, x)
	}
	if x, ok := h.by[c.onQuestion()]; ok && x.key == c.key && c.action.request == nil {
		found = append(found, x)
	}
	if len(found) == 0 {
		return hold{}
	}
	return slices.MaxFunc(found, func(a, b hold) int { return a.until.Compare(b.until) })
}

// fault is a call that failed. It is errHeld.
type fault struct {
	doing  string
	reason string
	err    error
	// refused says that the BMC answers and takes the password, and does not do what
	// was asked.
	refused bool
	wait    time.Duration // until it is tried again
}

func (f *fault) Error() string        { return fmt.Sprintf("%s: %s", f.doing, f.err) }
func (f *fault) Unwrap() error        { return f.err }
func (f *fault) Is(target error) bool { return target == errHeld }

// errHeld says that the BMC could not be used, or did not do what was asked; the
// condition says why.
var errHeld = errors.New("the BMC could not be used")

// fail notes the error of a call, which was made within a login if entered.
func (h *holds) fail(c call, entered bool, err error) *fault {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := &fault{doing: c.action.doing(), err: err, reason: reasonOf(err)}
	scopes, key := []scope{c.onQuestion()}, c.key
	switch f.reason {
	case "Unauthorized", "PasswordChangeRequired", "CertificateMismatch", "Untrusted":
		scopes, key = []scope{c.onBMC()}, c.login
	case "Unreachable":
		scopes, key = []scope{c.onBMC()}, c.login
		if c.action.ask == askFence { // which others' silence does not hold back
			h.note(c.onQuestion(), c.key, f)
		}
	default:
		if f.refused = entered; !entered {
			scopes = []scope{c.onMachine()}
		}
	}
	for _, s := range scopes {
		h.note(s, key, f)
	}
	return f
}

// note makes a hold of a fault, longer with each that follows.
func (h *holds) note(s scope, key string, f *fault) {
	x := h.by[s]
	if x.key != key {
		x = hold{key: key}
	}
	x.fails++
	f.wait = min(5*time.Second<<min(x.fails-1, 5), 2*time.Minute)
	switch f.reason {
	case "Unauthorized", "PasswordChangeRequired":
		f.wait, x.login = 5*time.Minute, true
	case "CertificateMismatch", "Untrusted":
		f.wait, x.login = 2*time.Minute, true
	case "Unsupported", "Forbidden":
		f.wait = 5 * time.Minute
	}
	x.until, x.reason, x.why = time.Now().Add(f.wait), f.reason, f.Error()
	h.by[s] = x
}

// reasonOf is what a condition calls an error of a BMC.
func reasonOf(err error) string {
	var certificate *hardware.CertificateMismatchError
	var hostKey *hardware.HostKeyMismatchError
	switch {
	case errors.As(err, &certificate):
		return "CertificateMismatch"
	case errors.As(err, &hostKey):
		return "HostKeyMismatch"
	case hardware.Distrusted(err):
		return "Untrusted"
	}
	for _, known := range []struct {
		is     error
		reason string
	}{
		{hardware.ErrPasswordChange, "PasswordChangeRequired"},
		{hardware.ErrUnauthorized, "Unauthorized"},
		{hardware.ErrForbidden, "Forbidden"},
		{hardware.ErrUnsupported, "Unsupported"},
		{hardware.ErrNotSeen, "NotSeen"},
		{hardware.ErrUnreachable, "Unreachable"},
	} {
		if errors.Is(err, known.is) {
			return known.reason
		}
	}
	return "Error"
}

// ofBMC reports whether the hold is about the BMC as a whole: another of its Machines may have met it.
func (h hold) ofBMC() bool { return h.login || h.reason == "Unreachable" }

// left is how long a call is still kept back, and why.
func (h hold) left(now time.Time) (time.Duration, string) {
	return h.until.Sub(now), cmp.Or(h.why, errHeld.Error())
}
