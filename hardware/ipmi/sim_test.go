package ipmi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
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

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

const (
	simUser     = "admin"
	simPassword = "not-on-a-cmd-line"
)

// sim is OpenIPMI's BMC simulator with a QEMU behind it: the server's power, the device that it boots from and its serial
// port are the BMC's. Its lanserv library has HMAC with MD5 and SHA-1 and not with SHA-256, so it knows the cipher suites up to
// 3 only, whatever its configuration says: TestSuite17 has another peer.
type sim struct {
	dir  string
	port int
}

// chassisScript is what ipmi_sim runs to look at its chassis and to change it.
const chassisScript = `#!/bin/sh
cd %[1]q || exit 1
echo "$*" >>chassis.log
on() { test -s qemu.pid && kill -0 "$(cat qemu.pid)" 2>/dev/null; }
off() { on && kill -9 "$(cat qemu.pid)"; rm -f qemu.pid; }
start() {
  case "$(cat boot)" in pxe) order=n ;; cdrom) order=d ;; *) order=c ;; esac
  echo default >boot
  qemu-system-x86_64 -machine pc,graphics=off,accel=tcg -m 64 -display none -nic user,model=e1000 -boot order=$order,strict=on \
    -serial tcp:127.0.0.1:%[2]d -daemonize -pidfile qemu.pid >>qemu.log 2>&1 </dev/null
}
case "$1 $2" in
"get power") if on; then echo power:1; else echo power:0; fi ;;
"get boot") echo "boot:$(cat boot)" ;;
"set power") if [ "$3" = 0 ]; then off; elif ! on; then start; fi ;;
"set reset") off; start ;;
"set boot") echo "$3" >boot ;;
esac
`

const simConfig = `name "test"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 %[1]d
    priv_limit admin
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control %[2]q
  sol "tcp:127.0.0.1:%[3]d" 115200
  user 2 true %[4]q %[5]q admin 10 none md2 md5 straight
  user 3 true "oper" %[5]q operator 10 none md2 md5 straight
`

const simCommands = `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
`

func startSim(t *testing.T) *sim {
	t.Helper()
	for _, program := range []string{"ipmi_sim", "ipmitool", "qemu-system-x86_64"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed: see lab/deps", program)
		}
	}
	s := &sim{dir: t.TempDir(), port: freePort(t, "udp")}
	serial := layCable(t)
	chassis := filepath.Join(s.dir, "chassis")
	s.write(t, "chassis", fmt.Sprintf(chassisScript, s.dir, serial))
	s.write(t, "lan.conf", fmt.Sprintf(simConfig, s.port, chassis, serial, simUser, simPassword))
	s.write(t, "sim.emu", simCommands)
	s.write(t, "boot", "default\n")
	if err := errors.Join(os.Chmod(chassis, 0o700), os.Mkdir(filepath.Join(s.dir, "state"), 0o700)); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(s.dir, "sim.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ipmi_sim", "-c", "lan.conf", "-f", "sim.emu", "-s", "state", "-n")
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		s.killQEMU()
		_ = log.Close()
		if t.Failed() {
			t.Logf("ipmi_sim: %s; chassis: %s; qemu: %s", s.read("sim.log"), s.read("chassis.log"), s.read("qemu.log"))
		}
	})
	waittest.Until(t, 20*time.Second, "ipmi_sim answers", func() bool {
		return probe(t.Context(), fmt.Sprintf("127.0.0.1:%d", s.port), time.Second) == nil
	})
	return s
}

