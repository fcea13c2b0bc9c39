package applybench

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/lab/rig"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(etcdDir); dir != "" {
		os.Exit(runEtcd(dir))
	}
	os.Exit(rig.Main(m))
}

const (
	small, large = 1000, 5000
	changes      = 31 // that a watcher waits for, one after the other
)

// BenchmarkApply applies Machines to an empty bootd, and again, with the programs as they are released. RUNS (5)
// is how often; figures are medians. What etcd takes is measured in turn, with the objects as bootd stored them.
func BenchmarkApply(b *testing.B) {
	runs := 5
	if set := os.Getenv("RUNS"); set != "" {
		n, err := strconv.Atoi(set)
		if err != nil || n < 1 {
			b.Fatalf("RUNS=%q: how often each is measured, from 1", set)
		}
		runs = n
	}
	bin := rig.Build(b)
	ours, peer := map[string][]time.Duration{}, map[string][]time.Duration{}
	for run := range runs {
		for _, n := range []int{small, large} {
			stored := measureBootd(b, bin, n, ours)
			measureEtcd(b, stored, n, peer)
		}
		note("run %d of %d is done", run+1, runs)
	}
	for _, f := range []struct {
		name string
		bar  time.Duration
	}{
		{fmt.Sprintf("apply-%d", small), 5 * time.Second},
		{fmt.Sprintf("apply-%d-again", small), 2 * time.Second},
		{fmt.Sprintf("apply-%d", large), 30 * time.Second},
		{fmt.Sprintf("watch-%d", large), 10 * time.Millisecond},
	} {
		figure(f.name, median(ours[f.name]), median(peer[f.name]), f.bar)
	}
	b.ReportMetric(0, "ns/op") // an iteration is no figure of any use
}

