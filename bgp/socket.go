package bgp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	gobgp "github.com/osrg/gobgp/v3/api"

	"github.com/rackweft/rackweft/api"
)

// listen creates the socket; only root may use it.
func listen(path string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("another speaker answers on %s: stop it, or give this one another --run-dir", path)
	}
	_ = os.Remove(path) // left by a speaker that was killed
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on the speaker's socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("restrict the speaker's socket to root: %w", err), l.Close())
	}
	return l, nil
}

// serve answers on the socket until ctx is done.
func (s *speaker) serve(ctx context.Context, l net.Listener) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", s.handle(s.getStatus))
	mux.HandleFunc("GET /routes", s.handle(s.getRoutes))
	mux.HandleFunc("GET /policy-test", s.handle(s.getVerdict))
	mux.HandleFunc("POST /audit", s.handle(s.postAudit))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		s.options.Log.Error("bgp: the speaker no longer answers on its socket", "error", err)
	}
}

// handle serves f's result; f runs in the loop.
func (s *speaker) handle(f func(context.Context, url.Values) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var answer any
		var fault error
		err := s.do(r.Context(), func() { answer, fault = f(r.Context(), r.URL.Query()) })
		if err = errors.Join(err, fault); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // the client is gone
	}
}

var errDeferring = errors.New("nothing is advertised yet: the speaker has just started")

var errNoPart = errors.New("the speaker has no part yet: see the host's HostSpec")

func (s *speaker) getStatus(ctx context.Context, q url.Values) (any, error) {
	if s.server == nil {
		return s.status, nil
	}
	if s.tally.overdue(time.Now()) {
		s.readRoutes(ctx, nil)
	}
	s.lookAtSessions(ctx)
	status := s.status
	status.Memory = residentBytes()
	status.Originate = slices.Concat(s.server.part.Originate, slices.SortedFunc(maps.Keys(s.server.guests), netip.Prefix.Compare))
	status.Sessions = slices.Clone(s.status.Sessions)
	for i, n := range status.Sessions {
		if q.Get("digest") == "" || n.Role == api.BGPClient || !n.Established() {
			continue
		}
		routes, err := s.server.list(ctx, gobgp.TableType_ADJ_IN, n.Address.String(), nil)
		if err != nil {
			return nil, err
		}
		_, status.Sessions[i].Digest = digest(routes)
	}
	return status, nil
}

func (s *speaker) getRoutes(ctx context.Context, q url.Values) (any, error) {
	if s.server == nil {
		return nil, errNoPart
	}
	table, err := s.tableFor(ctx, q.Get("table"), q.Get("neighbor"))
	if err != nil {
		return nil, err
	}
	routes := []Route{}
	for _, list := range table {
		if q.Get("neighbor") == "" {
			markBest(list)
		}
		routes = append(routes, list...)
	}
	slices.SortStableFunc(routes, func(a, b Route) int { return a.Prefix.Compare(b.Prefix) })
	return routes, nil
}

func (s *speaker) tableFor(ctx context.Context, table, neighbor string) (map[netip.Prefix][]Route, error) {
	kinds := map[string]gobgp.TableType{"": gobgp.TableType_GLOBAL, "in": gobgp.TableType_ADJ_IN, "out": gobgp.TableType_ADJ_OUT}
	kind, ok := kinds[table]
	if !ok || (kind == gobgp.TableType_GLOBAL) != (neighbor == "") {
		return nil, fmt.Errorf("invalid table %q with neighbor %q: want neither, or table=in or table=out with neighbor=NAME", table, neighbor)
	}
	if neighbor == "" {
		return s.server.list(ctx, kind, "", nil)
	}
	n, ok := s.server.sessions[neighbor]
	if !ok {
		return nil, fmt.Errorf("the speaker has no neighbor %q", neighbor)
	}
	return s.server.list(ctx, kind, n.Address.String(), nil)
}

func (s *speaker) getVerdict(_ context.Context, v url.Values) (any, error) {
	if s.server == nil {
		return nil, errNoPart
	}
	q, err := parseQuestion(v)
	if err != nil {
		return nil, err
	}
	return explain(s.server.part, q), nil
}

