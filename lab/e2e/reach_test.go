package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vincent-petithory/dataurl"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/lab/guestos"
	"github.com/rackweft/rackweft/lab/rig"
)

// desk is a bootd and a host, each in a network namespace of its own: the
// programs are real, and the host's firmware is curl.
type desk struct {
	t                     *testing.T
	dir                   string
	bin                   rig.Binaries
	bootdNS, hostNS       string
	bootd, agent, speaker *program
	client                *api.Client
}

const (
	deskHost  = "r1u07"
	deskMAC   = "52:54:00:01:07:00"
	deskGuest = "web"
)

// program is one of the built programs that runs.
type program struct {
	cmd   *exec.Cmd
	log   *os.File
	ended chan struct{}
}

func (p *program) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
	_ = p.log.Close()
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	dir, err := os.MkdirTemp("", "d") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	id := strings.ToLower(rand.Text()[:6])
	d := &desk{t: t, dir: dir, bin: rig.Build(t), bootdNS: "rwdb-" + id, hostNS: "rwdh-" + id}
	t.Cleanup(d.clear)
	for _, ns := range []string{d.bootdNS, d.hostNS} {
		d.run("ip", "netns", "add", ns)
		d.run("ip", "-n", ns, "link", "set", "lo", "up")
	}
	d.wire("pxe", deskMAC, "198.18.0.1/24", "198.18.0.50/24")
	d.wire("prod", "52:54:00:01:07:01", "198.18.8.1/24", "198.18.8.7/24")
	d.write("bootd.yaml", fmt.Sprintf("nodeagent: %s\nipxe: %s\nreserve: 1Mi\n", d.bin.Path("nodeagent"), dir))
	d.client, err = api.NewClient(api.ClientConfig{Server: d.server()})
	if err != nil {
		t.Fatal(err)
	}
	d.startBootd()
	return d
}

