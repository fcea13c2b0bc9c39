package boot

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/httpboot"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/trust"
	"github.com/rackweft/rackweft/ignition"
)

// What a BootAttempt gives to one client once.
const (
	thePointer = "pointer"
	theConfig  = "config"
	theJoin    = "join"
)

// Pointer implements httpboot.Decider: where the config is and the token for
// it. It is given to one client of a BootAttempt, at an address that is leased
// to the Machine, that has the key of the script.
func (d *Decider) Pointer(ctx context.Context, r httpboot.PointerRequest) (httpboot.Pointer, error) {
	return d.givePointer(ctx, r, false)
}

// givePointer gives the pointer, over TLS or not. What was given over TLS goes on
// over TLS.
func (d *Decider) givePointer(ctx context.Context, r httpboot.PointerRequest, secure bool) (httpboot.Pointer, error) {
	m, chain, err := d.pointed(ctx, r)
	if err != nil {
		return httpboot.Pointer{}, err
	}
	if secure != (chain == api.TrustBMC) {
		_ = d.refuse(m, r.Peer, thePointer, http.StatusForbidden, "its URL is one of the other server", "") // for the record
		return httpboot.Pointer{}, &httpboot.Refusal{Reason: "this URL is not valid here and now"}
	}
	v := d.proved(m, r.Peer, trust.Pointer, chain)
	if !v.OK() {
		d.notReached(ctx, m, v)
		return httpboot.Pointer{}, d.held(m, "", r.Peer, thePointer, errors.New(v.Missing))
	}
	body, version, err := d.pointer(m, r, chain)
	if err != nil {
		return httpboot.Pointer{}, d.held(m, "", r.Peer, thePointer, err)
	}
	sent, why := d.give(ctx, m, giving{what: thePointer, stage: api.StagePointer, peer: r.Peer, conn: r.Conn, verdict: v})
	if why != "" {
		return httpboot.Pointer{}, d.hold(thePointer, why)
	}
	d.decide(m, "", r.Peer, thePointer, "served", "Ignition "+version)
	return httpboot.Pointer{Config: body, ContentType: contentType(version), Sent: sent}, nil
}

// pointed finds the Machine whose open BootAttempt the key is of, and the level
// at which the key was given.
func (d *Decider) pointed(ctx context.Context, r httpboot.PointerRequest) (*api.Machine, api.TrustLevel, error) {
	m, chain, reason, err := d.bearer(ctx, r.Machine, r.Key, ca.PurposePointer)
	switch {
	case err != nil:
		return nil, "", err
	case reason == "":
		if err := d.belongs(r.Peer, m); err != nil {
			d.record(m, true, "", r.Peer, thePointer, "held (503)", err.Error())
			return nil, "", d.hold(thePointer, err.Error())
		}
		return m, chain, nil
	}
	// A machine that is still at its last boot is told to wait: it will be reset.
	if m != nil && d.late(m, d.taker(thePointer, r.Peer), r.Key, ca.PurposePointer) {
		return nil, "", d.hold(thePointer, "this URL is of a BootAttempt that is over")
	}
	_ = d.refuse(m, r.Peer, thePointer, http.StatusForbidden, reason, "") // for the record
	return nil, "", &httpboot.Refusal{Reason: "this URL is not valid here and now"}
}

// hold makes the answer that has a machine wait and ask again.
func (d *Decider) hold(question, reason string) error {
	d.metrics.refusals.WithLabelValues(question).Inc()
	return &httpboot.Hold{Reason: reason, RetryAfter: holdFor}
}

// pointer makes the pointer, or says why the machine has to wait.
func (d *Decider) pointer(m *api.Machine, r httpboot.PointerRequest, chain api.TrustLevel) (body []byte, version string, err error) {
	_, img, err := d.profile(m)
	if err != nil {
		return nil, "", err
	}
	server, err := d.serverFor(r.Peer)
	if err != nil {
		return nil, "", err
	}
	if version, err = ignition.NegotiateVersion(r.Accept, img.Spec.IgnitionVersion); err != nil {
		return nil, "", err
	}
	body, err = ignition.Pointer(ignition.PointerConfig{
		URL:     d.apiURL(server) + "/v1/ignition/" + m.Metadata.Name + "/" + d.secret(m, ca.PurposeConfigURL, chain),
		CAs:     [][]byte{d.CA.CertPEM()},
		Token:   d.secret(m, ca.PurposeConfig, chain),
		Version: version,
	})
	return body, version, err
}

// giving is what is to be given to whom.
type giving struct {
	what    string
	stage   api.Stage // reached when it has arrived
	peer    netip.Addr
	conn    string
	verdict trust.Verdict
}

// give gives a client its turn at what one client has once, or says why it gets
// nothing, which is written down then. sent must be called when the response was
// written.
func (d *Decider) give(ctx context.Context, m *api.Machine, g giving) (sent func(arrived bool), why string) {
	t := d.taker(g.what, g.peer)
	key := takeKey{m.Status.Attempt.ID, g.what}
	is := d.takes.begin(ctx, key, g.conn)
	if is == busy {
		why = fmt.Sprintf("another connection is fetching the %s at this moment", g.what)
		d.witness(m, t, "TwoAtOnce", "held (503)", fmt.Sprintf("%s (MAC %s) came for the %s while another connection was fetching it", t.Address, t.MAC, g.what))
		return nil, why
	}
	if is == second {
		return nil, d.second(ctx, m, t)
	}
	if is == yours {
		before, err := d.takenBefore(ctx, m, g.what)
		if err != nil || before {
			d.takes.end(key, before)
		}
		if err != nil {
			return nil, err.Error()
		}
		if before {
			return nil, d.second(ctx, m, t)
		}
	}
	return func(arrived bool) {
		if arrived && is == yours {
			d.took(ctx, m, t, g.stage, g.verdict)
		}
		if !arrived {
			d.witness(m, t, "BrokeOff", "broke off", fmt.Sprintf("nothing of the %s arrived at %s (MAC %s), so it may be fetched again", t.What, t.Address, t.MAC))
		}
		d.takes.end(key, arrived)
	}, ""
}

// takenBefore reports, as the store says, whether somebody else has had
// something of the Machine's attempt: the cache may be a moment behind.
func (d *Decider) takenBefore(ctx context.Context, m *api.Machine, what string) (bool, error) {
	fresh, err := store.Get[api.Machine](ctx, d.Store, m.Metadata.Name)
	if err != nil {
		return false, fmt.Errorf("read Machine %s: %w", m.Metadata.Name, err)
	}
	a := fresh.Status.Attempt
	if !a.Open() || a.ID != m.Status.Attempt.ID {
		return false, fmt.Errorf("the BootAttempt of Machine %s ended meanwhile", m.Metadata.Name)
	}
	return machine.Taken(fresh, what) || a.Reached(api.StageJoined), nil
}