func parseQuestion(v url.Values) (Question, error) {
	q := Question{From: v.Get("from"), LargeCommunities: v["community"]}
	var err error
	if q.Prefix, err = netip.ParsePrefix(v.Get("prefix")); err != nil || q.Prefix != q.Prefix.Masked() {
		return q, fmt.Errorf("invalid prefix %q: want a masked prefix such as 198.18.64.0/24", v.Get("prefix"))
	}
	if text := v.Get("nextHop"); text != "" {
		if q.NextHop, err = netip.ParseAddr(text); err != nil {
			return q, fmt.Errorf("invalid nextHop %q: want an address", text)
		}
	}
	for _, text := range v["asn"] {
		asn, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return q, fmt.Errorf("invalid asn %q", text)
		}
		q.ASPath = append(q.ASPath, uint32(asn))
	}
	return q, nil
}

// Audit is the result of an audit: whether a neighbour has what was advertised
// to it.
type Audit struct {
	Count  int    `json:"count" doc:"Routes that it should have."`
	Digest string `json:"digest" doc:"Of them."`
	Healed bool   `json:"healed" doc:"They were advertised again."`
}

// postAudit compares the routes that a neighbour reports as received from this
// speaker with those that it should have, and advertises all again when they
// differ.
func (s *speaker) postAudit(ctx context.Context, v url.Values) (any, error) {
	if s.server == nil {
		return nil, errNoPart
	}
	if s.deferring() {
		return nil, errDeferring
	}
	name := v.Get("neighbor")
	table, err := s.tableFor(ctx, "out", name)
	if err != nil {
		return nil, err
	}
	var a Audit
	if a.Count, a.Digest = digest(table); a.Digest == v.Get("digest") {
		return a, nil
	}
	if err := s.server.reset(ctx, s.server.sessions[name], false, true); err != nil {
		return nil, err
	}
	s.status.Healed++
	a.Healed = true
	s.options.Log.Warn("bgp: a neighbor misses routes: advertising all again", "neighbor", name, "should have", a.Count)
	return a, nil
}

// Client queries the speaker that serves a socket.
type Client struct {
	http http.Client
	path string
}

// NewClient returns a client; it sends nothing yet.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &Client{http: http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 10 * time.Second}, path: socket}
}

// Status returns the speaker's status. It is an error when no speaker runs.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.ask(ctx, http.MethodGet, "/status", nil, &s)
}

// StatusWithDigests returns the Status with the digests of the Sessions, which
// take the speaker some time.
func (c *Client) StatusWithDigests(ctx context.Context) (Status, error) {
	var s Status
	return s, c.ask(ctx, http.MethodGet, "/status", url.Values{"digest": {"1"}}, &s)
}

// Routes returns the routes that the speaker has, or with a neighbour's name
// those received from it (table "in") or advertised to it ("out").
func (c *Client) Routes(ctx context.Context, table, neighbor string) ([]Route, error) {
	var r []Route
	return r, c.ask(ctx, http.MethodGet, "/routes", url.Values{"table": {table}, "neighbor": {neighbor}}, &r)
}

// Test returns the policy's decision about a route.
func (c *Client) Test(ctx context.Context, q Question) (Verdict, error) {
	v := url.Values{"from": {q.From}, "prefix": {q.Prefix.String()}, "community": q.LargeCommunities}
	if q.NextHop.IsValid() {
		v.Set("nextHop", q.NextHop.String())
	}
	for _, asn := range q.ASPath {
		v.Add("asn", strconv.FormatUint(uint64(asn), 10))
	}
	var verdict Verdict
	return verdict, c.ask(ctx, http.MethodGet, "/policy-test", v, &verdict)
}

// Audit makes the speaker compare the digest of the routes that a neighbour has
// received from it with what it should have.
func (c *Client) Audit(ctx context.Context, neighbor, digest string) (Audit, error) {
	var a Audit
	return a, c.ask(ctx, http.MethodPost, "/audit", url.Values{"neighbor": {neighbor}, "digest": {digest}}, &a)
}

func (c *Client) ask(ctx context.Context, method, path string, query url.Values, answer any) error {
	r, err := http.NewRequestWithContext(ctx, method, "http://speaker"+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	response, err := c.http.Do(r)
	if err != nil {
		return fmt.Errorf("query the speaker on %s: %w", c.path, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return fmt.Errorf("the speaker answers: %s", strings.TrimSpace(string(text)))
	}
	if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
		return fmt.Errorf("read the speaker's answer: %w", err)
	}
	return nil
}
