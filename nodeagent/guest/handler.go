// Package guest runs the Guests of a host: it starts and stops one QEMU for
// each guest part of the HostSpec.
//
// QEMU is a process of its own, outside the agent. The agent may end at any
// instant and finds the process again: a lock that QEMU holds shows that it is
// alive, a file names the process, and its monitor reports the Guest's UUID.
// One goroutine per Guest owns the state of that Guest and looks again whenever
// something happens: a new part, an event from QEMU, the end of the process.
//
// A guest decides what its Guest does next. Each concern has a type that keeps
// its own state: the record on disk (ledger), QEMU (instance), the guest agent,
// the steps of a stop (ladder), restarts, disk errors (storage), limits,
// snapshots, exports, the two sides of a move, and others. Such a type knows
// the identity of the Guest and the other types that newGuest passes to it; a
// move starts and stops the guest through an interface (life).
//
// Only a tombstone removes what a Guest has on disk (package disk).
// record.json, the lock and the console's log are next to the disks; sockets
// and the process file are in the run directory and do not survive a reboot.
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

// Plugger connects Guests to their Networks.
type Plugger interface {
	// SetPorts replaces the list of ports; a port that is missing in it is
	// removed.
	SetPorts([]nodeagent.Port)
	// Attach opens a queue of a port's tap.
	Attach(context.Context, nodeagent.Port) (nodeagent.Attachment, error)
	// Traffic returns the traffic of the taps by Guest uid.
	Traffic() map[string]api.LinkUsage
}

// Options configure a Handler.
type Options struct {
	StateDir string // disks, images, records: kept across reboots
	RunDir   string // sockets: do not survive a reboot; a short path
	Program  string // QEMU. Default: qemu-system-x86_64
	// FirstUser is the first of 65,536 user ids for QEMUs, one each; those of
	// their TPMs follow. Default: 1900000000.
	FirstUser int
	Log       *slog.Logger
	Fetch     disk.Fetch
	// Config fetches the Ignition config of a Guest, or its cloud-init user
	// data, from bootd by the Guest's name.
	Config func(ctx context.Context, guest string) (Config, error)
	// Share fetches the content of a share by the names of the Guest and the
	// share.
	Share   func(ctx context.Context, guest, share string) (api.GuestShareContent, error)
	Network Plugger
	// Credentials authenticate this host to other hosts.
	Credentials transfer.Credentials
	// Launch is the command that runs launch.Exec.
	Launch []string
	// Start runs that command outside the agent. Default: as a detached
	// process.
	Start func(ctx context.Context, s Service, argv []string) error
	// Accelerator, if set, is used without trying KVM.
	Accelerator qemu.Accelerator
	// Kernel is the digest of the kernel that this host booted. KVM is tried
	// with it on a host that has no file of its kernel.
	Kernel api.SHA256
}

// Service holds the unit properties that differ between Guests.
type Service struct {
	Guest, UID          string
	TPM                 bool // starts the Guest's TPM instead of its QEMU
	CPUWeight, IOWeight int  // Default: 0, which is systemd's default
	// StopTimeout bounds Shutdown; unused for a TPM.
	StopTimeout time.Duration
}

// starter returns the launcher of a process that outlives the agent.
type starter func(Service) launch.Launcher

func (h *Handler) launcher(s Service) launch.Launcher {
	return launch.Launcher{Command: h.o.Launch, Run: func(ctx context.Context, argv []string) error { return h.o.Start(ctx, s, argv) }}
}

// defaultFirstUser is above systemd's container range and below 2^31.
const defaultFirstUser = 1_900_000_000

// Handler applies guest parts. It is a nodeagent.Runner and a
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
	used    *qemu.Verdict // nil until KVM was tried

	users sync.Mutex // held while a user id is chosen and recorded

	configs  configs
	arrivals arrivals
	meter    *meter

	// reached is called at each point of a move where a crash leaves a
	// different state behind; tests crash there.
	reached func(point string)
}

// hostBox holds the nodeagent.Host, which is known from Run on.
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

// timing holds the intervals that tests shorten.
type timing struct {
	look       time.Duration // between two looks at a Guest without events
	retry      time.Duration // before a failed step is retried
	progress   time.Duration // between two progress reports of a transfer
	again      time.Duration // between two requests to shut down
	force      time.Duration // between quit, TERM and KILL
	answer     time.Duration // limit for an answer of QEMU
	agent      time.Duration // limit for a guest agent to begin a shutdown
	minBackoff time.Duration // of restarts
	maxBackoff time.Duration
	settled    time.Duration // a run of this length resets the back-off
	silence    time.Duration // a run of this length without a sign of life may hang
	words      time.Duration // in which the firmware prints, and a kernel that hangs
	collect    time.Duration // between two collections of images
	export     time.Duration // between two looks at the progress of an export
}