// layCable joins the two that connect to the port it returns, as a serial cable does: ipmi_sim, which is always there, with
// whatever came last, which is QEMU whenever it has power. It lies until the test ends.
func layCable(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var ends sync.WaitGroup
	ends.Go(func() {
		var bmc net.Conn
		for {
			conn, err := l.Accept()
			if err != nil {
				break
			}
			if bmc == nil {
				bmc = conn
				continue
			}
			ends.Go(func() { _, _ = io.Copy(bmc, conn); _ = conn.Close() })
			ends.Go(func() { _, _ = io.Copy(conn, bmc) })
		}
		if bmc != nil {
			_ = bmc.Close()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		ends.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

func (s *sim) killQEMU() {
	if pid, err := strconv.Atoi(strings.TrimSpace(s.read("qemu.pid"))); err == nil && pid > 1 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func (s *sim) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *sim) read(name string) string {
	text, _ := os.ReadFile(filepath.Join(s.dir, name))
	return string(text)
}

func (s *sim) endpoint() hardware.Endpoint {
	return hardware.Endpoint{Address: fmt.Sprintf("ipmi://127.0.0.1:%d", s.port), Protocol: "ipmi", Username: simUser, Password: simPassword,
		IPMI: hardware.IPMI{CipherSuite: 3}}
}

// freePort is one that was free a moment ago.
func freePort(t *testing.T, network string) int {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		return c.LocalAddr().(*net.UDPAddr).Port
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

func dial(t *testing.T, e hardware.Endpoint) *BMC {
	t.Helper()
	s, err := Connect(t.Context(), e, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	b, err := s.System(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return b.(*BMC)
}

// TestSimulator boots a QEMU by the device that its BMC was told, and hears its firmware over the BMC's console.
func TestSimulator(t *testing.T) {
	s := startSim(t)
	b := dial(t, s.endpoint())
	ctx := t.Context()
	s.wantPower(t, b, hardware.PowerOff)
	if err := b.SetBootOnce(ctx, hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeLegacy}); err != nil {
		t.Fatal(err)
	}
	console, err := b.openConsole(ctx)
	if err != nil {
		t.Fatal(err)
	}
	heard := listen(console)
	if err := b.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	s.wantPower(t, b, hardware.PowerOn)
	heard.await(t, "SeaBIOS", "iPXE")
	console, heard = s.takeBack(t, b, console, heard)
	if err := b.SetBootOnce(ctx, hardware.Boot{Target: hardware.BootDisk, Mode: hardware.ModeLegacy}); err != nil {
		t.Fatal(err)
	}
	if err := b.ForceRestart(ctx); err != nil {
		t.Fatal(err)
	}
	heard.await(t, "Booting from Hard Disk")
	if _, err := b.openConsole(ctx); !errors.Is(err, hardware.ErrInUse) {
		t.Errorf("a second console: %v", err)
	}
	if err := b.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	s.wantPower(t, b, hardware.PowerOff)
	if err := console.Close(); err != nil {
		t.Errorf("close the console: %v", err)
	}
	again, err := b.openConsole(ctx)
	if err != nil {
		t.Fatalf("the console was not given back: %v", err)
	}
	_ = again.Close()
}

// takeBack opens the console that is still given to an ipmitool that was killed, as it is with the bootd that ran it.
func (s *sim) takeBack(t *testing.T, b *BMC, killed *hardware.Console, heard *listener) (*hardware.Console, *listener) {
	t.Helper()
	killed.ReadWriteCloser.(*console).kill()
	heard.wait(t)
	if err := killed.Close(); err != nil {
		t.Error(err)
	}
	if _, err := b.openConsole(t.Context()); !errors.Is(err, hardware.ErrInUse) {
		t.Errorf("the console of a client that was killed: %v", err)
	}
	if err := errors.Join(b.FreeConsole(t.Context()), b.FreeConsole(t.Context())); err != nil { // the second time no one has it
		t.Errorf("free the console: %v", err)
	}
	again, err := b.openConsole(t.Context())
	if err != nil {
		t.Fatalf("the console was not freed: %v", err)
	}
	return again, listen(again)
}

func (s *sim) wantPower(t *testing.T, b *BMC, want hardware.PowerState) {
	t.Helper()
	if got, err := b.PowerState(t.Context()); err != nil || got != want {
		t.Fatalf("power is %s (%v), want %s", got, err, want)
	}
	_, err := os.Stat(filepath.Join(s.dir, "qemu.pid"))
	if on := err == nil; on != (want == hardware.PowerOn) {
		t.Fatalf("QEMU runs: %t, and the BMC says %s", on, want)
	}
}

// listener reads a console to its end.
type listener struct {
	mu   sync.Mutex
	text []byte
	done chan struct{}
}

func (l *listener) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

func listen(console io.Reader) *listener {
	l := &listener{done: make(chan struct{})}
	go func() {
		defer close(l.done)
		buffer := make([]byte, 512)
		for {
			n, err := console.Read(buffer)
			l.mu.Lock()
			l.text = append(l.text, buffer[:n]...)
			l.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return l
}

func (l *listener) await(t *testing.T, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !waittest.Soon(90*time.Second, func() bool { return strings.Contains(l.String(), want) }) {
			t.Fatalf("the console does not show %s but %q", want, l.String())
		}
	}
}

func (l *listener) wait(t *testing.T) {
	t.Helper()
	select {
	case <-l.done:
	case <-time.After(20 * time.Second):
		t.Error("the console's reader was not told of its end")
	}
}

// TestSimulatorRefuses tells apart what ipmitool ends in the same words for.
func TestSimulatorRefuses(t *testing.T) {
	s := startSim(t)
	for _, c := range []struct {
		name   string
		change func(*hardware.Endpoint)
		is     error
		words  string
	}{
		{"wrong password", func(e *hardware.Endpoint) { e.Password = "wrong" }, hardware.ErrUnauthorized, `user "admin"`},
		{"unknown user", func(e *hardware.Endpoint) { e.Username = "nobody" }, hardware.ErrUnauthorized, "unauthorized name"},
		{"suite 17", func(e *hardware.Endpoint) { e.IPMI.CipherSuite = 0 }, nil, "cipherSuite: 3"},
		{"suite 0", func(e *hardware.Endpoint) { e.IPMI.CipherSuite = -1 }, nil, "invalid cipher suite"},
		{"no BMC there", func(e *hardware.Endpoint) { e.Address = fmt.Sprintf("ipmi://127.0.0.1:%d", freePort(t, "udp")) }, hardware.ErrUnreachable, "refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := s.endpoint()
			c.change(&e)
			_, err := Connect(t.Context(), e, slog.New(slog.DiscardHandler))
			if err == nil || !strings.Contains(err.Error(), c.words) {
				t.Fatalf("got %v, want …%s…", err, c.words)
			}
			for _, is := range []error{hardware.ErrUnauthorized, hardware.ErrUnreachable, hardware.ErrUnsupported} {
				if errors.Is(err, is) != (is == c.is) {
					t.Errorf("%v is %v: %t", err, is, errors.Is(err, is))
				}
			}
		})
	}
}

// TestPasswordStaysOffCommandLines reads what every user of this machine can: the command lines of a running ipmitool.
func TestPasswordStaysOffCommandLines(t *testing.T) {
	s := startSim(t)
	b := dial(t, s.endpoint())
	opened, err := b.openConsole(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = opened.Close() }()
	terminal := opened.ReadWriteCloser.(*console)
	pid := terminal.cmd.Process.Pid
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !slices.Contains(strings.Split(string(line), "\x00"), "activate") {
		t.Fatalf("command line of ipmitool: %q, %v", line, err)
	}
	if strings.Contains(string(line), simPassword) {
		t.Errorf("the password is on the command line: %q", line)
	}
	environ := fmt.Sprintf("/proc/%d/environ", pid)
	info, err := os.Stat(environ)
	if err != nil || info.Mode().Perm() != 0o400 {
		t.Errorf("%s may be read by others: %v, %v", environ, info.Mode(), err)
	}
}
