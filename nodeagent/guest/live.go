package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/disk"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
	"github.com/rackweft/rackweft/nodeagent/guest/qmp"
	"github.com/rackweft/rackweft/nodeagent/guest/transfer"
)

// A live move: the target's QEMU waits with empty disks, the source's mirrors its
// disks into them (NBD) and then sends its memory. QEMUs reach each other through
// their agents; neither has a network. At the switch-over the source's QEMU stops
// the Guest and asks (pre-switchover): only then, and once the record says that
// the Guest is given up, the mirrors end and the rest is sent. It is tried once
// for a move: an agent that ends takes its connections with it, and QEMU goes on
// with its Guest. After the record was written QEMU may do so, too, when the rest
// does not get through; that is no harm, since Sent is said of a QEMU alone that
// has sent all (postmigrate), which runs its Guest no more by itself.

// live moves the Guest while it runs.
func (g *guest) live(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	t := part.Transfer
	if g.record.Given == t.ID {
		if g.failed(t) {
			return 0, nil
		}
		if g.running == nil || g.running.state != postmigrate {
			g.fail(t, "its memory has not got through")
			return 0, nil
		}
		g.tellShare(t, api.TransferSent, g.howLive(ctx))
		return 0, nil
	}
	next, err := g.beAsWritten(ctx, part)
	if g.failed(t) || err != nil || next != 0 {
		return next, err
	}
	if g.running == nil {
		g.fail(t, "it does not run")
		return 0, nil
	}
	if list, err := g.readSnapshots(); err != nil || len(list) > 0 {
		g.fail(t, "it has snapshots, which a mirror leaves behind")
		return 0, err
	}
	if d, err := g.overAnother(part); err != nil || d != "" {
		g.fail(t, "disk "+d+" does not lie over its Image as that is now, and a mirror is of what lies above")
		return 0, err
	}
	if g.exporting {
		g.fail(t, "its disks are being exported: move it when that is over")
		return 0, nil
	}
	if err := g.callOff(ctx); err != nil { // what an agent before this one has left
		return 0, err
	}
	machine, err := g.machineFacts(ctx)
	if err != nil {
		return 0, err
	}
	c, _, err := g.reachFor(ctx, t, transfer.Request{Kind: transfer.Ready, Machine: machine})
	switch {
	case errors.Is(err, transfer.ErrFinal):
		g.fail(t, err.Error())
		return 0, nil
	case err != nil:
		g.transferring(t, err.Error())
		return g.h.timing.retry, nil
	}
	_ = c.Close() // it has answered
	if err := g.migrate(ctx, part); err != nil {
		g.fail(t, err.Error())
		return time.Millisecond, errors.Join(err, g.callOff(context.WithoutCancel(ctx)))
	}
	g.running.state = postmigrate
	g.tellShare(t, api.TransferSent, g.howLive(ctx))
	return 0, nil
}

// overAnother names a disk that the target would make over another image.
func (g *guest) overAnother(part *api.GuestPart) (string, error) {
	for _, d := range part.Disks {
		if d.Format == disk.Raw {
			continue
		}
		base, err := g.h.disks.Base(g.wanted(d.Name))
		if err != nil || base != d.Image {
			return d.Name, err
		}
	}
	return "", nil
}

// States of QEMU's (RunState) in a migration.
const (
	postmigrate = "postmigrate" // the source has sent all
	inmigrate   = "inmigrate"   // the target waits for it
)

// failed reports whether a move has failed here.
func (g *guest) failed(t *api.GuestTransfer) bool {
	s := g.transferred
	return s != nil && s.ID == t.ID && s.State == api.TransferFailed
}

func (g *guest) fail(t *api.GuestTransfer, message string) {
	g.log.Warn("a move has failed", "move", t.ID, "error", message)
	g.tellShare(t, api.TransferFailed, message)
}

// machineFacts tell machines apart whose state does not fit the other.
func (g *guest) machineFacts(ctx context.Context) (string, error) {
	var version struct {
		QEMU    struct{ Major, Minor, Micro int }
		Package string
	}
	if err := g.command(ctx, "query-version", nil, &version); err != nil {
		return "", err
	}
	l := g.record.Launched
	v := version.QEMU
	facts := fmt.Sprintf("QEMU %d.%d.%d %s, %s", v.Major, v.Minor, v.Micro, version.Package, l.Accelerator)
	if l.Accelerator == qemu.KVM {
		facts += ", " + processor()
	}
	return facts + ", machine " + l.Machine[:12], nil
}

