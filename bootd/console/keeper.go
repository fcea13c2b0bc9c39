// Package console listens to the serial consoles of Machines and keeps their last lines: of each while a BootAttempt is open,
// and while a person is attached. Most BMCs let one client in, so there is one reader of each console, and persons share it.
//
// What is kept is in memory, bounded, and cleaned of control sequences and of what looks like a secret.
package console

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/fleet"
	"github.com/rackweft/rackweft/internal/wait"
)

const (
	openTime   = time.Minute     // to open a console
	firstPause = 2 * time.Second // before a console is opened again, doubled each time
	mostPause  = time.Minute
	goodTime   = time.Minute // what was open for that long was well
)

// Config is what a Keeper works with.
type Config struct {
	Cache *store.Cache
	// Open opens the serial console of a Machine.
	Open func(ctx context.Context, m *api.Machine, price fleet.Price) (*hardware.Console, error)
	// Learned is called with what came of opening it: how it was reached, or NoConsole where the BMC has none, and the
	// host key that the BMC's SSH server showed.
	Learned func(ctx context.Context, m *api.Machine, kind api.ConsoleKind, hostKey api.HostKey) error
	Event   func(o api.Object, typ api.EventType, reason, message string)
	Log     *slog.Logger
}

// Keeper listens to the consoles. Close it.
type Keeper struct {
	config  Config
	started time.Time
	ctx     context.Context // over when the Keeper is closed
	cancel  context.CancelFunc
	work    sync.WaitGroup

	mu     sync.Mutex       // guards the fields below, and the ports
	ports  map[string]*port // by the Machine's UID
	behind int              // bytes that persons have not taken yet
}

// port is the serial console of one Machine.
type port struct {
	name    string
	wanted  bool // a BootAttempt is open, and the BMC answers
	attempt int  // its number
	givenUp int  // the attempt in which opening it was given up
	persons map[*person]struct{}

	running bool // a goroutine listens, or is about to end
	cancel  context.CancelFunc
	stream  *hardware.Console // nil: not open
	settled bool              // that another client has it cannot be a bootd before this one
	lost    bool              // the last one that was open was cut off: the BMC may count it as open
	wake    wait.Signal       // open it now

	clean cleaner
	log   lines
	last  time.Time // when anything was received
}

// New returns a Keeper that listens to nothing yet.
func New(config Config) *Keeper {
	k := &Keeper{config: config, started: time.Now(), ports: map[string]*port{}}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	return k
}

// Close closes the consoles, and waits for that.
func (k *Keeper) Close() {
	k.mu.Lock()
	k.cancel()
	k.mu.Unlock()
	k.work.Wait()
}

// Run follows the BootAttempts until ctx ends. Persons attach without it.
func (k *Keeper) Run(ctx context.Context) error {
	machines, err := api.LookupKind("Machine")
	if err != nil {
		return err
	}
	err = k.config.Cache.Subscribe(ctx, k.changed, machines)
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.ports {
		p.wanted = false
		k.adjust(p)
	}
	return err
}

// changed follows a Machine.
func (k *Keeper) changed(ch store.Change) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if old, ok := ch.Old.(*api.Machine); ok && (ch.New == nil || ch.New.Meta().UID != old.Metadata.UID) {
		k.forget(old.Metadata.UID)
	}
	m, ok := ch.New.(*api.Machine)
	if !ok {
		return
	}
	p := k.ports[m.Metadata.UID]
	wanted := m.Spec.BMC != nil && m.Spec.BMC.Console != api.ConsoleAttached && m.Status.Attempt.Open() && m.Status.Conditions.Is(api.CondBMC)
	if p == nil && !wanted {
		return
	}
	if p == nil {
		p = k.port(m)
	}
	if p.wanted = wanted; wanted && p.attempt != m.Status.Attempt.Number {
		p.endLine()
		p.attempt = m.Status.Attempt.Number
	}
	k.adjust(p)
}

// port finds the Machine's, or makes it. The caller holds mu.
func (k *Keeper) port(m *api.Machine) *port {
	p := k.ports[m.Metadata.UID]
	if p == nil {
		p = &port{name: m.Metadata.Name, persons: map[*person]struct{}{}, wake: wait.NewSignal()}
		k.ports[m.Metadata.UID] = p
	}
	return p
}

// forget drops the console of a Machine that is gone. The caller holds mu.
func (k *Keeper) forget(uid string) {
	p := k.ports[uid]
	if p == nil {
		return
	}
	delete(k.ports, uid)
	p.wanted = false
	for one := range p.persons {
		one.drop(errors.New("the Machine is gone"))
	}
	k.adjust(p)
}

// adjust starts or ends listening. The caller holds mu.
func (k *Keeper) adjust(p *port) {
	needed := p.wanted && p.givenUp != p.attempt || len(p.persons) > 0
	switch {
	case needed && !p.running && k.ctx.Err() == nil:
		ctx, cancel := context.WithCancel(k.ctx)
		p.running, p.cancel = true, cancel
		k.work.Go(func() { k.listen(ctx, p) })
	case !needed && p.running:
		p.cancel()
	}
}

