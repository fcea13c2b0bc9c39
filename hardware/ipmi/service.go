package ipmi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os/exec"
	"strings"
	"time"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/internal/wait"
)

const (
	defaultPort  = "623"
	defaultSuite = 17

	// What IPMI has room for (§22.28, §22.30).
	maxUsername = 16
	maxPassword = 20
)

// Service is one BMC whose password was tried.
type Service struct {
	address  string
	tool     tool
	log      *slog.Logger
	pause    func(context.Context, time.Duration) error
	turn     chan struct{} // holds one token: whose turn it is
	open     context.Context
	close    context.CancelFunc
	identity hardware.Identity
}

// Connect asks the BMC whether it is there, which needs no password, and who it is, which does. It fails with
// ErrUnreachable or ErrUnauthorized; do not try the same password again then, accounts lock.
func Connect(ctx context.Context, endpoint hardware.Endpoint, log *slog.Logger) (*Service, error) {
	return connect(ctx, endpoint, log, wait.For)
}

func connect(ctx context.Context, endpoint hardware.Endpoint, log *slog.Logger, pause func(context.Context, time.Duration) error) (*Service, error) {
	s, err := newService(endpoint, log.With("bmc", endpoint.Address, "protocol", "ipmi"), pause)
	if err == nil {
		err = s.enter(ctx, cmp.Or(endpoint.ConnectTimeout, 10*time.Second))
	}
	if err != nil {
		return nil, fmt.Errorf("log in to BMC %s over IPMI: %w", endpoint.Address, err)
	}
	return s, nil
}

func newService(endpoint hardware.Endpoint, log *slog.Logger, pause func(context.Context, time.Duration) error) (*Service, error) {
	host, port, err := splitAddress(endpoint.Address)
	if err != nil {
		return nil, err
	}
	if err := checkCredentials(endpoint); err != nil {
		return nil, err
	}
	suite := cmp.Or(endpoint.IPMI.CipherSuite, defaultSuite)
	if suite != 17 && suite != 3 {
		return nil, fmt.Errorf("invalid cipher suite %d: want 17 or 3", suite)
	}
	program, err := exec.LookPath("ipmitool")
	if err != nil {
		return nil, fmt.Errorf("ipmitool is not installed where bootd runs: %w", err)
	}
	s := &Service{address: endpoint.Address, log: log, pause: pause, turn: make(chan struct{}, 1), tool: tool{
		program: program, host: host, port: port, username: endpoint.Username, password: endpoint.Password,
		suite: suite, privilege: cmp.Or(endpoint.IPMI.Privilege, "administrator")}}
	s.open, s.close = context.WithCancel(context.Background())
	return s, nil
}

// splitAddress gives host and port of ipmi://host[:port], or the host of a Redfish address, whose port is not IPMI's.
func splitAddress(address string) (host, port string, err error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", "", fmt.Errorf("address: %w", err)
	}
	if u.Scheme != "ipmi" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return "", "", errors.New("address must be ipmi://host or ipmi://host:port")
	}
	if u.Scheme == "https" {
		return u.Hostname(), defaultPort, nil
	}
	return u.Hostname(), cmp.Or(u.Port(), defaultPort), nil
}

func checkCredentials(e hardware.Endpoint) error {
	switch {
	case e.Username == "" || e.Password == "":
		return errors.New("user name or password is empty: fill in its Secret")
	case len(e.Username) > maxUsername || len(e.Password) > maxPassword:
		return fmt.Errorf("%w: IPMI takes user names of %d bytes and passwords of %d at most, its Secret has %d and %d",
			hardware.ErrUnauthorized, maxUsername, maxPassword, len(e.Username), len(e.Password))
	case strings.ContainsRune(e.Username+e.Password, 0):
		return errors.New("user name or password contains NUL: correct its Secret")
	}
	return nil
}

// enter takes at most limit to find out whether the BMC is there; what it then takes is its own affair.
func (s *Service) enter(ctx context.Context, limit time.Duration) error {
	if err := probe(ctx, net.JoinHostPort(s.tool.host, s.tool.port), limit); err != nil {
		return err
	}
	answer, err := s.send(ctx, getDeviceID)
	if err != nil {
		return err
	}
	s.identity, err = parseDeviceID(answer)
	return err
}

// System gives the one server that IPMI knows.
func (s *Service) System(_ context.Context, id string) (hardware.BMC, error) {
	if id != "" {
		return nil, fmt.Errorf("system %s of BMC %s: %w", id, s.address,
			&hardware.UnsupportedError{Verb: "choose a system", Err: errors.New("IPMI knows one server: leave spec.bmc.system out")})
	}
	return &BMC{service: s}, nil
}

// Spare is true: sessions last for one command.
func (s *Service) Spare() bool { return true }

// Fingerprint is empty: IPMI has no certificates. Both sides prove that they know the password (§13.31).
func (s *Service) Fingerprint() string { return "" }

// Close has nothing to log out of: what was called for is refused from then on.
func (s *Service) Close(context.Context) error {
	s.close()
	return nil
}

// do runs one call when it is its turn.
func (s *Service) do(ctx context.Context, what string, call func() error) error {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%s on BMC %s: waiting for an earlier command: %w", what, s.address, ctx.Err())
	}
	defer func() { <-s.turn }()
	if s.open.Err() != nil {
		return fmt.Errorf("%s on BMC %s: it was logged out of", what, s.address)
	}
	err := call()
	if errors.Is(err, hardware.ErrUnsupported) {
		err = &hardware.UnsupportedError{Verb: what, Err: err}
	}
	if err != nil {
		return fmt.Errorf("%s on BMC %s over IPMI: %w", what, s.address, err)
	}
	return nil
}
