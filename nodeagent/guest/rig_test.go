package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/internal/wait/waittest"
	"github.com/rackweft/rackweft/lab/guestos"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
)

// TestMain lets the test's own binary be a launched process, and an agent.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "launched" {
		if err := launch.Exec(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "agent" {
		agentProcess(os.Args[2])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// agentProcess is a handler in a process of its own that does what DIR/parts says.
func agentProcess(dir string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	h := New(options(dir))
	h.timing = shortTiming()
	h.reached = func(point string) {
		if point == os.Getenv(crashAt) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	var exporting sync.WaitGroup
	defer exporting.Wait()
	if os.Getenv(exportOf) != "" {
		exporting.Go(func() { exportAsTold(ctx, h) })
	}
	var d desk
	_ = d.read(dir)
	d.serve(ctx, h, func() { _ = d.read(dir); d.tell(dir) })
}

// crashAt is the variable that says at which point an agent kills itself.
const crashAt = "GUEST_TEST_CRASH_AT"

// tell writes the statuses down for the test.
func (d *desk) tell(dir string) {
	d.mu.Lock()
	raw, err := json.Marshal(d.status)
	d.mu.Unlock()
	if err == nil {
		_ = file.Replace(filepath.Join(dir, "status"), raw, file.Options{})
	}
}

func shortTiming() timing {
	t := defaultTiming()
	t.look, t.retry, t.again, t.force, t.answer = 300*time.Millisecond, 300*time.Millisecond, 500*time.Millisecond, 500*time.Millisecond, 1500*time.Millisecond
	t.minBackoff, t.export = 50*time.Millisecond, 20*time.Millisecond
	return t
}

func options(dir string) Options {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	fetch := func(_ context.Context, d api.SHA256) (io.ReadCloser, error) {
		return os.Open(filepath.Join(dir, "blobs", string(d)))
	}
	return Options{Credentials: credentials(dir), StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Fetch: fetch, Launch: []string{self, "launched"}, Accelerator: qemu.TCG}
}

// desk stands for the agent: it has the parts, and a handler reconcile them.
type desk struct {
	mu     sync.Mutex
	parts  []nodeagent.Part
	status map[string]api.PartStatus
	events []api.Event
	again  wait.Signal
}

// written is a part as DIR/parts has it.
type written struct {
	Name, UID, Digest string
	Want              nodeagent.Want
	Value             *api.GuestPart
}

func (d *desk) read(dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, "parts"))
	if err != nil {
		return err
	}
	var list []written
	if err := json.Unmarshal(raw, &list); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.parts = nil
	for _, w := range list {
		d.parts = append(d.parts, nodeagent.Part{Name: w.Name, UID: w.UID, Digest: w.Digest, Want: w.Want, Value: w.Value})
	}
	return nil
}

// Changed implements nodeagent.Host.
func (d *desk) Changed() { d.again.Set() }

// Event implements nodeagent.Host.
func (d *desk) Event(e api.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, e)
}

// BGP implements nodeagent.Host.
func (d *desk) BGP(api.BGPStatus) {}

