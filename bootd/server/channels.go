package server

import (
	"context"
	"crypto/rand"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/text"
)

// maxWords limits a host's message to a person, in bytes.
const maxWords = 500

// channelTime is how long a host has to open a requested channel.
const channelTime = 10 * time.Second

// channels pair a person's request for something on a host with the request by which the host opens it.
type channels struct {
	mu      sync.Mutex
	waiting map[string]*waiter // by the channel's id
	users   map[string]string  // who has the console of a Guest open, by its uid
	tickets map[string]ticket
	now     func() time.Time
}

func newChannels() *channels {
	return &channels{waiting: map[string]*waiter{}, users: map[string]string{}, tickets: map[string]ticket{}, now: time.Now}
}

// waiter waits for a host.
type waiter struct {
	host   string // uid
	opened chan *hostEnd
	gone   chan struct{} // closed when no one waits any longer
}

// hostEnd is a host's request. Its handler returns when done is closed; until
// then it may be used.
type hostEnd struct {
	c       *call
	refused string
	done    chan struct{}
}

func (e *hostEnd) Read(p []byte) (int, error) { return e.c.r.Body.Read(p) }

func (e *hostEnd) Write(p []byte) (int, error) {
	n, err := e.c.w.Write(p)
	if err == nil {
		err = e.c.rc.Flush()
	}
	return n, err
}

// Close ends the call's reads and writes.
func (e *hostEnd) Close() error {
	e.c.cut()
	return nil
}

// expect creates an id that the host with that uid may use once.
func (s *channels) expect(host string) (id string, w *waiter) {
	id, w = rand.Text(), &waiter{host: host, opened: make(chan *hostEnd), gone: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting[id] = w
	return id, w
}

// forget ends the wait for a host.
func (s *channels) forget(id string, w *waiter) {
	s.mu.Lock()
	delete(s.waiting, id)
	s.mu.Unlock()
	close(w.gone)
}

// claim returns the waiter for a host's id; nil for an id that the host was not given.
func (s *channels) claim(id, host string) *waiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.waiting[id]
	if w == nil || w.host != host {
		return nil
	}
	delete(s.waiting, id)
	return w
}

// use gives a Guest's console to a person, or says who has it.
func (s *channels) use(guest, who string) (other string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other, taken := s.users[guest]; taken {
		return other, false
	}
	s.users[guest] = who
	return "", true
}

func (s *channels) leave(guest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.users, guest)
}

// ticketTime is how long a ticket is valid.
const ticketTime = 30 * time.Second

// ticket gives its holder access to a Guest's display once.
type ticket struct {
	text    string
	guest   string // uid
	holder  caller
	expires time.Time
}

// issue creates a ticket for a Guest's display.
func (s *channels) issue(guest string, holder caller) ticket {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	t := ticket{text: rand.Text(), guest: guest, holder: holder, expires: now.Add(ticketTime)}
	maps.DeleteFunc(s.tickets, func(_ string, old ticket) bool { return now.After(old.expires) })
	s.tickets[t.text] = t
	return t
}

// redeem uses up a ticket, and returns its holder. A caller that is authenticated must be the holder.
func (s *channels) redeem(text, guest string, who caller) (holder caller, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tickets[text]
	stranger := who.host != nil || who.role != anonymous && who.name != t.holder.name
	if !ok || t.guest != guest || stranger {
		return caller{}, false
	}
	delete(s.tickets, text)
	return t.holder, !s.now().After(t.expires)
}

// openChannel has a Guest's host open a channel. The caller closes done.
func (h *reach) openChannel(ctx context.Context, g *api.Guest, kind string) (*hostEnd, error) {
	id, w := h.channels.expect(g.Status.HostUID)
	defer h.channels.forget(id, w)
	err := h.hub.Open(g.Status.Host, g.Status.HostUID, api.Channel{ID: id, Kind: kind, Guest: g.Metadata.Name, UID: g.Metadata.UID})
	if err != nil {
		return nil, problem(http.StatusBadGateway, "%s", err)
	}
	ctx, cancel := context.WithTimeout(ctx, channelTime)
	defer cancel()
	select {
	case far := <-w.opened:
		if far.refused != "" {
			close(far.done)
			return nil, problem(http.StatusBadGateway, "host %s: %s", g.Status.Host, far.refused)
		}
		return far, nil
	case <-ctx.Done():
		return nil, problem(http.StatusGatewayTimeout, "host %s has not opened the channel (%s) within %s: see nodeagent's log there", g.Status.Host, kind, channelTime)
	}
}

// hostChannel accepts a requested channel from a host, and lasts as long as it is used.
func (h *reach) hostChannel(c *call) error {
	if c.who.host == nil {
		return problem(http.StatusForbidden, "only a host may open a channel: show the certificate of host:%s", c.name())
	}
	w := h.channels.claim(c.r.PathValue("id"), c.who.host.UID)
	if w == nil {
		return problem(http.StatusNotFound, "this channel was not requested, or is no longer waited for")
	}
	_, cancel := h.streams.lasting(c)
	defer cancel()
	end := &hostEnd{c: c, refused: text.Clip(c.r.URL.Query().Get("refused"), maxWords), done: make(chan struct{})}
	if end.refused == "" {
		if err := c.begin(); err != nil {
			return err
		}
	}
	select {
	case w.opened <- end:
		<-end.done // the waiter ends with the host's request, or with the Server
	case <-w.gone:
	}
	if end.refused != "" {
		return c.empty(http.StatusOK)
	}
	return nil
}

// begin sends the header, so that bytes flow both ways.
func (c *call) begin() error {
	if err := c.rc.EnableFullDuplex(); err != nil && c.r.ProtoMajor == 1 {
		return err
	}
	c.w.Header().Set("Content-Type", "application/octet-stream")
	c.status = http.StatusOK
	c.w.WriteHeader(http.StatusOK)
	return c.rc.Flush()
}
