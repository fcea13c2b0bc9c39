package redfish

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

const (
	requestTimeout = 90 * time.Second // one exchange: an iDRAC may think for a minute
	replyLimit     = 16 << 20         // bytes of one answer
	taskLimit      = 3 * time.Minute  // what a 202 may take
)

// pauser waits; tests wait faster.
type pauser func(context.Context, time.Duration) error

// transport is the HTTP that bmclib, gofish and our own requests share. It pins the certificate, gives every
// request the context of the call at hand (bmclib passes none on), keeps the session's token, repeats what a
// busy BMC refuses, walks down If-Match, waits for tasks, and remembers the last refusal in the BMC's words
// (gofish cannot read all of them). It is used by one goroutine at a time.
type transport struct {
	plain *http.Transport
	log   *slog.Logger
	pause pauser
	pin   pin

	ctx              context.Context // of the call at hand
	closeConnections bool
	token            string
	session          string // path of our session; empty when there is none
	basic            string // Authorization header instead of a session
	root             []byte // what bmclib is given for the service root while it logs in; nil at other times
	opened           *reply // how the BMC answered the login
	refusal          *refusal
	failure          error  // why the last request had no answer; nil if it had one
	date             string // Date of the last answer
}

func newTransport(endpoint hardware.Endpoint, log *slog.Logger, pause pauser) *transport {
	t := &transport{log: log, pause: pause}
	t.pin.address, t.pin.want, t.pin.only = endpoint.Address, strings.ToLower(endpoint.Fingerprint), endpoint.PinnedOnly
	t.plain = &http.Transport{
		DialContext:           (&net.Dialer{Timeout: cmp.Or(endpoint.ConnectTimeout, 10*time.Second)}).DialContext,
		TLSClientConfig:       t.pin.tls(),
		TLSHandshakeTimeout:   cmp.Or(endpoint.ConnectTimeout, 20*time.Second),
		ResponseHeaderTimeout: requestTimeout,
		IdleConnTimeout:       5 * time.Second, // BMCs forget idle connections early, and silently
		DisableCompression:    true,            // gzip turns ETags into others (sushy), and HPE answers 406 to identity: so no header at all
	}
	return t
}

// reply is an answer that was read to its end.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (r reply) response(req *http.Request) *http.Response {
	return &http.Response{
		Status: strconv.Itoa(r.status) + " " + http.StatusText(r.status), StatusCode: r.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: r.header, Body: io.NopCloser(bytes.NewReader(r.body)), ContentLength: int64(len(r.body)), Request: req,
	}
}

// RoundTrip is one logical request: the answer is final, also for bmclib.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.failure = nil
	if t.root != nil && req.Method == http.MethodGet {
		header := http.Header{"Content-Type": {"application/json"}}
		return reply{status: http.StatusOK, header: header, body: t.root}.response(req), nil
	}
	response, err := t.roundTrip(req)
	t.failure = err
	return response, err
}

func (t *transport) roundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		var err error
		body, err = io.ReadAll(req.Body)
		_ = req.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	t.refusal = nil
	answer, err := t.persist(req, body)
	if err != nil {
		return nil, err
	}
	if answer.status == http.StatusAccepted {
		if answer, err = t.await(req, answer); err != nil {
			return nil, err
		}
	}
	if answer.status >= http.StatusBadRequest {
		t.refusal = t.refused(req, answer)
	} else {
		t.note(req, answer)
	}
	return answer.response(req), nil
}

// note keeps the session that a login opened, and forgets the one that a logout ended.
func (t *transport) note(req *http.Request, answer reply) {
	if t.root != nil {
		t.opened = &answer
		t.token, t.session = answer.header.Get("X-Auth-Token"), sessionOf(req.URL.Path, answer)
	}
	if req.Method == http.MethodDelete && req.URL.Path == t.session {
		t.forget()
	}
}

// forget drops what lets us in.
func (t *transport) forget() { t.token, t.session, t.basic = "", "", "" }

// sessionOf is the path of the session that a login to the given collection opened, empty where the answer does not say.
func sessionOf(collection string, answer reply) string {
	var session struct {
		ID   text `json:"Id"`
		Path text `json:"@odata.id"`
	}
	_ = decode(answer.body, &session) // some answer nothing
	candidates := []string{answer.header.Get("Location"), string(session.Path)}
	if session.ID != "" {
		candidates = append(candidates, strings.TrimSuffix(collection, "/")+"/"+url.PathEscape(string(session.ID)))
	}
	for _, candidate := range candidates {
		at := pathOf(candidate)
		if at != "" && strings.Trim(at, "/") != strings.Trim(collection, "/") {
			return at
		}
	}
	return ""
}

