package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vincent-petithory/dataurl"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/internal/wait/waittest"
	"github.com/rackweft/rackweft/lab"
	"github.com/rackweft/rackweft/lab/rig"
)

// desk is a bootd and hosts, each in a network namespace of its own: the
// programs are real, and the hosts' firmware is curl.
type desk struct {
	t          *testing.T
	id, dir    string
	bin        rig.Binaries
	ns         string // bootd's, and where the segments are
	namespaces []string
	ports      int // that its segments have
	programs   []*program
	bootd      *program
	client     *api.Client
	hosts      []*deskHost
}

// deskBasics is what every desk's bootd is told. The Image os is its test's.
const deskBasics = `
apiVersion: rackweft/v1alpha1
kind: Site
metadata: {name: site}
spec: {domain: desk.test}
---
apiVersion: rackweft/v1alpha1
kind: Subnet
metadata: {name: pxe}
spec: {purpose: provisioning, interface: pxe, prefixes: [198.18.0.0/24], gateway: 198.18.0.1, mode: proxy}
---
apiVersion: rackweft/v1alpha1
kind: Profile
metadata: {name: worker}
spec: {image: os}
`

// deskYellow is a Zone with its production Subnet.
const deskYellow = `---
apiVersion: rackweft/v1alpha1
kind: Subnet
metadata: {name: prod}
spec: {purpose: production, zone: yellow, prefixes: [198.18.8.0/24]}
---
apiVersion: rackweft/v1alpha1
kind: Zone
metadata: {name: yellow}
spec: {asn: 64601, prefixes: [198.18.64.0/18]}
`

// deskHost is one of the hosts; number N has 198.18.0.N on the provisioning
// segment, and the MAC 52:54:00:01:N:00 there.
type deskHost struct {
	*desk
	name, ns, dir  string
	number         int
	agent, speaker *program
}

// program is something that runs.
type program struct {
	cmd   *exec.Cmd
	log   *os.File
	ended chan struct{}
}

func (p *program) kill() { p.end(syscall.SIGKILL) }

func (p *program) end(signal syscall.Signal) {
	_ = p.cmd.Process.Signal(signal)
	<-p.ended
	_ = p.log.Close()
}

// newDesk has no hosts yet. bootd serves the segment pxe.
func newDesk(t *testing.T) *desk {
	t.Helper()
	nstest.Root(t, nstest.Namespaces)
	dir, err := os.MkdirTemp("", "d") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{t: t, id: strings.ToLower(rand.Text()[:6]), dir: dir, bin: rig.Build(t)}
	t.Cleanup(d.clear)
	d.ns = d.namespace("b")
	d.segment("pxe", "198.18.0.1/24")
	d.write("bootd.yaml", fmt.Sprintf("nodeagent: %s\nipxe: %s\nreserve: 1Mi\n", d.bin.Path("nodeagent"), dir))
	d.client, err = api.NewClient(api.ClientConfig{Server: d.server()})
	if err != nil {
		t.Fatal(err)
	}
	d.startBootd()
	return d
}

// namespace makes one that goes with the test.
func (d *desk) namespace(name string) string {
	d.t.Helper()
	ns := "rwd" + name + "-" + d.id
	d.namespaces = append(d.namespaces, ns)
	d.run("ip", "netns", "add", ns)
	d.run("ip", "-n", ns, "link", "set", "lo", "up")
	return ns
}

// segment is a bridge beside bootd, which has an address on it unless that is "".
func (d *desk) segment(name, address string) {
	d.t.Helper()
	d.run("ip", "-n", d.ns, "link", "add", name, "type", "bridge")
	d.run("ip", "-n", d.ns, "link", "set", name, "up")
	if address != "" {
		d.run("ip", "-n", d.ns, "addr", "add", address, "dev", name)
	}
}

// wire gives a namespace an interface on a segment.
func (d *desk) wire(ns, name, mac, segment, address string) {
	d.t.Helper()
	d.ports++
	port := fmt.Sprintf("%s%d", segment, d.ports)
	d.run("ip", "-n", d.ns, "link", "add", port, "type", "veth", "peer", "name", name, "address", mac, "netns", ns)
	d.run("ip", "-n", d.ns, "link", "set", port, "master", segment, "up")
	d.run("ip", "-n", ns, "addr", "add", address, "dev", name)
	d.run("ip", "-n", ns, "link", "set", name, "up")
}