// processor is what of the host's a Guest under KVM depends on.
func processor() string {
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	model := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(raw)
	flags := regexp.MustCompile(`(?m)^flags\s*: (.*)$`).FindSubmatch(raw)
	if model == nil || flags == nil {
		return "unknown processor"
	}
	sum := sha256.Sum256(flags[1])
	return fmt.Sprintf("%s (%s)", model[1], hex.EncodeToString(sum[:4]))
}

// migrate has the target get all. When it returns without an error the Guest is
// given up, and has been sent.
func (g *guest) migrate(ctx context.Context, part *api.GuestPart) error {
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := &migration{g: g, t: part.Transfer, group: &group, told: time.Now()}
	for _, d := range part.Disks {
		if err := m.mirror(ctx, d); err != nil {
			return fmt.Errorf("mirror disk %s: %w", d.Name, err)
		}
	}
	if err := m.until(ctx, m.mirrored); err != nil {
		return err
	}
	g.h.reached("live source: mirrored")
	if err := m.sendMemory(ctx); err != nil {
		return fmt.Errorf("send its memory: %w", err)
	}
	if err := m.until(ctx, func(ctx context.Context) (bool, string, error) { return m.migrating(ctx, "pre-switchover") }); err != nil {
		return err
	}
	g.h.reached("live source: stopped, not given up")
	if err := g.give(m.t.ID); err != nil {
		return err
	}
	g.h.reached("live source: given up")
	if err := m.endMirrors(ctx); err != nil {
		return err
	}
	if err := g.command(ctx, "migrate-continue", map[string]any{"state": "pre-switchover"}, nil); err != nil {
		return err
	}
	if err := m.until(ctx, func(ctx context.Context) (bool, string, error) { return m.migrating(ctx, "completed") }); err != nil {
		return err
	}
	g.h.reached("live source: completed")
	select { // the last of it is with the target, or it is not and the target says so
	case <-m.loaded:
	case <-time.After(loadPatience):
	case <-ctx.Done():
	}
	return nil
}

// loadPatience is how long a source waits to hear that the target has taken in
// all. The Guest is the target's anyhow, or called back.
const loadPatience = 10 * time.Second

// migration is one attempt.
type migration struct {
	g      *guest
	t      *api.GuestTransfer
	group  *sync.WaitGroup // of what carries bytes
	told   time.Time
	loaded chan struct{} // closed when the target has answered of the memory, or is gone
}

func moveNode(disk string) string { return "move-" + disk }

// plug joins QEMU, under a name, and a connection to the target.
func (m *migration) plug(ctx context.Context, name string, r transfer.Request) (*transfer.Conn, net.Conn, error) {
	c, _, err := m.g.reachFor(ctx, m.t, r)
	if err != nil {
		return nil, nil, err
	}
	end, err := m.g.newSocket(ctx, name)
	if err != nil {
		_ = c.Close()
		return nil, nil, err
	}
	return c, end, nil
}

