// Package fallback is a BMC that is spoken to in Redfish, and in IPMI for the verbs that it does not offer over Redfish and
// while its Redfish does not answer. It is the one place that chooses. Never by the other way goes what was refused for the
// password, for the account's rights or for what the BMC presented, nor a command that may have been carried out.
package fallback

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// downFor is how long a way that did not answer is not tried again.
const downFor = time.Minute

// Connect logs in to a BMC by one way.
type Connect func(context.Context, hardware.Endpoint) (hardware.Service, error)

// Service is one BMC with its two ways.
type Service struct {
	endpoint      hardware.Endpoint
	redfish, ipmi way
	log           *slog.Logger
}

// way is one protocol. Its login is opened when it is first needed.
type way struct {
	connect  Connect
	endpoint hardware.Endpoint

	mu      sync.Mutex // held while logging in
	service hardware.Service
	down    error // why it did not answer
	until   time.Time
}

// New logs in over Redfish, or over IPMI where Redfish does not answer.
func New(ctx context.Context, endpoint hardware.Endpoint, redfish, ipmi Connect, log *slog.Logger) (*Service, error) {
	s := &Service{endpoint: endpoint, redfish: way{connect: redfish, endpoint: endpoint}, ipmi: way{connect: ipmi, endpoint: endpoint},
		log: log.With("bmc", endpoint.Address)}
	_, err := s.redfish.open(ctx)
	if err == nil {
		return s, nil
	}
	if !errors.Is(err, hardware.ErrUnreachable) || ctx.Err() != nil {
		return nil, err
	}
	if _, other := s.ipmi.open(ctx); other != nil {
		return nil, both(err, other)
	}
	return s, nil
}

// open gives the login.
func (w *way) open(ctx context.Context) (hardware.Service, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Now().Before(w.until) {
		return nil, w.down
	}
	if w.service != nil {
		return w.service, nil
	}
	service, err := w.connect(ctx, w.endpoint)
	w.note(err)
	if err != nil {
		return nil, err
	}
	w.service = service
	return service, nil
}

// answered notes what came of a call, unless it was given up.
func (w *way) answered(ctx context.Context, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ctx.Err() == nil {
		w.note(err)
	}
}

// note keeps a way that does not answer from being tried for a while: it costs every verb the time of a silent connection.
// The caller holds mu.
func (w *way) note(err error) {
	if errors.Is(err, hardware.ErrUnreachable) {
		w.down, w.until = err, time.Now().Add(downFor)
	}
}

// current gives the login that is open already, or nil.
func (w *way) current() hardware.Service {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.service
}

// System gives the one server that both ways know: which of several IPMI means cannot be said.
func (s *Service) System(_ context.Context, id string) (hardware.BMC, error) {
	if id != "" {
		return nil, fmt.Errorf("system %s of BMC %s: IPMI cannot choose one: leave out spec.bmc.system, or fallback", id, s.endpoint.Address)
	}
	return &BMC{service: s}, nil
}

// Spare reports whether the BMC has Redfish logins to spare; IPMI's last for one command.
func (s *Service) Spare() bool {
	r := s.redfish.current()
	return r == nil || r.Spare()
}

// Fingerprint is the certificate that the BMC presented, or that is pinned where Redfish has not answered.
func (s *Service) Fingerprint() string {
	if r := s.redfish.current(); r != nil {
		return r.Fingerprint()
	}
	return s.endpoint.Fingerprint
}

// Close logs out of both.
func (s *Service) Close(ctx context.Context) error {
	var errs []error
	for _, w := range []*way{&s.redfish, &s.ipmi} {
		if service := w.current(); service != nil {
			errs = append(errs, service.Close(ctx))
		}
	}
	return errors.Join(errs...)
}

// sent says what a verb has done when its answer is lost.
type sent int

const (
	reading  sent = iota // nothing
	harmless             // asking twice has the effect of asking once
	once
)

// do asks over Redfish, and then over IPMI where that leads further.
func (s *Service) do(ctx context.Context, what string, repeat sent, call func(hardware.BMC) error) error {
	reached, err := ask(ctx, &s.redfish, call)
	if err == nil || !leadsFurther(err, reached && repeat == once) || ctx.Err() != nil {
		return err
	}
	if _, other := ask(ctx, &s.ipmi, call); other != nil {
		return both(err, other)
	}
	s.log.Info("done over IPMI", "verb", what, "redfish", err)
	hardware.NoteDetour(ctx, hardware.Detour{Verb: what, Protocol: "IPMI", Command: repeat != reading, Why: err})
	return nil
}

// ask reports whether the call got as far as the BMC.
func ask(ctx context.Context, w *way, call func(hardware.BMC) error) (reached bool, err error) {
	service, err := w.open(ctx)
	if err != nil {
		return false, err
	}
	defer func() { w.answered(ctx, err) }()
	bmc, err := service.System(ctx, "")
	if err != nil {
		return false, err
	}
	return true, call(bmc)
}

// leadsFurther reports whether IPMI may be asked for what failed over Redfish.
func leadsFurther(err error, mayBeDone bool) bool {
	switch {
	case errors.Is(err, hardware.ErrNotSeen), hardware.Distrusted(err), errors.Is(err, hardware.ErrForbidden),
		errors.Is(err, hardware.ErrUnauthorized), errors.Is(err, hardware.ErrPasswordChange):
		return false
	case errors.Is(err, hardware.ErrUnsupported):
		return true
	}
	return errors.Is(err, hardware.ErrUnreachable) && !mayBeDone
}

// bothError is what came of each way. What it is for callers is what came of the second, unless that is less: a verb that
// IPMI does not have leaves the BMC unreachable when Redfish was.
type bothError struct{ redfish, ipmi error }

func both(redfish, ipmi error) error { return &bothError{redfish, ipmi} }

func (e *bothError) Error() string { return fmt.Sprintf("%s; then %s", e.redfish, e.ipmi) }

func (e *bothError) Unwrap() []error {
	if errors.Is(e.ipmi, hardware.ErrUnsupported) || errors.Is(e.ipmi, hardware.ErrUnreachable) {
		return []error{e.redfish}
	}
	return []error{e.ipmi}
}