// mac is of the host's interface number i.
func (h *deskHost) mac(i int) string { return fmt.Sprintf("52:54:00:01:%02x:%02x", h.number, i) }

// host adds one, which has not booted.
func (d *desk) host(name string, number int) *deskHost {
	d.t.Helper()
	h := &deskHost{desk: d, name: name, number: number, dir: filepath.Join(d.dir, name)}
	d.hosts = append(d.hosts, h)
	if err := os.Mkdir(h.dir, 0o755); err != nil {
		d.t.Fatal(err)
	}
	h.ns = d.namespace(name)
	d.wire(h.ns, "pxe", h.mac(0), "pxe", fmt.Sprintf("198.18.0.%d/24", number))
	return h
}

// clear ends what runs, QEMU too, and takes the namespaces away.
func (d *desk) clear() {
	for _, p := range d.programs {
		p.kill()
	}
	for _, h := range d.hosts {
		h.clear()
	}
	for _, ns := range d.namespaces {
		_ = exec.Command("ip", "netns", "del", ns).Run() // it may not be there
	}
	if d.t.Failed() {
		logs, _ := filepath.Glob(filepath.Join(d.dir, "*.log"))
		for _, name := range logs {
			raw, _ := os.ReadFile(name)
			d.t.Logf("%s:\n%s", filepath.Base(name), raw[max(0, len(raw)-4000):])
		}
	}
	_ = os.RemoveAll(d.dir)
}

func (h *deskHost) clear() {
	processes, _ := filepath.Glob(filepath.Join(h.dir, "r", "guests", "*", "process.json"))
	for _, path := range processes {
		var id struct{ PID int }
		raw, _ := os.ReadFile(path)
		if json.Unmarshal(raw, &id) != nil {
			continue
		}
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", id.PID))
		if bytes.Contains(line, []byte("qemu-system")) {
			_ = syscall.Kill(id.PID, syscall.SIGKILL)
		}
	}
	pins := filepath.Join(h.dir, "r", "netns")
	pinned, _ := filepath.Glob(filepath.Join(pins, "*"))
	for _, path := range append(pinned, pins) { // what the agent mounted there
		_ = syscall.Unmount(path, syscall.MNT_DETACH)
	}
}

func (d *desk) server() string { return "unix://" + filepath.Join(d.dir, "b", "bootd.sock") }

func (d *desk) write(name, content string) string {
	d.t.Helper()
	path := filepath.Join(d.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		d.t.Fatal(err)
	}
	return path
}

