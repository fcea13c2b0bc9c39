package nodeagent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/internal/nstest"
)

// buildAgent builds the real binary.
func buildAgent(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("runs the built binary: not under -short")
	}
	bin := filepath.Join(t.TempDir(), "nodeagent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=v0.0.1-test", "-o", bin, "../cmd/nodeagent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build nodeagent: %v\n%s", err, out)
	}
	return bin
}

// process is a running binary.
type process struct {
	t   testing.TB
	cmd *exec.Cmd
	log bytes.Buffer
}

func start(t testing.TB, h *host, env []string, command ...string) *process {
	t.Helper()
	args := append(command[1:len(command):len(command)], "run", "--config", h.configPath, "--state-dir", h.state, "--run-dir", h.run)
	p := &process{t: t, cmd: exec.Command(command[0], args...)}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("log of nodeagent:\n%s", p.log.String())
		}
	})
	return p
}

func (p *process) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// Killed at any instant, the agent goes on where it was: it joins once, with
// one key, and its cache is always whole.
func TestKillLoop(t *testing.T) {
	bin := buildAgent(t)
	b := newFakeBootd(t)
	answering := make(chan struct{}, 100)
	b.joinAnswer = func(*api.JoinResponse) {
		answering <- struct{}{}
		time.Sleep(10 * time.Millisecond)
	}
	b.start(nil)
	h := newHost(t, b)
	rounds := 40
	for i := range rounds {
		p := start(t, h, nil, bin)
		if i < 20 { // while bootd answers the join, and just after
			select {
			case <-answering:
			case <-time.After(100 * time.Millisecond): // it has joined
			}
			time.Sleep(time.Duration(mrand.IntN(6+i)) * time.Millisecond)
		} else {
			time.Sleep(time.Duration(mrand.IntN(5*i)) * time.Millisecond)
		}
		b.change(func() { b.parts["network/n"] = api.Part(fmt.Sprintf(`{"uid":"n1","vni":%d}`, 10000+i)) })
		if i%3 == 0 {
			time.Sleep(time.Duration(mrand.IntN(20)) * time.Millisecond)
		}
		p.kill()
		if _, faults := loadHostSpec(filepath.Join(h.state, "hostspec")); len(faults) > 0 {
			t.Fatalf("after kill %d the cache is damaged: %v", i, faults)
		}
		if _, err := loadIdentity(filepath.Join(h.state, "identity.json")); err != nil {
			t.Fatalf("after kill %d: %v", i, err)
		}
	}
	start(t, h, nil, bin)
	b.waitFor("it ends up right", func() bool {
		return b.status.Revision == b.revision && applied(b, "base")() && b.status.Parts["network/n"].State == api.PartPending
	})
	b.mu.Lock()
	t.Logf("%d kills: %d joins with %d key, %d streams", rounds, b.joins, len(b.keys), b.streams)
	if len(b.keys) != 1 {
		t.Errorf("it joined with %d keys, want 1: bootd would take the second for an intruder", len(b.keys))
	}
	b.mu.Unlock()
	if _, err := os.Stat(h.tokens); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the token is still there: %v", err)
	}
}

func ip(t testing.TB, ns, args string) {
	t.Helper()
	nstest.IP(t, ns, strings.Fields(args)...)
}

