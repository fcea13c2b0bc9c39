package server

import (
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/hostspec"
	"github.com/rackweft/rackweft/bootd/store"
)

// role is the permission level of a person; each includes those before it.
type role int

const (
	anonymous role = iota
	viewer
	operator
	admin
)

func roleOf(name string) role {
	switch name {
	case "viewer":
		return viewer
	case "operator":
		return operator
	case "admin":
		return admin
	}
	return anonymous
}

func (r role) String() string { return [...]string{"none", "viewer", "operator", "admin"}[r] }

// caller identifies who sent a request.
type caller struct {
	name string
	role role
	host *hostspec.Peer // nil for people
	from string         // address, or "unix"
}

// socketPeer is the peer address of callers on the unix socket.
const socketPeer = "unix"

// roleName is the role as shown in the audit.
func (c caller) roleName() string {
	if c.host != nil {
		return "host"
	}
	return c.role.String()
}

type token struct {
	name   string
	role   role
	digest [sha256.Size]byte
}

// hashTokens hashes tokens that Config.check has accepted.
func hashTokens(list []Token) []token {
	tokens := make([]token, len(list))
	for i, t := range list {
		tokens[i] = token{name: t.Name, role: roleOf(t.Role)}
		_, _ = hex.Decode(tokens[i].digest[:], []byte(t.SHA256))
	}
	return tokens
}

// peerOf is the source address of a request; invalid on the unix socket.
func peerOf(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap()
}

// auth authenticates and authorizes callers.
type auth struct {
	tokens   []token
	failures *limiter // of authentication, by address
	store    *store.Store
	recovery Recovery
	metrics  *metrics
	log      *slog.Logger
}

// identify authenticates the caller. The error is a 401 or 429.
func (a *auth) identify(r *http.Request) (caller, error) {
	if trusted, _ := r.Context().Value(trustedKey{}).(bool); trusted {
		return caller{name: "root", role: admin, from: socketPeer}, nil
	}
	peer := peerOf(r)
	if r.TLS != nil {
		who, err := certified(r)
		if err == nil {
			vouch(r)
			return who, nil
		}
		if !errors.Is(err, ca.ErrNoCertificate) {
			return caller{}, a.failed(peer, err.Error())
		}
	}
	bearer, ok := bearerOf(r)
	if !ok {
		return caller{from: peer.String()}, nil
	}
	if a.failures.exhausted(peer) {
		p := problem(http.StatusTooManyRequests, "too many failed logins from %s: wait a few seconds and check the token", peer)
		return caller{}, p
	}
	if t, ok := a.match(bearer); ok {
		vouch(r)
		return caller{name: t.name, role: t.role, from: peer.String()}, nil
	}
	return caller{}, a.failed(peer, "the bearer token is not known: check it, and the tokens in bootd's config")
}

func (a *auth) failed(peer netip.Addr, reason string) error {
	a.metrics.authFailures.Inc()
	if a.failures.allow(peer) { // so that unauthenticated callers cannot fill the log
		a.log.Warn("authentication failed", "peer", peer, "reason", reason)
	}
	return problem(http.StatusUnauthorized, "%s", reason)
}

func certified(r *http.Request) (caller, error) {
	id, err := ca.Identify(*r.TLS)
	if err != nil {
		return caller{}, err
	}
	from := peerOf(r).String()
	if id.Kind == ca.Host {
		key := ca.CertificateKey(r.TLS.PeerCertificates[0])
		return caller{name: "host:" + id.Name, from: from, host: &hostspec.Peer{Name: id.Name, UID: id.UID, Key: key, Address: from, Issued: ca.IssuedAt(r.TLS.PeerCertificates[0])}}, nil
	}
	return caller{name: id.Name, role: roleOf(id.Role), from: from}, nil
}

func bearerOf(r *http.Request) (string, bool) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	return token, strings.EqualFold(scheme, "Bearer") && token != ""
}

// match compares with every token, so that its duration reveals nothing.
func (a *auth) match(bearer string) (token, bool) {
	digest := sha256.Sum256([]byte(bearer))
	var found token
	ok := false
	for _, t := range a.tokens {
		if subtle.ConstantTimeCompare(digest[:], t.digest[:]) == 1 {
			found, ok = t, true
		}
	}
	return found, ok
}

// authorize refuses callers that may not call the route: with 401 when they are not authenticated, else with 403.
func (a *auth) authorize(c *call, rt route) error {
	switch {
	case rt.public:
		return nil
	case rt.local && c.who.from != socketPeer:
		return problem(http.StatusForbidden, "this is served on bootd's unix socket only: call it as root on the machine on which bootd runs")
	case c.who.host != nil:
		return a.authorizeHost(c, rt)
	case c.who.role == anonymous && rt.role == anonymous:
		return problem(http.StatusUnauthorized, "this is for hosts: show a host's certificate")
	case c.who.role >= rt.role && c.who.role > anonymous:
		return nil
	case c.who.role == anonymous:
		return problem(http.StatusUnauthorized, "role %s is needed: show a client certificate or a bearer token", rt.role)
	}
	return problem(http.StatusForbidden, "role %s is needed; %s is %s", rt.role, c.who.name, c.who.role)
}

func (a *auth) authorizeHost(c *call, rt route) error {
	refused := problem(http.StatusForbidden, "a host may only read its own HostSpec and the blobs that Images name, and open its own stream")
	if rt.host == nil || !rt.host(c) {
		return refused
	}
	return a.checkKey(c)
}

// checkKey refuses a host whose certificate is revoked. It reads the store: the cache may lag behind a
// revocation.
func (a *auth) checkKey(c *call) error {
	m, err := store.Get[api.Machine](c.r.Context(), a.store, c.who.host.Name)
	if errors.Is(err, store.ErrNotFound) {
		m, err = nil, nil
	}
	if err != nil {
		return err
	}
	if reason := hostspec.Refused(m, *c.who.host); reason != "" {
		if c.r.Method == http.MethodPost && strings.HasSuffix(c.r.URL.Path, "/stream") {
			reason = cmp.Or(a.recovery.Claim(c.r.Context(), c.who.host.Claim()), reason)
		}
		return problem(http.StatusForbidden, "%s", reason)
	}
	return nil
}

// ownName permits a host to access what carries its own name.
func ownName(c *call) bool { return c.name() == c.who.host.Name }
