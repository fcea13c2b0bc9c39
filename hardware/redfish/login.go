package redfish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/bmc-toolbox/bmclib/v2"
	bmcredfish "github.com/bmc-toolbox/bmclib/v2/providers/redfish"
	"github.com/go-logr/logr"
	"github.com/jacobweinstock/registrar"

	"github.com/rackweft/rackweft/hardware"
)

const rootPath = "/redfish/v1/"

// readRoot reads DSP0266's entry point. It needs no login; a BMC that asks for one all the same has no place to log in at
// that we could know of, and is asked with basic authentication.
func (s *Service) readRoot(ctx context.Context) error {
	_, err := s.get(ctx, rootPath, &s.root)
	var no *refusal
	if errors.As(err, &no) && no.status == http.StatusUnauthorized {
		s.useBasic(no)
		_, err = s.get(ctx, rootPath, &s.root)
	}
	if errors.As(err, &no) && s.transport.basic == "" {
		return fmt.Errorf("no Redfish service there (%w): check address and port", no)
	}
	return err
}

// login opens a session: one request with the password, whatever comes of it. Where sessions are not to be had, the
// password goes with every request.
func (s *Service) login(ctx context.Context) error {
	if s.refused {
		return fmt.Errorf("%w: not tried again", hardware.ErrUnauthorized)
	}
	if s.transport.basic != "" {
		return nil
	}
	at, err := s.sessionsPath(ctx)
	if err != nil {
		return err
	}
	if at == "" {
		s.useBasic(errors.New("it has no SessionService"))
		return nil
	}
	s.sessions = at
	err = s.openSession(ctx)
	var no *refusal
	if errors.As(err, &no) {
		return s.loginRefused(ctx, no)
	}
	if err != nil {
		return err
	}
	if wantsPasswordChange(s.transport.opened) {
		return errors.Join(s.passwordChange(), s.logout(ctx))
	}
	return s.keepSession(ctx)
}

// sessionsPath is where sessions are opened. The service root names it so that a client without a login finds it
// (DSP0266 §13.3.4.1); some name the SessionService only, which has it at the usual place.
func (s *Service) sessionsPath(ctx context.Context) (string, error) {
	if s.sessions != "" {
		return s.sessions, nil
	}
	if at := pathOf(string(s.root.Links.Sessions.ID)); at != "" {
		return at, nil
	}
	service := pathOf(string(s.root.SessionService.ID))
	if service == "" {
		return "", nil
	}
	var found struct {
		Sessions link `json:"Sessions"`
	}
	_, err := s.get(ctx, service, &found)
	if at := pathOf(string(found.Sessions.ID)); at != "" {
		return at, nil
	}
	var no *refusal
	if err != nil && !errors.As(err, &no) {
		return "", err
	}
	return strings.TrimSuffix(service, "/") + "/Sessions", nil
}

