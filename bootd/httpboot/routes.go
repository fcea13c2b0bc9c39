package httpboot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rackweft/rackweft/internal/receipt"
	"github.com/rackweft/rackweft/internal/text"
)

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(route string, h http.HandlerFunc) {
		mux.Handle("GET "+route, s.counted(route, h)) // and HEAD
	}
	handle("/boot.ipxe", s.firstStage)
	handle("/ipxe/script", s.script)
	handle("/ipxe/{file...}", s.file)
	handle("/{file}", s.file)
	handle("/blobs/sha256/{hex}", s.blob)
	handle("/ignition/pointer/{machine}/{key}", s.pointer)
	handle("/healthz", s.healthz)
	return mux
}

// statusWriter remembers the status code. It stays an io.ReaderFrom for sendfile(2).
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) ReadFrom(src io.Reader) (int64, error) { return io.Copy(w.ResponseWriter, src) }
func (w *statusWriter) Unwrap() http.ResponseWriter           { return w.ResponseWriter }

func (s *Server) counted(route string, h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sw := &statusWriter{ResponseWriter: w}
		h(sw, r)
		s.metrics.requests.WithLabelValues(route, strconv.Itoa(max(sw.status, http.StatusOK))).Inc()
	})
}

func (s *Server) firstStage(w http.ResponseWriter, r *http.Request) {
	reply(w, r, http.StatusOK, "text/plain; charset=us-ascii", []byte(firstStage))
}

func (s *Server) healthz(w http.ResponseWriter, r *http.Request) {
	say(w, r, http.StatusOK, "ok")
}

func (s *Server) script(w http.ResponseWriter, r *http.Request) {
	c, err := newClient(r)
	if err != nil {
		say(w, r, http.StatusBadRequest, err.Error())
		return
	}
	script, err := s.cfg.Decider.Script(r.Context(), c)
	var text string
	if err == nil {
		text, err = script.text()
	}
	if err != nil {
		s.fail(w, r, c, "script", err)
		return
	}
	reply(w, r, http.StatusOK, "text/plain; charset=us-ascii", []byte(text))
}

func (s *Server) pointer(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet { // a HEAD transfers nothing, and Ignition sends none
		say(w, r, http.StatusMethodNotAllowed, "GET it")
		return
	}
	conn := receipt.Of(r.Context())
	ask := PointerRequest{
		Machine: r.PathValue("machine"), Key: r.PathValue("key"), Accept: r.Header.Get("Accept"),
		Peer: peerOf(r).Addr(), Conn: conn.ID(),
	}
	p, err := s.cfg.Decider.Pointer(r.Context(), ask)
	if err != nil {
		s.fail(w, r, Client{Addr: ask.Peer}, "Ignition pointer", err)
		return
	}
	if p.ContentType == "" { // an empty header would lock up old firmware
		p.ContentType = "application/json"
	}
	mark := conn.Mark()
	reply(w, r, http.StatusOK, p.ContentType, p.Config)
	_ = http.NewResponseController(w).Flush() // when the client is gone, nothing arrives
	p.Sent(mark.Arrived(r.Context()))
}

// fail sends a client the reason for an error.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, c Client, what string, err error) {
	var hold *Hold
	var refusal *Refusal
	switch {
	case r.Context().Err() != nil: // the client is gone
		s.metrics.aborted.Inc()
	case errors.As(err, &hold):
		s.metrics.held.Inc()
		s.deny(w, r, http.StatusServiceUnavailable, "held: "+hold.Reason, hold.RetryAfter)
	case errors.As(err, &refusal):
		status := refusal.Status
		if status != http.StatusNotFound {
			status = http.StatusForbidden
		}
		s.deny(w, r, status, "refused: "+refusal.Reason, 30*time.Second)
	default:
		s.complain("httpboot: a decision failed; the machine will retry",
			"what", what, "mac", c.MAC.String(), "peer", c.Addr, "error", err)
		s.deny(w, r, http.StatusServiceUnavailable, "bootd cannot decide now; its log says why", 0)
	}
}

// deny answers with a reason. iPXE does not print the body of an error, and
// retries silently after a 503 with Retry-After. Therefore the first-stage
// script requests (held=script) the reason as a script that prints it, waits
// and starts over.
func (s *Server) deny(w http.ResponseWriter, r *http.Request, status int, reason string, wait time.Duration) {
	if wait <= 0 {
		wait = 5 * time.Second
	}
	if r.URL.Path == "/ipxe/script" && r.URL.Query().Get("held") == "script" {
		reply(w, r, http.StatusOK, "text/plain; charset=us-ascii", []byte(waitScript(reason, wait)))
		return
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(seconds(wait)))
	}
	say(w, r, status, reason)
}

