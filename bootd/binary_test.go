package bootd_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/logtest"
	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// built holds the programs that the tests run: to link one takes seconds.
var built struct {
	sync.Mutex
	dir string
}

func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(built.dir)
	os.Exit(code)
}

// program returns the path of a program, which the first test that asks for it builds as for a release.
func program(t *testing.T, name, pkg string) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "bootd-test")
		if err != nil {
			t.Fatal(err)
		}
		built.dir = dir
	}
	exe := filepath.Join(built.dir, name)
	if _, err := os.Stat(exe); err == nil {
		return exe
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", exe, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return exe
}

// rig is the real program in a network namespace of its own, with bootdAddress
// on br0.
type rig struct {
	t    *testing.T
	dir  string
	ns   string
	mac  string // of br0
	exe  string
	conf string
	last *process // started last
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if testing.Short() {
		t.Skip("needs several seconds")
	}
	r := &rig{t: t, dir: t.TempDir(), ns: nstest.New(t), exe: program(t, "bootd", "github.com/rackweft/rackweft/cmd/bootd")}
	r.conf = filepath.Join(r.dir, "bootd.yaml")
	r.mac = fmt.Sprintf("52:54:00:fd:%02x:%02x", rand.IntN(256), rand.IntN(256))
	r.run("ip", "-n", r.ns, "link", "add", "br0", "address", r.mac, "type", "bridge") // else its MAC changes with its ports
	r.run("ip", "-n", r.ns, "link", "set", "br0", "up")
	r.run("ip", "-n", r.ns, "addr", "add", bootdAddress+"/24", "dev", "br0")
	for _, d := range []string{"ipxe", "s"} {
		if err := os.Mkdir(filepath.Join(r.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	r.write("nodeagent", "an agent")
	r.write("bootd.yaml", fmt.Sprintf("nodeagent: %s/nodeagent\nipxe: %s/ipxe\nreserve: 1Mi\n", r.dir, r.dir))
	return r
}

func (r *rig) write(name, content string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(content), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) run(name string, args ...string) {
	r.t.Helper()
	nstest.Run(r.t, name, args...)
}

type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *logtest.Buffer
	done chan struct{}
	code int
}

// start runs bootd with its state in dir/s and its socket in dir/<run>.
func (r *rig) start(run string, args ...string) *process {
	r.t.Helper()
	args = append([]string{"netns", "exec", r.ns, r.exe, "--config", r.conf, "--state-dir", filepath.Join(r.dir, "s"), "--run-dir", filepath.Join(r.dir, run)}, args...)
	p := &process{t: r.t, cmd: exec.Command("ip", args...), out: new(logtest.Buffer), done: make(chan struct{})}
	p.cmd.Stderr = p.out
	if err := p.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		err := p.cmd.Wait()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			p.code = exit.ExitCode()
		}
	}()
	r.last = p
	r.t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // the process that ip(8) has become
		<-p.done
	})
	return p
}

func (p *process) exit() int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.code
	case <-time.After(time.Minute):
		p.t.Fatalf("it does not end:\n%s", p.out)
		return 0
	}
}

func (p *process) says(line string) {
	p.t.Helper()
	for range 600 {
		if strings.Contains(p.out.String(), line) {
			return
		}
		select {
		case <-p.done:
			p.t.Fatalf("it ended with %d before it said %q:\n%s", p.code, line, p.out)
		case <-time.After(100 * time.Millisecond):
		}
	}
	p.t.Fatalf("it never says %q:\n%s", line, p.out)
}

// last is the last line of what it said.
func (p *process) last() string {
	lines := strings.Split(strings.TrimSpace(p.out.String()), "\n")
	return lines[len(lines)-1]
}

