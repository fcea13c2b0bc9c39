package hardwarebench

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware/redfishtest"
	"github.com/rackweft/rackweft/lab/rig"
)

// bootd's address on the segment, and that of the relay and of all that is simulated behind it.
const (
	bootdAddress = "198.18.0.1"
	simAddress   = "198.18.0.2"
)

// postTime is how long a server takes from its power-on to DHCP.
const postTime = 20 * time.Second

// BenchmarkHardware has a bootd provision as many servers as BMCS (1000) says, a tenth of them at once, alone and with
// a tenth as many BMCs beside them that say nothing. What limits the power-ons is then how long a boot takes.
func BenchmarkHardware(b *testing.B) {
	n := 1000
	if set := os.Getenv("BMCS"); set != "" {
		var err error
		if n, err = strconv.Atoi(set); err != nil || n < 10 {
			b.Fatalf("BMCS=%q: how many BMCs there are, from 10", set)
		}
	}
	bin, limit := rig.Build(b), time.Duration((n-1)/(n/10))*postTime
	var alone, beside figures
	b.Run("alone", func(b *testing.B) {
		alone = measure(b, bin, n, 0)
		report("hardware-power-on", alone.last.Seconds(), limit.Seconds(), 1.3, "s")
		report("hardware-requests", float64(alone.requests), 30, 1, "")
		report("hardware-look", float64(alone.look), 3, 1, "")
		report("hardware-memory", alone.memory, memoryLimit, 1, "MiB")
	})
	b.Run("silent", func(b *testing.B) {
		beside = measure(b, bin, n, n/10)
		report("hardware-power-on-silent", beside.last.Seconds(), limit.Seconds(), 1.3, "s")
		report("hardware-requests-silent", float64(beside.requests), 30, 1, "")
		report("hardware-memory-silent", beside.memory, memoryLimit, 1, "MiB")
	})
	if alone.last > 0 && beside.last > 0 {
		report("hardware-silent", beside.last.Seconds(), alone.last.Seconds(), 1.05, "s")
	}
}

func note(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func report(name string, ours, limit, bar float64, unit string) {
	verdict := "ok"
	if ours/limit > bar {
		verdict = "short"
	}
	fmt.Printf("BENCH %s ours=%.4g%s limit=%.4g%s ratio=%.2f bar=<=%.2f %s\n", name, ours, unit, limit, unit, ours/limit, bar, verdict)
}

// figures are what one fleet has shown.
type figures struct {
	last     time.Duration // until the last power-on
	requests int           // of the Machine that needed most, from power-on to Active
	look     int           // at the power state, likewise
	memory   float64       // of bootd, at most, in MiB
}

func measure(b *testing.B, bin rig.Binaries, n, silent int) figures {
	b.Helper()
	d := start(b, bin)
	defer d.stop()
	f := newFleet(b, n, silent)
	d.site(n / 10)
	all := append(f.nodes[:len(f.nodes):len(f.nodes)], f.silent...)
	d.apply(machines(all, api.StateOff))
	d.until(10*time.Minute, "inspected and off", f.nodes, func(m *api.Machine) bool {
		return m.Status.Conditions.Is(api.CondInspected) && m.Status.Phase == api.PhaseAvailable && m.Status.Power == "Off"
	})
	note("%d BMCs are inspected and their servers off, %d requests each at most", n, last(f.requests()))

	var fig figures
	f.forget()
	began := time.Now()
	end := d.walk(f)
	defer end()
	d.apply(machines(all, api.StateActive))
	d.until(30*time.Minute, "Active", f.nodes, func(m *api.Machine) bool { return m.Status.Phase == api.PhaseActive })
	for _, o := range f.nodes {
		booted := o.bmc.Booted()
		if len(booted) != 1 || booted[0].Target != "Pxe" || o.bmc.Crowd() > 1 || len(o.bmc.SentTwice()) > 0 {
			b.Errorf("%s: boots %+v, %d requests at the same time, sent twice %s", o.name, booted, o.bmc.Crowd(), o.bmc.SentTwice())
			continue
		}
		fig.last = max(fig.last, booted[0].At.Sub(began))
	}
	requests := d.beforeActive(f)
	fig.requests = last(requests)
	note("%d Machines are Active after %.0fs, the last was powered on after %.0fs; requests: half of them %d, at most %d", n, time.Since(began).Seconds(),
		fig.last.Seconds(), requests[n/2], fig.requests)
	fig.look = d.look(f)
	var err error
	fig.memory, err = d.memory.most()
	must(b, err)
	limit, err := d.memory.under()
	must(b, err)
	b.ReportMetric(0, "ns/op") // an iteration is no figure of any use
	note("processor time of bootd with its etcd %.0fs, memory at most %.0f MiB, %s", d.cpu().Seconds(), fig.memory, limit)
	return fig
}

func last(sorted []int) int { return sorted[len(sorted)-1] }

// daemon is a bootd in a network namespace of its own.
type daemon struct {
	b      *testing.B
	bin    rig.Binaries
	cmd    *exec.Cmd
	dir    string
	client *api.Client
	memory *memory
}

// start starts it when its end of the segment is there; ours is at simAddress, with everything that is simulated.
func start(b *testing.B, bin rig.Binaries) *daemon {
	b.Helper()
	d := &daemon{b: b, bin: bin, dir: b.TempDir()}
	write(b, filepath.Join(d.dir, "nodeagent"), "an agent")
	must(b, os.Mkdir(filepath.Join(d.dir, "ipxe"), 0o700))
	write(b, filepath.Join(d.dir, "bootd.yaml"), fmt.Sprintf("nodeagent: %s/nodeagent\nipxe: %[1]s/ipxe\nreserve: 1Mi\nlisten: {api: \":8443\", http: \":8080\", tftp: \":69\"}\n", d.dir))
	// It becomes bootd when it reads a line.
	d.cmd = exec.Command("sh", "-c", `read line && exec "$@"`, "sh", bin.Path("bootd"), "--config", filepath.Join(d.dir, "bootd.yaml"),
		"--state-dir", filepath.Join(d.dir, "state"), "--run-dir", d.dir)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(d.dir, "log"))
	must(b, err)
	defer func() { _ = log.Close() }()
	d.cmd.Stdout, d.cmd.Stderr = log, log
	stdin, err := d.cmd.StdinPipe()
	must(b, err)
	must(b, d.cmd.Start())
	d.segment()
	d.memory = watchMemory(d.cmd.Process.Pid)
	_, err = stdin.Write([]byte("\n"))
	must(b, err)
	d.client, err = api.NewClient(api.ClientConfig{Server: d.server()})
	must(b, err)
	for range 1200 {
		resp, err := d.client.Do(b.Context(), "GET", "/readyz", nil)
		if err == nil {
			must(b, resp.Body.Close())
			return d
		}
		time.Sleep(50 * time.Millisecond)
	}
	said, _ := os.ReadFile(log.Name())
	b.Fatalf("bootd is not ready:\n%s", said)
	return nil
}