// serve reconciles until ctx is done.
func (d *desk) serve(ctx context.Context, h *Handler, before func()) {
	d.mu.Lock()
	d.again = wait.NewSignal()
	d.mu.Unlock()
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { h.Run(ctx, d) })
	for ctx.Err() == nil {
		if before != nil {
			before()
		}
		d.mu.Lock()
		parts := append([]nodeagent.Part{}, d.parts...)
		d.mu.Unlock()
		status := h.Reconcile(ctx, parts)
		d.mu.Lock()
		d.status = status
		d.mu.Unlock()
		select {
		case <-d.again:
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// host is a host in a directory of its own.
type host struct {
	t    testing.TB
	dir  string
	desk desk
	stop func()

	accelerator qemu.Accelerator
	with        func(*Options) // more of them; nil for none
	handler     *Handler       // of the last run
	timing      timing
}

func newHost(t testing.TB) *host {
	t.Helper()
	nstest.Root(t, "QEMU runs as other users")
	dir, err := os.MkdirTemp("", "guest") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, dir: dir, stop: func() {}, accelerator: qemu.TCG, timing: shortTiming()}
	t.Cleanup(func() {
		h.stop()
		h.sweep()
		if t.Failed() {
			h.show()
		}
		_ = os.RemoveAll(dir)
	})
	return h
}

// sweep ends all QEMUs of the host.
func (h *host) sweep() {
	runs, _ := filepath.Glob(filepath.Join(h.dir, "run", "*"))
	for _, dir := range runs {
		if id, err := launch.ReadIdentity(dir); err == nil {
			end(id)
		}
	}
}

// end kills a QEMU, if it lives.
func end(id launch.Identity) {
	p, err := launch.Open(id)
	if err != nil {
		return
	}
	defer p.Close()
	_ = p.Signal(unix.SIGKILL)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_ = p.Wait(ctx)
}

func (h *host) show() {
	logs, _ := filepath.Glob(filepath.Join(h.dir, "state", "guests", "*", "*.log"))
	for _, path := range logs {
		raw, _ := os.ReadFile(path)
		h.t.Logf("%s: %s", path, raw[max(0, len(raw)-1500):])
	}
}

// run starts a handler; stop ends it.
func (h *host) run() {
	ctx, cancel := context.WithCancel(context.Background())
	o := options(h.dir)
	o.Accelerator = h.accelerator
	if h.with != nil {
		h.with(&o)
	}
	handler := New(o)
	handler.timing = h.timing
	h.handler = handler
	done := make(chan struct{})
	go func() { h.desk.serve(ctx, handler, nil); close(done) }()
	h.stop = func() {
		cancel()
		<-done
		h.desk.mu.Lock()
		h.desk.status = nil
		h.desk.mu.Unlock()
		h.stop = func() {}
	}
}

// want asks for parts, by name.
func (h *host) want(parts ...nodeagent.Part) {
	h.desk.mu.Lock()
	defer h.desk.mu.Unlock()
	h.desk.parts = parts
	if h.desk.again != nil {
		h.desk.Changed()
	}
}

// write asks for parts of agents that are processes.
func (h *host) write(parts ...nodeagent.Part) {
	h.t.Helper()
	var list []written
	for _, p := range parts {
		value, _ := p.Value.(*api.GuestPart)
		list = append(list, written{p.Name, p.UID, p.Digest, p.Want, value})
	}
	raw, err := json.Marshal(list)
	if err == nil {
		err = os.WriteFile(filepath.Join(h.dir, "parts.new"), raw, 0o600)
	}
	if err == nil {
		err = os.Rename(filepath.Join(h.dir, "parts.new"), filepath.Join(h.dir, "parts"))
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) status(key string) api.PartStatus {
	h.desk.mu.Lock()
	defer h.desk.mu.Unlock()
	return h.desk.status[key]
}

func (h *host) saw(reason string) func() bool {
	return func() bool {
		h.desk.mu.Lock()
		defer h.desk.mu.Unlock()
		for _, e := range h.desk.events {
			if e.Reason == reason {
				return true
			}
		}
		return false
	}
}

func (h *host) wait(what string, f func() bool) {
	h.t.Helper()
	if waittest.Soon(90*time.Second, f) {
		return
	}
	h.desk.mu.Lock()
	defer h.desk.mu.Unlock()
	raw, _ := json.MarshalIndent(h.desk.status, "", " ")
	h.t.Fatalf("never came true: %s; status: %s", what, raw)
}

func (h *host) is(key string, state api.PartState, guest api.GuestState) func() bool {
	return func() bool {
		s := h.status(key)
		return s.State == state && s.Guest != nil && s.Guest.State == guest
	}
}

// blob puts a file where bootd's would be.
func (h *host) blob(content []byte) api.SHA256 {
	h.t.Helper()
	sum := sha256.Sum256(content)
	digest := api.SHA256(hex.EncodeToString(sum[:]))
	dir := filepath.Join(h.dir, "blobs")
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, string(digest)), content, 0o600)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return digest
}

func (h *host) record(uid string) record {
	h.t.Helper()
	r, err := readRecord(h.guestDir(uid))
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *host) guestDir(uid string) string { return filepath.Join(h.dir, "state", "guests", uid) }
func (h *host) runDir(uid string) string   { return filepath.Join(h.dir, "run", uid) }

// console is all that a Guest has said.
func (h *host) console(uid string) string {
	raw, _ := os.ReadFile(filepath.Join(h.guestDir(uid), "console.log"))
	return string(raw)
}

