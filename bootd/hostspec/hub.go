package hostspec

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/part"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/text"
	"github.com/rackweft/rackweft/internal/wait"
)

const (
	// silence is how long a stream may be quiet before it counts as dead; nodeagent pings every 10 s.
	silence = 30 * time.Second
	// grace is how long after its start bootd waits for hosts to reconnect before it records that they are not
	// connected.
	grace = time.Minute
	// maxFrame bounds one frame of a host.
	maxFrame = 1 << 20
)

// Recorder stores records that people read later.
type Recorder interface {
	Event(o api.Object, typ api.EventType, reason, message string)
}

// Signer renews certificates.
type Signer interface {
	// Renew signs a CSR for a host that has proved its identity, and returns the certificate and the digest of its
	// key.
	Renew(csr []byte, name, uid string) (cert []byte, key string, err error)
}

// Recovery is called for hosts after a restore.
type Recovery interface {
	// Reported adopts what a host has.
	Reported(ctx context.Context, name, uid string, r api.Recount) error
	// Claim records a host that the store does not know, and returns the message for it; "" for one that is simply
	// refused.
	Claim(ctx context.Context, h api.RecoveryHost) string
}

// Hub holds the streams of all hosts that are connected to this bootd.
type Hub struct {
	Store    *store.Store
	Cache    *store.Cache
	Compiler *Compiler
	Signer   Signer
	Record   Recorder
	Recovery Recovery // nil: nothing is ever restored
	Log      *slog.Logger
	// Name distinguishes this bootd from others in what it records about its hosts.
	Name string
	// Silence, Grace and Lag. Default: 30 s, 1 min and 15 s.
	Silence, Grace, Lag time.Duration
	// Gather is how long hosts that join an encrypted Zone are collected before its others receive them. Default: 1
	// s.
	Gather time.Duration

	mu       sync.Mutex
	streams  map[string]*stream
	stopping bool              // Run has ended
	quotas   map[string]*quota // of hosts that are or were connected, by name
	bgp      map[string]*api.BGPStatus
	measured chan struct{} // closed at the next report of what a host uses
}

// Peer is the client that opened a stream, according to its certificate.
type Peer struct {
	Name, UID string
	Key       string // SHA-256 of its public key
	Address   string
	Issued    time.Time // when its certificate was
}

// Conn is the two directions of a stream.
type Conn struct {
	In    io.Reader
	Out   io.Writer
	Flush func() error
	// SetReadDeadline and SetWriteDeadline limit the next read or write. A host that receives nothing is detected
	// only by the latter, which may be nil.
	SetReadDeadline  func(time.Time) error
	SetWriteDeadline func(time.Time) error
}

type stream struct {
	peer  Peer
	quota *quota
	dirty wait.Signal // the host's HostSpec may have changed
	out   *outbox
	close context.CancelCauseFunc

	greeted bool      // the first bookmark went out; transmit's own
	held    bool      // it was sent the order to continue unchanged; transmit's own
	recount recount   // that is coming in; receive's own
	audited time.Time // when its audits were last passed on; the Hub's mu

	mu       sync.Mutex
	seen     time.Time
	reported *api.HostStatus // the host's last report; never modified
	behind   time.Time       // since when its HostSpec is not applied; zero: it is
	refused  bool            // the last status was too large
	heldBack bool            // reported must still be stored: it was too frequent
	usage    usage           // the Hub's mu
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

// Heartbeat returns when the last frame of the host was received; false when it is not connected to this bootd.
func (h *Hub) Heartbeat(name string) (time.Time, bool) {
	h.mu.Lock()
	s := h.streams[name]
	h.mu.Unlock()
	if s == nil {
		return time.Time{}, false
	}
	return s.lastSeen(), true
}

// Holds returns why a host, by its Machine's name and uid, is not connected to this bootd, and which bootd to use;
// nil if it is.
func (h *Hub) Holds(name, uid string) error {
	_, err := h.streamOf(name, uid)
	return err
}

func (h *Hub) streamOf(name, uid string) (*stream, error) {
	h.mu.Lock()
	s := h.streams[name]
	h.mu.Unlock()
	if s != nil && s.peer.UID == uid {
		return s, nil
	}
	m, ok := store.Cached[api.Machine](h.Cache, name)
	if ok && m.Status.Conditions.Is(api.CondConnected) && m.Status.Host != nil && m.Status.Host.Bootd != "" && m.Status.Host.Bootd != h.Name {
		return nil, fmt.Errorf("host %s is connected to the bootd on %s, and not to this one (%s): use that one", name, m.Status.Host.Bootd, h.Name)
	}
	return nil, fmt.Errorf("host %s is not connected to this bootd: weftctl describe machine %[1]s says since when", name)
}

// Open requests a channel from a host, by its Machine's name and uid. The error tells a person why that failed.
func (h *Hub) Open(name, uid string, c api.Channel) error {
	s, err := h.streamOf(name, uid)
	if err != nil {
		return err
	}
	if !s.out.put(opens, api.ServerFrame{Open: &c}) {
		return fmt.Errorf("host %s accepts nothing at the moment: try again", name)
	}
	return nil
}

// Count is the number of hosts that are connected to this bootd.
func (h *Hub) Count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.streams)
}

