package boot

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/trust"
)

// ConfigRequest is Ignition's second fetch.
type ConfigRequest struct {
	Machine, Key string // from the URL
	Token        string
	Accept       string // the HTTP header
	Peer         netip.Addr
	Conn         string // names the connection
}

// HostConfig is a Machine's complete config.
type HostConfig struct {
	Body        []byte
	ContentType string
	// Sent must be called once, when the response was written: whether any of it has arrived, or may have.
	Sent func(arrived bool)
}

// ConfigFor answers Ignition's second fetch, over TLS: the complete config, for the token of this BootAttempt, to
// one client once. Errors are *api.Problem: 503 where waiting may help (Ignition retries for ever), 403 where it
// cannot (the boot fails).
func (d *Decider) ConfigFor(ctx context.Context, r ConfigRequest) (HostConfig, error) {
	m, chain, err := d.mayHaveConfig(ctx, r)
	if err != nil {
		return HostConfig{}, err
	}
	who := query{question: theConfig, machine: m, peer: r.Peer}
	v := d.attempts.proved(m, r.Peer, trust.Config, chain)
	if !v.OK() {
		d.attempts.notReached(ctx, m, v)
		return HostConfig{}, d.book.refuse(who, http.StatusServiceUnavailable, v.Missing, v.Missing)
	}
	result, err := d.configs.compile(ctx, m, r.Peer, r.Accept)
	d.attempts.compiled(ctx, m, err)
	if err != nil {
		return HostConfig{}, d.book.refuse(who, http.StatusServiceUnavailable, err.Error(), err.Error())
	}
	sent, why := d.attempts.give(ctx, m, giving{what: theConfig, stage: api.StageConfig, peer: r.Peer, conn: r.Conn, verdict: v})
	if why != "" {
		d.book.metrics.refusals.WithLabelValues(theConfig).Inc()
		return HostConfig{}, problem(http.StatusServiceUnavailable, why)
	}
	d.book.decide(who, "served", fmt.Sprintf("token of BootAttempt %d, Ignition %s", m.Status.Attempt.Number, result.Version))
	return HostConfig{Body: result.Config, ContentType: contentType(result.Version), Sent: sent}, nil
}

// mayHaveConfig finds the Machine whose config a request may receive, as far as that depends on the client.
func (d *Decider) mayHaveConfig(ctx context.Context, r ConfigRequest) (*api.Machine, api.TrustLevel, error) {
	m, chain, reason, err := d.bearer(ctx, r.Machine, r.Token, ca.PurposeConfig)
	if err != nil {
		return nil, "", err
	}
	who := query{question: theConfig, machine: m, peer: r.Peer}
	if reason == "" && !d.keys.Verify(r.Key, ca.PurposeConfigURL.At(string(chain)), m.Metadata.UID, m.Status.Attempt.ID) {
		reason = "the URL is not this BootAttempt's"
	}
	if reason != "" {
		if m != nil && d.late(m, d.peers.taker(theConfig, r.Peer), r.Token, ca.PurposeConfig) {
			return nil, "", problem(http.StatusForbidden, strangerText(r.Machine))
		}
		return nil, "", d.book.refuse(who, http.StatusForbidden, reason, strangerText(r.Machine))
	}
	if err := d.peers.belongs(r.Peer, m); err != nil {
		return nil, "", d.book.refuse(who, http.StatusForbidden, err.Error(), err.Error())
	}
	return m, chain, nil
}
