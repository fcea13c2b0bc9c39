package nodeagent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/nodeagent/nics"
	"github.com/rackweft/rackweft/systemd"
)

// Options configure an Agent.
type Options struct {
	Config   api.AgentConfig
	StateDir string // identity and cached HostSpec; kept across restarts
	RunDir   string // status.json; lost at a reboot
	Version  string
	Log      *slog.Logger
	Notify   *systemd.Notifier
	// Encrypter is called by the base part's handler. Without one, the agent reports
	// an error where a Zone requires encryption.
	Encrypter Encrypter
}

// Agent is the host daemon.
type Agent struct {
	config   api.AgentConfig
	stateDir string
	runDir   string
	version  string
	log      *slog.Logger
	notify   *systemd.Notifier
	timing   timing
	facts    facts
	began    time.Time
	// encryption is called by the base part's handler.
	encryption *encryption

	calls  chan func()
	status mailbox[api.HostStatus]
	bgp    mailbox[api.BGPStatus]
	events chan api.Event
	// publishSoon is reset to publish changes of the status.
	publishSoon *time.Timer
	scheduled   bool

	// The fields below are owned by the loop.
	spec       *hostSpec
	id         *identity
	link       Link
	workers    workers
	generation int64 // of the HostSpec in memory: counts commits
	applied    api.Bookmark
	observedBy map[string]observation // by the part's key
	parts      map[string]api.PartStatus
	nics       []api.HostNIC
	skew       time.Duration
	clock      serverClock
	asked      time.Time // when a new certificate was last requested
	published  time.Time
	problem    string
	ready      bool
}

// observation is a handler's status of a part.
type observation struct {
	kind   string
	digest string // of the part that the handler was given
	status api.PartStatus
}

// serverClock is bootd's clock, carried on by the monotonic one.
type serverClock struct{ server, local time.Time }

func (c serverClock) now() time.Time { return c.server.Add(time.Since(c.local)) }

// timing holds the durations that tests shorten.
type timing struct {
	dial, silence, ping    time.Duration
	minBackoff, maxBackoff time.Duration
	refused                time.Duration // until a refused join is tried again
	resync                 time.Duration // between passes over unchanged parts
	settle                 time.Duration // between two reports
}

func defaultTiming() timing {
	return timing{dial: 5 * time.Second, silence: 30 * time.Second, ping: 10 * time.Second,
		minBackoff: 200 * time.Millisecond, maxBackoff: 10 * time.Second, refused: time.Minute,
		resync: 30 * time.Second, settle: 500 * time.Millisecond}
}

// New creates an agent; it touches nothing before Run.
func New(o Options) (*Agent, error) {
	if err := validate(o.Config); err != nil {
		return nil, fmt.Errorf("configuration of nodeagent: %w", err)
	}
	a := &Agent{
		config: o.Config, stateDir: o.StateDir, runDir: o.RunDir, version: o.Version, log: o.Log, notify: o.Notify,
		timing: defaultTiming(), encryption: &encryption{encrypter: o.Encrypter, version: o.Version}, began: time.Now(),
		calls: make(chan func()), status: newMailbox[api.HostStatus](), bgp: newMailbox[api.BGPStatus](), events: make(chan api.Event, 16),
		observedBy: map[string]observation{}, parts: map[string]api.PartStatus{}, link: Link{State: LinkJoining, Since: time.Now()},
	}
	a.workers = workers{a.newWorker(baseHandler{nics: nics.List, encrypt: a.encryption.encrypt})}
	return a, nil
}

func (a *Agent) newWorker(h Handler) *worker {
	return &worker{agent: a, handler: h, wake: wait.NewSignal()}
}

// Use gives the agent its handlers, one per kind, before Run. The base part has
// its own. Handlers may have been created with methods of the agent, such as Get.
func (a *Agent) Use(handlers ...Handler) error {
	for _, h := range handlers {
		if a.workers.handle(h.Kind()) {
			return fmt.Errorf("two handlers for %s parts", h.Kind())
		}
		a.workers = append(a.workers, a.newWorker(h))
	}
	return nil
}

// The agent's files in its state directory.
func identityPath(dir string) string     { return filepath.Join(dir, "identity.json") }
func joinKeyPath(dir string) string      { return filepath.Join(dir, "join-key.json") }
func wireGuardKeyPath(dir string) string { return filepath.Join(dir, "wireguard.key") }