// useBasic sends the password with every request, and no token.
func (t *transport) useBasic(username, password string) {
	t.forget()
	t.basic = "Basic " + base64.StdEncoding.EncodeToString([]byte(username+":"+password))
}

// entered reports whether there is a login.
func (t *transport) entered() bool { return t.token != "" || t.basic != "" }

// authorize puts what lets us in on a request.
func (t *transport) authorize(header http.Header) {
	switch {
	case t.token != "":
		header.Set("X-Auth-Token", t.token)
	case t.basic != "":
		header.Set("Authorization", t.basic)
	}
}

// persist repeats a request while the BMC is busy, and with a weaker If-Match when it denies the first.
func (t *transport) persist(req *http.Request, body []byte) (reply, error) {
	etags := ifMatches(req.Header.Get("If-Match"))
	for try := 1; ; {
		answer, err := t.exchange(req, body, etags[0])
		if err != nil || answer.status < http.StatusBadRequest {
			return answer, err
		}
		if answer.status == http.StatusPreconditionFailed && len(etags) > 1 {
			etags = etags[1:]
			continue
		}
		no := t.refused(req, answer)
		rule, passing := find(busyRetries(), no)
		if !passing || try >= rule.tries {
			return answer, nil
		}
		wait := retryAfter(answer.header, rule.pause(try))
		t.log.Info("BMC is busy, trying again", "refusal", no.Error(), "pause", wait)
		if err := t.pause(t.ctx, wait); err != nil {
			return answer, nil // out of time: the BMC's own words say more than "deadline exceeded"
		}
		try++
	}
}

// ifMatches is what to try in turn: as given, strong, none. BMCs hand out weak tags and then compare
// strongly (sushy).
func ifMatches(etag string) []string {
	if etag == "" || etag == `""` {
		return []string{""}
	}
	if strong, weak := strings.CutPrefix(etag, "W/"); weak {
		return []string{etag, strong, ""}
	}
	return []string{etag, ""}
}

func retryAfter(header http.Header, otherwise time.Duration) time.Duration {
	seconds, err := strconv.Atoi(header.Get("Retry-After"))
	if err != nil || seconds < 1 || seconds > 300 {
		return otherwise
	}
	return time.Duration(seconds) * time.Second
}

// exchange is one request and its whole answer.
func (t *transport) exchange(req *http.Request, body []byte, etag string) (reply, error) {
	ctx, cancel := context.WithTimeout(t.ctx, requestTimeout)
	defer cancel()
	out := req.Clone(ctx)
	out.Close = t.closeConnections // gofish closes after each request: a TLS handshake costs a BMC half a second
	out.Header.Del("If-Match")
	if etag != "" {
		out.Header.Set("If-Match", etag)
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		// BMCs close idle connections without a word, and net/http then sends a request again that may have been carried
		// out. What changes something goes out on a connection of its own, where it is sent once.
		t.plain.CloseIdleConnections()
	}
	out.Body = nil
	if len(body) > 0 {
		out.Body = io.NopCloser(bytes.NewReader(body))
		out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		out.ContentLength = int64(len(body))
	}
	if err := hardware.Permitted(t.ctx, req.Method, req.URL.Path); err != nil {
		return reply{}, err
	}
	response, err := t.plain.RoundTrip(out)
	if err != nil {
		return reply{}, t.failed(err)
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(response.Body, replyLimit+1))
	if err != nil {
		return reply{}, t.failed(fmt.Errorf("%s %s: %w", req.Method, req.URL.Path, err))
	}
	if len(data) > replyLimit {
		return reply{}, fmt.Errorf("%s %s: answer is longer than %d bytes", req.Method, req.URL.Path, replyLimit)
	}
	t.date = response.Header.Get("Date")
	return reply{status: response.StatusCode, header: response.Header, body: data}, nil
}

// failed tells what the network did from what we did.
func (t *transport) failed(err error) error {
	if hardware.Distrusted(err) || errors.Is(t.ctx.Err(), context.Canceled) {
		return err
	}
	return fmt.Errorf("%w: %w: check its address, its power and the management network", hardware.ErrUnreachable, err)
}

func (t *transport) refused(req *http.Request, answer reply) *refusal {
	return &refusal{method: req.Method, path: req.URL.Path, status: answer.status, messages: parseMessages(answer.body)}
}