// listenIn opens a listener inside a namespace.
func listenIn(t testing.TB, name string) (l net.Listener) {
	t.Helper()
	err := nstest.Within(name, func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// The kernel's interfaces in a namespace of their own: each change is
// reported, and the base part follows the underlay.
func TestNICsAreReported(t *testing.T) {
	bin := buildAgent(t)
	ns := nstest.New(t)
	ip(t, ns, "link add prod type veth peer name wire")
	ip(t, ns, "link set prod address 02:00:00:01:07:01")
	ip(t, ns, "link set wire up")
	b := newFakeBootd(t)
	b.parts["base"] = api.Part(`{"uid":"` + testUID + `","underlay":{"interface":"prod","addresses":["198.18.8.7"],"mtu":1500}}`)
	b.start(listenIn(t, ns))
	h := newHost(t, b)
	start(t, h, nil, "ip", "netns", "exec", ns, bin)

	nic := func() api.HostNIC {
		for _, n := range b.status.NICs {
			if n.Name == "prod" {
				return n
			}
		}
		return api.HostNIC{}
	}
	base := func(state api.PartState, message string) func() bool {
		return func() bool {
			p := b.status.Parts["base"]
			return p.State == state && strings.Contains(p.Message, message)
		}
	}
	b.waitFor("the link is down", func() bool { return nic().MAC == "02:00:00:01:07:01" && !nic().Up })
	b.waitFor("base waits for the link", base(api.PartPending, "is down"))
	ip(t, ns, "link set prod up")
	b.waitFor("the link is up", func() bool { return nic().Up })
	b.waitFor("base waits for the address", base(api.PartPending, "lacks 198.18.8.7"))
	ip(t, ns, "addr add 198.18.8.7/24 dev prod")
	b.waitFor("the address is reported", func() bool {
		return slices.Contains(nic().Addresses, netip.MustParsePrefix("198.18.8.7/24"))
	})
	b.waitFor("base is applied", base(api.PartApplied, ""))
	ip(t, ns, "link set prod mtu 1400")
	b.waitFor("base notices the MTU", base(api.PartPending, "MTU is 1400"))
	ip(t, ns, "link set prod mtu 1500")
	ip(t, ns, "link set wire down")
	b.waitFor("the lost carrier is reported", func() bool { return !nic().Up })
	b.waitFor("base says so", base(api.PartPending, "no carrier"))
	ip(t, ns, "link del prod")
	b.waitFor("the link is gone", base(api.PartPending, "no such interface"))
	if b.with(func() bool {
		return slices.ContainsFunc(b.status.NICs, func(n api.HostNIC) bool { return n.Name == "lo" })
	}) {
		t.Error("loopback is reported")
	}

	// More events than the socket holds: the listing still is right in the end.
	var batch strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&batch, "link set lo txqueuelen %d\n", 1000+i%2)
	}
	batch.WriteString("link add late type veth peer name later\n")
	cmd := exec.Command("ip", "-n", ns, "-batch", "-")
	cmd.Stdin = strings.NewReader(batch.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %.200s", err, out)
	}
	b.waitFor("what came after the flood", func() bool {
		return slices.ContainsFunc(b.status.NICs, func(n api.HostNIC) bool { return n.Name == "late" })
	})
}