// newSocket hands QEMU one end of a new socket, and returns the other.
func (g *guest) newSocket(ctx context.Context, name string) (net.Conn, error) {
	if g.running == nil || g.running.monitor == nil {
		return nil, errors.New("QEMU does not answer")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs, ours := os.NewFile(uintptr(pair[0]), name), os.NewFile(uintptr(pair[1]), name)
	defer func() { _, _ = theirs.Close(), ours.Close() }() // each side has its own
	limited, cancel := context.WithTimeout(ctx, g.h.timing.answer)
	defer cancel()
	if err := g.running.monitor.GiveFile(limited, name, theirs); err != nil {
		return nil, err
	}
	return net.FileConn(ours)
}

// mirror begins to copy a disk, and what is written to it meanwhile.
func (m *migration) mirror(ctx context.Context, d api.GuestDisk) error {
	node := moveNode(d.Name)
	c, end, err := m.plug(ctx, node, transfer.Request{Kind: transfer.Disk, Disk: d.Name})
	if err != nil {
		return err
	}
	m.group.Go(func() { c.Join(ctx, end) })
	for _, x := range []struct {
		command   string
		arguments map[string]any
	}{
		{"blockdev-add", map[string]any{"driver": "nbd", "node-name": node, "export": d.Name, "server": map[string]any{"type": "fd", "str": node}}},
		// What the base has is with the target already (top), and what the Guest
		// writes goes to both once all else is there (write-blocking).
		{"blockdev-mirror", map[string]any{"job-id": node, "device": qemu.DiskNode(d.Name), "target": node, "sync": "top",
			"copy-mode": "write-blocking", "auto-dismiss": false}},
	} {
		if err := m.g.command(ctx, x.command, x.arguments, nil); err != nil {
			return err
		}
	}
	return nil
}

// until asks often whether something is done, and tells how far it is.
func (m *migration) until(ctx context.Context, done func(context.Context) (bool, string, error)) error {
	for {
		ok, far, err := done(ctx)
		if ok || err != nil {
			return err
		}
		if time.Since(m.told) >= m.g.h.timing.tell {
			m.told = time.Now()
			m.g.transferring(m.t, far)
		}
		select {
		case <-time.After(poll):
		case <-m.g.ended():
			return errors.New("its QEMU has ended")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// poll is how often QEMU is asked how far it is: what the Guest stands still for
// goes up to it.
const poll = 10 * time.Millisecond

type job struct {
	ID      string
	Status  string
	Current int64  `json:"current-progress"`
	Total   int64  `json:"total-progress"`
	Error   string `json:"error"`
}

// mirrors are the jobs of a move that QEMU has.
func (g *guest) mirrors(ctx context.Context) ([]job, error) {
	var all, ours []job
	if err := g.command(ctx, "query-jobs", nil, &all); err != nil {
		return nil, err
	}
	for _, j := range all {
		if strings.HasPrefix(j.ID, moveNode("")) {
			ours = append(ours, j)
		}
	}
	return ours, nil
}

func (m *migration) mirrored(ctx context.Context) (bool, string, error) {
	jobs, err := m.g.mirrors(ctx)
	if err != nil {
		return false, "", err
	}
	ready := true
	var current, total int64
	for _, j := range jobs {
		if j.Error != "" || j.Status == "concluded" {
			return false, "", fmt.Errorf("%s: %s", j.ID, j.Error)
		}
		ready = ready && j.Status == "ready"
		current, total = current+j.Current, total+j.Total
	}
	return ready, fmt.Sprintf("copying its disks while it runs: %d of %d MiB", current>>20, total>>20), nil
}

// sendMemory begins to.
func (m *migration) sendMemory(ctx context.Context) error {
	c, end, err := m.plug(ctx, "move-memory", transfer.Request{Kind: transfer.Memory})
	if err != nil {
		return err
	}
	m.loaded = make(chan struct{})
	m.group.Go(func() {
		defer close(m.loaded)
		if err := c.Push(ctx, end); err != nil && ctx.Err() == nil {
			m.g.log.Warn("the memory of a Guest that moves", "error", err)
		}
	})
	for _, x := range []struct {
		command   string
		arguments map[string]any
	}{
		{"migrate-set-capabilities", map[string]any{"capabilities": []map[string]any{
			{"capability": "pause-before-switchover", "state": true}, {"capability": "auto-converge", "state": true}}}},
		{"migrate-set-parameters", map[string]any{"max-bandwidth": int64(1) << 40, "downtime-limit": downtime.Milliseconds()}},
		{"migrate", map[string]any{"uri": "fd:move-memory"}},
	} {
		if err := m.g.command(ctx, x.command, x.arguments, nil); err != nil {
			return err
		}
	}
	return nil
}

// downtime is how long what is left of the memory may take to send while the
// Guest stands still.
const downtime = 200 * time.Millisecond

type migrated struct {
	Status   string
	Desc     string `json:"error-desc"`
	RAM      struct{ Transferred, Remaining, Total int64 }
	Downtime int64 // milliseconds that the Guest has stood still until all was sent
}

// howLive tells what a migration has taken.
func (g *guest) howLive(ctx context.Context) string {
	var s migrated
	if err := g.command(ctx, "query-migrate", nil, &s); err != nil {
		return "" // nobody depends on it
	}
	return fmt.Sprintf("%d MiB of memory sent, the last of it in %d ms", s.RAM.Transferred>>20, s.Downtime)
}

// migrating reports whether the migration has come to a state.
func (m *migration) migrating(ctx context.Context, until string) (bool, string, error) {
	var s migrated
	if err := m.g.command(ctx, "query-migrate", nil, &s); err != nil {
		return false, "", err
	}
	switch s.Status {
	case until:
		return true, "", nil
	case "failed", "cancelled", "completed":
		return false, "", fmt.Errorf("QEMU's migration has %s %s", s.Status, s.Desc)
	}
	return false, fmt.Sprintf("copying its memory while it runs: %d MiB sent, %d of %d left", s.RAM.Transferred>>20, s.RAM.Remaining>>20, s.RAM.Total>>20), nil
}

// endMirrors ends them with the target's disks as the source's are: the Guest
// writes no more.
func (m *migration) endMirrors(ctx context.Context) error {
	jobs, err := m.g.mirrors(ctx)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if err := m.g.command(ctx, "block-job-cancel", map[string]any{"device": j.ID}, nil); err != nil {
			return err
		}
	}
	if err := m.until(ctx, func(ctx context.Context) (bool, string, error) {
		left, err := m.g.mirrors(ctx)
		for _, j := range left {
			if j.Error != "" {
				return false, "", fmt.Errorf("%s: %s", j.ID, j.Error)
			}
			if j.Status != "concluded" {
				return false, "", err
			}
		}
		return true, "", err
	}); err != nil {
		return err
	}
	for _, j := range jobs {
		if err := m.g.command(ctx, "job-dismiss", map[string]any{"id": j.ID}, nil); err != nil {
			return err
		}
		// The target's QEMU has its disks to itself.
		if err := m.g.command(ctx, "blockdev-del", map[string]any{"node-name": j.ID}, nil); err != nil {
			return err
		}
	}
	return nil
}

// callOff takes back what a move has begun in QEMU; there may be nothing of it.
// The Guest goes on if the migration had stopped it.
func (g *guest) callOff(ctx context.Context) error {
	if g.running == nil || g.running.monitor == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callOffPatience)
	defer cancel()
	for {
		var s migrated
		if err := g.command(ctx, "query-migrate", nil, &s); err != nil {
			return err
		}
		jobs, err := g.mirrors(ctx)
		if err != nil {
			return err
		}
		under := s.Status != "" && s.Status != "none" && s.Status != "failed" && s.Status != "cancelled" && s.Status != "completed"
		if !under && len(jobs) == 0 {
			return g.dropNodes(ctx)
		}
		if under && s.Status != "cancelling" {
			if err := g.command(ctx, "migrate_cancel", nil, nil); err != nil {
				return err
			}
		}
		for _, j := range jobs {
			command, arguments := "block-job-cancel", map[string]any{"device": j.ID, "force": true}
			if j.Status == "concluded" {
				command, arguments = "job-dismiss", map[string]any{"id": j.ID}
			}
			var refused *qmp.Error // it may be on its way to the next state
			if err := g.command(ctx, command, arguments, nil); err != nil && !errors.As(err, &refused) {
				return err
			}
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return fmt.Errorf("call a move off: %w", context.Cause(ctx))
		}
	}
}

const callOffPatience = 30 * time.Second

// dropNodes closes QEMU's connections to the target's disks.
func (g *guest) dropNodes(ctx context.Context) error {
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := g.command(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return err
	}
	for _, n := range nodes {
		if strings.HasPrefix(n.Name, moveNode("")) {
			if err := g.command(ctx, "blockdev-del", map[string]any{"node-name": n.Name}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// reachFor asks the target for something.
func (g *guest) reachFor(ctx context.Context, t *api.GuestTransfer, r transfer.Request) (*transfer.Conn, transfer.Answer, error) {
	r.ID = t.ID
	return transfer.Dial(ctx, g.h.o.Credentials, t.Address, t.Peer, r)
}

// beIncoming has a QEMU wait for the state of the source's, with empty disks.
func (g *guest) beIncoming(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	t := part.Transfer
	g.stop = nil
	if g.running == nil {
		return g.startIncoming(ctx, part)
	}
	g.began = t.ID
	if g.record.Received == t.ID {
		_ = g.h.arrivals.expect(g, t) // it may be asked again
		g.tellShare(t, api.TransferReceived, "")
		return 0, nil
	}
	switch g.running.state {
	case inmigrate:
		if err := g.export(ctx, part); err != nil {
			return 0, fmt.Errorf("offer its disks to %s: %w", t.Peer.Host, err)
		}
		g.tellShare(t, api.TransferWorking, "waiting for "+t.Peer.Host)
		if err := g.h.arrivals.expect(g, t); err != nil {
			g.tellShare(t, api.TransferWorking, err.Error())
			return g.h.timing.retry, err
		}
	case "paused", "prelaunch":
		_, err := g.loaded(ctx, t)
		return 0, err
	case "":
		return 0, g.heedState(ctx)
	default:
		g.fail(t, "its QEMU is "+g.running.state)
	}
	return 0, nil
}

// startIncoming starts it once for a move.
func (g *guest) startIncoming(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	t := part.Transfer
	if g.began == t.ID || g.record.Received == t.ID {
		g.fail(t, "its QEMU has ended: "+g.complaint(nil))
		return 0, nil
	}
	g.tellShare(t, api.TransferWorking, "starting its QEMU")
	if err := os.RemoveAll(filepath.Join(g.dir, "disks")); err != nil { // what an earlier attempt has left
		return 0, err
	}
	if err := g.start(ctx, part); err != nil {
		g.tellShare(t, api.TransferWorking, err.Error())
		return 0, fmt.Errorf("start: %w", err)
	}
	g.began = t.ID
	g.h.reached("live target: started")
	return time.Millisecond, pending("being taken in")
}

func (g *guest) nbdSocket() string { return filepath.Join(g.run, "nbd.sock") }

// export has QEMU serve its disks at a socket, to be written by the source's.
func (g *guest) export(ctx context.Context, part *api.GuestPart) error {
	var exports []struct{ ID string }
	if err := g.command(ctx, "query-block-exports", nil, &exports); err != nil || len(exports) > 0 || len(part.Disks) == 0 {
		return err
	}
	l, err := launch.Listen(g.nbdSocket())
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }() // QEMU has its own
	f, err := l.File()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := g.running.monitor.GiveFile(ctx, "move-nbd", f); err != nil {
		return err
	}
	address := map[string]any{"type": "fd", "data": map[string]any{"str": "move-nbd"}}
	if err := g.command(ctx, "nbd-server-start", map[string]any{"addr": address}, nil); err != nil {
		return err
	}
	for _, d := range part.Disks {
		err := g.command(ctx, "block-export-add", map[string]any{"type": "nbd", "id": moveNode(d.Name), "node-name": qemu.DiskNode(d.Name), "name": d.Name, "writable": true}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

// loaded reports whether QEMU has all of the Guest, and writes it down.
func (g *guest) loaded(ctx context.Context, t *api.GuestTransfer) (bool, error) {
	if g.record.Received == t.ID {
		return true, nil
	}
	if g.running == nil {
		return false, errors.New("its QEMU has ended: " + g.complaint(nil))
	}
	var s migrated
	if err := g.command(ctx, "query-migrate", nil, &s); err != nil {
		return false, err
	}
	switch s.Status {
	case "completed":
	case "failed":
		return false, errors.New("QEMU cannot take its state: " + g.complaint(nil))
	default:
		return false, nil
	}
	g.h.reached("live target: loaded, not written down")
	var refused *qmp.Error // without disks there is none
	if err := g.command(ctx, "nbd-server-stop", nil, nil); err != nil && !errors.As(err, &refused) {
		return false, err
	}
	if err := g.change(func(r *record) { r.Received = t.ID }); err != nil {
		return false, err
	}
	g.h.reached("live target: received, not said")
	g.kick()
	return true, nil
}

// takeDisk carries a connection of the source's QEMU to this one's NBD.
func (g *guest) takeDisk(ctx context.Context, c *transfer.Conn) error {
	end, err := new(net.Dialer).DialContext(ctx, "unix", g.nbdSocket())
	if err := errors.Join(err, c.Reply(transfer.Answer{}, err)); err != nil {
		return err
	}
	c.Join(ctx, end)
	return nil
}

// takeMemory carries what the source's QEMU sends to this one, and answers when
// it has all.
func (g *guest) takeMemory(ctx context.Context, e arrival, c *transfer.Conn) error {
	var end net.Conn
	_, err := g.order(ctx, e, func() (bool, error) {
		var err error
		if end, err = g.newSocket(ctx, "move-memory"); err != nil {
			return false, err
		}
		if err = g.command(ctx, "migrate-incoming", map[string]any{"uri": "fd:move-memory"}, nil); err != nil {
			_ = end.Close()
		}
		return false, err
	})
	if err := errors.Join(err, c.Reply(transfer.Answer{}, err)); err != nil {
		return err
	}
	defer func() { _ = end.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = end.Close() })
	defer stop()
	g.h.reached("live target: loading")
	if _, err := io.Copy(end, c); err != nil {
		return fmt.Errorf("its memory: %w", err)
	}
	_ = end.Close() // that is all
	for {
		received, err := g.order(ctx, e, func() (bool, error) { return g.loaded(ctx, &e.transfer) })
		if received || err != nil {
			return errors.Join(err, c.Reply(transfer.Answer{Received: received}, err))
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
