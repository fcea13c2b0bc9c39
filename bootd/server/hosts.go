package server

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/boot"
	"github.com/rackweft/rackweft/bootd/hostspec"
	"github.com/rackweft/rackweft/bootd/httpboot"
	"github.com/rackweft/rackweft/internal/receipt"
)

// boots answers booting machines and hosts.
type boots struct {
	decider Decider
	hub     Hub
	blobs   *blobs
	loaders fs.FS
	limit   *limiter // calls without an identity, by address
	ranges  *limiter // the same, of BMCs that read an image
	streams *streams
	log     *slog.Logger
}

func (h *boots) routes() []route {
	return []route{
		{method: "GET", path: "/v1/ignition/{name}/{key}", tag: "Host", public: true, summary: "A Machine's Ignition config, for the token of its BootAttempt",
			outType: "application/vnd.coreos.ignition+json", handle: h.ignition},
		{method: "GET", path: "/v1/boot/{name}/{key}", tag: "Host", public: true, summary: "A Machine's iPXE script, for the boot URL of its BootAttempt",
			outType: "text/plain", handle: h.secureScript},
		{method: "GET", path: "/v1/boot/{name}/{key}/{file}", tag: "Host", public: true, summary: "A Machine's boot loader, below the boot URL of its BootAttempt, or its iPXE script as autoexec.ipxe",
			outType: "application/efi", handle: h.secureFile},
		{method: "GET", path: "/v1/boot/{name}/{key}/blobs/{digest}", tag: "Host", public: true, stream: true, summary: "A blob of the boot, for the boot URL",
			outType: "application/octet-stream", handle: h.secureBlob},
		{method: "GET", path: "/v1/pointer/{name}/{key}", tag: "Host", public: true, summary: "A Machine's first Ignition config, for the key in the script that the boot URL returned",
			outType: "application/vnd.coreos.ignition+json", handle: h.securePointer},
		{method: "GET", path: "/v1/media/{name}/{key}/{file}", tag: "Host", public: true, stream: true, summary: "The image that boots a Machine from its BMC's virtual CD drive, or a range of it, for the key that its BMC was given",
			outType: "application/x-iso9660-image", handle: h.image},
		{method: "POST", path: "/v1/join", tag: "Host", public: true, summary: "Join as a Machine's host, once, with the join token of its BootAttempt",
			in: api.JoinRequest{}, out: api.JoinResponse{}, handle: h.join},
		{method: "POST", path: "/v1/hosts/{name}/stream", tag: "Host", host: ownName, stream: true,
			summary: "A host's one stream: newline-delimited HostFrames in, ServerFrames out", inType: "application/x-ndjson", in: api.HostFrame{},
			outType: "application/x-ndjson", out: api.ServerFrame{}, handle: h.hostStream},
	}
}

// slowDown limits how often an unauthenticated address may call.
func (h *boots) slowDown(c *call) error {
	c.who.from = peerOf(c.r).String()
	if h.limit.allow(peerOf(c.r)) {
		return nil
	}
	// Not 429: Ignition fails permanently at any 4xx, and retries at a 5xx.
	c.w.Header().Set("Retry-After", "2")
	return problem(http.StatusServiceUnavailable, "too many calls from %s: wait a moment", c.who.from)
}

// bootToken is the token of a caller that has no certificate yet.
func (h *boots) bootToken(c *call) (string, error) {
	if err := h.slowDown(c); err != nil {
		return "", err
	}
	token, ok := bearerOf(c.r)
	if !ok || len(token) > 256 {
		return "", problem(http.StatusUnauthorized, "the token of the BootAttempt is missing: send it as a bearer token")
	}
	return token, nil
}

// once refuses methods other than GET for content that is served once: a HEAD would use it up and return nothing.
func (h *boots) once(c *call) error {
	if c.r.Method != http.MethodGet {
		return problem(http.StatusMethodNotAllowed, "GET it")
	}
	return nil
}

// give sends content that is served once, and calls sent with whether any of it has arrived.
func (h *boots) give(c *call, contentType string, body []byte, sent func(arrived bool)) {
	c.w.Header().Set("Content-Type", contentType)
	c.w.Header().Set("Cache-Control", "no-store")
	mark := receipt.Of(c.r.Context()).Mark()
	c.write(http.StatusOK, body)
	_ = c.rc.Flush() // nothing arrives once the client has disconnected
	sent(mark.Arrived(c.r.Context()))
}

func (h *boots) ignition(c *call) error {
	if err := h.once(c); err != nil {
		return err
	}
	token, err := h.bootToken(c)
	if err != nil {
		return err
	}
	config, err := h.decider.ConfigFor(c.r.Context(), boot.ConfigRequest{
		Machine: c.name(), Key: c.r.PathValue("key"), Token: token, Accept: c.r.Header.Get("Accept"), Peer: peerOf(c.r), Conn: receipt.Of(c.r.Context()).ID(),
	})
	if err != nil {
		return h.unknownCaller(c, err)
	}
	h.give(c, config.ContentType, config.Body, config.Sent)
	return nil
}

