// Package guest owns the Guests of a host: it makes each guest part of the
// HostSpec a QEMU that runs, or one that does not.
//
// A QEMU is a process of its own, outside of the agent, which may end at any
// instant and finds it again: a lock that QEMU holds says that it lives, a file
// that it left says which process it is, and its monitor says whose it is. One
// goroutine per Guest owns what is known of it and looks again whenever
// something happens: another part, an event of QEMU's, the end of the process.
//
// A guest decides what its Guest does next. Each subject has a type that keeps its
// own state: the record on disk (ledger), QEMU (instance), the guest agent, the
// steps of a stop (ladder), restarts, errors of disks (storage), limits, snapshots,
// exports, a move with its two sides, and others. Such a type knows the identity of
// the Guest and those of the others that newGuest hands to it; a move has the guest
// start and stop by an interface (life).
//
// What a Guest has on disk (package disk) goes by a tombstone only. Beside the
// disks lie record.json, the lock and the console's log; sockets and the
// process file are under the run directory and gone with a reboot.
package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/guest/disk"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
	"github.com/rackweft/rackweft/nodeagent/guest/transfer"
)

// Plugger gives Guests their place on a Network.
type Plugger interface {
	// SetPorts says which ports there are; what is in none of them gets none.
	SetPorts([]nodeagent.Port)
	// Attach opens a queue of a port's tap.
	Attach(context.Context, nodeagent.Port) (nodeagent.Attachment, error)
	// Traffic is what has gone through the taps, by the Guests' uids.
	Traffic() map[string]api.LinkUsage
}

// Options make a Handler.
type Options struct {
	StateDir string // disks, images, records: kept over reboots
	RunDir   string // sockets: gone with a reboot; a short path
	Program  string // QEMU; qemu-system-x86_64
	// FirstUser is the first of the 65,536 user ids that QEMUs run as, one each;
	// those of their TPMs come behind.
	FirstUser int
	Log       *slog.Logger
	Fetch     disk.Fetch
	// Config reads the Ignition config of a Guest, by its name, from bootd, or its
	// user data for cloud-init.
	Config func(ctx context.Context, guest string) (Config, error)
	// Share reads what a share of a Guest, both by their names, holds.
	Share   func(ctx context.Context, guest, share string) (api.GuestShareContent, error)
	Network Plugger
	// Credentials are what the host proves to others with which host it is.
	Credentials transfer.Credentials
	// Launch is the command that runs launch.Exec.
	Launch []string
	// Start starts such a command outside of the agent. The default is a
	// detached process.
	Start func(ctx context.Context, s Service, argv []string) error
	// Accelerator is used without asking whether KVM works.
	Accelerator qemu.Accelerator
	// Kernel is the digest of the kernel that this host has booted. KVM is tried
	// with it where the host has no file of it.
	Kernel api.SHA256
}

// Service is what the unit of a Guest has of its own.
type Service struct {
	Guest, UID          string
	TPM                 bool // it is the Guest's TPM that is started
	CPUWeight, IOWeight int  // 0 for the default
	// StopTimeout is how long Shutdown may take; a TPM has none.
	StopTimeout time.Duration
}

// starter makes the launcher of a process that outlives the agent.
type starter func(Service) launch.Launcher

func (h *Handler) launcher(s Service) launch.Launcher {
	return launch.Launcher{Command: h.o.Launch, Run: func(ctx context.Context, argv []string) error { return h.o.Start(ctx, s, argv) }}
}

// defaultFirstUser is above what systemd gives to containers and below 2^31.
const defaultFirstUser = 1_900_000_000

// Handler makes guest parts true. It is a nodeagent.Runner and a
// prometheus.Collector.
type Handler struct {
	o      Options
	disks  *disk.Store
	timing timing
	spawn  chan *guest
	host   hostBox

	mu     sync.Mutex
	guests map[string]*guest // by uid

	probing sync.Mutex    // held while KVM is tried
	used    *qemu.Verdict // nil until it is known

	users sync.Mutex // held while one is picked and written down

	configs  configs
	arrivals arrivals
	meter    *meter

	// reached hears of each point of a move at which a crash would leave
	// something else behind; tests crash there.
	reached func(point string)
}

// hostBox holds the agent once it runs the handler.
type hostBox struct {
	mu   sync.Mutex
	host nodeagent.Host
}

func (b *hostBox) set(h nodeagent.Host) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.host = h
}

func (b *hostBox) get() nodeagent.Host {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.host
}