// Run runs the agent until ctx ends; it leaves what runs on the host untouched. An
// error means that it could not start.
func (a *Agent) Run(ctx context.Context) error {
	for _, dir := range []string{a.stateDir, a.runDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("prepare the agent's directories: %w", err)
		}
	}
	lock, err := lockDir(a.stateDir)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	a.load()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	group.Go(func() { nics.Watch(ctx, a.log, func(nics []api.HostNIC) { a.sawNICs(ctx, nics) }) })
	group.Go(func() { a.reach(ctx) })
	group.Go(func() { exporter{a}.serve(ctx) })
	group.Go(func() { a.notify.Watchdog(ctx, func() bool { return a.alive(ctx) }) })
	for _, w := range a.workers {
		group.Go(func() { w.run(ctx) })
		if r, ok := w.handler.(Runner); ok {
			group.Go(func() { r.Run(ctx, w) })
		}
	}
	a.loop(ctx)
	a.notify.Stopping()
	group.Wait()
	return nil
}

// load reads the cached state. Damage is logged and tolerated.
func (a *Agent) load() {
	var err error
	if a.facts, err = readFacts(a.stateDir); err != nil {
		a.log.Warn("some facts of the host cannot be read", "error", err)
	}
	if a.encryption.key, err = wireGuardKey(wireGuardKeyPath(a.stateDir)); err != nil {
		a.log.Warn("key of the host", "error", err)
	}
	var faults []error
	a.spec, faults = loadHostSpec(filepath.Join(a.stateDir, "hostspec"))
	for _, f := range faults {
		a.log.Warn("cached HostSpec", "error", f)
	}
	a.applied = api.Bookmark{Epoch: a.spec.index.Epoch, Revision: a.spec.index.Revision}
	if n := len(a.spec.index.Parts); n > 0 {
		if a.stale() {
			a.log.Info("the cached HostSpec is from before this boot: waiting for bootd", "revision", a.applied.Revision, "needed", a.config.HostSpec.Revision)
			return
		}
		a.log.Info("working from the cached HostSpec", "epoch", a.applied.Epoch, "revision", a.applied.Revision, "parts", n)
	}
}

// stale reports whether the HostSpec is from before this boot. Such a HostSpec is
// not acted upon: bootd may have started its Guests elsewhere.
func (a *Agent) stale() bool { return a.spec.stale(a.config.HostSpec) }

// reach joins, if need be, and then keeps the stream.
func (a *Agent) reach(ctx context.Context) {
	j := joiner{config: a.config, dir: a.stateDir, bootID: a.facts.BootID, timing: a.timing, log: a.log, report: a.setLink}
	id, err := j.join(ctx)
	if err != nil {
		return // ctx is done
	}
	if a.do(ctx, func() { a.id = id }) == nil {
		a.follow(ctx)
	}
}

// loop owns the agent's state: it runs the functions that do submits, one at a
// time.
func (a *Agent) loop(ctx context.Context) {
	a.publishSoon = time.NewTimer(0)
	defer a.publishSoon.Stop()
	a.scheduled = true
	for {
		select {
		case call := <-a.calls:
			call()
		case <-a.publishSoon.C:
			a.scheduled = false
			a.publish()
		case <-ctx.Done():
			return
		}
	}
}

// do runs f in the loop and returns when it has run, or fails with ctx.
func (a *Agent) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case a.calls <- func() { defer close(done); f() }:
		<-done
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// alive feeds the watchdog while the loop answers.
func (a *Agent) alive(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return a.do(ctx, func() {}) == nil
}

// changed publishes the status: soon, so that a boot is not held up, but not again
// within settle, because bootd stores each.
func (a *Agent) changed() {
	const together = 10 * time.Millisecond // changes come in groups
	if !a.scheduled {
		a.scheduled = true
		a.publishSoon.Reset(max(together, a.timing.settle-time.Since(a.published)))
	}
}

func (a *Agent) setLink(ctx context.Context, l Link) {
	l.Since = time.Now()
	_ = a.do(ctx, func() {
		if a.link.State == l.State && a.link.Server == l.Server {
			l.Since = a.link.Since
		}
		a.link = l
		if l.State != LinkConnected {
			a.spec.reset()
		}
		a.changed()
	})
}

func (a *Agent) sawNICs(ctx context.Context, nics []api.HostNIC) {
	_ = a.do(ctx, func() {
		a.nics = nics
		a.workers.kick()
		a.changed()
	})
}

// hello reports what the host holds.
func (a *Agent) hello() api.Hello {
	a.spec.reset()
	return api.Hello{UID: a.id.UID, AgentVersion: a.version, Time: time.Now().UTC(),
		Epoch: a.spec.index.Epoch, Revision: a.spec.index.Revision, Digests: a.spec.digests()}
}

