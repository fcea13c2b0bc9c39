package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/text"
)

const (
	// maxExecAnswer is larger than the JSON of any valid GuestExecAnswer.
	maxExecAnswer = 4 << 20
	// execSlack is how long a host may take to answer, in addition to the command's own timeout.
	execSlack = 30 * time.Second
	// maxVNCMessage is larger than any message of a viewer.
	maxVNCMessage = 1 << 20
)

// reach connects people to Guests, by channels that hosts open.
type reach struct {
	store    *store.Store
	cache    *store.Cache
	hub      Hub
	auth     *auth
	objects  *objects
	channels *channels
	streams  *streams
}

func (h *reach) routes() []route {
	const one = "/v1/guests/{name}"
	return []route{
		{method: "GET", path: one + "/console", tag: "Guest", role: operator, stream: true, status: http.StatusSwitchingProtocols, audited: true,
			summary: "Open a Guest's serial console through its host: HTTP/1.1 Upgrade to " + api.ConsoleProtocol + ", then raw bytes", handle: h.guestConsole},
		{method: "POST", path: one + "/exec", tag: "Guest", role: operator, stream: true, audited: true,
			summary: "Run a command inside a Guest by its guest agent (qemu-ga), and wait for its end", in: api.GuestExec{}, out: api.GuestExecResult{}, handle: h.guestExec},
		{method: "POST", path: one + "/export", tag: "Guest", role: operator, stream: true, audited: true,
			summary: "A copy of a Guest's disks at one point in time: lines of ExportLine, data between them", in: api.GuestExport{}, outType: "application/octet-stream", handle: h.guestExport},
		{method: "POST", path: one + "/vnc", tag: "Guest", role: operator, audited: true,
			summary: "A ticket for a Guest's display, valid once, within 30 s", out: api.VNCTicket{}, status: http.StatusCreated, handle: h.vncTicket},
		{method: "GET", path: one + "/vnc", tag: "Guest", public: true, stream: true, status: http.StatusSwitchingProtocols, audited: true,
			summary: "Open a Guest's display with a ticket: WebSocket, or HTTP/1.1 Upgrade to " + api.VNCProtocol + ", then RFB",
			query:   []parameter{{"ticket", "From POST " + one + "/vnc.", "string"}}, handle: h.guestVNC},
		{method: "POST", path: "/v1/hosts/{name}/channels/{id}", tag: "Host", host: ownName, stream: true, query: []parameter{{"refused", "Why the host has nothing to open.", "string"}},
			summary: "A channel that bootd requested from the host: raw bytes both ways", inType: "application/octet-stream", outType: "application/octet-stream", handle: h.hostChannel},
	}
}

// hosted reads a Guest that has a host.
func (h *reach) hosted(c *call) (*api.Guest, error) {
	g, err := store.Get[api.Guest](c.r.Context(), h.store, c.name())
	if err != nil {
		return nil, err
	}
	if err := h.objects.reaches(c, g); err != nil {
		return nil, err
	}
	if g.Status.Host == "" {
		return nil, problem(http.StatusConflict, "Guest %s has no host: weftctl describe guest %s says why", c.name(), c.name())
	}
	return g, nil
}

// reaches refuses operators access to an object that receives Secrets which are not for operators.
func (h *objects) reaches(c *call, o api.Object) error {
	if c.who.role >= admin {
		return nil
	}
	if why := h.world.Reached(o); why != "" {
		return problem(http.StatusForbidden, "%s", why)
	}
	return nil
}

// guestConsole connects the client to a Guest's serial console, by a channel that the Guest's host opens.
func (h *reach) guestConsole(c *call) error {
	if err := c.upgradable(api.ConsoleProtocol, "weftctl guest console "+c.name()); err != nil {
		return err
	}
	g, err := h.hosted(c)
	if err != nil {
		return err
	}
	if other, ok := h.channels.use(g.Metadata.UID, c.who.name); !ok {
		return problem(http.StatusConflict, "%s has the console of Guest %s open: it has one user at a time", other, c.name())
	}
	defer h.channels.leave(g.Metadata.UID)
	return h.joinChannel(c, g, api.ChannelConsole, func() (io.ReadWriteCloser, error) { return c.upgrade(api.ConsoleProtocol) })
}