// segment joins bootd's namespace with ours.
func (d *daemon) segment() {
	pid := strconv.Itoa(d.cmd.Process.Pid)
	within := func(args ...string) { d.run("nsenter", append([]string{"-t", pid, "-n", "ip"}, args...)...) }
	d.run("ip", "link", "add", "sim0", "type", "veth", "peer", "name", "net0", "netns", pid)
	d.run("ip", "addr", "add", simAddress+"/17", "dev", "sim0")
	d.run("ip", "link", "set", "lo", "up")
	d.run("ip", "link", "set", "sim0", "up")
	for _, prefix := range []string{"198.18.4.0/22", "198.18.8.0/22", "198.19.0.0/16"} {
		d.run("ip", "route", "replace", "local", prefix, "dev", "lo")
	}
	within("link", "set", "lo", "up")
	within("addr", "add", bootdAddress+"/17", "dev", "net0")
	within("link", "set", "net0", "up")
	within("route", "add", "198.19.0.0/16", "via", simAddress)
}

func (d *daemon) run(program string, args ...string) {
	d.b.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		d.b.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
}

func (d *daemon) server() string { return "unix://" + filepath.Join(d.dir, "bootd.sock") }

func (d *daemon) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	_ = d.cmd.Wait()
	d.memory.end()
	_ = exec.Command("ip", "link", "del", "sim0").Run() // it ends with bootd's namespace, sooner or later
}

// cpu is the processor time that bootd has used.
func (d *daemon) cpu() time.Duration {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	must(d.b, err)
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest) // from the third on, see proc_pid_stat(5)
	var ticks time.Duration
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		must(d.b, err)
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond
}

// site is what the Machines need, with as many boots at once.
func (d *daemon) site(boots int) {
	d.b.Helper()
	image := &api.Image{Spec: api.ImageSpec{Version: "1", OS: "debian", IgnitionVersion: "3.5.0", Files: map[string]api.ImageFile{}}}
	image.Metadata.Name = "img"
	for _, name := range []string{"kernel", "initrd", "rootfs"} {
		sum := sha256.Sum256([]byte(name))
		digest := api.SHA256(hex.EncodeToString(sum[:]))
		must(d.b, d.client.PutBlob(d.b.Context(), digest, strings.NewReader(name)))
		image.Spec.Files[name] = api.ImageFile{SHA256: digest}
	}
	image.SetDefaults()
	_, err := d.client.Put(d.b.Context(), image, false)
	must(d.b, err)
	d.apply(fmt.Sprintf(`kind: Site
metadata: {name: site}
spec: {limits: {provisioning: {total: %d}}}
---
kind: Subnet
metadata: {name: pxe}
spec: {purpose: provisioning, interface: net0, prefixes: [198.18.0.0/17], relays: [%s]}
---
kind: Secret
metadata: {name: bmc}
spec: {data: {username: admin, password: correct horse}}
---
kind: Layer
metadata: {name: base}
spec: {butane: "storage:\n  files:\n    - path: /etc/motd\n      contents: {inline: hello}\n"}
---
kind: Profile
metadata: {name: worker}
spec: {image: img, layers: [base]}
`, boots, simAddress))
}