// secureScript answers a caller that presents a boot URL. It does not work over the unix socket, where callers
// have no address.
func (h *boots) secureScript(c *call) error {
	if err := h.slowDown(c); err != nil {
		return err
	}
	text, err := h.decider.SecureScript(c.r.Context(), c.name(), c.r.PathValue("key"), peerOf(c.r))
	if err != nil {
		return h.unknownCaller(c, err)
	}
	c.w.Header().Set("Cache-Control", "no-store")
	return c.text(http.StatusOK, text)
}

// secureFile sends firmware its boot loader, and the boot loader its script.
func (h *boots) secureFile(c *call) error {
	file := c.r.PathValue("file")
	if file == boot.SecureScriptFile {
		return h.secureScript(c)
	}
	if err := h.slowDown(c); err != nil {
		return err
	}
	if err := h.decider.SecureLoader(c.r.Context(), c.name(), c.r.PathValue("key"), file, peerOf(c.r)); err != nil {
		return h.unknownCaller(c, err)
	}
	f, size, err := openLoader(h.loaders, file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	c.w.Header().Set("Content-Type", "application/efi")
	c.w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	c.w.Header().Set("Cache-Control", "no-store")
	c.status = http.StatusOK
	c.w.WriteHeader(http.StatusOK)
	if c.r.Method == http.MethodHead {
		return nil
	}
	if n, err := io.Copy(c.w, f); err == nil && n == size {
		h.decider.FetchedLoader(c.r.Context(), peerOf(c.r), file)
	}
	return nil
}

// openLoader opens a boot loader.
func openLoader(files fs.FS, name string) (fs.File, int64, error) {
	if files == nil {
		return nil, 0, problem(http.StatusNotFound, "bootd has no boot loader %s", name)
	}
	f, err := files.Open(name)
	if err != nil {
		return nil, 0, problem(http.StatusNotFound, "bootd has no boot loader %s", name)
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, 0, errors.Join(problem(http.StatusNotFound, "bootd has no boot loader %s", name), f.Close())
	}
	return f, st.Size(), nil
}

func (h *boots) secureBlob(c *call) error {
	d, err := c.digest()
	if err != nil {
		return err
	}
	if err := h.slowDown(c); err != nil {
		return err
	}
	if err := h.decider.SecureBlob(c.r.Context(), c.name(), c.r.PathValue("key"), peerOf(c.r), api.SHA256(d.Hex())); err != nil {
		return h.unknownCaller(c, err)
	}
	return h.blobs.get(c)
}

func (h *boots) securePointer(c *call) error {
	if err := h.once(c); err != nil {
		return err
	}
	if err := h.slowDown(c); err != nil {
		return err
	}
	p, err := h.decider.SecurePointer(c.r.Context(), httpboot.PointerRequest{
		Machine: c.name(), Key: c.r.PathValue("key"), Accept: c.r.Header.Get("Accept"), Peer: peerOf(c.r), Conn: receipt.Of(c.r.Context()).ID(),
	})
	if err != nil {
		return h.unknownCaller(c, err)
	}
	h.give(c, p.ContentType, p.Config, p.Sent)
	return nil
}

func (h *boots) join(c *call) error {
	token, err := h.bootToken(c)
	if err != nil {
		return err
	}
	raw, err := c.body(maxBoot)
	if err != nil {
		return err
	}
	var r api.JoinRequest
	if err := api.DecodeStrict(raw, &r); err != nil {
		return err
	}
	answer, err := h.decider.Join(c.r.Context(), token, peerOf(c.r), r)
	if err != nil {
		return h.unknownCaller(c, err)
	}
	c.w.Header().Set("Cache-Control", "no-store")
	return c.json(http.StatusOK, answer)
}

// unknownCaller hides bootd's internal errors from unauthenticated callers; a retry may succeed.
func (h *boots) unknownCaller(c *call, err error) error {
	var p *api.Problem
	if errors.As(err, &p) {
		return p
	}
	h.log.Error("cannot answer a booting machine", "route", c.r.Pattern, "peer", c.who.from, "error", err)
	return problem(http.StatusServiceUnavailable, "bootd cannot answer now; its log says why")
}

// hostStream passes a host's connection to the hub.
func (h *boots) hostStream(c *call) error {
	if c.who.host == nil {
		return problem(http.StatusForbidden, "only a host may open a stream: show the certificate of host:%s", c.name())
	}
	h.streams.lasts.leave(c) // the hub ends a stream by itself, and sends the host the reason
	ctx, cancel := h.streams.lasting(c)
	defer cancel()
	// HTTP/1.1 would otherwise read the whole request before it answers.
	if err := c.rc.EnableFullDuplex(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	c.w.Header().Set("Content-Type", "application/x-ndjson")
	c.status = http.StatusOK
	c.w.WriteHeader(http.StatusOK)
	if err := c.rc.Flush(); err != nil {
		return err
	}
	err := h.hub.Serve(ctx, *c.who.host, hostspec.Conn{
		In: c.r.Body, Out: c.w, Flush: c.rc.Flush,
		SetReadDeadline:  func(t time.Time) error { return c.rc.SetReadDeadline(t) },
		SetWriteDeadline: func(t time.Time) error { return c.rc.SetWriteDeadline(t) },
	})
	if err != nil {
		h.log.Info("a host's stream ended", "host", strings.TrimPrefix(c.who.name, "host:"), "peer", c.who.from, "reason", err)
	}
	return nil
}
