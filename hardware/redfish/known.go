package redfish

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/internal/wait"
)

// knownFor is how long it is remembered what a BMC is: firmware is updated, and things move with it.
const knownFor = time.Hour

// Known remembers what BMCs are between two logins, so that a short look takes three requests: login, look and logout.
// It counts for the certificate that the BMC had then, and after a call that failed everything is read again.
// The zero value remembers nothing yet. It is safe for concurrent use.
type Known struct {
	mu   sync.Mutex
	bmcs map[string]known // by address
}

// known is what a BMC is, and the systems of it that were used.
type known struct {
	certificate string
	root        serviceRoot
	sessions    string
	systems     map[string]driver // by the id that was asked for; without their service
	until       time.Time
}

// Connect logs in as the function Connect does, knowing what earlier logins have found out.
func (k *Known) Connect(ctx context.Context, endpoint hardware.Endpoint, log *slog.Logger) (*Service, error) {
	return connect(ctx, endpoint, log, wait.For, k)
}

// of is what is remembered of the BMC that has the pinned certificate.
func (k *Known) of(endpoint hardware.Endpoint) (known, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	is, ok := k.bmcs[endpoint.Address]
	return is, ok && endpoint.Fingerprint != "" && strings.EqualFold(is.certificate, endpoint.Fingerprint) && time.Now().Before(is.until)
}

// learn remembers one more system of a BMC.
func (k *Known) learn(s *Service, d driver) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	for at, is := range k.bmcs {
		if now.After(is.until) {
			delete(k.bmcs, at)
		}
	}
	is, ok := k.bmcs[s.address]
	if !ok || is.certificate != s.Fingerprint() {
		is = known{certificate: s.Fingerprint(), root: s.root, sessions: s.sessions, systems: map[string]driver{}, until: now.Add(knownFor)}
		is.root.Oem = map[string]json.RawMessage{}
		for key := range s.root.Oem {
			is.root.Oem[key] = nil // the keys tell the vendor
		}
	}
	d.Service, d.mode = nil, ""
	is.systems[d.wanted] = d
	if k.bmcs == nil {
		k.bmcs = map[string]known{}
	}
	k.bmcs[s.address] = is
}

// system is what is remembered of a system.
func (k *Known) system(s *Service, id string) (driver, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	is := k.bmcs[s.address]
	if is.certificate != s.transport.pin.expected() {
		return driver{}, false
	}
	d, ok := is.systems[id]
	return d, ok
}

// failed has all of the BMC read again after a call that failed, unless it was cancelled, which says nothing of the BMC.
func (k *Known) failed(ctx context.Context, address string) {
	if errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.bmcs, address)
}