// joinChannel connects the client, once upgraded, to a channel of a Guest's host.
func (h *reach) joinChannel(c *call, g *api.Guest, kind string, upgrade func() (io.ReadWriteCloser, error)) error {
	h.streams.hijacked.Add(1)
	defer h.streams.hijacked.Done()
	ctx, cancel := h.streams.lasting(c)
	defer cancel()
	far, err := h.openChannel(ctx, g, kind)
	if err != nil {
		return err
	}
	defer close(far.done)
	near, err := upgrade()
	if err != nil {
		return errors.Join(err, far.Close())
	}
	join(ctx, near, far)
	return nil
}

// vncTicket creates a ticket for a Guest's display.
func (h *reach) vncTicket(c *call) error {
	g, err := h.hosted(c)
	if err != nil {
		return err
	}
	if g.Spec.Display == "none" {
		return problem(http.StatusConflict, "Guest %s has no display: set machine: q35 and display: vga, then weftctl guest restart %[1]s", c.name())
	}
	if err := h.hub.Holds(g.Status.Host, g.Status.HostUID); err != nil { // the ticket would be useless
		return problem(http.StatusBadGateway, "%s", err)
	}
	c.changed = true
	t := h.channels.issue(g.Metadata.UID, c.who)
	c.w.Header().Set("Cache-Control", "no-store")
	path := "/v1/guests/" + url.PathEscape(c.name()) + "/vnc?" + url.Values{"ticket": {t.text}}.Encode()
	return c.json(http.StatusCreated, api.VNCTicket{Ticket: t.text, Expires: t.expires, Path: path})
}

// guestVNC connects a viewer to a Guest's display. A browser can present nothing but the ticket, so the ticket
// authenticates it.
func (h *reach) guestVNC(c *call) error {
	upgrade := func() (io.ReadWriteCloser, error) { return c.upgrade(api.VNCProtocol) }
	if c.r.ProtoMajor == 1 && websocket.IsWebSocketUpgrade(c.r) {
		upgrade = c.websocket
	} else if err := c.upgradable(api.VNCProtocol, "weftctl guest vnc "+c.name()); err != nil {
		return err
	}
	g, err := h.ticketed(c)
	if err != nil {
		return err
	}
	return h.joinChannel(c, g, api.ChannelVNC, upgrade)
}

// ticketed redeems the call's ticket, and returns the Guest that it is for.
func (h *reach) ticketed(c *call) (*api.Guest, error) {
	who, err := h.auth.identify(c.r)
	if err != nil {
		return nil, err
	}
	if h.auth.failures.exhausted(peerOf(c.r)) {
		return nil, problem(http.StatusTooManyRequests, "too many wrong tickets from %s: wait a few seconds", who.from)
	}
	g, ok := store.Cached[api.Guest](h.cache, c.name())
	if !ok {
		return nil, h.auth.failed(peerOf(c.r), badTicket)
	}
	holder, ok := h.channels.redeem(c.r.URL.Query().Get("ticket"), g.Metadata.UID, who)
	if !ok {
		return nil, h.auth.failed(peerOf(c.r), badTicket)
	}
	vouch(c.r)
	c.who = holder
	c.who.from = who.from
	return h.hosted(c)
}

const badTicket = "the ticket is used up, too old, or another's: POST to the same path for a new one"

// websocket upgrades the client's connection. Any origin is allowed: the ticket authenticates, and no cookie
// does.
func (c *call) websocket() (io.ReadWriteCloser, error) {
	u := websocket.Upgrader{Subprotocols: []string{"binary"}, CheckOrigin: func(*http.Request) bool { return true },
		Error: func(http.ResponseWriter, *http.Request, int, error) {}} // refuse answers
	conn, err := u.Upgrade(c.w, c.r, nil)
	if err != nil {
		return nil, problem(http.StatusBadRequest, "the WebSocket cannot be opened: %s", err)
	}
	c.status, c.changed = http.StatusSwitchingProtocols, true
	conn.SetReadLimit(maxVNCMessage)
	return &messages{Conn: conn, in: strings.NewReader("")}, nil
}

