// Package bmc is a baseboard management controller: a Redfish service over HTTPS that drives one or
// more servers through the small Machine interface. It owns authentication, sessions, the resource tree, the boot
// override, the event log, the event stream and the certificate; it knows neither QEMU nor namespaces.
//
// Its shape follows DMTF's schema and what iLO, iDRAC and Supermicro answer, so that a client which works
// here works there: weak ETags with If-Match, ExtendedInfo errors, 409 for "already on", a session limit.
// Faults (faults.go) make it as bad as a real one.
package bmc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/rackweft/rackweft/internal/wait"
)

// Config configures a BMC.
type Config struct {
	Dir                string // holds bmc.crt, bmc.key and ssh_host_key, so that what a client has pinned outlives the process
	Address            net.IP // of the BMC itself; in the certificate and in Managers/1
	Username, Password string
	Systems            []SystemConfig // at least one
	SessionTimeout     time.Duration  // idle. Default: 30 minutes
	MaxSessions        int            // Default: 8, as for iDRAC
	Login              Login          // Default: AnyLogin
	Events             EventAccess    // Default: StreamAndPost
	EventRetry         time.Duration  // between two attempts to deliver an event. Default: 30 s
	// Dial is how the BMC reaches others: the servers of images, the
	// destinations of events. Default: from where the process runs.
	Dial DialFunc
}

// Server is one BMC.
type Server struct {
	Faults

	config        Config
	systems       []*system
	log           *slog.Logger
	http          *http.Server
	events        *eventLog
	sessions      *sessions
	subscriptions *subscriptions
	tasks         *tasks
	started       time.Time

	work   sync.WaitGroup  // delayed actions, deliveries of events
	base   context.Context // of every request and delayed action; ends with Close
	cancel context.CancelFunc

	mu          sync.Mutex // guards the fields below
	certificate *tls.Certificate
	signer      ssh.Signer // the SSH host key; nil before its first use
	gates       []*gate    // the listeners
	unreachable bool
}

// New returns a BMC; it loads its certificate from config.Dir or creates one
// there.
func New(config Config, log *slog.Logger) (*Server, error) {
	if len(config.Systems) == 0 {
		return nil, fmt.Errorf("BMC %s: it has no system", config.Address)
	}
	if config.SessionTimeout == 0 {
		config.SessionTimeout = 30 * time.Minute
	}
	if config.MaxSessions == 0 {
		config.MaxSessions = 8
	}
	if config.EventRetry == 0 {
		config.EventRetry = 30 * time.Second
	}
	if config.Dial == nil {
		config.Dial = (&net.Dialer{}).DialContext
	}
	certificate, err := loadCertificate(config.Dir, config.Address)
	if err != nil {
		return nil, fmt.Errorf("certificate of the BMC %s: %w", config.Address, err)
	}
	base, cancel := context.WithCancel(context.Background())
	s := &Server{
		config:      config,
		log:         log,
		started:     time.Now(),
		base:        base,
		cancel:      cancel,
		certificate: certificate,
	}
	s.sessions = newSessions(config, &s.Faults, log)
	s.events = newEventLog(&s.Faults)
	s.subscriptions = &subscriptions{config: config, events: s.events, log: log, base: base, work: &s.work, all: map[int]*subscription{}}
	s.tasks = &tasks{clock: s.time}
	for i, one := range config.Systems {
		s.systems = append(s.systems, newSystem(one, i+1, s))
	}
	s.http = &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       60 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// HTTP/1.1 only, like the BMCs in the field.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.tlsCertificate(), nil },
		},
	}
	return s, nil
}

// Serve answers on l until Close; it closes l.
func (s *Server) Serve(l net.Listener) error {
	err := s.http.ServeTLS(s.addGate(l), "", "")
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("BMC %s: %w", s.config.Address, err)
}

// addGate lets faults act on a listener.
func (s *Server) addGate(l net.Listener) *gate {
	gate := newGate(l)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gates = append(s.gates, gate)
	gate.set(s.unreachable)
	return gate
}

// Close ends Serve, every connection and every delayed action. The server's power stays as it is.
func (s *Server) Close() error {
	s.cancel()
	s.SetUnreachable(false)
	err := s.http.Close()
	s.work.Wait()
	return err
}

// Notify is called by a machine for each event. It calls the machine only to
// end a GracefulRestart, and then from a goroutine of its own.
func (s *Server) Notify(e Event) {
	one := s.system(e.System)
	if one == nil {
		s.log.Error("an event of a system that the BMC does not have", "bmc", s.config.Address.String(), "system", e.System)
		return
	}
	one.notify(e, s.time())
}

// system returns the system of that Id, the first for "", or nil.
func (s *Server) system(id string) *system {
	for _, one := range s.systems {
		if id == "" || one.ID == id {
			return one
		}
	}
	return nil
}

// later runs do after a delay, unless the BMC is closed first.
func (s *Server) later(delay time.Duration, what string, do func(context.Context) error) {
	s.work.Go(func() {
		if wait.For(s.base, delay) != nil {
			return
		}
		ctx, cancel := context.WithTimeout(s.base, time.Minute)
		defer cancel()
		if err := do(ctx); err != nil {
			s.log.Warn("action failed", "bmc", s.config.Address.String(), "action", what, "error", err)
		}
	})
}
