package boot

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/trust"
)

// HostCertificate is how long a host's certificate is valid; nodeagent renews
// it by itself after two thirds.
const HostCertificate = 30 * 24 * time.Hour

// Join turns a machine into a host: for the join token of its BootAttempt, once. The same key again is the same
// join (nodeagent was killed before it had stored the answer); another key fails the BootAttempt and revokes both.
func (d *Decider) Join(ctx context.Context, token string, peer netip.Addr, r api.JoinRequest) (*api.JoinResponse, error) {
	m, _, reason, err := d.bearer(ctx, r.Machine, token, ca.PurposeJoin)
	if err != nil {
		return nil, err
	}
	t := d.peers.taker(theJoin, peer)
	who := query{question: theJoin, machine: m, peer: peer}
	if reason != "" {
		if m != nil && d.late(m, t, token, ca.PurposeJoin) {
			return nil, problem(http.StatusForbidden, strangerText(r.Machine))
		}
		return nil, d.book.refuse(who, http.StatusForbidden, reason, strangerText(r.Machine))
	}
	if err := d.peers.belongs(peer, m); err != nil && !pins(m, peer) {
		reason = fmt.Sprintf("%s, and its links do not pin it", err)
		return nil, d.book.refuse(who, http.StatusForbidden, reason, reason)
	}
	key, err := ca.RequestKey([]byte(r.CSR))
	if err != nil {
		return nil, d.book.refuse(who, http.StatusBadRequest, err.Error(), err.Error())
	}
	attempt := m.Status.Attempt.ID
	second := false
	m, err = store.Mutate(ctx, d.store, m.Metadata.Name, func(m *api.Machine) error {
		second = false
		if !current(m) || m.Status.Attempt.ID != attempt {
			return errors.New("the BootAttempt has ended")
		}
		switch m.Status.HostKey {
		case key:
			return store.ErrUnchanged
		case "":
			m.Status.HostKey = key
			m.Status.Attempt.Joined = t.Time
			machine.Take(m, attempt, t)
			machine.Trusted(m, d.attempts.proved(m, peer, trust.Join, api.TrustMAC)) // a bootd that was killed may not have recorded it
			machine.Advance(m, attempt, api.StageJoined, time.Now(), machine.Window(d.cache))
		default:
			second = true
			machine.SecondTaker(m, attempt, t)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("record the join of %s: %w", r.Machine, err)
	}
	if second {
		d.book.witness(m, t, "SecondTaker", "refused", machine.SecondText(m.Status.Attempt, t))
		return nil, problem(http.StatusForbidden, "a second join in one BootAttempt: the attempt has failed and both joins are revoked")
	}
	cert, err := d.ca.SignHost([]byte(r.CSR), m.Metadata.Name, m.Metadata.UID, HostCertificate)
	if err != nil {
		return nil, err
	}
	d.book.decide(who, "joined", fmt.Sprintf("join token of BootAttempt %d; its clock %s", m.Status.Attempt.Number, api.Skew(time.Until(r.Time))))
	urls := d.own.apiFor(m)
	if server, err := d.own.serverFor(peer); err == nil && !slices.Contains(urls, d.own.apiURL(server)) {
		urls = append(urls, d.own.apiURL(server))
	}
	return &api.JoinResponse{
		Machine: m.Metadata.Name, UID: m.Metadata.UID, Certificate: string(cert), CA: string(d.ca.CertPEM()),
		API: urls, Time: time.Now().UTC(), AttemptID: attempt,
	}, nil
}