// tell has a Guest do something and returns what came of it.
func (h *host) tell(uid, command string) string {
	h.t.Helper()
	before := len(h.console(uid))
	conn, err := net.Dial("unix", filepath.Join(h.runDir(uid), "console.sock"))
	if err != nil {
		h.t.Fatal(err)
	}
	var reading sync.WaitGroup
	defer reading.Wait()
	defer func() { _ = conn.Close() }()
	reading.Go(func() { _, _ = io.Copy(io.Discard, conn) }) // what nobody reads holds up the Guest
	if _, err := fmt.Fprintf(conn, "%s\r", command); err != nil {
		h.t.Fatal(err)
	}
	var answer string
	h.wait(command, func() bool {
		said := h.console(uid)
		_, after, found := strings.Cut(said[min(before, len(said)):], "@did "+command+": ")
		answer, _, _ = strings.Cut(after, "\r\n")
		return found && strings.Contains(after, "\n")
	})
	return strings.TrimSpace(answer)
}

// part is a Guest's part that differs with each call.
func part(name, uid string, value *api.GuestPart, edits ...func(*api.GuestPart)) nodeagent.Part {
	v := *value
	v.Disks = slices.Clone(v.Disks) // the test goes on changing them
	for _, edit := range edits {
		edit(&v)
	}
	v.UID = uid
	return nodeagent.Part{Name: "guest/" + name, UID: uid, Digest: digest(v), Value: &v}
}

func removed(name, uid string) nodeagent.Part {
	return nodeagent.Part{Name: "guest/" + name, UID: uid, Want: nodeagent.Removed}
}

func quantity(s string) api.Quantity {
	q, err := api.ParseQuantity(s)
	if err != nil {
		panic(err)
	}
	return q
}

// bare is a Guest whose firmware finds nothing to boot: it starts at once.
func bare(*host) *api.GuestPart {
	return &api.GuestPart{CPUs: 1, Memory: quantity("64Mi"), State: "Running", StopTimeout: api.Duration(time.Second),
		Disks: []api.GuestDisk{{Name: "root", Size: quantity("1Mi")}}}
}

// built is what the Guests boot, made once per run.
var built struct {
	once             sync.Once
	err              error
	packed, unpacked []byte // the kernel as Debian has it, and out of its wrapping
	initrd           []byte
	agent            []byte // is put behind initrd
}

// build makes them.
func build(h *host) {
	h.t.Helper()
	built.once.Do(func() {
		built.packed, built.initrd, built.err = guestos.Build(h.t.Context(), "../..", guestos.Iron)
		if built.err == nil {
			built.unpacked, built.err = guestos.Unpacked(h.t.Context(), built.packed)
		}
		if built.err == nil {
			built.agent, built.err = guestos.Agent(h.t.Context())
		}
	})
	if built.err != nil {
		h.t.Fatal(built.err)
	}
}

// linux is a Guest with Debian's kernel and the init of testdata.
func linux(h *host, arguments ...string) *api.GuestPart {
	h.t.Helper()
	build(h)
	return booting(h, built.unpacked, arguments...)
}

// packed is linux with the kernel as Debian has it: it unpacks itself at each boot,
// and takes less room on the host.
func packed(h *host) *api.GuestPart {
	h.t.Helper()
	build(h)
	return booting(h, built.packed)
}

func booting(h *host, kernel []byte, arguments ...string) *api.GuestPart {
	h.t.Helper()
	p := bare(h)
	p.Memory = quantity("192Mi")
	p.StopTimeout = api.Duration(time.Minute)
	p.Kernel = &api.GuestKernel{Kernel: h.blob(kernel), Initrd: h.blob(built.initrd),
		Arguments: append(guestos.Arguments(), arguments...)}
	return p
}

// withAgent is linux with the real qemu-ga, and something for it to run.
func withAgent(h *host) *api.GuestPart {
	h.t.Helper()
	p := linux(h, guestos.AgentArgument)
	p.Kernel.Initrd = h.blob(append(bytes.Clone(built.initrd), built.agent...))
	return p
}

func (h *host) dial(uid, socket string) net.Conn {
	h.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(h.runDir(uid), socket))
	if err != nil {
		h.t.Fatal(err)
	}
	return conn
}
