package boot

import (
	"context"
	"errors"
	"net/http"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/httpboot"
	"github.com/rackweft/rackweft/bootd/trust"
	"github.com/rackweft/rackweft/ignition"
)

// Responses of a BootAttempt for one client, once.
const (
	thePointer = "pointer"
	theConfig  = "config"
	theJoin    = "join"
)

// Pointer implements httpboot.Decider: the URL of the config and the token for it. It is sent to one client of a
// BootAttempt, at an address leased to the Machine, with the key from the script.
func (d *Decider) Pointer(ctx context.Context, r httpboot.PointerRequest) (httpboot.Pointer, error) {
	return d.givePointer(ctx, r, false)
}

// givePointer sends the pointer, over TLS or not. A boot that began over TLS continues over TLS.
func (d *Decider) givePointer(ctx context.Context, r httpboot.PointerRequest, secure bool) (httpboot.Pointer, error) {
	m, chain, err := d.pointed(ctx, r)
	if err != nil {
		return httpboot.Pointer{}, err
	}
	who := query{question: thePointer, machine: m, peer: r.Peer}
	if secure != (chain == api.TrustBMC) {
		_ = d.book.refuse(who, http.StatusForbidden, "its URL is one of the other server", "") // for the record
		return httpboot.Pointer{}, &httpboot.Refusal{Reason: "this URL is not valid here and now"}
	}
	v := d.attempts.proved(m, r.Peer, trust.Pointer, chain)
	if !v.OK() {
		d.attempts.notReached(ctx, m, v)
		return httpboot.Pointer{}, d.book.held(who, errors.New(v.Missing))
	}
	body, version, err := d.pointer(m, r, chain)
	if err != nil {
		return httpboot.Pointer{}, d.book.held(who, err)
	}
	sent, why := d.attempts.give(ctx, m, giving{what: thePointer, stage: api.StagePointer, peer: r.Peer, conn: r.Conn, verdict: v})
	if why != "" {
		return httpboot.Pointer{}, d.book.hold(thePointer, why)
	}
	d.book.decide(who, "served", "Ignition "+version)
	return httpboot.Pointer{Config: body, ContentType: contentType(version), Sent: sent}, nil
}

// pointed finds the Machine to whose open BootAttempt the key belongs, and the level at which the key was given.
func (d *Decider) pointed(ctx context.Context, r httpboot.PointerRequest) (*api.Machine, api.TrustLevel, error) {
	m, chain, reason, err := d.bearer(ctx, r.Machine, r.Key, ca.PurposePointer)
	who := query{question: thePointer, machine: m, peer: r.Peer}
	switch {
	case err != nil:
		return nil, "", err
	case reason == "":
		if err := d.peers.belongs(r.Peer, m); err != nil {
			d.book.record(who, true, "held (503)", err.Error())
			return nil, "", d.book.hold(thePointer, err.Error())
		}
		return m, chain, nil
	}
	// A machine that is still at its last boot must wait: it will be reset.
	if m != nil && d.late(m, d.peers.taker(thePointer, r.Peer), r.Key, ca.PurposePointer) {
		return nil, "", d.book.hold(thePointer, "this URL is of a BootAttempt that is over")
	}
	_ = d.book.refuse(who, http.StatusForbidden, reason, "") // for the record
	return nil, "", &httpboot.Refusal{Reason: "this URL is not valid here and now"}
}

// pointer returns the pointer, or why the machine has to wait.
func (d *Decider) pointer(m *api.Machine, r httpboot.PointerRequest, chain api.TrustLevel) (body []byte, version string, err error) {
	_, img, err := profileOf(d.cache, m)
	if err != nil {
		return nil, "", err
	}
	server, err := d.own.serverFor(r.Peer)
	if err != nil {
		return nil, "", err
	}
	if version, err = ignition.NegotiateVersion(r.Accept, img.Spec.IgnitionVersion); err != nil {
		return nil, "", err
	}
	body, err = ignition.Pointer(ignition.PointerConfig{
		URL:     d.own.apiURL(server) + "/v1/ignition/" + m.Metadata.Name + "/" + d.keys.secret(m, ca.PurposeConfigURL, chain),
		CAs:     [][]byte{d.ca.CertPEM()},
		Token:   d.keys.secret(m, ca.PurposeConfig, chain),
		Version: version,
	})
	return body, version, err
}