// clear ends what runs, QEMU too, and takes the namespaces away.
func (d *desk) clear() {
	for _, p := range []*program{d.agent, d.speaker, d.bootd} {
		if p != nil {
			p.kill()
		}
	}
	processes, _ := filepath.Glob(filepath.Join(d.dir, "r", "guests", "*", "process.json"))
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
	for _, ns := range []string{d.bootdNS, d.hostNS} {
		_ = exec.Command("ip", "netns", "del", ns).Run() // it may not be there
	}
	pins := filepath.Join(d.dir, "r", "netns")
	pinned, _ := filepath.Glob(filepath.Join(pins, "*"))
	for _, path := range append(pinned, pins) { // what the agent mounted there
		_ = syscall.Unmount(path, syscall.MNT_DETACH)
	}
	if d.t.Failed() {
		for _, name := range []string{"bootd.log", "nodeagent.log", "speaker.log"} {
			raw, _ := os.ReadFile(filepath.Join(d.dir, name))
			d.t.Logf("%s:\n%s", name, raw[max(0, len(raw)-4000):])
		}
	}
	_ = os.RemoveAll(d.dir)
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

func (d *desk) run(command ...string) string {
	d.t.Helper()
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return string(out)
}

// wire joins an interface of bootd's to one of the host's.
func (d *desk) wire(name, mac, bootd, host string) {
	d.run("ip", "-n", d.bootdNS, "link", "add", name, "type", "veth", "peer", "name", name, "address", mac, "netns", d.hostNS)
	for ns, address := range map[string]string{d.bootdNS: bootd, d.hostNS: host} {
		d.run("ip", "-n", ns, "addr", "add", address, "dev", name)
		d.run("ip", "-n", ns, "link", "set", name, "up")
	}
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
	return p
}

func (d *desk) startBootd() {
	d.t.Helper()
	d.bootd = d.start(d.bootdNS, "bootd", d.bin.Path("bootd"), "--config", filepath.Join(d.dir, "bootd.yaml"),
		"--state-dir", filepath.Join(d.dir, "s"), "--run-dir", filepath.Join(d.dir, "b"))
	d.wait("bootd answers", func(ctx context.Context) error {
		_, err := d.client.Do(ctx, "GET", "/readyz", nil)
		return err
	})
}

func (d *desk) startAgent() {
	d.agent = d.start(d.hostNS, "nodeagent", d.bin.Path("nodeagent"), "run", "--config", filepath.Join(d.dir, "nodeagent.yaml"),
		"--state-dir", filepath.Join(d.dir, "n"), "--run-dir", filepath.Join(d.dir, "r"))
}

// wait tries again and again until there is no error.
func (d *desk) wait(what string, try func(context.Context) error) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 3*time.Minute)
	defer cancel()
	var last error
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			d.t.Fatalf("%s: it never happens: %v", what, last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// boot does as the firmware and Ignition do, and starts what they would.
func (d *desk) boot() {
	d.t.Helper()
	fetch := func(args ...string) []byte {
		var out []byte
		d.wait("fetch "+args[0], func(ctx context.Context) error {
			cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + d.hostNS, "curl", "-sS", "--fail-with-body"}, args...)...)
			var err error
			if out, err = cmd.Output(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
		return out
	}
	fetch("http://198.18.0.1:8080/ipxe/script?mac=" + deskMAC)
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
	pointer := fetch("-H", "Accept: application/vnd.coreos.ignition+json;version=3.4.0", "http://198.18.0.1:8080/ignition/pointer/"+deskMAC)
	if err := json.Unmarshal(pointer, &config); err != nil {
		d.t.Fatal(err)
	}
	var at resource
	if json.Unmarshal(config.Ignition.Config.Replace, &at) != nil || at.Source == "" {
		var list []resource
		if err := json.Unmarshal(config.Ignition.Config.Merge, &list); err != nil || len(list) == 0 {
			d.t.Fatalf("the pointer is %s", pointer)
		}
		at = list[0]
	}
	args := []string{"-k", "-H", "Accept: application/vnd.coreos.ignition+json;version=3.4.0"}
	for _, h := range at.HTTPHeaders {
		args = append(args, "-H", h.Name+": "+h.Value)
	}
	if err := json.Unmarshal(fetch(append(args, at.Source)...), &config); err != nil {
		d.t.Fatal(err)
	}
	for _, f := range config.Storage.Files {
		content, err := dataurl.DecodeString(f.Contents.Source)
		if err != nil {
			continue // what is fetched
		}
		d.write(filepath.Base(f.Path), string(content.Data))
		if filepath.Base(f.Path) == "nodeagent.yaml" {
			var c api.AgentConfig
			if err := json.Unmarshal(content.Data, &c); err != nil {
				d.t.Fatal(err)
			}
			c.JoinTokenFile = filepath.Join(d.dir, filepath.Base(c.JoinTokenFile))
			raw, err := json.Marshal(c)
			if err != nil {
				d.t.Fatal(err)
			}
			d.write("nodeagent.yaml", string(raw))
		}
	}
	d.speaker = d.start(d.hostNS, "speaker", d.bin.Path("nodeagent"), "speaker", "--state-dir", filepath.Join(d.dir, "n"), "--run-dir", filepath.Join(d.dir, "r"))
	d.startAgent()
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

// session is a weftctl that lasts.
type session struct {
	d    *desk
	cmd  *exec.Cmd
	in   io.WriteCloser
	mu   sync.Mutex
	said bytes.Buffer
	done chan struct{}
}

func (s *session) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.said.Write(p)
}

func (s *session) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.said.String()
}

func (d *desk) session(args ...string) *session {
	d.t.Helper()
	s := &session{d: d, cmd: exec.Command(d.bin.Path("weftctl"), append([]string{"--server", d.server()}, args...)...), done: make(chan struct{})}
	in, err := s.cmd.StdinPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	s.in, s.cmd.Stdout, s.cmd.Stderr = in, s, s
	if err := s.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	go func() { defer close(s.done); _ = s.cmd.Wait() }() // the cleanup waits for it
	d.t.Cleanup(func() { _ = s.cmd.Process.Kill(); <-s.done })
	return s
}