// Run marks streams whose HostSpec may have changed, until ctx ends. After a grace period it clears the
// HostConnected of hosts that did not reconnect to a restarted bootd: a stale True would hold their next boot for
// ever.
func (h *Hub) Run(ctx context.Context) error {
	defer h.stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if wait.For(ctx, orDefault(h.Grace, grace)) == nil {
			h.clearStale(ctx)
		}
		return nil
	})
	mesh := wait.NewSignal()
	g.Go(func() error { return h.tellMeshes(ctx, mesh) })
	g.Go(func() error {
		return h.Cache.Subscribe(ctx, func(c store.Change) {
			h.changed(c)
			if meshChanged(h.Cache, c) {
				mesh.Set()
			}
		})
	})
	for _, k := range h.Compiler.parts() {
		if k.Follow != nil {
			g.Go(func() error { return k.Follow(ctx, h.concerned) })
		}
	}
	return g.Wait()
}

// stop makes streams end silently from now on: bootd stops, not its hosts, and they will have reconnected before
// clearStale runs.
func (h *Hub) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopping = true
}

// changed marks the streams of the hosts that a change concerns.
func (h *Hub) changed(c store.Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.Kind.Name == "Machine" && c.New == nil {
		delete(h.quotas, c.Name)
		delete(h.bgp, c.Name)
	}
	h.mark(h.Compiler.parts().concerns(c))
}

// concerned marks the streams of hosts.
func (h *Hub) concerned(hosts part.Hosts) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mark(hosts)
}

// mark marks the streams of hosts. The caller holds mu.
func (h *Hub) mark(hosts part.Hosts) {
	for _, name := range hosts.Names {
		if s := h.streams[name]; s != nil {
			s.mark()
		}
	}
	if !hosts.All && len(hosts.Zones)+len(hosts.UIDs) == 0 {
		return
	}
	for name, s := range h.streams {
		m, ok := store.Cached[api.Machine](h.Cache, name)
		if hosts.All || hosts.UIDs[s.peer.UID] || ok && slices.Contains(hosts.Zones, m.Spec.Zone) {
			s.mark()
		}
	}
}

func orDefault(d, fallback time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return fallback
}

func (s *stream) mark() { s.dirty.Set() }

func (h *Hub) clearStale(ctx context.Context) {
	for _, m := range store.CachedList[api.Machine](h.Cache) {
		if _, here := h.Heartbeat(m.Metadata.Name); here || !m.Status.Conditions.Is(api.CondConnected) {
			continue
		}
		h.setDisconnected(ctx, &stream{peer: Peer{Name: m.Metadata.Name, UID: m.Metadata.UID}}, "Silent", "it did not come back after bootd was restarted")
	}
}

// errReplaced ends a stream whose host opened another.
var errReplaced = errors.New("the host opened another stream")