// openSession has bmclib's gofish open the session. gofish is not to read the service root, which it refuses for the
// smallest oddity: the transport answers it with what was read already.
func (s *Service) openSession(ctx context.Context) error {
	root, err := json.Marshal(map[string]any{"@odata.id": rootPath, "Links": map[string]any{"Sessions": map[string]string{"@odata.id": s.sessions}}})
	if err != nil {
		return err
	}
	t := s.transport
	t.ctx, t.refusal, t.failure, t.opened, t.root = ctx, nil, nil, nil, root
	defer func() { t.root = nil }()
	host, port, err := net.SplitHostPort(strings.TrimPrefix(s.base, "https://"))
	if err != nil {
		return err
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	// bmclib tries every driver in its registry with the same password, at once: give it exactly one.
	gofish := bmcredfish.New("https://"+host, s.username, s.password, logr.Discard(), bmcredfish.WithHttpClient(s.http), bmcredfish.WithPort(port))
	registry := registrar.NewRegistry()
	registry.Register(bmcredfish.ProviderName, bmcredfish.ProviderProtocol, bmcredfish.Features, nil, gofish)
	client := bmclib.NewClient(s.address, s.username, s.password, bmclib.WithRegistry(registry), bmclib.WithHTTPClient(s.http))
	err = client.Open(ctx)
	s.http.Timeout = 0 // bmclib makes the time left of this ctx the limit of all later requests
	switch {
	case t.refusal != nil:
		return t.refusal
	case t.failure != nil:
		return t.failure // bmclib's own words bury it in a list of drivers
	case t.opened == nil && err == nil:
		err = errors.New("BMC was not asked for a session")
	}
	return err
}

// loginRefused decides what a refused login means. The password is not sent again where it may have been meant.
func (s *Service) loginRefused(ctx context.Context, no *refusal) error {
	switch {
	case no.passwordChange():
		s.refused = true
		return s.passwordChange()
	case no.status == http.StatusServiceUnavailable || no.says("SessionLimitExceeded"):
		return s.loginWithoutSession(ctx, no)
	case no.status == http.StatusNotFound || no.unsupported():
		s.useBasic(no)
		return nil
	case no.status == http.StatusUnauthorized || no.status == http.StatusForbidden || no.says("Unauthorized"): // iLO: 400 UnauthorizedLoginAttempt
		return s.unauthorized(no)
	}
	return no
}

// loginWithoutSession is for a BMC whose sessions are all in use, by others or by a bootd that was killed: the password
// goes with every request where the BMC takes it so.
func (s *Service) loginWithoutSession(ctx context.Context, full *refusal) error {
	s.crowded = true
	s.useBasic(full)
	_, err := s.get(ctx, s.sessions, &struct{}{})
	var no *refusal
	switch {
	case !errors.As(err, &no):
		return err
	case no.status != http.StatusUnauthorized && no.status != http.StatusForbidden && no.status != http.StatusServiceUnavailable:
		return nil // it let us in, whatever it says of that resource
	}
	s.transport.basic = ""
	return fmt.Errorf("it takes no login (%w): all its sessions may be in use, they end by themselves in half an hour", full)
}

func (s *Service) unauthorized(no *refusal) error {
	s.refused = true
	return fmt.Errorf("%w: it refused user %q (%w): check user name and password in its Secret; some BMCs lock accounts for a while",
		hardware.ErrUnauthorized, s.username, no)
}

func (s *Service) passwordChange() error {
	s.refused = true
	return fmt.Errorf("%w: log in to its web page as %q, set a new password, and put that into its Secret", hardware.ErrPasswordChange, s.username)
}

// useBasic sends the password with every request from now on (RFC 7617; DSP0266 §13.3.2 has every service take it).
func (s *Service) useBasic(why error) {
	s.log.Info("BMC opens no session, using basic authentication", "why", why)
	s.transport.useBasic(s.username, s.password)
}

// keepSession finds out how to end the session that was opened. One that cannot be ended is used, and is the last one:
// each further login would leave another behind.
func (s *Service) keepSession(ctx context.Context) error {
	t := s.transport
	if t.token == "" {
		s.useBasic(errors.New("it opened a session without a token"))
		return nil
	}
	if t.session != "" {
		return nil
	}
	at, err := s.ownSession(ctx)
	if err != nil {
		return err
	}
	if at == "" {
		s.log.Warn("BMC does not say which session it opened: it ends by itself")
		s.useBasic(errors.New("its session cannot be ended"))
		return nil
	}
	t.session = at
	return nil
}

// ownSession looks for the session in the BMC's list: it must be the only one of our user.
func (s *Service) ownSession(ctx context.Context) (string, error) {
	list, err := s.members(ctx, s.sessions)
	if err != nil {
		return "", ignoreRefusal(err)
	}
	own := ""
	for _, at := range list {
		var session struct {
			User text `json:"UserName"`
		}
		if _, err := s.get(ctx, at, &session); ignoreRefusal(err) != nil {
			return "", err
		}
		if string(session.User) != s.username {
			continue
		}
		if own != "" {
			return "", nil
		}
		own = at
	}
	return own, nil
}

// logout ends the session. A BMC that has forgotten it has ended it.
func (s *Service) logout(ctx context.Context) error {
	t := s.transport
	defer t.plain.CloseIdleConnections()
	s.refused = true // a closed BMC does not log in again
	session := t.session
	defer t.forget()
	if session == "" {
		return nil
	}
	t.ctx = ctx
	for try := 1; ; try++ {
		_, err := s.sendOnce(ctx, http.MethodDelete, session, "", nil)
		var no *refusal
		if errors.As(err, &no) && (no.status == http.StatusUnauthorized || no.status == http.StatusNotFound) {
			return nil
		}
		if err == nil || try == 2 || !errors.As(err, &no) {
			return err
		}
	}
}