func (r *rig) client(run string) *api.Client {
	r.t.Helper()
	c, err := api.NewClient(api.ClientConfig{Server: "unix://" + filepath.Join(r.dir, run, "bootd.sock")})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// condition waits until Subnet pxe is so.
func (r *rig) condition(c *api.Client, status, reason string) {
	r.t.Helper()
	var last *api.Condition
	is := func() bool {
		s, err := api.Get[api.Subnet](r.t.Context(), c, "pxe")
		if err != nil {
			r.t.Fatal(err)
		}
		last = s.Status.Conditions.Get("Ready")
		return last != nil && string(last.Status) == status && last.Reason == reason
	}
	if !waittest.Soon(time.Minute, is) {
		r.t.Fatalf("Subnet pxe stays %+v, want %s %s", last, status, reason)
	}
}

// busy takes UDP port 67 in the namespace until the test ends.
func (r *rig) busy() (release func()) {
	r.t.Helper()
	var c net.PacketConn
	err := nstest.Within(r.ns, func() (err error) {
		c, err = net.ListenPacket("udp4", ":67")
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return func() { _ = c.Close() }
}

// configFault is the exit code of what starting again does not mend.
const configFault = 78

func TestFaultsAtTheStart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write("typo.yaml", "listn: {}\n")
	r.write("bare.yaml", "nodeagent: /nowhere\nipxe: "+r.dir+"/ipxe\n")
	for _, c := range []struct {
		name string
		args []string
		code int
		line string
	}{
		{"unknown flag", []string{"--interfaces", "br0"}, configFault, "bootd: unknown flag: --interfaces"},
		{"unknown field", []string{"--config", r.dir + "/typo.yaml"}, configFault, "bootd: " + r.dir + "/typo.yaml: /listn: "},
		{"unknown argument", []string{"br0"}, configFault, `bootd: unknown command "br0" for "bootd"`},
		{"no configuration where one is named", []string{"--config", "/nowhere.yaml"}, configFault, "bootd: read the configuration: open /nowhere.yaml: no such file or directory"},
		{"no such interface", []string{"--interface", "eth9"}, 1, "bootd: listen on eth9: no such interface; this machine has br0"},
		{"no nodeagent", []string{"--config", r.dir + "/bare.yaml"}, 1, `bootd: open nodeagent, which hosts install: open /nowhere: no such file or directory (name it with "nodeagent" in the configuration)`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := r.start("r", c.args...)
			if code := p.exit(); code != c.code || !strings.HasPrefix(p.last(), c.line) {
				t.Errorf("exit %d, want %d; last line\n  %s\nwant\n  %s", code, c.code, p.last(), c.line)
			}
		})
	}
}

func TestBusyPort67(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	release := r.busy()
	const complaint = `listen on br0 UDP port 67: address already in use: another DHCP server runs here; find it with "ss -ulnp sport = :67" and stop it, or serve another interface`
	t.Run("an interface of the command line", func(t *testing.T) {
		p := r.start("r", "--interface", "br0")
		if code := p.exit(); code != 1 || !strings.HasPrefix(p.last(), "bootd: "+complaint) {
			t.Errorf("exit %d, last line\n  %s", code, p.last())
		}
	})
	t.Run("an interface of a Subnet", func(t *testing.T) {
		p := r.start("r")
		p.says("msg=ready")
		c := r.client("r")
		s := &api.Subnet{Base: api.Base{Metadata: api.Metadata{Name: "pxe"}}}
		s.Spec.Purpose, s.Spec.Interface = api.Provisioning, "br0"
		if err := s.Spec.Range.UnmarshalText([]byte("198.18.0.100-198.18.0.199")); err != nil {
			t.Fatal(err)
		}
		s.Spec.Prefixes = append(s.Spec.Prefixes, netip.MustParsePrefix("198.18.0.0/24"))
		s.SetDefaults()
		if _, err := c.Put(t.Context(), s, false); err != nil {
			t.Fatal(err)
		}
		r.condition(c, "False", "NotListening")
		release()
		r.condition(c, "True", "Serving")
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code := p.exit(); code != 0 {
			t.Errorf("exit %d after SIGTERM:\n%s", code, p.out)
		}
	})
}

func TestSecondBootd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.start("r1")
	first.says("msg=ready")
	second := r.start("r2")
	want := fmt.Sprintf("bootd: another bootd (pid %d) uses %s/s: stop it, or give this one its own --state-dir", first.cmd.Process.Pid, r.dir)
	if code := second.exit(); code != 1 || second.last() != want {
		t.Errorf("exit %d, last line\n  %s\nwant\n  %s", code, second.last(), want)
	}
	select {
	case <-first.done:
		t.Errorf("the first one ended with it:\n%s", first.out)
	default:
	}
}

// TestFirstAdministrator comes in from elsewhere with what bootd has left, and
// again by an address that bootd got only later.
func TestFirstAdministrator(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.start("r")
	p.says("msg=ready")
	admin := filepath.Join(r.dir, "s", "admin")
	if !strings.Contains(p.out.String(), "directory="+admin) {
		t.Errorf("the log does not say where it is:\n%s", p.out)
	}
	config, err := os.ReadFile(filepath.Join(admin, "weftctl.yaml"))
	if err != nil || !strings.Contains(string(config), "server: https://198.18.0.1:8443\n") {
		t.Errorf("%s: %v", config, err)
	}
	for _, f := range []string{"ca.crt", "admin.crt", "admin.key", "weftctl.yaml"} {
		if st, err := os.Stat(filepath.Join(admin, f)); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", f, st, err)
		}
	}
	if err := r.get(admin, "198.18.0.1"); err != nil {
		t.Error(err)
	}
	r.run("ip", "-n", r.ns, "addr", "add", "198.18.7.7/24", "dev", "br0")
	named := func() bool { err = r.get(admin, "198.18.7.7"); return err == nil }
	if !waittest.Soon(30*time.Second, named) {
		t.Errorf("the certificate never names the new address: %v", err)
	}
}

// get lists the Machines over TLS, as an administrator, on a new connection.
func (r *rig) get(admin, address string) error {
	ca, err := os.ReadFile(filepath.Join(admin, "ca.crt"))
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(admin, "admin.crt"), filepath.Join(admin, "admin.key"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	conn, err := r.dial(address + ":8443")
	if err != nil {
		return err
	}
	c := tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: address, Certificates: []tls.Certificate{pair}})
	defer func() { _ = c.Close() }()
	req, err := http.NewRequest(http.MethodGet, "https://"+address+":8443/v1/machines", nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DialTLS: func(string, string) (net.Conn, error) { return c, c.Handshake() }, DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return err
}

// dial connects from inside the namespace.
func (r *rig) dial(address string) (c net.Conn, err error) {
	err = nstest.Within(r.ns, func() (err error) {
		c, err = net.Dial("tcp", address)
		return err
	})
	return c, err
}