// Serve runs one stream until it breaks, its host is refused, or ctx ends.
func (h *Hub) Serve(ctx context.Context, p Peer, c Conn) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := orDefault(h.Silence, silence)
	out := json.NewEncoder(c.Out)
	send := func(f api.ServerFrame) error {
		if c.SetWriteDeadline != nil {
			_ = c.SetWriteDeadline(time.Now().Add(patience)) // where it cannot be set, the connection's own pings find a dead host
		}
		err := out.Encode(f)
		if err == nil {
			err = c.Flush()
		}
		if err != nil {
			return fmt.Errorf("write to host %s: %w", p.Name, err)
		}
		return nil
	}
	if err := h.admit(ctx, p, send); err != nil {
		return err
	}
	in := &frames{r: bufio.NewReader(c.In), deadline: c.SetReadDeadline, patience: patience}
	hello, err := in.hello()
	if err != nil {
		return fmt.Errorf("host %s: %w", p.Name, err)
	}
	s, err := h.attach(p, cancel)
	if err != nil {
		return errors.Join(err, send(api.ServerFrame{Refused: err.Error()}))
	}
	defer h.detach(context.WithoutCancel(ctx), s)
	h.mutate(ctx, p.Name, p.UID, func(m *api.Machine) bool {
		return m.Status.Conditions.Set(time.Now(), api.CondConnected, api.True, "Connected", "nodeagent "+text.Clip(hello.AgentVersion, 64)+" from "+p.Address)
	})
	h.event(s, api.Normal, "HostConnected", fmt.Sprintf("nodeagent %s from %s; its clock %s", text.Clip(hello.AgentVersion, 64), p.Address, api.Skew(time.Until(hello.Time))))

	done := make(chan struct{})
	go func() {
		defer close(done)
		cancel(h.receive(ctx, s, in))
	}()
	err = h.transmit(ctx, s, held{digests: hello.Digests}, send)
	cancel(err)
	_ = c.SetReadDeadline(time.Now()) // wakes the reader
	<-done
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// admit refuses a host that may not hold a stream, and sends it the reason.
func (h *Hub) admit(ctx context.Context, p Peer, send func(api.ServerFrame) error) error {
	reason, err := h.refusal(ctx, p)
	if err != nil {
		return err
	}
	if reason != "" && h.Recovery != nil {
		reason = cmp.Or(h.Recovery.Claim(ctx, p.Claim()), reason)
	}
	if reason != "" {
		return errors.Join(send(api.ServerFrame{Refused: reason}), errors.New(reason))
	}
	return nil
}

// hostObject is a host's Machine, or one with its name when there is none.
func hostObject(cache *store.Cache, name string) api.Object {
	if m, ok := store.Cached[api.Machine](cache, name); ok {
		return m
	}
	m := &api.Machine{}
	m.SetDefaults()
	m.Metadata.Name = name
	return m
}

// refusal returns why a host may not hold a stream; empty when it may. The cache may be slightly behind a join, so
// a refusal is checked against the store.
func (h *Hub) refusal(ctx context.Context, p Peer) (string, error) {
	if m, ok := store.Cached[api.Machine](h.Cache, p.Name); ok && Refused(m, p) == "" {
		return "", nil
	}
	m, err := store.Get[api.Machine](ctx, h.Store, p.Name)
	if errors.Is(err, store.ErrNotFound) {
		return Refused(nil, p), nil
	}
	if err != nil {
		return "", fmt.Errorf("check host %s: %w", p.Name, err)
	}
	return Refused(m, p), nil
}

// Refused returns why a host's certificate is no longer valid; empty when it is. m is the current Machine of its
// name, nil when there is none.
func Refused(m *api.Machine, p Peer) string {
	switch {
	case m == nil:
		return fmt.Sprintf("Machine %s does not exist", p.Name)
	case m.Metadata.UID != p.UID:
		return fmt.Sprintf("Machine %s was recreated since this host joined: reprovision it", p.Name)
	case m.Status.HostKey != p.Key:
		return fmt.Sprintf("the certificate of host %s is revoked: it joined in an earlier BootAttempt, or the attempt failed", p.Name)
	}
	return ""
}

// attach makes a stream the current one of its host; the previous one ends. A host that opens streams in quick
// succession is refused.
func (h *Hub) attach(p Peer, cancel context.CancelCauseFunc) (*stream, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams == nil {
		h.streams, h.quotas = map[string]*stream{}, map[string]*quota{}
	}
	if h.quotas[p.Name] == nil {
		h.quotas[p.Name] = newQuota()
	}
	if !h.quotas[p.Name].streams.Allow() {
		return nil, fmt.Errorf("host %s opens streams too fast: one in 5 s", p.Name)
	}
	s := &stream{peer: p, quota: h.quotas[p.Name], dirty: wait.NewSignal(), out: newOutbox(), close: cancel, seen: time.Now()}
	if old := h.streams[p.Name]; old != nil {
		old.close(errReplaced)
	}
	h.streams[p.Name] = s
	delete(h.bgp, p.Name) // a report on another stream, perhaps by another host
	return s, nil
}