// listen keeps the console open until it is not needed.
func (k *Keeper) listen(ctx context.Context, p *port) {
	pause := firstPause
	for {
		began := time.Now()
		err := k.hear(ctx, p)
		if ctx.Err() != nil {
			break
		}
		if final(err) {
			k.giveUp(p, err)
			break
		}
		k.config.Log.Info("console: opened again later", "machine", p.name, "pause", pause, "error", err)
		if time.Since(began) > goodTime {
			pause = firstPause
		}
		if p.wake.Wait(ctx, pause) != nil {
			break
		}
		pause = min(2*pause, mostPause)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	p.cancel()
	p.running = false
	k.adjust(p) // it may be needed again
}

// final reports whether only a person can mend it: a wrong password must not lock the account.
func final(err error) bool {
	return errors.Is(err, hardware.ErrUnsupported) || errors.Is(err, hardware.ErrUnauthorized) || errors.Is(err, hardware.ErrPasswordChange) ||
		hardware.Distrusted(err) || errors.Is(err, store.ErrNotFound)
}

// giveUp leaves the console alone until the next BootAttempt, or until a person asks for it.
func (k *Keeper) giveUp(p *port, err error) {
	k.config.Log.Info("console: given up for this BootAttempt", "machine", p.name, "error", err)
	k.mu.Lock()
	defer k.mu.Unlock()
	p.givenUp = p.attempt
}

// hear opens the console and listens until it ends.
func (k *Keeper) hear(ctx context.Context, p *port) error {
	m, ok := store.Cached[api.Machine](k.config.Cache, p.name)
	if !ok {
		return fmt.Errorf("machine %s: %w", p.name, store.ErrNotFound)
	}
	opening, cancel := context.WithTimeout(ctx, openTime)
	stream, err := k.config.Open(opening, m, k.opening(p, m))
	cancel()
	k.learn(ctx, m, stream, err)
	if err != nil {
		k.failed(p, err)
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer func() {
		if stop() {
			_ = stream.Close()
		}
	}()
	k.opened(p, stream)
	if stream.Freed {
		k.config.Event(m, api.Warning, "ConsoleFreed", "the BMC still gave its serial console to a login of bootd's that was cut off, so bootd has ended that one")
	}
	buffer := make([]byte, 4096)
	for {
		n, err := stream.Read(buffer)
		if n > 0 {
			k.pass(p, buffer[:n])
		}
		if err != nil {
			k.closed(p, err)
			return fmt.Errorf("console of %s: %w", p.name, err)
		}
	}
}

// learn passes on what came of opening a console, where it is news.
func (k *Keeper) learn(ctx context.Context, m *api.Machine, opened *hardware.Console, failure error) {
	var (
		kind    api.ConsoleKind
		hostKey api.HostKey
	)
	switch {
	case failure == nil:
		kind, hostKey = api.ConsoleKind(opened.Kind), api.HostKey(opened.HostKey)
	case errors.Is(failure, hardware.ErrUnsupported):
		kind = api.NoConsole
	default:
		return
	}
	if m.Status.BMC.Console == kind && (hostKey == "" || m.BMCPins().HostKey != "") {
		return
	}
	if err := k.config.Learned(ctx, m, kind, hostKey); err != nil && ctx.Err() == nil {
		k.config.Log.Warn("console: write down what the BMC has", "machine", m.Metadata.Name, "error", err)
	}
}

// opening tells at what price the console is opened, and notes which persons hear of a failure.
func (k *Keeper) opening(p *port, m *api.Machine) fleet.Price {
	k.mu.Lock()
	defer k.mu.Unlock()
	for one := range p.persons {
		one.tried = true
	}
	return fleet.Price{Login: len(p.persons) > 0, Other: p.lost || !p.settled && k.inherited(m)}
}

// inherited reports whether a bootd that was killed, or was cut off from the BMC, is likely to have had the console: its
// login may not have ended with it. Of a BootAttempt from before this bootd, that one had
// the console itself.
func (k *Keeper) inherited(m *api.Machine) bool {
	return m.Status.Attempt.Open() && m.Status.Attempt.Started.Before(k.started) && m.HasConsole() && m.Spec.BMC.Console != api.ConsoleAttached
}

// failed ends the wait of the persons for whom the console was being opened. Those who had it open wait on, if that may help.
func (k *Keeper) failed(p *port, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if errors.Is(err, hardware.ErrInUse) {
		p.settled, p.lost = true, false // it was ended once, or cannot be
	}
	for one := range p.persons {
		if one.tried && (!one.in || final(err)) {
			one.drop(err)
		}
	}
}

func (k *Keeper) opened(p *port, stream *hardware.Console) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p.stream, p.settled, p.lost = stream, true, false
	for one := range p.persons {
		one.admit()
	}
}

func (k *Keeper) closed(p *port, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p.stream, p.lost = nil, errors.Is(err, hardware.ErrLost)
	for one := range p.persons {
		one.send(fmt.Appendf(nil, "\r\n[rackweft: the BMC has ended the console (%s); it is opened again]\r\n", err))
	}
}

// pass keeps what was received, and sends it to those attached.
func (k *Keeper) pass(p *port, sent []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p.heard(sent, time.Now())
	for one := range p.persons {
		one.send(sent)
	}
	k.bound(p)
}

// bound drops the lines of the consoles that were silent for longest when all together have too many. The caller holds mu.
func (k *Keeper) bound(talking *port) {
	total := 0
	for _, p := range k.ports {
		total += p.log.bytes
	}
	for total > totalBytes {
		var oldest *port
		for _, p := range k.ports {
			if p != talking && p.log.bytes > 0 && (oldest == nil || p.last.Before(oldest.last)) {
				oldest = p
			}
		}
		if oldest == nil {
			return
		}
		total -= oldest.log.bytes
		oldest.log = lines{}
	}
}

// Lines are the last n lines of a Machine's console.
func (k *Keeper) Lines(m *api.Machine, n int) []api.ConsoleLine {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.ports[m.Metadata.UID]
	if p == nil {
		return nil
	}
	return p.text(n)
}

// LastLine is the last line of the Machine's BootAttempt; empty when there is none.
func (k *Keeper) LastLine(m *api.Machine) string {
	last := k.Lines(m, 1)
	if len(last) == 0 || m.Status.Attempt == nil || last[0].Attempt != m.Status.Attempt.Number {
		return ""
	}
	return last[0].Text
}
