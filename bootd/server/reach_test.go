package server

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// placed makes Guests on r1.
func (r *rig) placed(names ...string) {
	t := r.t
	c := r.root()
	put(t, c, testsite.NewMachine("r1", "52:54:00:00:00:01"))
	n := &api.Network{Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes("10.5.0.0/16")}}
	n.Metadata.Name = "net"
	put(t, c, n)
	m, err := api.Get[api.Machine](t.Context(), c, "r1")
	must(t, err)
	for _, name := range names {
		g := &api.Guest{Spec: api.GuestSpec{Network: "net", Image: "debian", CPUs: 1, Memory: api.Bytes(1 << 30)}}
		g.Metadata.Name = name
		put(t, c, g)
		_, err = store.Mutate(t.Context(), r.store, name, func(g *api.Guest) error {
			g.Status.Host, g.Status.HostUID = "r1", m.Metadata.UID
			return nil
		})
		must(t, err)
	}
}

// echo has the host answer each display that it is asked for by what it hears.
func (h *streamingHost) echo() {
	go func() {
		for c := range h.opens {
			if c.Kind != api.ChannelVNC {
				h.t.Errorf("the host is asked for %+v", c)
			}
			to, from := h.open(c.ID)
			go func() { _, _ = io.Copy(to, from.Body); _ = to.Close() }()
		}
	}()
}

// A ticket is good once, soon, for its Guest, and for whoever got it.
func TestVNCTickets(t *testing.T) {
	r := newRig(t)
	r.placed("web", "db")
	operator := r.bearer(operatorToken)
	_, err := operator.GuestVNCTicket(t.Context(), "web")
	wantStatus(t, err, http.StatusBadGateway, "host r1 is not connected to this bootd")
	r.streamingHost("r1").echo()
	_, err = r.bearer(viewerToken).GuestVNCTicket(t.Context(), "web")
	wantStatus(t, err, http.StatusForbidden, "operator")
	blind := getGuest(t, r, "db")
	blind.Spec.Display = "none"
	put(t, r.root(), blind)
	_, err = operator.GuestVNCTicket(t.Context(), "db")
	wantStatus(t, err, http.StatusConflict, "Guest db has no display")

	issue := func() *api.VNCTicket {
		t.Helper()
		ticket, err := operator.GuestVNCTicket(t.Context(), "web")
		must(t, err)
		if life := time.Until(ticket.Expires); life <= 0 || life > ticketTime {
			t.Errorf("it lasts %s", life)
		}
		return ticket
	}
	try := func(path, bearer string) int { // without an Upgrade that is good for something the ticket is not looked at
		t.Helper()
		conn, resp, err := r.viewer(path, bearer)
		if err == nil {
			_ = conn.Close()
		}
		if resp == nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	ticket := issue()
	for name, c := range map[string]struct{ path, bearer string }{
		"another Guest's": {strings.Replace(ticket.Path, "/web/", "/db/", 1), ""},
		"no Guest's":      {strings.Replace(ticket.Path, "/web/", "/none/", 1), ""},
		"a guess":         {"/v1/guests/web/vnc?ticket=" + strings.Repeat("A", len(ticket.Ticket)), ""},
		"none":            {"/v1/guests/web/vnc", ""},
		"another's":       {ticket.Path, viewerToken},
	} {
		if status := try(c.path, c.bearer); status != http.StatusUnauthorized {
			t.Errorf("%s: %d", name, status)
		}
	}
	if status := try(ticket.Path, ""); status != http.StatusSwitchingProtocols {
		t.Errorf("the right one: %d", status)
	}
	if status := try(ticket.Path, ""); status != http.StatusUnauthorized {
		t.Errorf("twice: %d", status)
	}
	old := issue()
	r.server.channels.mu.Lock()
	r.server.channels.now = func() time.Time { return time.Now().Add(ticketTime + time.Second) }
	r.server.channels.mu.Unlock()
	if status := try(old.Path, ""); status != http.StatusUnauthorized {
		t.Errorf("too late: %d", status)
	}
	r.freeConsole(t)

	told := func() string { // of a display when it is closed
		var list []string
		for _, a := range r.auditsOf("/v1/guests/web/vnc") { // without the ticket
			list = append(list, fmt.Sprint(a.Who, " ", a.Method, " ", a.Status))
		}
		slices.Sort(list)
		return strings.Join(list, ", ")
	}
	const want = "otto GET 101, otto POST 201, otto POST 201, vera POST 403"
	if !waittest.Soon(20*time.Second, func() bool { return told() == want }) {
		t.Fatalf("audited are %s", told())
	}
	if status, _, body := r.do("GET", ticket.Path, ""); status != http.StatusUpgradeRequired || !strings.Contains(body, "weftctl guest vnc web") {
		t.Errorf("without Upgrade: %d %s", status, body)
	}
}

func getGuest(t *testing.T, r *rig, name string) *api.Guest {
	t.Helper()
	g, err := api.Get[api.Guest](t.Context(), r.root(), name)
	must(t, err)
	return g
}

// viewer is one in a browser.
func (r *rig) viewer(path, bearer string) (*websocket.Conn, *http.Response, error) {
	d := websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: r.authority.Pool()}, Subprotocols: []string{"binary"}}
	header := http.Header{"Origin": {"https://novnc.example"}}
	if bearer != "" {
		header.Set("Authorization", "Bearer "+bearer)
	}
	return d.DialContext(r.t.Context(), "wss"+strings.TrimPrefix(r.base, "https")+path, header)
}

