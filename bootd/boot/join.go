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
)

// HostCertificate is how long a host's certificate is valid; nodeagent renews
// it by itself after two thirds.
const HostCertificate = 30 * 24 * time.Hour

// Join makes a machine a host: against the join token of its BootAttempt, once.
// The same key again is the same join (nodeagent was killed before it had
// stored the answer); another key fails the BootAttempt and revokes both.
func (d *Decider) Join(ctx context.Context, token string, peer netip.Addr, r api.JoinRequest) (*api.JoinResponse, error) {
	m, ok := store.Cached[api.Machine](d.Cache, r.Machine)
	if !ok {
		m = nil
	}
	refuse := func(reason string) error {
		d.decide(m, "", peer, "join", "refused (403)", reason)
		if m != nil {
			d.Record.Event(m, api.Warning, "JoinRefused", fmt.Sprintf("%s: %s", peer, reason))
		}
		return &api.Problem{Status: http.StatusForbidden, Title: "Join refused", Detail: reason}
	}
	switch {
	case m == nil:
		return nil, refuse(fmt.Sprintf("no Machine is called %q", r.Machine))
	case !current(m):
		return nil, refuse("no BootAttempt is open, or its window is over: reprovision the Machine")
	case !d.Tokens.Verify(token, ca.PurposeJoin, m.Metadata.UID, m.Status.Attempt.ID):
		return nil, refuse("the token is not this BootAttempt's")
	case !d.leasedTo(peer, m) && !d.pins(m, peer):
		return nil, refuse(fmt.Sprintf("address %s is neither leased to one of the Machine's MACs nor in its links", peer))
	}
	key, err := ca.RequestKey([]byte(r.CSR))
	if err != nil {
		return nil, refuse("its certificate request is faulty: " + err.Error())
	}
	attempt := m.Status.Attempt.ID
	second := false
	m, err = store.Mutate(ctx, d.Store, m.Metadata.Name, func(m *api.Machine) error {
		second = false
		if !m.Status.Attempt.Open() || m.Status.Attempt.ID != attempt {
			return errors.New("the BootAttempt ended meanwhile")
		}
		switch m.Status.HostKey {
		case key:
			return store.ErrUnchanged
		case "":
			m.Status.HostKey = key
			m.Status.Attempt.Joined = time.Now().UTC()
			machine.Advance(m, attempt, api.StageJoined, time.Now(), machine.Window(d.Cache))
		default:
			second = true
			machine.Fail(m, time.Now(), fmt.Sprintf("a second join, from %s, with another key: both are revoked; somebody else holds the join token", peer))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("record the join of %s: %w", r.Machine, err)
	}
	if second {
		return nil, refuse("a second join in one BootAttempt: the attempt has failed and both joins are revoked")
	}
	cert, err := d.CA.SignHost([]byte(r.CSR), m.Metadata.Name, m.Metadata.UID, HostCertificate)
	if err != nil {
		return nil, refuse("its certificate request is faulty: " + err.Error())
	}
	skew := time.Until(r.Time).Round(time.Second)
	d.decide(m, "", peer, "join", "joined", fmt.Sprintf("join token of BootAttempt %d; its clock is off by %s", m.Status.Attempt.Number, skew))
	server, err := d.serverFor(peer)
	urls := d.Advertise
	if err == nil {
		urls = d.apiURLs(server)
	}
	return &api.JoinResponse{
		Machine: m.Metadata.Name, UID: m.Metadata.UID, Certificate: string(cert), CA: string(d.CA.CertPEM()),
		API: urls, Time: time.Now().UTC(), AttemptID: attempt,
	}, nil
}

// pins reports whether the Machine's spec gives it that address.
func (d *Decider) pins(m *api.Machine, a netip.Addr) bool {
	return slices.ContainsFunc(m.Spec.Links, func(l api.Link) bool { return slices.Contains(l.Addresses, a) })
}