// What systemd and a person at the console see, and what the agent costs.
func TestDaemon(t *testing.T) {
	bin := buildAgent(t)
	b := newFakeBootd(t)
	var peers []string
	for i := range 2000 {
		peers = append(peers, fmt.Sprintf(`{"host":"h%d","lease":"10.%d.%d.0/24","vtep":"198.18.%d.%d","mac":"02:00:00:00:%02x:%02x"}`,
			i, i/256, i%256, i/256, i%256, i/256, i%256))
	}
	b.parts["network/big"] = api.Part(`{"uid":"n1","vni":1,"peers":[` + strings.Join(peers, ",") + `]}`)
	b.start(nil)
	h := newHost(t, b)
	socket := filepath.Join(h.dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	p := start(t, h, []string{"NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=900000"}, bin)
	told := make(chan string, 1000)
	go func() {
		defer close(told)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return // closed with the test
			}
			told <- string(buf[:n])
		}
	}()
	expect := func(want string) {
		t.Helper()
		limit := time.After(30 * time.Second)
		for {
			select {
			case got := <-told:
				if strings.Contains(got, want) {
					return
				}
			case <-limit:
				t.Fatalf("systemd is never told %q", want)
			}
		}
	}
	expect("READY=1")
	expect("STATUS=Connected to " + b.url() + "; HostSpec 1/10, 2 parts: 1 Applied, 1 Pending")
	expect("WATCHDOG=1")
	b.waitFor("the HostSpec is applied", func() bool { return b.status.Revision == b.revision })

	out, err := command.Output(exec.Command(bin, "status", "--state-dir", h.state, "--run-dir", h.run))
	for _, want := range []string{"r1u07", "connected " + b.url(), "base", "Applied", "underlay is not known", "v0.0.1-test"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("nodeagent status (%v) lacks %q:\n%s", err, want, out)
		}
	}
	for i := range 20 { // whole parts of 160 KiB, one after the other
		b.change(func() {
			b.parts["network/big"] = api.Part(fmt.Sprintf(`{"uid":"n1","vni":%d,"peers":[%s]}`, i+2, strings.Join(peers, ",")))
		})
		b.waitFor("the next revision", func() bool { return b.status.Revision == b.revision })
	}
	const bar = 40 << 10 // KiB
	rss := residentKiB(t, p.cmd.Process.Pid)
	t.Logf("resident: %.1f MiB with a Network of 2000 peers after 20 changes; binary %.1f MiB", float64(rss)/1024, float64(size(t, bin))/(1<<20))
	if rss > bar {
		t.Errorf("%d KiB resident, at most %d", rss, bar)
	}

	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	expect("STOPPING=1")
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	out, err = command.Output(exec.Command(bin, "status", "--state-dir", h.state, "--run-dir", h.run))
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(err.Error(), "not running") {
		t.Errorf("nodeagent status when it does not run: %v\n%s", err, out)
	}
}

func residentKiB(t testing.TB, pid int) int {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(raw) // the most it ever was
	if m == nil {
		t.Fatalf("no VmHWM in %s", raw)
	}
	kib, _ := strconv.Atoi(string(m[1]))
	return kib
}

func size(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func TestCommandLine(t *testing.T) {
	bin := buildAgent(t)
	dir := t.TempDir()
	writeTest(t, filepath.Join(dir, "bad.yaml"), "machine: r1u07\nbogus: 1\n")
	tests := []struct {
		args []string
		code int
		want string
	}{
		{[]string{"version"}, 0, "v0.0.1-test"},
		{[]string{"--help"}, 0, "status"},
		{[]string{"--bogus"}, 78, "bogus"},
		{[]string{"bogus"}, 78, `unknown argument "bogus"`},
		{[]string{"status", "extra"}, 78, "extra"},
		{[]string{"netns", "pin"}, 78, "accepts 1 arg(s)"},
		{[]string{"run", "--accelerator", "xen"}, 78, "invalid accelerator \"xen\": want kvm or tcg"},
		{[]string{"run", "--config", filepath.Join(dir, "none.yaml")}, 78, "none.yaml"},
		{[]string{"--config", filepath.Join(dir, "bad.yaml")}, 78, `unknown field "bogus"`},
		{[]string{"status", "--run-dir", dir, "--state-dir", dir}, 1, "has not run"},
	}
	for _, tt := range tests {
		cmd := exec.Command(bin, tt.args...)
		var said bytes.Buffer // by standard output or standard error
		cmd.Stdout, cmd.Stderr = &said, &said
		_ = cmd.Run() // its exit code is looked at
		if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.Contains(said.String(), tt.want) {
			t.Errorf("nodeagent %v exits with %d, want %d and %q:\n%s", tt.args, code, tt.code, tt.want, &said)
		}
	}
}

// The host daemon carries none of the server's weight.
func TestDependencies(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "../cmd/nodeagent").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.Lines(string(out)) {
		for _, banned := range []string{"go.etcd.io/", "danielgtaylor/huma", "bmclib", "gofish", "coreos/butane", "rackweft/bootd", "rackweft/hardware"} {
			if strings.Contains(dep, banned) {
				t.Errorf("nodeagent links %s", dep)
			}
		}
	}
}