// hears waits for words that come after what was there before.
func (s *session) hears(words string) {
	s.d.t.Helper()
	s.d.wait("weftctl says "+words, func(context.Context) error {
		if said := s.String(); !strings.Contains(said, words) {
			return fmt.Errorf("it says %q", said[max(0, len(said)-500):])
		}
		return nil
	})
}

func (s *session) types(text string) {
	s.d.t.Helper()
	if _, err := io.WriteString(s.in, text); err != nil {
		s.d.t.Fatal(err)
	}
}

func (s *session) ends() int {
	s.d.t.Helper()
	select {
	case <-s.done:
		return s.cmd.ProcessState.ExitCode()
	case <-time.After(2 * time.Minute):
		s.d.t.Fatalf("it does not end: %s", s)
		return 0
	}
}

func (d *desk) console() *session {
	d.t.Helper()
	var s *session
	d.wait("the console opens", func(ctx context.Context) error {
		s = d.session("guest", "console", deskGuest)
		for {
			select {
			case <-s.done:
				return errors.New(s.String())
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
			if strings.Contains(s.String(), "@tick ") {
				return nil
			}
		}
	})
	return s
}

func (d *desk) image(name string, content []byte) string {
	d.t.Helper()
	sum := sha256.Sum256(content)
	return fmt.Sprintf("{source: %s, sha256: %x}", d.write(name, string(content)), sum)
}

const deskSite = `
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
kind: Subnet
metadata: {name: prod}
spec: {purpose: production, zone: yellow, prefixes: [198.18.8.0/24]}
---
apiVersion: rackweft/v1alpha1
kind: Zone
metadata: {name: yellow}
spec: {asn: 64601, prefixes: [198.18.64.0/18]}
---
apiVersion: rackweft/v1alpha1
kind: Profile
metadata: {name: worker}
spec: {image: os}
---
apiVersion: rackweft/v1alpha1
kind: Machine
metadata: {name: r1u07}
spec:
  zone: yellow
  profile: worker
  links:
    - {name: pxe, mac: "52:54:00:01:07:00", subnet: pxe}
    - {name: prod, mac: "52:54:00:01:07:01", subnet: prod, addresses: [198.18.8.7]}
  boot: {unsolicited: allow}
  state: Active
---
apiVersion: rackweft/v1alpha1
kind: Network
metadata: {name: blue}
spec: {zone: yellow, cidrs: [10.5.0.0/16]}
---
apiVersion: rackweft/v1alpha1
kind: Guest
metadata: {name: web}
spec: {network: blue, cpus: 1, memory: 192Mi, image: os, state: Running}
---
apiVersion: rackweft/v1alpha1
kind: Image
metadata: {name: os}
spec:
  version: "1"
  arch: amd64
  os: debian
  ignitionVersion: 3.4.0
  kernelArguments: [%s]
  files: {kernel: %s, initrd: %s}
`

// TestReach has a person reach a Guest through bootd and its host, both of which
// go away in the midst of it.
func TestReach(t *testing.T) {
	d := newDesk(t)
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	kernel, initrd, err := guestos.Build(t.Context(), root, guestos.Iron)
	if err != nil {
		t.Fatal(err)
	}
	agent, err := guestos.Agent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	arguments := append(guestos.Arguments(), guestos.AgentArgument)
	d.apply(fmt.Sprintf(deskSite, strings.Join(arguments, ", "), d.image("kernel", kernel), d.image("initrd", append(initrd, agent...))))
	d.boot()
	d.wait("the Guest runs", func(ctx context.Context) error {
		g, err := api.Get[api.Guest](ctx, d.client, deskGuest)
		if err != nil || g.Status.State == "Running" {
			return err
		}
		m, err := api.Get[api.Machine](ctx, d.client, deskHost)
		if err != nil {
			return err
		}
		raw, err := json.Marshal(map[string]any{"guest": g.Status, "phase": m.Status.Phase, "conditions": m.Status.Conditions, "host": m.Status.Host})
		return errors.Join(err, errors.New(string(raw)))
	})

	first := d.console()
	if code, _, said := d.weftctl("guest", "console", deskGuest); code != 1 || !strings.Contains(said, "root has the console of Guest web open") {
		t.Errorf("the second user: %d %s", code, said)
	}
	first.types("\rdisk none\r")
	first.hears("@did disk none")
	first.types("\r~.")
	if code := first.ends(); code != 0 {
		t.Errorf("detaching: %d %s", code, first)
	}

	d.wait("its agent listens", func(context.Context) error {
		if code, _, said := d.weftctl("guest", "exec", deskGuest, "--", "/bin/sh", "-c", "exit"); code != 0 {
			return errors.New(said)
		}
		return nil
	})
	boot := d.boots()
	if code, out, said := d.weftctl("guest", "exec", deskGuest, "--", "/bin/sh", "-c", "echo out; echo err >&2; exit 7"); code != 7 || out != "out\n" || said != "err\n" {
		t.Errorf("exec: %d %q %q", code, out, said)
	}
	d.see()

	// The host's agent is killed: whoever was joined is told, and may come again.
	second, command := d.console(), d.session("guest", "exec", deskGuest, "--", "/bin/sleep", "1000")
	d.wait("the command runs", func(context.Context) error {
		if code, out, said := d.weftctl("guest", "exec", deskGuest, "--", "/bin/sh", "-c", "cat /proc/[0-9]*/cmdline"); !strings.Contains(out, "/bin/sleep\x001000") {
			return fmt.Errorf("%d %s", code, said)
		}
		return nil
	})
	d.agent.kill()
	second.ends()
	if code := command.ends(); code != 1 || !strings.Contains(command.String(), "it may have run") {
		t.Errorf("a command whose host has gone: %d %s", code, command)
	}
	d.wait("bootd notices", func(context.Context) error {
		if code, _, said := d.weftctl("guest", "console", deskGuest); code != 1 || !strings.Contains(said, "host r1u07 is not connected to this bootd") {
			return fmt.Errorf("%d %s", code, said)
		}
		return nil
	})
	d.startAgent()
	third := d.console()

	// So is bootd.
	d.bootd.kill()
	third.ends()
	d.startBootd()
	fourth := d.console()
	fourth.types("\r~.")
	fourth.ends()
	d.see()
	if again := d.boots(); again != boot {
		t.Errorf("the Guest was started anew: %s, %s", boot, again)
	}
}

// boots is what tells one boot of the Guest from another.
func (d *desk) boots() (id string) {
	d.t.Helper()
	d.wait("its boot id", func(context.Context) error {
		code, out, said := d.weftctl("guest", "exec", deskGuest, "--", "/bin/cat", "/proc/sys/kernel/random/boot_id")
		if id = out; code != 0 {
			return errors.New(said)
		}
		return nil
	})
	return id
}

// see has a viewer shake hands with the Guest's display (RFC 6143, 7.1 to 7.3).
func (d *desk) see() {
	d.t.Helper()
	s := d.session("guest", "vnc", deskGuest)
	s.hears("vnc://")
	_, address, _ := strings.Cut(s.String(), "vnc://")
	address, _, _ = strings.Cut(address, "\n")
	conn, err := net.Dial("tcp", address)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	version, err := in.ReadString('\n')
	if err != nil || version != "RFB 003.008\n" {
		d.t.Fatalf("the display begins with %q: %v; %s", version, err, s)
	}
	if _, err := io.WriteString(conn, version+"\x01\x01"); err != nil { // no security, shared
		d.t.Fatal(err)
	}
	var hello struct {
		Security      [2]byte
		Result        uint32
		Width, Height uint16
		Format        [16]byte
		Name          uint32
	}
	if err := binary.Read(in, binary.BigEndian, &hello); err != nil || hello.Result != 0 || hello.Width == 0 || hello.Name > 100 {
		d.t.Fatalf("the display says %+v: %v", hello, err)
	}
	name := make([]byte, hello.Name)
	if _, err := io.ReadFull(in, name); err != nil || string(name) != "QEMU (web)" {
		d.t.Errorf("the display is %q: %v", name, err)
	}
}
