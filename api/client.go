package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// ClientConfig is the address of bootd and the client's credentials.
type ClientConfig struct {
	// Server is unix:///run/rackweft/bootd.sock or https://host:8443.
	Server string
	// CAFile holds the site's CA (PEM). Required for https.
	CAFile string
	// CertFile and KeyFile are a client certificate (PEM); Token is a bearer
	// token. Either, or neither over the unix socket.
	CertFile, KeyFile string
	Token             string
}

// OutcomeHeader, in the answer to a PUT or POST of an object, is what the write
// did, or would do.
const OutcomeHeader = "Rackweft-Outcome"

// Outcomes of a write.
const (
	OutcomeCreated    = "created"
	OutcomeConfigured = "configured"
	OutcomeUnchanged  = "unchanged"
)

// idleConns is how many idle connections to a unix socket are kept. Over TLS
// all calls share one connection.
const idleConns = 64

// Client talks to bootd. It is safe for concurrent use.
type Client struct {
	base  string
	token string
	http  *http.Client
}

// NewClient returns a client; it connects at the first call.
func NewClient(c ClientConfig) (*Client, error) {
	if path, ok := strings.CutPrefix(c.Server, "unix://"); ok {
		var d net.Dialer
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) }
		return &Client{base: "http://bootd", http: &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: idleConns, IdleConnTimeout: 90 * time.Second}}}, nil
	}
	if !strings.HasPrefix(c.Server, "https://") {
		return nil, fmt.Errorf("invalid server %q: want unix:///path or https://host:8443", c.Server)
	}
	conf, err := c.tls()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true, IdleConnTimeout: 90 * time.Second}
	return &Client{base: strings.TrimSuffix(c.Server, "/"), token: c.Token, http: &http.Client{Transport: transport}}, nil
}

func (c ClientConfig) tls() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS13}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the site's CA: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate", c.CAFile)
		}
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("load client certificate: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

// Do sends a request with a JSON body (nil for none) and returns the answer if
// its status is 2xx; otherwise the error is a *Problem. The caller closes the
// body.
func (c *Client) Do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var reader io.Reader
	contentType := ""
	switch b := body.(type) {
	case nil:
	case io.Reader:
		reader, contentType = b, "application/octet-stream"
	default:
		raw, err := Encode(b)
		if err != nil {
			return nil, err
		}
		reader, contentType = bytes.NewReader(raw), "application/json"
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, reader)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("reach bootd: %w", err)
	}
	if resp.StatusCode/100 != 2 && resp.StatusCode != http.StatusSwitchingProtocols {
		defer func() { _ = resp.Body.Close() }()
		return nil, readProblem(resp)
	}
	return resp, nil
}

func readProblem(resp *http.Response) error {
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	p := new(Problem)
	if err := json.Unmarshal(raw, p); err != nil || p.Title == "" {
		p = &Problem{Title: http.StatusText(resp.StatusCode), Detail: strings.TrimSpace(string(raw))}
	}
	p.Status = resp.StatusCode
	return p
}

// call sends a request and decodes the answer into out, unless out is nil.
func (c *Client) call(ctx context.Context, method, path string, body, out any) error {
	resp, err := c.Do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("%s %s: decode the answer: %w", method, path, err)
	}
	return nil
}

func objectPath(k Kind, name string) string { return "/v1/" + k.Plural + "/" + url.PathEscape(name) }

// Get reads one object.
func (c *Client) Get(ctx context.Context, k Kind, name string) (Object, error) {
	o := k.New()
	if err := c.call(ctx, http.MethodGet, objectPath(k, name), nil, o); err != nil {
		return nil, err
	}
	return o, nil
}

// Get reads one object of a known type: Get[Machine](ctx, c, "r1u07").
func Get[T any, P interface {
	*T
	Object
}](ctx context.Context, c *Client, name string) (P, error) {
	o, err := c.Get(ctx, KindOf(P(new(T))), name)
	if err != nil {
		return nil, err
	}
	return o.(P), nil
}

