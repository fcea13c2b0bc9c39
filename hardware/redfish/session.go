package redfish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/bmc-toolbox/bmclib/v2"
	bmcredfish "github.com/bmc-toolbox/bmclib/v2/providers/redfish"
	"github.com/go-logr/logr"
	"github.com/jacobweinstock/registrar"

	"github.com/rackweft/rackweft/hardware"
)

// driver is the driver for DSP0266 services.
type driver struct {
	base      string // https://host:port
	username  string
	transport *transport
	http      *http.Client
	bmclib    *bmclib.Client
	log       *slog.Logger

	systemPath string
	quirk      quirk
	refused    bool // the credentials were refused once: never try them again
}

func dialDriver(ctx context.Context, endpoint hardware.Endpoint, log *slog.Logger, pause pauser) (*driver, error) {
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
	r := &driver{base: "https://" + host + ":" + port, username: endpoint.Username, transport: t, log: log,
		http: &http.Client{Transport: t, CheckRedirect: sameHost}}

	// bmclib tries every driver in its registry with the same password, at once: give it exactly one.
	gofish := bmcredfish.New("https://"+host, endpoint.Username, endpoint.Password, logr.Discard(),
		bmcredfish.WithHttpClient(r.http), bmcredfish.WithPort(port))
	registry := registrar.NewRegistry()
	registry.Register(bmcredfish.ProviderName, bmcredfish.ProviderProtocol, bmcredfish.Features, nil, gofish)
	r.bmclib = bmclib.NewClient(endpoint.Address, endpoint.Username, endpoint.Password,
		bmclib.WithRegistry(registry), bmclib.WithHTTPClient(r.http))

	if err := r.login(ctx); err != nil {
		t.plain.CloseIdleConnections()
		return nil, err
	}
	if err := r.identifyItself(ctx, endpoint.SystemID); err != nil {
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return nil, errors.Join(err, r.close(bye))
	}
	return r, nil
}

// login opens the session: one request with the password, whatever comes of it.
func (r *driver) login(ctx context.Context) error {
	if r.refused {
		return fmt.Errorf("%w: not tried again", hardware.ErrUnauthorized)
	}
	r.transport.ctx, r.transport.refusal = ctx, nil
	err := r.bmclib.Open(ctx)
	r.http.Timeout = 0 // bmclib makes the time left of this ctx the limit of all later requests
	if no := r.transport.refusal; no != nil {
		return r.loginRefused(no)
	}
	if err != nil && r.transport.failure != nil {
		return r.transport.failure // bmclib's own words bury it in a list of drivers
	}
	if err != nil {
		return err
	}
	if r.transport.token == "" {
		return errors.New("BMC opened a session without a token: is this its Redfish service?")
	}
	return nil
}

func (r *driver) loginRefused(no *refusal) error {
	// iLO answers 400 UnauthorizedLoginAttempt.
	if no.status == http.StatusUnauthorized || no.status == http.StatusForbidden || no.says("Unauthorized") {
		r.refused = true
		return fmt.Errorf("%w: it refused user %q (%w): check user name and password in its Secret; some BMCs lock accounts for a while",
			hardware.ErrUnauthorized, r.username, no)
	}
	if no.status == http.StatusServiceUnavailable {
		return fmt.Errorf("it takes no login (%w): all its sessions may be in use, they end by themselves in half an hour", no)
	}
	if no.method == http.MethodGet {
		return fmt.Errorf("no Redfish service there (%w): check address and port", no)
	}
	return no
}

// close ends the session, and makes sure of it: gofish swallows what a logout answers.
func (r *driver) close(ctx context.Context) error {
	defer r.transport.plain.CloseIdleConnections()
	if r.transport.session == "" {
		return nil
	}
	r.transport.ctx = ctx
	err := r.bmclib.Close(ctx)
	if session := r.transport.session; session != "" {
		_, err = r.send(ctx, http.MethodDelete, session, "", nil)
	}
	var no *refusal
	if errors.As(err, &no) && (no.status == http.StatusUnauthorized || no.status == http.StatusNotFound) {
		err = nil // it is over already
	}
	r.transport.token, r.transport.session = "", ""
	r.refused = true // a closed BMC does not log in again
	return err
}

func (r *driver) fingerprint() string { return r.transport.pin.presented() }

// send is one request on the session. A session that the BMC has forgotten (idle, or it restarted) is
// opened again, once.
func (r *driver) send(ctx context.Context, method, at, etag string, body any) (reply, error) {
	answer, err := r.sendOnce(ctx, method, at, etag, body)
	var no *refusal
	if !errors.As(err, &no) || no.status != http.StatusUnauthorized || method == http.MethodDelete {
		return answer, err
	}
	if r.alive(ctx) {
		return answer, err // meant for this request: another session would be refused as well
	}
	r.log.Info("BMC has ended the session, logging in again")
	r.transport.token, r.transport.session = "", ""
	if err := r.login(ctx); err != nil {
		return reply{}, fmt.Errorf("log in again: %w", err)
	}
	return r.sendOnce(ctx, method, at, etag, body)
}

// alive says whether the BMC still knows our session.
func (r *driver) alive(ctx context.Context) bool {
	if r.transport.session == "" {
		return false
	}
	_, err := r.sendOnce(ctx, http.MethodGet, r.transport.session, "", nil)
	var no *refusal
	return err == nil || errors.As(err, &no) && no.status != http.StatusUnauthorized && no.status != http.StatusNotFound
}