// connected records that bootd has answered, and its clock (RFC 9110 §6.6.1: to the
// second, so the clock skew is in seconds, too).
func (a *Agent) connected(ctx context.Context, base, date string) error {
	local := time.Now()
	a.log.Info("connected", "server", base)
	a.setLink(ctx, Link{State: LinkConnected, Server: base})
	return a.do(ctx, func() {
		server, err := http.ParseTime(date)
		if err != nil {
			a.log.Warn("bootd sent no valid date", "error", err)
			return
		}
		a.clock = serverClock{server: server, local: local}
		a.skew = local.Round(0).Sub(server).Truncate(time.Second)
		if a.skew.Abs() < 2*time.Second {
			a.skew = 0
		}
	})
}

// handle processes one frame; an error ends the stream.
func (a *Agent) handle(f api.ServerFrame) error {
	if f.Refused != "" {
		return fmt.Errorf("bootd refuses the stream: %s", f.Refused)
	}
	if f.Certificate != "" {
		a.renewed(f.Certificate)
	}
	if f.Audit != nil {
		a.workers.audit(*f.Audit)
	}
	committed, err := a.spec.handle(f, a.config.HostSpec)
	if err != nil || !committed {
		return err
	}
	a.generation++
	a.log.Info("HostSpec received", "epoch", a.spec.index.Epoch, "revision", a.spec.index.Revision, "parts", len(a.spec.index.Parts))
	a.dropUnhandledTombstones()
	a.save()
	a.workers.kick()
	a.changed()
	return nil
}

// dropUnhandledTombstones forgets removed parts for which this build has no
// handler: nothing was ever made of them.
func (a *Agent) dropUnhandledTombstones() {
	for _, t := range slices.Clone(a.spec.index.Tombstones) {
		if !a.workers.handle(kindOf(t.Part)) {
			a.spec.removed(t)
		}
	}
}

// save caches the HostSpec. If the disk is full, the host continues with what it
// has in memory, and tries again.
func (a *Agent) save() {
	before := a.problem
	a.problem = ""
	if err := a.spec.save(); err != nil {
		a.problem = fmt.Sprintf("the HostSpec is not on disk, a restart without bootd would use an older one: %s", err)
	}
	if a.problem == before {
		return
	}
	a.changed()
	if a.problem != "" {
		a.log.Error("cannot cache the HostSpec", "error", a.problem)
		a.event(api.Warning, "CacheNotSaved", a.problem)
		return
	}
	a.event(api.Normal, "CacheSaved", "the HostSpec is on disk again")
}

// event reports an event of the host to bootd.
func (a *Agent) event(typ api.EventType, reason, message string) {
	a.queue(api.Event{Kind: "Machine", Name: a.config.Machine, UID: a.config.UID, Type: typ, Reason: reason, Message: message})
}

// queue queues an event for the stream; when too many wait, the new one is only
// logged.
func (a *Agent) queue(e api.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now().UTC()
	}
	select {
	case a.events <- e:
	default:
		a.log.Warn("event not reported", "kind", e.Kind, "name", e.Name, "reason", e.Reason, "message", e.Message)
	}
}

// observed records a handler's statuses after a pass.
func (a *Agent) observed(w *worker, generation int64, asked []Part, got map[string]api.PartStatus) {
	kind := w.handler.Kind()
	for key, o := range a.observedBy {
		if o.kind == kind {
			delete(a.observedBy, key)
		}
	}
	for _, p := range asked {
		status, ok := got[p.Key()]
		if !ok {
			status = api.PartStatus{State: api.PartFailed, Message: "its handler reported no status: this is a bug of nodeagent"}
		}
		if p.Want == Removed && status.State == api.PartApplied {
			a.log.Info("removed", "part", p.Name, "uid", p.UID)
			a.spec.removed(api.Tombstone{Part: p.Name, UID: p.UID})
			continue
		}
		a.observedBy[p.Key()] = observation{kind: kind, digest: p.Digest, status: status}
	}
	w.done, w.passed = generation, true
	a.save()
	a.noteApplied()
	a.changed()
}

// noteApplied advances the applied revision when every handler has passed it, and
// reports to systemd after the first passes that start-up is complete.
func (a *Agent) noteApplied() {
	if !a.workers.passed(a.generation) {
		return
	}
	a.applied = api.Bookmark{Epoch: a.spec.index.Epoch, Revision: a.spec.index.Revision}
	if !a.ready {
		a.ready = true
		a.notify.Ready()
	}
}