func note(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func figure(name string, ours, peer, bar time.Duration) {
	verdict := "ok"
	if ours >= bar {
		verdict = "short"
	}
	text := func(d time.Duration) string {
		if bar < time.Second {
			return fmt.Sprintf("%.2fms", d.Seconds()*1000)
		}
		return fmt.Sprintf("%.2fs", d.Seconds())
	}
	fmt.Printf("BENCH %s ours=%s etcd=%s ratio=%.2f bar=<%s %s\n", name, text(ours), text(peer), ours.Seconds()/peer.Seconds(), bar, verdict)
}

func median(list []time.Duration) time.Duration {
	slices.SortFunc(list, cmp.Compare)
	return list[len(list)/2]
}

// daemon is a bootd in a network namespace of its own, in which nothing can be reached: neither do its BMCs
// answer, nor does it disturb anything here. Its socket is a file.
type daemon struct {
	b      *testing.B
	bin    rig.Binaries
	cmd    *exec.Cmd
	dir    string
	client *api.Client
}

func start(b *testing.B, bin rig.Binaries) *daemon {
	b.Helper()
	d := &daemon{b: b, bin: bin, dir: b.TempDir()}
	write(b, filepath.Join(d.dir, "bootd.yaml"), "listen: {api: \":8443\", http: \":8080\", tftp: \":69\"}\n")
	d.cmd = exec.Command(bin.Path("bootd"), "--config", filepath.Join(d.dir, "bootd.yaml"), "--state-dir", d.state(), "--run-dir", d.dir)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(d.dir, "log"))
	must(b, err)
	defer func() { _ = log.Close() }()
	d.cmd.Stdout, d.cmd.Stderr = log, log
	must(b, d.cmd.Start())
	d.client, err = api.NewClient(api.ClientConfig{Server: d.server()})
	must(b, err)
	for range 600 {
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

func (d *daemon) state() string  { return filepath.Join(d.dir, "state") }
func (d *daemon) server() string { return "unix://" + filepath.Join(d.dir, "bootd.sock") }

func (d *daemon) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	_ = d.cmd.Wait()
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

// apply runs weftctl, from its start to its end.
func (d *daemon) apply(file, want string) time.Duration {
	d.b.Helper()
	cmd := exec.CommandContext(d.b.Context(), d.bin.Path("weftctl"), "--server", d.server(), "apply", "-f", file)
	var out strings.Builder
	cmd.Stderr = &out
	before, began := d.cpu(), time.Now()
	if err := cmd.Run(); err != nil || !strings.Contains(out.String(), want) {
		d.b.Fatalf("apply %s: %v: it said %q, want %q", file, err, out.String(), want)
	}
	took := time.Since(began)
	used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	note("%s: %.2fs; processor time of weftctl %.2fs, of bootd with its etcd %.2fs", want, took.Seconds(), used.Seconds(), (d.cpu() - before).Seconds())
	return took
}

// measureBootd returns what bootd has stored of the Machines.
func measureBootd(b *testing.B, bin rig.Binaries, n int, took map[string][]time.Duration) []pair {
	d := start(b, bin)
	defer d.stop()
	dir := b.TempDir()
	write(b, filepath.Join(dir, "site.yaml"), site)
	d.apply(filepath.Join(dir, "site.yaml"), "created")
	file := filepath.Join(dir, "machines.yaml")
	write(b, file, machines(n))
	add := func(name string, t time.Duration) { took[name] = append(took[name], t) }
	add(fmt.Sprintf("apply-%d", n), d.apply(file, fmt.Sprintf("%d objects: %d created", n, n)))
	add(fmt.Sprintf("apply-%d-again", n), d.apply(file, fmt.Sprintf("%d objects: %d unchanged", n, n)))
	stored := storedBy(b, filepath.Join(d.state(), "etcd.sock"))
	if len(stored) != n {
		b.Fatalf("bootd has stored %d Machines of %d", len(stored), n)
	}
	add(fmt.Sprintf("watch-%d", n), d.hears())
	return stored
}

// hears is the median time from before a Machine is put until a watcher has it.
func (d *daemon) hears() time.Duration {
	kind := api.KindOf(new(api.Machine))
	heard := make(chan string, 1<<16)
	ctx, cancel := context.WithCancel(d.b.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- d.client.Watch(ctx, kind, func(e api.WatchEvent) error {
			text := string(e.Type)
			if m, ok := e.Object.(*api.Machine); ok {
				text = m.Metadata.Labels["change"]
			}
			heard <- text
			return nil
		})
	}()
	quiet(heard)
	var all []time.Duration
	for i := range changes {
		o, err := d.client.Get(ctx, kind, fmt.Sprintf("m%05d", i*7))
		must(d.b, err)
		o.Meta().Labels["change"] = strconv.Itoa(i)
		o.Meta().ResourceVersion = ""
		began := time.Now()
		_, err = d.client.Put(ctx, o, false)
		must(d.b, err)
		for text := range heard {
			if text == strconv.Itoa(i) {
				break
			}
		}
		all = append(all, time.Since(began))
		quiet(heard)
	}
	cancel()
	<-ended
	return median(all)
}

// quiet waits until the controllers have nothing more to write.
func quiet(heard <-chan string) {
	for {
		select {
		case <-heard:
		case <-time.After(time.Second):
			return
		}
	}
}

const site = `kind: Zone
metadata: {name: yellow}
spec: {asn: 64601, prefixes: [10.64.0.0/10]}
---
kind: Subnet
metadata: {name: pxe}
spec: {purpose: provisioning, prefixes: [198.18.0.0/17]}
---
kind: Subnet
metadata: {name: prod}
spec: {purpose: production, zone: yellow, prefixes: [198.18.128.0/17]}
---
kind: Secret
metadata: {name: bmc}
spec: {data: {username: admin, password: hunter2}}
---
kind: Layer
metadata: {name: site}
spec: {butane: "variant: fcos\nversion: 1.5.0\n"}
---
kind: Profile
metadata: {name: worker}
spec: {image: debian, layers: [site]}
`

// machines are Machines as people write them: two links with pinned addresses, a BMC, labels.
func machines(n int) string {
	var b strings.Builder
	for i := range n {
		mac := fmt.Sprintf("%02x:%02x", i>>8, i&255)
		ip := fmt.Sprintf("%d.%d", 1+i/250, 1+i%250)
		fmt.Fprintf(&b, `---
kind: Machine
metadata: {name: m%05d, labels: {tier: app}}
spec:
  zone: yellow
  profile: worker
  state: "Off"
  location: {rack: r%d, unit: %d}
  links:
    - {name: pxe0, mac: "52:54:00:00:%s", subnet: pxe, addresses: [198.18.%s]}
    - {name: prod0, mac: "52:54:00:01:%[4]s", subnet: prod, addresses: [198.18.%[6]d.%[7]d]}
  bmc: {address: "https://198.19.%[5]s", credentials: bmc}
`, i, i/40, 1+i%40, mac, ip, 129+i/250, 1+i%250)
	}
	return b.String()
}

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