func (h *Hub) detach(ctx context.Context, s *stream) {
	h.mu.Lock()
	current := h.streams[s.peer.Name] == s
	if current {
		delete(h.streams, s.peer.Name)
	}
	silent := !current || h.stopping
	h.mu.Unlock()
	if silent {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	h.setDisconnected(ctx, s, "Disconnected", "its stream ended at "+time.Now().UTC().Format(time.RFC3339))
	h.event(s, api.Warning, "HostDisconnected", "its stream ended")
}

// setDisconnected leaves a host unchanged that has opened another stream since. It stores the host's last status in
// the same write.
func (h *Hub) setDisconnected(ctx context.Context, s *stream, reason, message string) {
	s.mu.Lock()
	reported := s.reported
	s.mu.Unlock()
	h.mutate(ctx, s.peer.Name, s.peer.UID, func(m *api.Machine) bool {
		if _, here := h.Heartbeat(s.peer.Name); here {
			return false
		}
		if reported != nil && m.Status.Host != nil && s.quota.mayStore(reported) {
			m.Status.Host = reported
		}
		return m.Status.Conditions.Set(time.Now(), api.CondConnected, api.False, reason, message)
	})
}

// mutate changes the status of a host's Machine, when fn reports a change.
func (h *Hub) mutate(ctx context.Context, name, uid string, fn func(*api.Machine) bool) {
	_, err := store.Mutate(ctx, h.Store, name, func(m *api.Machine) error {
		if m.Metadata.UID != uid || !fn(m) {
			return store.ErrUnchanged
		}
		return nil
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) && ctx.Err() == nil {
		h.Log.Warn("write a host's status", "host", name, "error", err)
	}
}

// event records an event of a host, within its quota.
func (h *Hub) event(s *stream, typ api.EventType, reason, message string) {
	h.eventOf(s, hostObject(h.Cache, s.peer.Name), typ, reason, message)
}

// eventOf records an event that a host reports about an object, within the host's quota.
func (h *Hub) eventOf(s *stream, o api.Object, typ api.EventType, reason, message string) {
	q := s.quota
	q.mu.Lock()
	ok := q.events.Allow()
	dropped := q.dropped
	if ok {
		q.dropped = 0
	} else {
		q.dropped++
	}
	q.mu.Unlock()
	if !ok {
		return
	}
	if dropped > 0 {
		message = fmt.Sprintf("%s (%d events before it were too frequent and were dropped)", message, dropped)
	}
	h.Record.Event(o, typ, reason, message)
}

// transmit sends changes, and the frames in the outbox.
func (h *Hub) transmit(ctx context.Context, s *stream, has held, send func(api.ServerFrame) error) error {
	s.mark()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.out.ready:
			if err := s.out.sendOne(send); err != nil {
				return err
			}
		case <-s.dirty:
			next, err := h.update(ctx, s, has, send)
			if err != nil {
				return err
			}
			has = next
		}
	}
}

// update sends the difference between the host's parts and its HostSpec.
func (h *Hub) update(ctx context.Context, s *stream, has held, send func(api.ServerFrame) error) (held, error) {
	if err := h.admit(ctx, s.peer, send); err != nil {
		return held{}, err
	}
	m, ok := store.Cached[api.Machine](h.Cache, s.peer.Name)
	if !ok {
		return has, nil // the cache is behind: its next change marks the stream
	}
	if store.Held(h.Cache) {
		return has, h.hold(s, send)
	}
	spec, err := h.Compiler.compile(ctx, m)
	if err != nil {
		return held{}, err
	}
	frames := difference(has, spec)
	if len(frames) == 1 && s.greeted {
		return has, nil // only a bookmark: the host does not need every revision
	}
	for _, f := range frames {
		if err := send(f); err != nil {
			return held{}, err
		}
	}
	s.greeted = true
	return heldOf(spec), ctx.Err()
}