// partStatuses returns the observed status of each known part. A time changes only
// when the rest does.
func (a *Agent) partStatuses() map[string]api.PartStatus {
	out := map[string]api.PartStatus{}
	for kind := range a.spec.kinds() {
		parts, faults := a.spec.parts(kind)
		for _, p := range parts {
			out[p.Key()] = a.partStatus(kind, p)
		}
		for name, err := range faults {
			out[name] = api.PartStatus{State: api.PartFailed, Message: fmt.Sprintf("nodeagent %s cannot read it: %s", a.version, err)}
		}
	}
	for key, s := range out {
		s.Time = time.Now().UTC()
		if old, ok := a.parts[key]; ok && old.State == s.State && old.Digest == s.Digest && old.Message == s.Message {
			s.Time = old.Time
		}
		out[key] = s
	}
	return out
}

func (a *Agent) partStatus(kind string, p Part) api.PartStatus {
	if !a.workers.handle(kind) {
		return unhandled(kind, a.version)
	}
	o, seen := a.observedBy[p.Key()]
	switch {
	case p.Want == Orphaned:
		return api.PartStatus{State: api.PartOrphaned, Digest: p.Digest,
			Message: "the HostSpec no longer contains it; it is left as it is until a tombstone removes it"}
	case !seen || o.digest != p.Digest:
		return api.PartStatus{State: api.PartPending, Message: "not looked at yet"}
	}
	s := o.status
	if s.State == api.PartApplied {
		s.Digest = p.Digest
	}
	return s
}

// publish writes the status file, and queues the status for bootd if it changed.
func (a *Agent) publish() {
	a.published = time.Now()
	a.parts = a.partStatuses()
	host := api.HostStatus{
		UID: a.config.UID, AgentVersion: a.version, OS: a.facts.OS, Kernel: a.facts.Kernel, BootID: a.facts.BootID,
		ClockSkew: api.Duration(a.skew), Stateless: a.facts.Stateless,
		CPUs: a.facts.CPUs, Memory: api.Bytes(a.facts.Memory), NICs: a.nics, WireGuardKey: publicKey(a.encryption.key),
		Epoch: a.applied.Epoch, Revision: a.applied.Revision, Parts: a.parts,
	}
	if a.id != nil {
		host.UID, host.AttemptID = a.id.UID, a.id.AttemptID
	}
	a.status.put(host)
	local := Status{Machine: a.config.Machine, PID: os.Getpid(), Joined: a.id != nil, Link: a.link, Problem: a.problem,
		Known: api.Bookmark{Epoch: a.spec.index.Epoch, Revision: a.spec.index.Revision}, Host: host}
	a.notify.Status(local.Line())
	if err := local.write(a.runDir); err != nil {
		a.log.Warn("status", "error", err)
	}
}

// mailbox holds the newest status for the stream.
type mailbox[T any] struct {
	changed wait.Signal
	mu      sync.Mutex
	newest  *T
	raw     []byte
}

func newMailbox[T any]() mailbox[T] { return mailbox[T]{changed: wait.NewSignal()} }

// put replaces the status; an unchanged one is not sent again.
func (m *mailbox[T]) put(status T) {
	raw, err := json.Marshal(status)
	m.mu.Lock()
	same := err == nil && string(raw) == string(m.raw)
	m.newest, m.raw = &status, raw
	m.mu.Unlock()
	if !same {
		m.changed.Set()
	}
}

func (m *mailbox[T]) get() *T {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.newest
}

// renewal returns a certificate request when one is due by bootd's clock, and again
// each minute until it is answered. It is for the key that the host joined with:
// bootd recognises the host by that key.
func (a *Agent) renewal() string {
	const patience = time.Minute
	due, err := a.id.renewAt()
	if err != nil || a.clock.server.IsZero() || a.clock.now().Before(due) {
		return ""
	}
	if !a.asked.IsZero() && time.Since(a.asked) < patience {
		return ""
	}
	csr, err := signingRequest(a.id.Key, a.config.Machine)
	if err != nil {
		a.log.Error("cannot request a new certificate", "error", err)
		return ""
	}
	a.asked = time.Now()
	a.log.Info("requesting a new certificate")
	return csr
}

// renewed installs the new certificate. The old one stays valid until its end, so
// a failure costs nothing: the request is repeated.
func (a *Agent) renewed(certificate string) {
	next := *a.id
	next.Certificate, next.Issued = certificate, a.clock.now().UTC()
	_, err := next.pair()
	if err == nil {
		err = next.save(identityPath(a.stateDir))
	}
	if err != nil {
		a.log.Error("cannot use the new certificate; keeping the old one", "error", err)
		return
	}
	a.id, a.asked = &next, time.Time{}
	a.log.Info("certificate renewed")
	a.event(api.Normal, "CertificateRenewed", "the host has a new client certificate")
}