// List is a list of objects at one revision.
type List struct {
	TypeMeta
	Metadata ListMeta          `json:"metadata"`
	Items    []json.RawMessage `json:"items"`
}

// ListMeta is a List's metadata.
type ListMeta struct {
	ResourceVersion string `json:"resourceVersion"`
}

// List reads all objects of a kind, by name, and their revision: a Watch from
// that revision misses nothing.
func (c *Client) List(ctx context.Context, k Kind) ([]Object, string, error) {
	var l List
	if err := c.call(ctx, http.MethodGet, "/v1/"+k.Plural, nil, &l); err != nil {
		return nil, "", err
	}
	objects := make([]Object, 0, len(l.Items))
	for _, raw := range l.Items {
		o := k.New()
		if err := json.Unmarshal(raw, o); err != nil {
			return nil, "", fmt.Errorf("decode a %s: %w", k.Name, err)
		}
		objects = append(objects, o)
	}
	return objects, l.Metadata.ResourceVersion, nil
}

// Put creates the object or replaces its spec, labels and annotations. With a
// resourceVersion in its metadata it is refused (409) if that is no longer
// current. A dry run returns the result and stores nothing.
func (c *Client) Put(ctx context.Context, o Object, dryRun bool) (Object, error) {
	k := KindOf(o)
	path := objectPath(k, o.Meta().Name)
	if dryRun {
		path += "?dryRun=true"
	}
	out := k.New()
	if err := c.call(ctx, http.MethodPut, path, o, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Delete requests the deletion of an object.
func (c *Client) Delete(ctx context.Context, k Kind, name string) error {
	return c.call(ctx, http.MethodDelete, objectPath(k, name), nil, nil)
}

// Verb requests a verb on a Machine. A second request with the same id is the
// same request.
func (c *Client) Verb(ctx context.Context, machine string, r Request) (*Request, error) {
	out := new(Request)
	path := "/v1/machines/" + url.PathEscape(machine) + "/" + string(r.Verb)
	if err := c.call(ctx, http.MethodPost, path, r, out); err != nil {
		return nil, err
	}
	return out, nil
}

// GuestVerb requests a verb on a Guest, and returns the Guest as updated.
func (c *Client) GuestVerb(ctx context.Context, guest, verb string, a GuestAction) (*Guest, error) {
	out := new(Guest)
	if err := c.call(ctx, http.MethodPost, "/v1/guests/"+url.PathEscape(guest)+"/"+verb, a, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Explain returns why a Machine is in its current state.
func (c *Client) Explain(ctx context.Context, machine string) (*Explanation, error) {
	out := new(Explanation)
	if err := c.call(ctx, http.MethodGet, "/v1/machines/"+url.PathEscape(machine)+"/explain", nil, out); err != nil {
		return nil, err
	}
	return out, nil
}

// NetworkPeers returns the leases of a Network.
func (c *Client) NetworkPeers(ctx context.Context, network string) (*NetworkPeers, error) {
	out := new(NetworkPeers)
	if err := c.call(ctx, http.MethodGet, "/v1/networks/"+url.PathEscape(network)+"/peers", nil, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Usage returns the current usage of hosts and Guests; of one host and its
// Guests unless host is empty. It may take some seconds.
func (c *Client) Usage(ctx context.Context, host string) (*Usage, error) {
	path := "/v1/usage"
	if host != "" {
		path += "?host=" + url.QueryEscape(host)
	}
	out := new(Usage)
	return out, c.call(ctx, http.MethodGet, path, nil, out)
}

// ZoneSessions lists a Zone's BGP sessions.
func (c *Client) ZoneSessions(ctx context.Context, zone string) (*ZoneSessions, error) {
	out := new(ZoneSessions)
	return out, c.call(ctx, http.MethodGet, "/v1/zones/"+url.PathEscape(zone)+"/bgp/sessions", nil, out)
}

// ZoneRoutes lists a Zone's routes.
func (c *Client) ZoneRoutes(ctx context.Context, zone string) (*ZoneRoutes, error) {
	out := new(ZoneRoutes)
	return out, c.call(ctx, http.MethodGet, "/v1/zones/"+url.PathEscape(zone)+"/bgp/routes", nil, out)
}

// TestPolicy returns the result of a Zone's policies for a prefix from a host,
// or from an uplink by its address.
func (c *Client) TestPolicy(ctx context.Context, zone, from string, prefix netip.Prefix) (*BGPTest, error) {
	q := url.Values{"from": {from}, "prefix": {prefix.String()}}
	out := new(BGPTest)
	return out, c.call(ctx, http.MethodGet, "/v1/zones/"+url.PathEscape(zone)+"/bgp/test?"+q.Encode(), nil, out)
}

// NetworkPath returns what happens to a packet of a Network. An end is a Guest,
// NETWORK/GUEST, or an address.
func (c *Client) NetworkPath(ctx context.Context, network, from, to string) (*NetworkPath, error) {
	out := new(NetworkPath)
	query := url.Values{"from": {from}, "to": {to}}
	if err := c.call(ctx, http.MethodGet, "/v1/networks/"+url.PathEscape(network)+"/explain?"+query.Encode(), nil, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Events streams events, oldest first, to fn: of one object when kind and name
// are given, and new ones when follow is set. It returns at the end of the
// stream, when fn returns an error, or when ctx ends.
func (c *Client) Events(ctx context.Context, kind, name string, follow bool, fn func(Event) error) error {
	q := url.Values{"kind": {kind}, "name": {name}, "follow": {strconv.FormatBool(follow)}}
	resp, err := c.Do(ctx, http.MethodGet, "/v1/events?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return lines(resp.Body, func(raw []byte) error {
		var e Event
		if err := json.Unmarshal(raw, &e); err != nil {
			return fmt.Errorf("decode an event: %w", err)
		}
		return fn(e)
	})
}

// HasBlob reports whether bootd holds the blob with that digest.
func (c *Client) HasBlob(ctx context.Context, digest SHA256) (bool, error) {
	err := c.call(ctx, http.MethodHead, "/v1/blobs/sha256:"+string(digest), nil, nil)
	if IsStatus(err, http.StatusNotFound) {
		return false, nil
	}
	return err == nil, err
}

// PutBlob uploads a blob; bootd refuses it if its digest differs.
func (c *Client) PutBlob(ctx context.Context, digest SHA256, r io.Reader) error {
	return c.call(ctx, http.MethodPut, "/v1/blobs/sha256:"+string(digest), r, nil)
}

// GuestVNCTicket requests a ticket for a Guest's display.
func (c *Client) GuestVNCTicket(ctx context.Context, guest string) (*VNCTicket, error) {
	out := new(VNCTicket)
	if err := c.call(ctx, http.MethodPost, "/v1/guests/"+url.PathEscape(guest)+"/vnc", nil, out); err != nil {
		return nil, err
	}
	return out, nil
}

// GuestExec runs a command inside a Guest, by its guest agent, and waits for its end.
func (c *Client) GuestExec(ctx context.Context, guest string, e GuestExec) (*GuestExecResult, error) {
	out := new(GuestExecResult)
	if err := c.call(ctx, http.MethodPost, "/v1/guests/"+url.PathEscape(guest)+"/exec", e, out); err != nil {
		return nil, err
	}
	return out, nil
}

// GuestExport streams a copy of a Guest's disks: ExportLines and data. The caller
// closes it.
func (c *Client) GuestExport(ctx context.Context, guest string, e GuestExport) (io.ReadCloser, error) {
	resp, err := c.Do(ctx, http.MethodPost, "/v1/guests/"+url.PathEscape(guest)+"/export", e)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}