// messages turns a WebSocket into a stream of bytes.
type messages struct {
	*websocket.Conn
	in io.Reader // the rest of the current message
}

func (m *messages) Read(p []byte) (int, error) {
	for {
		if n, err := m.in.Read(p); n > 0 || err != io.EOF {
			return n, err
		}
		var err error
		if _, m.in, err = m.NextReader(); err != nil {
			return 0, err // permanent, as gorilla's are
		}
	}
}

func (m *messages) Write(p []byte) (int, error) {
	return len(p), m.WriteMessage(websocket.BinaryMessage, p)
}

// Close tells the viewer that the session has ended.
func (m *messages) Close() error {
	bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = m.WriteControl(websocket.CloseMessage, bye, time.Now().Add(time.Second)) // it may have disconnected
	return m.Conn.Close()
}

// guestExec runs a command inside a Guest.
func (h *reach) guestExec(c *call) error {
	raw, err := c.body(maxObject)
	if err != nil {
		return err
	}
	var e api.GuestExec
	if err := api.DecodeStrict(raw, &e); err != nil {
		return err
	}
	if err := e.Check(); err != nil {
		return problem(http.StatusUnprocessableEntity, "%s", err)
	}
	g, err := h.hosted(c)
	if err != nil {
		return err
	}
	ctx, cancel := h.streams.lasting(c)
	defer cancel()
	ctx, cancelTime := context.WithTimeout(ctx, e.Timeout.Or(api.ExecTimeout)+execSlack)
	defer cancelTime()
	far, err := h.openChannel(ctx, g, api.ChannelExec)
	if err != nil {
		return err
	}
	defer close(far.done)
	c.changed, c.diff = true, []api.Change{{Pointer: "/exec", New: text.Clip(strings.Join(e.Command, " "), maxWords)}}
	release := context.AfterFunc(ctx, func() { _ = far.Close() })
	defer release()
	answer, err := ask(far, e)
	switch {
	case err != nil:
		return problem(http.StatusBadGateway, "host %s has not reported how the command ended; it may have run: %s", g.Status.Host, err)
	case answer.Result == nil:
		return problem(http.StatusBadGateway, "host %s: %s", g.Status.Host, text.Clip(answer.Fault, maxWords))
	}
	return c.json(http.StatusOK, answer.Result)
}

// ask sends a command to a host and reads its answer.
func ask(far io.ReadWriter, e api.GuestExec) (answer api.GuestExecAnswer, err error) {
	if err := json.NewEncoder(far).Encode(e); err != nil {
		return answer, err
	}
	err = json.NewDecoder(io.LimitReader(far, maxExecAnswer)).Decode(&answer)
	return answer, err
}

// guestExport forwards a Guest's export from its host, as fast as the client reads it.
func (h *reach) guestExport(c *call) error {
	raw, err := c.body(maxBoot)
	if err != nil {
		return err
	}
	var e api.GuestExport
	if len(raw) > 0 {
		if err := api.DecodeStrict(raw, &e); err != nil {
			return err
		}
	}
	e.SetDefaults()
	if err := e.Check(); err != nil {
		return problem(http.StatusUnprocessableEntity, "%s", err)
	}
	g, err := h.hosted(c)
	if err != nil {
		return err
	}
	ctx, cancel := h.streams.lasting(c)
	defer cancel()
	far, err := h.openChannel(ctx, g, api.ChannelExport)
	if err != nil {
		return err
	}
	defer close(far.done)
	defer func() { _ = far.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = far.Close() })
	defer stop()
	c.changed = true
	c.diff = []api.Change{{Pointer: "/spec/disks", New: "export " + e.Disk}}
	if err := json.NewEncoder(far).Encode(e); err != nil {
		return problem(http.StatusBadGateway, "host %s has disconnected: %s", g.Status.Host, err)
	}
	if err := c.begin(); err != nil {
		return err
	}
	_, _ = io.Copy(flushing{c}, far) // the reader sees by the last line whether it is complete
	return nil
}

// flushing sends each write immediately.
type flushing struct{ c *call }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.c.w.Write(p)
	if err == nil {
		err = f.c.rc.Flush()
	}
	return n, err
}