func defaultTiming() timing {
	return timing{look: 30 * time.Second, retry: 10 * time.Second, progress: 5 * time.Second, again: 10 * time.Second, force: 5 * time.Second,
		answer: 5 * time.Second, agent: 5 * time.Second, minBackoff: time.Second, maxBackoff: 5 * time.Minute, settled: 10 * time.Minute, silence: 5 * time.Minute, words: time.Minute,
		collect: 10 * time.Minute, export: 250 * time.Millisecond}
}

// New returns a handler; it has no effect before Run.
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
			return nodeagent.Credentials{}, errors.New("this nodeagent has no host certificate")
		}
	}
	if o.Config == nil {
		o.Config = func(context.Context, string) (Config, error) {
			return Config{}, errors.New("this nodeagent fetches no configs")
		}
	}
	if o.Share == nil {
		o.Share = func(context.Context, string, string) (api.GuestShareContent, error) {
			return api.GuestShareContent{}, errors.New("this nodeagent fetches no shares")
		}
	}
	return &Handler{o: o, disks: disk.NewStore(o.StateDir, o.Fetch), timing: defaultTiming(),
		spawn: make(chan *guest), guests: map[string]*guest{}, configs: newConfigs(), meter: newMeter(), arrivals: newArrivals(), reached: func(string) {}}
}

// Kind implements nodeagent.Handler.
func (h *Handler) Kind() string { return api.PartGuest }

// Run implements nodeagent.Runner. Guests keep running when it returns.
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

// Reconcile implements nodeagent.Handler. It returns the current status and
// leaves the work to each Guest's goroutine, which requests another pass when
// it has progressed.
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

// check refuses values that are unsafe in a path or on a command line.
func check(p nodeagent.Part) error {
	if err := api.ValidateName(api.PartObject(p.Name)); err != nil {
		return err
	}
	if p.UID == "" || len(p.UID) > 64 || strings.Trim(p.UID, "0123456789abcdefghijklmnopqrstuvwxyz-") != "" {
		return fmt.Errorf("invalid uid %q", p.UID)
	}
	part, ok := p.Value.(*api.GuestPart)
	if !ok {
		if p.Want == nodeagent.Removed {
			return nil
		}
		return errors.New("the part has no Guest")
	}
	if p.Want != nodeagent.Removed {
		return checkPart(part)
	}
	return nil
}

func portOf(p nodeagent.Part) (nodeagent.Port, bool) {
	part, ok := p.Value.(*api.GuestPart)
	if !ok || p.Want == nodeagent.Removed || part.Network == "" || elsewhere(part) {
		return nodeagent.Port{}, false
	}
	return nodePort(api.PartObject(p.Name), part), true
}

// elsewhere reports whether a Guest belongs to another host, so that it has no
// port here.
func elsewhere(part *api.GuestPart) bool {
	t := part.Transfer
	return t != nil && (t.Role == api.TransferTarget || t.Role == api.TransferLeft)
}

func nodePort(guest string, part *api.GuestPart) nodeagent.Port {
	return nodeagent.Port{Network: part.Network, Guest: guest, UID: part.UID, MAC: part.MAC, Addresses: part.Addresses,
		Inbound: part.Limits.Receive.Value(), Outbound: part.Limits.Send.Value(),
		Config: part.Config.URL != "" && part.State != api.GuestStopped}
}

// guest returns the guest of a part, and starts its goroutine with the first
// part.
func (h *Handler) guest(ctx context.Context, p nodeagent.Part) *guest {
	h.mu.Lock()
	g, ok := h.guests[p.UID]
	if !ok {
		g = newGuest(h, api.PartObject(p.Name), p.UID)
		h.guests[p.UID] = g
	}
	h.mu.Unlock()
	if ok {
		return g
	}
	g.ask(p) // before its first look
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
		h.o.Log.Warn("images are not collected: cannot read a record", "error", err)
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
		h.o.Log.Info("removed images that no Guest uses", "images", removed)
	}
}

// records returns the records of all Guests on this host that no tombstone has
// removed.
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
			continue // it is being created or removed
		}
		if err != nil {
			faults = append(faults, err)
			continue
		}
		all = append(all, r)
	}
	return all, errors.Join(faults...)
}

// unnamed returns the ports of running Guests that no part names, such as when
// the cached HostSpec was lost: a missing part removes nothing.
func (h *Handler) unnamed(parts []nodeagent.Part) []nodeagent.Port {
	records, err := h.records()
	if err != nil {
		h.o.Log.Warn("guest: cannot read some records: if their Guests run without a part, their taps close", "error", err)
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

// event reports an event of a Guest to bootd.
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
