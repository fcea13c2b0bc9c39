package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/logtest"
	"github.com/rackweft/rackweft/lab/guestos"
)

const (
	reachHost = "r1u07"
	deskGuest = "web"
)

// session is a weftctl that lasts.
type session struct {
	d    *desk
	cmd  *exec.Cmd
	in   io.WriteCloser
	said logtest.Buffer
	done chan struct{}
}

func (d *desk) session(args ...string) *session {
	d.t.Helper()
	s := &session{d: d, cmd: exec.Command(d.bin.Path("weftctl"), append([]string{"--server", d.server()}, args...)...), done: make(chan struct{})}
	in, err := s.cmd.StdinPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	s.in, s.cmd.Stdout, s.cmd.Stderr = in, &s.said, &s.said
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
		if said := s.said.String(); !strings.Contains(said, words) {
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
		s.d.t.Fatalf("it does not end: %s", s.said.String())
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
				return errors.New(s.said.String())
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
			if strings.Contains(s.said.String(), "@tick ") {
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

// imageOS is the Image os, of bytes, with arguments of its kernel.
func (d *desk) imageOS(arguments []string, kernel, initrd []byte) string {
	d.t.Helper()
	arguments = append(slices.Clone(arguments), `"ignition.config.url=${ignition_url}"`)
	return fmt.Sprintf(`---
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
`, strings.Join(arguments, ", "), d.image("kernel", kernel), d.image("initrd", initrd))
}

const reachSite = deskBasics + deskYellow + `---
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
`

// TestReach has a person reach a Guest through bootd and its host, both of which
// go away in the midst of it.
func TestReach(t *testing.T) {
	t.Parallel()
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
	d.apply(reachSite + d.imageOS(arguments, kernel, append(initrd, agent...)))
	h := d.host(reachHost, 7)
	d.segment("prod", "198.18.8.1/24")
	d.wire(h.ns, "prod", h.mac(1), "prod", "198.18.8.7/24")
	h.boot() // KVM is tried with the Image's kernel, which is the Guest's
	d.wait("the Guest runs", func(ctx context.Context) error {
		g, err := api.Get[api.Guest](ctx, d.client, deskGuest)
		if err != nil || g.Status.State == "Running" {
			return err
		}
		m, err := api.Get[api.Machine](ctx, d.client, reachHost)
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
		t.Errorf("detaching: %d %s", code, first.said.String())
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
	h.agent.kill()
	second.ends()
	if code := command.ends(); code != 1 || !strings.Contains(command.said.String(), "it may have run") {
		t.Errorf("a command whose host has gone: %d %s", code, command.said.String())
	}
	d.wait("bootd notices", func(context.Context) error {
		if code, _, said := d.weftctl("guest", "console", deskGuest); code != 1 || !strings.Contains(said, "host r1u07 is not connected to this bootd") {
			return fmt.Errorf("%d %s", code, said)
		}
		return nil
	})
	h.startAgent()
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
	_, address, _ := strings.Cut(s.said.String(), "vnc://")
	address, _, _ = strings.Cut(address, "\n")
	conn, err := net.Dial("tcp", address)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	version, err := in.ReadString('\n')
	if err != nil || version != "RFB 003.008\n" {
		d.t.Fatalf("the display begins with %q: %v; %s", version, err, s.said.String())
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