func (d *desk) run(args ...string) string {
	d.t.Helper()
	out, err := command.Output(exec.Command(args[0], args[1:]...))
	if err != nil {
		d.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// in runs a command in a namespace.
func (d *desk) in(ns string, args ...string) string {
	d.t.Helper()
	return d.run(append([]string{"nsenter", "--net=/run/netns/" + ns}, args...)...)
}

// start runs a program in a namespace. Not by ip-netns(8), which has a mount
// namespace of its own for each, and what the agent pins would go with it.
func (d *desk) start(ns, name string, args ...string) *program {
	d.t.Helper()
	log, err := os.OpenFile(filepath.Join(d.dir, name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + ns, args[0]}, args[1:]...)...)
	cmd.Stderr = log
	p := &program{cmd: cmd, log: log, ended: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	go func() { defer close(p.ended); _ = cmd.Wait() }() // kill waits for it
	d.programs = append(d.programs, p)
	return p
}

func (d *desk) startBootd() {
	d.t.Helper()
	d.bootd = d.start(d.ns, "bootd", d.bin.Path("bootd"), "--config", filepath.Join(d.dir, "bootd.yaml"),
		"--state-dir", filepath.Join(d.dir, "s"), "--run-dir", filepath.Join(d.dir, "b"))
	d.wait("bootd answers", func(ctx context.Context) error {
		_, err := d.client.Do(ctx, "GET", "/readyz", nil)
		return err
	})
}

func (h *deskHost) dirs() []string {
	return []string{"--state-dir", filepath.Join(h.dir, "n"), "--run-dir", filepath.Join(h.dir, "r")}
}

func (h *deskHost) startAgent() {
	// Its Guests run on what a person has the lab's machines run on, else on what it finds.
	h.agent = h.start(h.ns, h.name+"-nodeagent", append([]string{h.bin.Path("nodeagent"), "run", "--config", filepath.Join(h.dir, "nodeagent.yaml"),
		"--accelerator=" + os.Getenv(lab.AcceleratorEnv)}, h.dirs()...)...)
}

// startSpeaker is what systemd does on a host.
func (h *deskHost) startSpeaker() {
	h.speaker = h.start(h.ns, h.name+"-speaker", append([]string{h.bin.Path("nodeagent"), "speaker"}, h.dirs()...)...)
}

// wait tries again and again until there is no error.
func (d *desk) wait(what string, try func(context.Context) error) {
	d.t.Helper()
	const patience = 3 * time.Minute
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	var last error
	ok := waittest.Soon(patience, func() bool {
		err := try(ctx)
		if err != nil && ctx.Err() == nil {
			last = err
		}
		return err == nil
	})
	if !ok {
		d.t.Fatalf("%s: it never happens: %v", what, last)
	}
}

// boot does as the firmware and Ignition do, and starts what they would.
func (h *deskHost) boot() {
	h.t.Helper()
	fetch := func(args ...string) []byte {
		var out []byte
		h.wait("fetch "+args[0], func(ctx context.Context) error {
			cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + h.ns, "curl", "-sS", "--fail-with-body"}, args...)...)
			var err error
			if out, err = cmd.Output(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
		return out
	}
	script := fetch("http://198.18.0.1:8080/ipxe/script?mac=" + h.mac(0))
	_, after, found := strings.Cut(string(script), "ignition.config.url=")
	if !found {
		h.t.Fatalf("the script is %s", script)
	}
	pointerURL := strings.Fields(after)[0]
	type resource struct {
		Source      string
		HTTPHeaders []struct{ Name, Value string }
	}
	var config struct {
		Ignition struct {
			Config struct{ Merge, Replace json.RawMessage }
		}
		Storage struct {
			Files []struct {
				Path     string
				Contents resource
			}
		}
	}
	pointer := fetch("-H", "Accept: application/vnd.coreos.ignition+json;version=3.4.0", pointerURL)
	if err := json.Unmarshal(pointer, &config); err != nil {
		h.t.Fatal(err)
	}
	var at resource
	if json.Unmarshal(config.Ignition.Config.Replace, &at) != nil || at.Source == "" {
		var list []resource
		if err := json.Unmarshal(config.Ignition.Config.Merge, &list); err != nil || len(list) == 0 {
			h.t.Fatalf("the pointer is %s", pointer)
		}
		at = list[0]
	}
	args := []string{"-k", "-H", "Accept: application/vnd.coreos.ignition+json;version=3.4.0"}
	for _, h := range at.HTTPHeaders {
		args = append(args, "-H", h.Name+": "+h.Value)
	}
	if err := json.Unmarshal(fetch(append(args, at.Source)...), &config); err != nil {
		h.t.Fatal(err)
	}
	for _, f := range config.Storage.Files {
		content, err := dataurl.DecodeString(f.Contents.Source)
		if err != nil {
			continue // what is fetched
		}
		h.write(h.name+"/"+filepath.Base(f.Path), string(content.Data))
		if filepath.Base(f.Path) == "nodeagent.yaml" {
			var c api.AgentConfig
			if err := json.Unmarshal(content.Data, &c); err != nil {
				h.t.Fatal(err)
			}
			c.JoinTokenFile = filepath.Join(h.dir, filepath.Base(c.JoinTokenFile))
			raw, err := json.Marshal(c)
			if err != nil {
				h.t.Fatal(err)
			}
			h.write(h.name+"/nodeagent.yaml", string(raw))
		}
	}
	h.startSpeaker()
	h.startAgent()
}

// weftctl runs it to its end.
func (d *desk) weftctl(args ...string) (code int, out, said string) {
	d.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(d.t.Context(), d.bin.Path("weftctl"), append([]string{"--server", d.server()}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		d.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
}

func (d *desk) apply(manifest string) {
	d.t.Helper()
	file := d.write("manifest.yaml", manifest)
	d.wait("apply", func(context.Context) error {
		if code, _, said := d.weftctl("apply", "-f", file); code != 0 {
			return errors.New(said)
		}
		return nil
	})
}
