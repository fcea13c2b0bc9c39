package redfish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// Service is one BMC that is logged in to, with all its systems.
type Service struct {
	address  string
	base     string // https://host:port
	username string
	password string
	endpoint hardware.Endpoint // as it was given

	transport *transport
	http      *http.Client
	log       *slog.Logger
	turn      chan struct{} // holds one token: whose turn it is
	known     *Known

	root     serviceRoot
	sessions string // path of the collection that logins are posted to
	refused  bool   // the credentials were refused once, or the service is closed: never log in again
	proven   bool   // the BMC has let us in
	plain    bool   // the BMC does not expand collections, whatever its root says
	crowded  bool   // the BMC has few sessions, or said that it has none left
}

// Connect logs in to the BMC, exactly once. It fails with ErrUnreachable, ErrUnauthorized (do not try the same password
// again: accounts lock), ErrPasswordChange, or *CertificateMismatchError or *UntrustedError, in which case no credential was
// sent.
func Connect(ctx context.Context, endpoint hardware.Endpoint, log *slog.Logger) (*Service, error) {
	return new(Known).Connect(ctx, endpoint, log)
}

func connect(ctx context.Context, endpoint hardware.Endpoint, log *slog.Logger, pause pauser, known *Known) (*Service, error) {
	if endpoint.Protocol != "" && endpoint.Protocol != "redfish" {
		return nil, fmt.Errorf("BMC %s: protocol %q is not known: use redfish", endpoint.Address, endpoint.Protocol)
	}
	s, err := newService(endpoint, log.With("bmc", endpoint.Address), pause)
	if err == nil {
		s.known = known
		err = s.enter(ctx, endpoint)
	}
	if err != nil {
		known.failed(ctx, endpoint.Address)
		return nil, fmt.Errorf("log in to BMC %s: %w", endpoint.Address, err)
	}
	return s, nil
}

func newService(endpoint hardware.Endpoint, log *slog.Logger, pause pauser) (*Service, error) {
	host, port, err := splitAddress(endpoint.Address)
	if err != nil {
		return nil, err
	}
	if endpoint.Username == "" || endpoint.Password == "" {
		return nil, errors.New("user name or password is empty: fill in its Secret")
	}
	if err := checkFingerprint(endpoint.Fingerprint); err != nil {
		return nil, err
	}
	t := newTransport(endpoint, log, pause)
	return &Service{endpoint: endpoint, address: endpoint.Address, base: "https://" + host + ":" + port, username: endpoint.Username, password: endpoint.Password,
		transport: t, log: log, turn: make(chan struct{}, 1), http: &http.Client{Transport: t, CheckRedirect: sameHost}}, nil
}

// enter reads the service root where it is not known, which needs no login, and logs in.
func (s *Service) enter(ctx context.Context, endpoint hardware.Endpoint) (err error) {
	if is, ok := s.known.of(endpoint); ok {
		s.root, s.sessions = is.root, is.sessions
	} else {
		err = s.readRoot(ctx)
	}
	if err == nil {
		err = s.login(ctx)
	}
	if err != nil {
		s.transport.plain.CloseIdleConnections()
	}
	return err
}

// System gives the server with this id, which may be empty where the BMC has one server only.
func (s *Service) System(ctx context.Context, id string) (hardware.BMC, error) {
	b, err := s.bmc(ctx, id)
	if err != nil {
		return nil, err // a nil *BMC is no nil hardware.BMC
	}
	return b, nil
}

func (s *Service) bmc(ctx context.Context, id string) (*BMC, error) {
	if d, ok := s.known.system(s, id); ok {
		d.Service, d.recalled = s, true
		s.transport.closeConnections = d.quirk.closeConnections
		return &BMC{service: s, driver: &d}, nil
	}
	d := &driver{Service: s, wanted: id}
	if err := s.do(ctx, "find the system", func() error { return d.identifyItself(ctx) }); err != nil {
		return nil, err
	}
	s.known.learn(s, *d)
	return &BMC{service: s, driver: d}, nil
}

// Spare reports whether the BMC has logins to spare: basic authentication keeps none.
func (s *Service) Spare() bool { return !s.crowded }

// Fingerprint is the certificate that the BMC presented, as sha256:<hex>.
func (s *Service) Fingerprint() string { return s.transport.pin.presented() }

// Close logs out, even when ctx is over: it takes ten seconds of its own if it must.
func (s *Service) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return s.do(ctx, "log out", func() error { return s.logout(ctx) })
}

// do runs one call when it is its turn. One that fails may have gone by what is no longer so: all of it is read again.
func (s *Service) do(ctx context.Context, what string, call func() error) error {
	return s.inTurn(ctx, what, func() error {
		err := call()
		if err != nil {
			s.known.failed(ctx, s.address)
		}
		return err
	})
}

// inTurn runs one call when it is its turn.
func (s *Service) inTurn(ctx context.Context, what string, call func() error) error {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%s on BMC %s: waiting for an earlier request: %w", what, s.address, ctx.Err())
	}
	defer func() { <-s.turn }()
	err := call()
	if errors.Is(err, hardware.ErrUnsupported) {
		err = &hardware.UnsupportedError{Verb: what, Err: err}
	}
	if err != nil {
		return fmt.Errorf("%s on BMC %s: %w", what, s.address, err)
	}
	return nil
}