func (s *Server) file(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("file")
	f, st, err := s.openFile(name)
	if noSuchFile(err) {
		say(w, r, http.StatusNotFound, fmt.Sprintf("no such boot file: %q", text.Clip(name, 255)))
		return
	}
	if err != nil {
		s.complain("httpboot: opening a boot file failed", "file", name, "peer", peerOf(r).Addr(), "error", err)
		say(w, r, http.StatusServiceUnavailable, "bootd cannot open this file; its log says why")
		return
	}
	defer s.closed(f, name)
	w.Header().Set("Content-Type", "application/octet-stream")
	if path.Ext(name) == ".efi" {
		w.Header().Set("Content-Type", "application/efi")
	}
	s.send(w, r, f, st.ModTime(), Transfer{File: name, Size: st.Size()})
}

// noSuchFile reports whether an error means that a file name is invalid.
func noSuchFile(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid) || errors.Is(err, syscall.ENAMETOOLONG) || errors.Is(err, syscall.ENOTDIR)
}

func (s *Server) openFile(name string) (io.ReadSeekCloser, fs.FileInfo, error) {
	if s.cfg.Files == nil {
		return nil, nil, fs.ErrNotExist
	}
	f, err := s.cfg.Files.Open(name)
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	seeker, ok := f.(io.ReadSeekCloser)
	if !ok || !st.Mode().IsRegular() {
		return nil, nil, errors.Join(fs.ErrNotExist, f.Close())
	}
	return seeker, st, nil
}

func (s *Server) blob(w http.ResponseWriter, r *http.Request) {
	hex := r.PathValue("hex")
	if len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		say(w, r, http.StatusNotFound, "a blob is named by the 64 lower-case hexadecimal digits of its SHA-256")
		return
	}
	digest := "sha256:" + hex
	asset, err := s.cfg.Assets.Asset(r.Context(), digest)
	if errors.Is(err, fs.ErrNotExist) {
		say(w, r, http.StatusNotFound, "no Image names a blob "+digest+", or its bytes were not imported")
		return
	}
	if err != nil {
		s.complain("httpboot: opening a blob failed", "digest", digest, "peer", peerOf(r).Addr(), "error", err)
		w.Header().Set("Retry-After", "5")
		say(w, r, http.StatusServiceUnavailable, "bootd cannot open this blob; its log says why")
		return
	}
	defer s.closed(asset.Content, digest)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", `"`+digest+`"`)
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	s.send(w, r, asset.Content, asset.ModTime, Transfer{Digest: digest, Size: asset.Size})
}

// send answers with content, or with the requested part of it.
func (s *Server) send(w http.ResponseWriter, r *http.Request, content io.ReadSeeker, modTime time.Time, t Transfer) {
	t.Peer, t.UserAgent, t.Total = peerOf(r), r.UserAgent(), t.Size
	now := time.Now()
	tw := &transferWriter{
		ResponseWriter: w,
		control:        http.NewResponseController(w),
		timeout:        s.cfg.WriteTimeout,
		progress:       s.cfg.Progress,
		start:          now,
		reported:       now,
		t:              t,
	}
	http.ServeContent(tw, r, "", modTime, content)
	if r.Method != http.MethodGet || tw.status >= http.StatusMultipleChoices {
		return // the response has no body
	}
	tw.t.Duration = time.Since(now)
	if tw.t.Err == nil && tw.t.Sent < tw.t.Total {
		tw.t.Err = io.ErrUnexpectedEOF
	}
	s.metrics.bytes.Add(float64(tw.t.Sent))
	if tw.t.Err != nil {
		s.metrics.aborted.Inc()
		s.complain("httpboot: a transfer ended early", "peer", t.Peer, "digest", t.Digest, "file", t.File,
			"sent", tw.t.Sent, "of", tw.t.Total, "error", tw.t.Err)
	}
	if s.cfg.Observe != nil {
		s.cfg.Observe(tw.t)
	}
}

func (s *Server) closed(c io.Closer, name string) {
	if err := c.Close(); err != nil {
		s.complain("httpboot: closing failed", "file", name, "error", err)
	}
}

func (s *Server) complain(msg string, args ...any) {
	if s.complaints.Allow() {
		s.cfg.Log.Warn(msg, args...)
	}
}

// say answers with one line.
func say(w http.ResponseWriter, r *http.Request, status int, line string) {
	reply(w, r, status, "text/plain; charset=utf-8", []byte(line+"\n"))
}

// reply answers with a body that was created for this request.
func reply(w http.ResponseWriter, r *http.Request, status int, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = bytes.NewReader(body).WriteTo(w) // an error means that the client is gone
	}
}
