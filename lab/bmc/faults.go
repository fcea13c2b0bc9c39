package bmc

import (
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Faults are the faults that a test has set; every Server has its own. Those
// that act on its connections, its keys and its account are methods of Server.
type Faults struct {
	mu  sync.Mutex
	set faultSet
}

type faultSet struct {
	powerDelay time.Duration
	failures   int
	status     int
	body       string
	assetTag   AssetTagFault
	reset      ResetAnswer
	silent     bool          // events are logged, and sent to no one
	anonymous  bool          // sessions are created without a Location
	clock      time.Duration // the lead of the BMC's clock
	lastReset  *string       // instead of LastResetTime; "": none
}

func (f *Faults) now() faultSet {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.set
}

func (f *Faults) change(do func(*faultSet)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do(&f.set)
}

// AssetTagFault is how a BMC treats a write of its server's asset tag.
type AssetTagFault int

// The zero value is a BMC that accepts the tag and keeps it.
const (
	AssetTagKept      AssetTagFault = iota
	AssetTagRefused                 // 400 PropertyNotWritable
	AssetTagForgotten               // 200, and the old tag stays
)

// SetAssetTagFault sets how the BMC treats writes of the asset tag.
func (f *Faults) SetAssetTagFault(fault AssetTagFault) {
	f.change(func(set *faultSet) { set.assetTag = fault })
}

// ResetAnswer is how a BMC treats a Reset of a system.
type ResetAnswer int

// The zero value is a BMC that does it and answers then.
const (
	ResetDone      ResetAnswer = iota
	ResetIgnored               // 204, and nothing happens
	ResetTask                  // 202, and a task that ends when it is done
	ResetTaskFails             // 202, nothing happens, and the task ends in Exception
	ResetTaskHangs             // 202, it is done, and the task never ends
)

// SetResetAnswer sets how the BMC treats resets. DelayPower delays the end of
// the tasks too.
func (f *Faults) SetResetAnswer(a ResetAnswer) {
	f.change(func(set *faultSet) { set.reset = a })
}

// SetUnreachable makes the BMC stop accepting: open connections break, new ones
// hang until the client gives up, as for a BMC whose network stack has died.
func (s *Server) SetUnreachable(unreachable bool) {
	s.mu.Lock()
	s.unreachable = unreachable
	gates := slices.Clone(s.gates)
	s.mu.Unlock()
	for _, one := range gates {
		one.set(unreachable)
	}
}

// SetPassword changes the password without the client's knowledge. It ends all
// sessions, as OpenBMC does.
func (s *Server) SetPassword(password string) {
	s.sessions.setPassword(password)
	s.sessions.clear()
}

// ExpirePassword makes the BMC refuse everything but a change of the password,
// as one does that still has the password on its label.
func (s *Server) ExpirePassword() {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	s.sessions.expired = true
}

// LoseEvents makes the BMC log its events and send them to no one.
func (f *Faults) LoseEvents(lose bool) {
	f.change(func(set *faultSet) { set.silent = lose })
}

// HideSessions makes the BMC create sessions without a Location and an Id, so
// that a client cannot delete its own.
func (f *Faults) HideSessions(hide bool) {
	f.change(func(set *faultSet) { set.anonymous = hide })
}

// SetClock sets the BMC's clock, which runs on from there: behind, ahead, to
// 1970. What the BMC has recorded before keeps its time, as on real ones.
func (f *Faults) SetClock(now time.Time) {
	f.change(func(set *faultSet) { set.clock = time.Until(now) })
}

// SetLastResetTime makes every system report this LastResetTime, valid or not;
// none if it is "".
func (f *Faults) SetLastResetTime(reported string) {
	f.change(func(set *faultSet) { set.lastReset = &reported })
}

// RestoreLastResetTime ends SetLastResetTime.
func (f *Faults) RestoreLastResetTime() {
	f.change(func(set *faultSet) { set.lastReset = nil })
}

// time is what the BMC's clock shows.
func (f *Faults) time() time.Time { return time.Now().Add(f.now().clock) }

// NewCertificate replaces the certificate, as a factory reset of the BMC does.
// Open connections break, and sessions end: a BMC starts its web server again.
func (s *Server) NewCertificate() error {
	certificate, err := makeCertificate(s.config.Dir, s.config.Address)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.certificate = certificate
	unreachable := s.unreachable
	s.mu.Unlock()
	s.sessions.clear()
	s.SetUnreachable(true)
	s.SetUnreachable(unreachable)
	return nil
}

// NewHostKey replaces the SSH host key. Open connections keep the old one.
func (s *Server) NewHostKey() error {
	signer, err := makeHostKey(s.config.Dir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signer = signer
	return nil
}

// DelayPower makes every power action take effect d after it was accepted.
func (f *Faults) DelayPower(d time.Duration) {
	f.change(func(set *faultSet) { set.powerDelay = d })
}

// FailNext answers the next n requests, logins included, with status and body.
func (f *Faults) FailNext(n, status int, body string) {
	f.change(func(set *faultSet) { set.failures, set.status, set.body = n, status, body })
}

// injected answers instead of the real handler while FailNext is in effect.
func (f *Faults) injected(w http.ResponseWriter) bool {
	var now faultSet
	f.change(func(set *faultSet) {
		now = *set
		set.failures = max(0, set.failures-1)
	})
	if now.failures == 0 {
		return false
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(now.status)
	_, _ = w.Write([]byte(now.body)) // the client may be gone
	return true
}

// gate is a listener that can stop accepting and break its open connections.
type gate struct {
	net.Listener
	mu     sync.Mutex
	opened *sync.Cond
	shut   bool
	closed bool
	conns  map[net.Conn]struct{}
}

func newGate(l net.Listener) *gate {
	g := &gate{Listener: l, conns: map[net.Conn]struct{}{}}
	g.opened = sync.NewCond(&g.mu)
	return g
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	if !shut {
		g.opened.Broadcast()
		return
	}
	for c := range g.conns {
		_ = c.Close() // its reader sees the error
	}
	clear(g.conns)
}

func (g *gate) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.shut && !g.closed {
		g.opened.Wait()
	}
	g.conns[c] = struct{}{}
	return &gatedConn{Conn: c, gate: g}, nil
}

func (g *gate) Close() error {
	g.mu.Lock()
	g.closed = true
	g.opened.Broadcast()
	g.mu.Unlock()
	return g.Listener.Close()
}

type gatedConn struct {
	net.Conn
	gate *gate
}

func (c *gatedConn) Close() error {
	c.gate.mu.Lock()
	delete(c.gate.conns, c.Conn)
	c.gate.mu.Unlock()
	return c.Conn.Close()
}
