package hostspec

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

const (
	// silence is how long a stream may be quiet before it counts as dead;
	// nodeagent pings every 10 s.
	silence = 30 * time.Second
	// maxFrame bounds one frame of a host.
	maxFrame = 4 << 20
)

// Recorder keeps what people read later.
type Recorder interface {
	Event(o api.Object, typ api.EventType, reason, message string)
}

// Signer renews certificates.
type Signer interface {
	// Renew signs a CSR for a host that proved itself, and returns the
	// certificate and the digest of its key.
	Renew(csr []byte, name, uid string) (cert []byte, key string, err error)
}

// Hub holds the streams of all hosts that are connected to this bootd.
type Hub struct {
	Store    *store.Store
	Cache    *store.Cache
	Compiler *Compiler
	Signer   Signer
	Record   Recorder
	Log      *slog.Logger

	mu      sync.Mutex
	streams map[string]*stream
}

// Peer is who opened a stream, as its certificate says.
type Peer struct {
	Name, UID string
	Key       string // SHA-256 of its public key
	Address   string
}

// Conn is the two directions of a stream.
type Conn struct {
	In    io.Reader
	Out   io.Writer
	Flush func() error
	// SetReadDeadline bounds the next reads.
	SetReadDeadline func(time.Time) error
}

type stream struct {
	peer  Peer
	dirty chan struct{} // the host's HostSpec may have changed; capacity 1
	close context.CancelCauseFunc

	greeted bool // the first bookmark went out; transmit's own

	mu   sync.Mutex
	seen time.Time
}

func (s *stream) touch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = time.Now()
}

func (s *stream) lastSeen() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// Heartbeat is when the host was last heard of; false when it is not connected
// to this bootd.
func (h *Hub) Heartbeat(name string) (time.Time, bool) {
	h.mu.Lock()
	s := h.streams[name]
	h.mu.Unlock()
	if s == nil {
		return time.Time{}, false
	}
	return s.lastSeen(), true
}

// Count is how many hosts are connected to this bootd.
func (h *Hub) Count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.streams)
}

// grace is how long after its start bootd waits for hosts to come back before
// it says that they are not connected.
const grace = time.Minute

// Run marks streams whose HostSpec may have changed, until ctx ends. After a
// grace period it clears the HostConnected of hosts that did not come back to a
// restarted bootd: a stale True would hold their next boot for ever.
func (h *Hub) Run(ctx context.Context) error {
	late := time.AfterFunc(grace, func() { h.clearStale(ctx) })
	defer late.Stop()
	return h.Cache.Subscribe(ctx, func(c store.Change) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if c.Kind.Name == "Machine" {
			if s := h.streams[c.Name]; s != nil {
				s.mark()
			}
			return
		}
		for _, s := range h.streams {
			s.mark()
		}
	})
}

func (s *stream) mark() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

func (h *Hub) clearStale(ctx context.Context) {
	for _, m := range store.CachedList[api.Machine](h.Cache) {
		if _, here := h.Heartbeat(m.Metadata.Name); here || !m.Status.Conditions.Is(api.CondConnected) {
			continue
		}
		h.setConnected(ctx, m.Metadata.Name, m.Metadata.UID, api.False, "Silent", "it did not come back after bootd was restarted")
	}
}

// errReplaced ends a stream whose host opened another.
var errReplaced = errors.New("the host opened another stream")

// Serve runs one stream until it breaks, its host is refused, or ctx ends.
func (h *Hub) Serve(ctx context.Context, p Peer, c Conn) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := json.NewEncoder(c.Out)
	send := func(f api.ServerFrame) error {
		if err := out.Encode(f); err != nil {
			return fmt.Errorf("write to host %s: %w", p.Name, err)
		}
		return c.Flush()
	}
	if reason := h.refusal(ctx, p); reason != "" {
		return errors.Join(send(api.ServerFrame{Refused: reason}), errors.New(reason))
	}
	s := &stream{peer: p, dirty: make(chan struct{}, 1), close: cancel}
	s.touch()
	in := bufio.NewReaderSize(c.In, 64<<10)
	hello, err := h.hello(in, c)
	if err != nil {
		return fmt.Errorf("host %s: %w", p.Name, err)
	}
	h.attach(s)
	defer h.detach(context.WithoutCancel(ctx), s)
	h.setConnected(ctx, p.Name, p.UID, api.True, "Connected", "nodeagent "+hello.AgentVersion+" from "+p.Address)
	h.Record.Event(h.object(p.Name), api.Normal, "HostConnected", fmt.Sprintf("nodeagent %s from %s, clock off by %s", hello.AgentVersion, p.Address, time.Until(hello.Time).Round(time.Second)))

	replies := make(chan api.ServerFrame, 8)
	done := make(chan struct{})
	go func() {
		defer close(done)
		cancel(h.receive(ctx, s, in, c, hello, replies))
	}()
	err = h.transmit(ctx, s, hello, replies, send)
	cancel(err)
	_ = c.SetReadDeadline(time.Now()) // wakes the reader
	<-done
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