// timing gathers what a test makes short.
type timing struct {
	look       time.Duration // between two looks at a Guest that nothing happens to
	retry      time.Duration // until what failed is tried again
	tell       time.Duration // between two words of how far a transfer is
	again      time.Duration // until a Guest is asked again to stop
	force      time.Duration // between quit, TERM and KILL
	answer     time.Duration // what QEMU may take to answer
	agent      time.Duration // what a guest agent may take to begin a shutdown
	minBackoff time.Duration // of restarts
	maxBackoff time.Duration
	settled    time.Duration // a Guest that ran so long begins the back-off anew
	silence    time.Duration // a Guest that runs so long without a sign of life may hang
	words      time.Duration // in which firmware and a kernel that hangs print
	collect    time.Duration // between two collections of images
	export     time.Duration // between two looks at how far an export is
}

func defaultTiming() timing {
	return timing{look: 30 * time.Second, retry: 10 * time.Second, tell: 5 * time.Second, again: 10 * time.Second, force: 5 * time.Second,
		answer: 5 * time.Second, agent: 5 * time.Second, minBackoff: time.Second, maxBackoff: 5 * time.Minute, settled: 10 * time.Minute, silence: 5 * time.Minute, words: time.Minute,
		collect: 10 * time.Minute, export: 250 * time.Millisecond}
}

// New prepares a handler; nothing is touched before Run.
func New(o Options) *Handler {
	if o.Program == "" {
		o.Program = "qemu-system-x86_64"
	}
	if o.FirstUser == 0 {
		o.FirstUser = defaultFirstUser
	}
	if o.Start == nil {
		o.Start = func(ctx context.Context, _ Service, argv []string) error { return launch.Detached(ctx, argv) }
	}
	if o.Credentials == nil {
		o.Credentials = func(context.Context) (nodeagent.Credentials, error) {
			return nodeagent.Credentials{}, errors.New("this nodeagent has no certificate to show other hosts")
		}
	}
	if o.Config == nil {
		o.Config = func(context.Context, string) (Config, error) {
			return Config{}, errors.New("this nodeagent asks no bootd for configs")
		}
	}
	if o.Share == nil {
		o.Share = func(context.Context, string, string) (api.GuestShareContent, error) {
			return api.GuestShareContent{}, errors.New("this nodeagent asks no bootd for shares")
		}
	}
	return &Handler{o: o, disks: disk.NewStore(o.StateDir, o.Fetch), timing: defaultTiming(),
		spawn: make(chan *guest), guests: map[string]*guest{}, configs: newConfigs(), meter: newMeter(), arrivals: newArrivals(), reached: func(string) {}}
}

// Kind implements nodeagent.Handler.
func (h *Handler) Kind() string { return "guest" }

// Run implements nodeagent.Runner. Guests run on when it ends.
func (h *Handler) Run(ctx context.Context, host nodeagent.Host) {
	h.host.set(host)
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { h.takeIn(ctx) })
	collect := time.NewTicker(h.timing.collect)
	defer collect.Stop()
	for {
		select {
		case g := <-h.spawn:
			group.Go(func() { g.work(ctx) })
		case <-collect.C:
			h.collect()
		case <-ctx.Done():
			return
		}
	}
}

// Reconcile implements nodeagent.Handler. It says what is, and leaves the work
// to each Guest's goroutine, which asks for another pass when it got further.
func (h *Handler) Reconcile(ctx context.Context, parts []nodeagent.Part) map[string]api.PartStatus {
	out := map[string]api.PartStatus{}
	var ports []nodeagent.Port
	for _, p := range parts {
		if err := check(p); err != nil {
			out[p.Key()] = api.PartStatus{State: api.PartFailed, Message: err.Error()}
			continue
		}
		if port, ok := portOf(p); ok {
			ports = append(ports, port)
		}
		out[p.Key()] = h.guest(ctx, p).ask(p)
	}
	if h.o.Network != nil {
		h.o.Network.SetPorts(append(ports, h.unnamed(parts)...))
	}
	h.forget(parts)
	return out
}

// check refuses what would become a path or a command line.
func check(p nodeagent.Part) error {
	if err := api.ValidateName(guestName(p.Name)); err != nil {
		return err
	}
	if p.UID == "" || len(p.UID) > 64 || strings.Trim(p.UID, "0123456789abcdefghijklmnopqrstuvwxyz-") != "" {
		return fmt.Errorf("%q is no uid", p.UID)
	}
	part, ok := p.Value.(*api.GuestPart)
	if !ok {
		if p.Want == nodeagent.Removed {
			return nil
		}
		return errors.New("the part holds no Guest")
	}
	if p.Want != nodeagent.Removed {
		return checkPart(part)
	}
	return nil
}