// WebSocket and plain Upgrade are one stream of bytes each.
func TestVNCStreams(t *testing.T) {
	r := newRig(t)
	r.placed("web")
	r.streamingHost("r1").echo()
	operator := r.bearer(operatorToken)
	ticket, err := operator.GuestVNCTicket(t.Context(), "web")
	must(t, err)
	ws, resp, err := r.viewer(ticket.Path, "")
	must(t, err)
	if p := resp.Header.Get("Sec-WebSocket-Protocol"); p != "binary" {
		t.Errorf("the subprotocol is %q", p)
	}
	raw, err := operator.GuestVNC(t.Context(), "web") // beside the other
	must(t, err)
	must(t, ws.WriteMessage(websocket.BinaryMessage, []byte("RFB ")))
	must(t, ws.WriteMessage(websocket.BinaryMessage, []byte("003.008\n")))
	var got []byte
	for len(got) < 12 {
		kind, part, err := ws.ReadMessage()
		if err != nil || kind != websocket.BinaryMessage {
			t.Fatalf("a message of kind %d: %v", kind, err)
		}
		got = append(got, part...)
	}
	if string(got) != "RFB 003.008\n" {
		t.Errorf("a browser hears %q", got)
	}
	_, err = io.WriteString(raw, "RFB 003.003\n")
	must(t, err)
	if _, err := io.ReadFull(raw, got); err != nil || string(got) != "RFB 003.003\n" {
		t.Errorf("a viewer hears %q, %v", got, err)
	}
	must(t, ws.WriteMessage(websocket.BinaryMessage, make([]byte, maxVNCMessage+1)))
	for err == nil {
		_, _, err = ws.ReadMessage()
	}
	if websocket.IsUnexpectedCloseError(err, websocket.CloseMessageTooBig) {
		t.Errorf("a viewer that sends too much at once: %v", err)
	}
	must(t, raw.Close())
	r.freeConsole(t)
}

// What a host answers to a command is passed on, or told apart from silence.
func TestGuestExec(t *testing.T) {
	r := newRig(t)
	r.placed("web")
	h := r.streamingHost("r1")
	operator := r.bearer(operatorToken)
	run := func(answer func(to *io.PipeWriter, e api.GuestExec)) (*api.GuestExecResult, error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			c := <-h.opens
			if c.Kind != api.ChannelExec || c.Guest != "web" {
				t.Errorf("the host is asked for %+v", c)
			}
			to, from := h.open(c.ID)
			var e api.GuestExec
			if err := json.NewDecoder(from.Body).Decode(&e); err != nil {
				t.Error(err)
			}
			answer(to, e)
			_ = to.Close()
		}()
		result, err := operator.GuestExec(t.Context(), "web", api.GuestExec{Command: []string{"sh", "-c", "date"}, Stdin: []byte{0, 255}})
		<-done
		return result, err
	}
	result, err := run(func(to *io.PipeWriter, e api.GuestExec) {
		if len(e.Command) != 3 || string(e.Stdin) != "\x00\xff" {
			t.Errorf("the host is told %+v", e)
		}
		_ = json.NewEncoder(to).Encode(api.GuestExecAnswer{Result: &api.GuestExecResult{ExitCode: 3, Stdout: []byte("out\x00"), StderrTruncated: true}})
	})
	if err != nil || result.ExitCode != 3 || string(result.Stdout) != "out\x00" || !result.StderrTruncated {
		t.Errorf("the answer is %+v, %v", result, err)
	}
	_, err = run(func(to *io.PipeWriter, _ api.GuestExec) {
		_ = json.NewEncoder(to).Encode(api.GuestExecAnswer{Fault: "the command did not end within 1m"})
	})
	wantStatus(t, err, http.StatusBadGateway, "host r1: the command did not end")
	_, err = run(func(*io.PipeWriter, api.GuestExec) {})
	wantStatus(t, err, http.StatusBadGateway, "it may have run")
	_, err = run(func(to *io.PipeWriter, _ api.GuestExec) {
		_, _ = io.WriteString(to, `{"result": {"stdout": "`)
		_, _ = io.Copy(to, io.LimitReader(endless{}, maxExecAnswer+1))
	})
	wantStatus(t, err, http.StatusBadGateway, "it may have run")
	go func() {
		c := <-h.opens
		resp, err := h.client.Post(h.base+"/channels/"+c.ID+"?refused="+url.QueryEscape("no guest agent runs in Guest web"), "", http.NoBody)
		if err == nil {
			_ = resp.Body.Close()
		}
	}()
	_, err = operator.GuestExec(t.Context(), "web", api.GuestExec{Command: []string{"date"}})
	wantStatus(t, err, http.StatusBadGateway, "host r1: no guest agent runs")
	r.freeConsole(t)

	_, err = operator.GuestExec(t.Context(), "web", api.GuestExec{})
	wantStatus(t, err, http.StatusUnprocessableEntity, "name a program")
	_, err = r.bearer(viewerToken).GuestExec(t.Context(), "web", api.GuestExec{Command: []string{"date"}})
	wantStatus(t, err, http.StatusForbidden, "operator")
	h.close()
	_, err = operator.GuestExec(t.Context(), "web", api.GuestExec{Command: []string{"date"}})
	wantStatus(t, err, http.StatusBadGateway, "not connected")
	audits := r.auditsOf("/v1/guests/web/exec")
	if len(audits) != 5 || audits[0].Who != "otto" || len(audits[0].Diff) != 1 || audits[0].Diff[0].New != "sh -c date" {
		t.Errorf("%d audits: %+v", len(audits), audits)
	}
}