func (h *Hub) object(name string) api.Object {
	if m, ok := store.Cached[api.Machine](h.Cache, name); ok {
		return m
	}
	m := &api.Machine{}
	m.SetDefaults()
	m.Metadata.Name = name
	return m
}

// refusal says why a host may not hold a stream; empty when it may. The cache
// may be a moment behind a join, so a refusal is checked against the store.
func (h *Hub) refusal(ctx context.Context, p Peer) string {
	if m, ok := store.Cached[api.Machine](h.Cache, p.Name); ok && refused(m, p) == "" {
		return ""
	}
	m, err := store.Get[api.Machine](ctx, h.Store, p.Name)
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Sprintf("no Machine is called %s any more", p.Name)
	}
	if err != nil {
		return "bootd cannot read its store: " + err.Error()
	}
	return refused(m, p)
}

func refused(m *api.Machine, p Peer) string {
	switch {
	case m.Metadata.UID != p.UID:
		return fmt.Sprintf("Machine %s was made anew since this host joined: reprovision it", p.Name)
	case m.Status.HostKey != p.Key:
		return fmt.Sprintf("the certificate of host %s is revoked: it joined in an earlier BootAttempt, or the attempt failed", p.Name)
	}
	return ""
}

func (h *Hub) hello(in *bufio.Reader, c Conn) (*api.Hello, error) {
	_ = c.SetReadDeadline(time.Now().Add(silence))
	f, err := readFrame(in)
	if err != nil {
		return nil, err
	}
	if f.Hello == nil {
		return nil, errors.New("its first frame is no hello")
	}
	return f.Hello, nil
}

func readFrame(in *bufio.Reader) (*api.HostFrame, error) {
	line, err := readLine(in)
	if err != nil {
		return nil, fmt.Errorf("read a frame: %w", err)
	}
	f := new(api.HostFrame)
	if err := json.Unmarshal(line, f); err != nil {
		return nil, fmt.Errorf("decode a frame: %w", err)
	}
	return f, nil
}

func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(line) > maxFrame:
			return nil, fmt.Errorf("a frame of more than %d bytes", maxFrame)
		}
	}
}

func (h *Hub) attach(s *stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams == nil {
		h.streams = map[string]*stream{}
	}
	if old := h.streams[s.peer.Name]; old != nil {
		old.close(errReplaced)
	}
	h.streams[s.peer.Name] = s
}

func (h *Hub) detach(ctx context.Context, s *stream) {
	h.mu.Lock()
	current := h.streams[s.peer.Name] == s
	if current {
		delete(h.streams, s.peer.Name)
	}
	h.mu.Unlock()
	if !current {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	h.setConnected(ctx, s.peer.Name, s.peer.UID, api.False, "Disconnected", "its stream ended at "+time.Now().UTC().Format(time.RFC3339))
	h.Record.Event(h.object(s.peer.Name), api.Warning, "HostDisconnected", "its stream ended")
}

func (h *Hub) setConnected(ctx context.Context, name, uid string, status api.ConditionStatus, reason, message string) {
	h.mutate(ctx, name, uid, func(m *api.Machine) {
		m.Status.Conditions.Set(time.Now(), api.CondConnected, status, reason, message)
	})
}

func (h *Hub) mutate(ctx context.Context, name, uid string, fn func(*api.Machine)) {
	_, err := store.Mutate(ctx, h.Store, name, func(m *api.Machine) error {
		if m.Metadata.UID != uid {
			return store.ErrUnchanged
		}
		fn(m)
		return nil
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) && ctx.Err() == nil {
		h.Log.Warn("write a host's status", "host", name, "error", err)
	}
}

// transmit sends what changes, and what receive answers.
func (h *Hub) transmit(ctx context.Context, s *stream, hello *api.Hello, replies <-chan api.ServerFrame, send func(api.ServerFrame) error) error {
	held := hello.Digests
	s.mark()
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-replies:
			if err := send(f); err != nil {
				return err
			}
		case <-s.dirty:
			next, err := h.update(ctx, s, held, send)
			if err != nil {
				return err
			}
			held = next
		}
	}
}

// update sends the difference between what the host holds and what it should.
func (h *Hub) update(ctx context.Context, s *stream, held map[string]string, send func(api.ServerFrame) error) (map[string]string, error) {
	if reason := h.refusal(ctx, s.peer); reason != "" {
		return nil, errors.Join(send(api.ServerFrame{Refused: reason}), errors.New(reason))
	}
	m, ok := store.Cached[api.Machine](h.Cache, s.peer.Name)
	if !ok {
		return held, nil // the cache is behind: its next change marks the stream
	}
	spec, err := h.Compiler.Compile(m)
	if err != nil {
		return nil, err
	}
	frames := difference(held, spec)
	if len(frames) == 1 && s.greeted {
		return held, nil // nothing but a bookmark: the host need not hear of every revision
	}
	for _, f := range frames {
		if err := send(f); err != nil {
			return nil, err
		}
	}
	s.greeted = true
	return digests(spec), ctx.Err()
}
