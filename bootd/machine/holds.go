package machine

import (
	"errors"
	"sync"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// holds remembers, per Machine, until when its BMC is left alone.
type holds struct {
	mu sync.Mutex
	by map[string]hold
}

type hold struct {
	key   string // what the failed call was made with: a change tries again at once
	until time.Time
	fails int
}

func (h *holds) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.by = map[string]hold{}
}

func (h *holds) forget(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.by, name)
}

// until is until when the BMC is to be left alone, unless the key has changed.
func (h *holds) until(name, key string) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if x, ok := h.by[name]; ok && x.key == key {
		return x.until
	}
	return time.Time{}
}

// fail notes an error and says how to call it and when to try again.
func (h *holds) fail(name, key string, err error) (reason string, wait time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	x := h.by[name]
	if x.key != key {
		x = hold{key: key}
	}
	x.fails++
	var mismatch *hardware.CertificateMismatchError
	switch {
	case errors.Is(err, hardware.ErrUnauthorized):
		reason, wait = "Unauthorized", 5*time.Minute
	case errors.As(err, &mismatch):
		reason, wait = "CertificateMismatch", 2*time.Minute
	case errors.Is(err, hardware.ErrUnsupported):
		reason, wait = "Unsupported", 5*time.Minute
	case errors.Is(err, hardware.ErrUnreachable):
		reason, wait = "Unreachable", min(5*time.Second<<min(x.fails-1, 5), 2*time.Minute)
	default:
		reason, wait = "Error", min(5*time.Second<<min(x.fails-1, 5), 2*time.Minute)
	}
	x.until = time.Now().Add(wait)
	h.by[name] = x
	return reason, wait
}