// endless is a text without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'A'
	}
	return len(p), nil
}

// An export is the host's bytes, as they come, for an operator.
func TestGuestExport(t *testing.T) {
	r := newRig(t)
	c := r.root()
	put(t, c, testsite.NewMachine("r1", "52:54:00:00:00:01"))
	n := &api.Network{Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes("10.5.0.0/16")}}
	n.Metadata.Name = "net"
	g := &api.Guest{Spec: api.GuestSpec{Network: "net", Image: "debian", CPUs: 1, Memory: api.Bytes(1 << 30)}}
	g.Metadata.Name = "web"
	put(t, c, n, g)
	export := func(e api.GuestExport) (io.ReadCloser, error) {
		return r.bearer(operatorToken).GuestExport(t.Context(), "web", e)
	}
	_, err := export(api.GuestExport{})
	wantStatus(t, err, http.StatusConflict, "has no host")
	m, err := api.Get[api.Machine](t.Context(), c, "r1")
	must(t, err)
	_, err = store.Mutate(t.Context(), r.store, "web", func(g *api.Guest) error {
		g.Status.Host, g.Status.HostUID = "r1", m.Metadata.UID
		return nil
	})
	must(t, err)
	_, err = export(api.GuestExport{Format: "vmdk"})
	wantStatus(t, err, http.StatusUnprocessableEntity, "qcow2 or raw")
	_, err = export(api.GuestExport{Rate: api.Bytes(1)})
	wantStatus(t, err, http.StatusUnprocessableEntity, "at least 1Mi")
	_, err = r.bearer(viewerToken).GuestExport(t.Context(), "web", api.GuestExport{})
	wantStatus(t, err, http.StatusForbidden, "role")

	h := r.streamingHost("r1")
	type answer struct {
		stream io.ReadCloser
		err    error
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, whole := range []bool{true, false} {
		got := make(chan answer, 1)
		go func() { s, err := export(api.GuestExport{Disk: "root"}); got <- answer{s, err} }()
		asked := <-h.opens
		if asked.Kind != api.ChannelExport || asked.Guest != "web" {
			t.Errorf("the host is asked for %+v", asked)
		}
		to, from := h.open(asked.ID)
		var e api.GuestExport
		must(t, json.NewDecoder(from.Body).Decode(&e))
		if e.Disk != "root" || e.Format != "qcow2" || e.Rate.Value() != api.ExportRate {
			t.Errorf("the host is asked to export %+v", e)
		}
		go func() {
			_, _ = to.Write(big)
			if whole {
				_ = to.Close()
			} else {
				_ = from.Body.Close() // the host goes away
				_ = to.CloseWithError(io.ErrUnexpectedEOF)
			}
		}()
		a := <-got
		must(t, a.err)
		if raw, _ := io.ReadAll(a.stream); whole && !bytes.Equal(raw, big) || len(raw) > len(big) {
			t.Errorf("%d bytes come, %d were sent", len(raw), len(big))
		}
		_ = a.stream.Close()
	}
	if n := len(r.auditsOf("/v1/guests/web/export")); n < 2 {
		t.Errorf("%d exports were audited", n)
	}
}