func machines(nodes []*node, state api.MachineState) string {
	var b strings.Builder
	for _, o := range nodes {
		fmt.Fprintf(&b, `---
kind: Machine
metadata: {name: %s}
spec:
  profile: worker
  state: %q
  links: [{name: pxe0, mac: %q, subnet: pxe, addresses: [%s]}]
  bmc: {address: "https://%s", credentials: bmc}
`, o.name, state, o.mac, o.address, o.bmcAt)
	}
	return b.String()
}

// apply runs weftctl.
func (d *daemon) apply(manifest string) {
	d.b.Helper()
	file := filepath.Join(d.b.TempDir(), "manifest.yaml")
	write(d.b, file, manifest)
	if out, err := exec.CommandContext(d.b.Context(), d.bin.Path("weftctl"), "--server", d.server(), "apply", "-f", file).CombinedOutput(); err != nil {
		d.b.Fatalf("apply: %v: %s", err, out)
	}
}

// until waits until every node's Machine is there.
func (d *daemon) until(patience time.Duration, what string, nodes []*node, is func(*api.Machine) bool) {
	d.b.Helper()
	waits := map[string]bool{}
	for _, o := range nodes {
		waits[o.name] = true
	}
	deadline := time.Now().Add(patience)
	for {
		list, _, err := d.client.List(d.b.Context(), api.KindOf(new(api.Machine)))
		must(d.b, err)
		left, example := 0, ""
		for _, o := range list {
			if m, ok := o.(*api.Machine); ok && waits[m.Metadata.Name] && !is(m) {
				left++
				example = fmt.Sprintf("%s is %s: %+v", m.Metadata.Name, m.Status.Phase, m.Status.Conditions)
			}
		}
		switch {
		case left == 0:
			return
		case time.Now().After(deadline):
			d.b.Fatalf("%d of %d Machines are not %s after %s; %s", left, len(nodes), what, patience, example)
		}
		time.Sleep(2 * time.Second)
	}
}

// beforeActive is how many requests each BMC had until its Machine was Active, fewest first. The inventory, which is read
// again after a boot, comes later.
func (d *daemon) beforeActive(f *fleet) []int {
	d.b.Helper()
	var all []int
	for _, o := range f.nodes {
		m, err := api.Get[api.Machine](d.b.Context(), d.client, o.name)
		must(d.b, err)
		all = append(all, len(slices.DeleteFunc(o.bmc.Requests(), func(q redfishtest.Request) bool { return q.At.After(m.Status.Attempt.Finished) })))
	}
	slices.Sort(all)
	return all
}

// walk boots the servers that are powered on, until end is called.
func (d *daemon) walk(f *fleet) (end func()) {
	d.b.Helper()
	r, err := newRelay()
	must(d.b, err)
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { _ = r.run() }) // until its socket is closed
	w := &walker{relay: r, client: d.client}
	for _, o := range f.nodes {
		group.Go(func() {
			if err := w.boots(ctx, o); err != nil {
				d.b.Error(err)
			}
		})
	}
	return func() {
		cancel()
		_ = r.conn.Close()
		group.Wait()
		w.streams.Wait()
	}
}

// look asks some Machines that are on to be powered on, which is one look, and returns how many requests of a BMC that
// takes at most, its login and its logout included.
func (d *daemon) look(f *fleet) int {
	d.b.Helper()
	time.Sleep(keptLogin) // none is left of what was before
	f.forget()
	some := f.nodes[:min(len(f.nodes), 24)]
	for _, o := range some {
		_, err := d.client.Verb(d.b.Context(), o.name, api.Request{ID: "look", Verb: api.VerbPower, Argument: "on"})
		must(d.b, err)
	}
	d.until(time.Minute, "looked at", some, func(m *api.Machine) bool {
		return slices.ContainsFunc(m.Status.Requests, func(r api.Request) bool { return r.ID == "look" && r.State == api.RequestDone })
	})
	done := time.Now()
	time.Sleep(keptLogin)
	var most []string
	for _, o := range some {
		var asked []string
		for _, q := range o.bmc.Requests() {
			logout := q.Method == http.MethodDelete
			if logout || q.At.Before(done) {
				asked = append(asked, q.Method+" "+q.Path)
			}
			if logout && len(asked) > 1 {
				break // what is asked after it is a look of another kind, at the server's health
			}
		}
		if len(asked) == 0 {
			d.b.Errorf("%s was not looked at", o.name)
		}
		if len(asked) > len(most) {
			most = asked
		}
	}
	note("a look takes at most %d requests: %s", len(most), strings.Join(most, ", "))
	return len(most)
}

// keptLogin is longer than a login is kept that is not in use, and than the logout takes.
const keptLogin = 65 * time.Second

func write(b *testing.B, path, text string) {
	b.Helper()
	must(b, os.WriteFile(path, []byte(text), 0o600))
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