func guestName(part string) string { return strings.TrimPrefix(part, "guest/") }

func portOf(p nodeagent.Part) (nodeagent.Port, bool) {
	part, ok := p.Value.(*api.GuestPart)
	if !ok || p.Want == nodeagent.Removed || part.Network == "" || elsewhere(part) {
		return nodeagent.Port{}, false
	}
	return nodePort(guestName(p.Name), part), true
}

// elsewhere reports whether a Guest is another host's: it has no port here.
func elsewhere(part *api.GuestPart) bool {
	t := part.Transfer
	return t != nil && (t.Role == api.TransferTarget || t.Role == api.TransferLeft)
}

func nodePort(guest string, part *api.GuestPart) nodeagent.Port {
	return nodeagent.Port{Network: part.Network, Guest: guest, UID: part.UID, MAC: part.MAC, Addresses: part.Addresses,
		Inbound: part.Limits.Receive.Value(), Outbound: part.Limits.Send.Value(),
		Config: part.Config.URL != "" && part.State != api.GuestStopped}
}

// guest finds a part's Guest, which gets its goroutine with its first part.
func (h *Handler) guest(ctx context.Context, p nodeagent.Part) *guest {
	h.mu.Lock()
	g, ok := h.guests[p.UID]
	if !ok {
		g = newGuest(h, guestName(p.Name), p.UID)
		h.guests[p.UID] = g
	}
	h.mu.Unlock()
	if ok {
		return g
	}
	g.ask(p) // before it first looks
	select {
	case h.spawn <- g:
	case <-ctx.Done():
		h.mu.Lock()
		delete(h.guests, p.UID)
		h.mu.Unlock()
	}
	return g
}

// forget drops Guests that are removed and no longer asked for.
func (h *Handler) forget(parts []nodeagent.Part) {
	asked := map[string]bool{}
	for _, p := range parts {
		asked[p.UID] = true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for uid, g := range h.guests {
		if !asked[uid] && g.over() {
			delete(h.guests, uid)
		}
	}
}

// collect removes the images that no Guest's record names.
func (h *Handler) collect() {
	records, err := h.records()
	if err != nil {
		h.o.Log.Warn("images are not collected: a record cannot be read", "error", err)
		return
	}
	var keep []api.SHA256
	for _, r := range records {
		keep = append(keep, r.images()...)
	}
	removed, err := h.disks.Collect(keep)
	if err != nil {
		h.o.Log.Warn("collect images", "error", err)
	}
	if len(removed) > 0 {
		h.o.Log.Info("images that no Guest uses are removed", "images", removed)
	}
}

// records are those of all Guests that the host ever had and that no tombstone
// has removed.
func (h *Handler) records() ([]record, error) {
	entries, err := os.ReadDir(filepath.Join(h.o.StateDir, "guests"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []record
	var faults []error
	for _, e := range entries {
		r, err := readRecord(filepath.Join(h.o.StateDir, "guests", e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is being made, or removed
		}
		if err != nil {
			faults = append(faults, err)
			continue
		}
		all = append(all, r)
	}
	return all, errors.Join(faults...)
}

// unnamed are the ports of Guests that run although no part names them, such as
// when the cached HostSpec was lost: absence takes nothing from them.
func (h *Handler) unnamed(parts []nodeagent.Part) []nodeagent.Port {
	records, err := h.records()
	if err != nil {
		h.o.Log.Warn("guest: some records cannot be read; should their Guests run without a part, their taps close", "error", err)
	}
	var ports []nodeagent.Port
	for _, r := range records {
		named := slices.ContainsFunc(parts, func(p nodeagent.Part) bool { return p.UID == r.Part.UID })
		if !named && r.Expected && r.Part.Network != "" && !elsewhere(&r.Part) {
			ports = append(ports, nodePort(r.Name, &r.Part))
		}
	}
	return ports
}

// event tells bootd of something that happened to a Guest.
func (h *Handler) event(name, uid string, typ api.EventType, reason, message string) {
	h.o.Log.Info("guest", "guest", name, "reason", reason, "message", message)
	if host := h.host.get(); host != nil {
		host.Event(api.Event{Kind: "Guest", Name: name, UID: uid, Type: typ, Reason: reason, Message: "Guest " + name + ": " + message})
	}
}

func (h *Handler) changed() {
	if host := h.host.get(); host != nil {
		host.Changed()
	}
}
