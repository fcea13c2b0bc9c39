// Go listens for MPTCP, which knows no MD5 keys.
//
//go:debug multipathtcp=0
package bgp

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// speakerEnvironment makes the test's binary a speaker: with its directory.
const speakerEnvironment = "RACKWEFT_TEST_SPEAKER"

// webEnvironment makes it a web server: with what it listens on.
const webEnvironment = "RACKWEFT_TEST_WEB"

// stationEnvironment makes it a monitoring station: with what it listens on.
const stationEnvironment = "RACKWEFT_TEST_STATION"

func TestMain(m *testing.M) {
	if at := os.Getenv(stationEnvironment); at != "" {
		fmt.Fprintln(os.Stderr, "station:", station(at))
		os.Exit(1)
	}
	if at := os.Getenv(webEnvironment); at != "" {
		fmt.Fprintln(os.Stderr, "web:", http.ListenAndServe(at, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
		os.Exit(1)
	}
	dir := os.Getenv(speakerEnvironment)
	if dir == "" {
		os.Exit(m.Run())
	}
	err := Run(context.Background(), Options{Part: filepath.Join(dir, "part"), Socket: filepath.Join(dir, "socket"),
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Notify: silent{}})
	fmt.Fprintln(os.Stderr, "speaker:", err)
	os.Exit(1)
}

type silent struct{}

func (silent) Ready()        {}
func (silent) Status(string) {}

func (silent) Watchdog(context.Context, func() bool) {}

// rig is a segment with hosts around it, each a network namespace.
type rig struct {
	t       testing.TB
	id      string
	segment byte // its hosts are in 198.18.segment.0/24
	hosts   map[string]*host
}

// host is one of them.
type host struct {
	rig     *rig
	name    string
	address netip.Addr // 198.18.segment.N, of eth0
	dir     string
	process *exec.Cmd // its speaker or other daemon
}

func newRig(t testing.TB) *rig {
	t.Helper()
	nstest.Root(t, nstest.Namespaces)
	b := make([]byte, 3)
	_, _ = rand.Read(b)
	r := &rig{t: t, id: "rwb" + hex.EncodeToString(b), segment: 9, hosts: map[string]*host{}}
	r.namespace("fabric")
	r.run("ip", "-n", r.id+"fabric", "link", "add", "br0", "type", "bridge")
	r.run("ip", "-n", r.id+"fabric", "link", "set", "br0", "up")
	return r
}

func (r *rig) namespace(name string) {
	r.t.Helper()
	nstest.Add(r.t, r.id+name)
}

func (r *rig) run(args ...string) string {
	r.t.Helper()
	return nstest.Run(r.t, args[0], args[1:]...)
}

// host adds one at 198.18.segment.last.
func (r *rig) host(name string, last byte) *host {
	r.t.Helper()
	h := &host{rig: r, name: name, address: netip.AddrFrom4([4]byte{198, 18, r.segment, last}), dir: r.t.TempDir()}
	r.namespace(name)
	ns := r.id + name
	r.run("ip", "-n", ns, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", r.id+"fabric")
	r.run("ip", "-n", r.id+"fabric", "link", "set", name, "master", "br0", "up")
	r.run("ip", "-n", ns, "link", "set", "eth0", "up")
	r.run("ip", "-n", ns, "addr", "add", h.address.String()+"/24", "dev", "eth0")
	r.run("ip", "-n", ns, "addr", "add", fmt.Sprintf("2001:db8::%d/64", last), "dev", "eth0", "nodad")
	r.hosts[name] = h
	r.t.Cleanup(h.kill)
	return h
}

func (h *host) v6() netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", h.address.As4()[3]))
}

// in runs a command to its end on the host.
func (h *host) in(args ...string) string {
	h.rig.t.Helper()
	return h.rig.run(append([]string{"ip", "netns", "exec", h.rig.id + h.name}, args...)...)
}

// begin starts the host's daemon.
func (h *host) begin(environment []string, args ...string) {
	h.rig.t.Helper()
	log, err := os.OpenFile(filepath.Join(h.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(h.rig.t, err)
	defer func() { _ = log.Close() }()
	h.process = exec.Command("ip", append([]string{"netns", "exec", h.rig.id + h.name}, args...)...)
	h.process.Env = append(os.Environ(), environment...)
	h.process.Stdout, h.process.Stderr = log, log
	h.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(h.rig.t, h.process.Start())
}

// kill ends the host's daemon without a word.
func (h *host) kill() {
	if h.process == nil {
		return
	}
	_ = h.process.Process.Kill()
	_ = h.process.Wait()
	h.process = nil
	if h.rig.t.Failed() && testing.Verbose() {
		log, _ := os.ReadFile(filepath.Join(h.dir, "log"))
		h.rig.t.Logf("log of %s:\n%s", h.name, log)
	}
}

// speak starts the host's speaker.
func (h *host) speak() {
	h.rig.t.Helper()
	self, err := os.Executable()
	must(h.rig.t, err)
	h.begin([]string{speakerEnvironment + "=" + h.dir}, self)
}

// web starts a web server on the host, beside its daemon. What it answers ends
// it.
func (h *host) web() (stop func()) {
	h.rig.t.Helper()
	self, err := os.Executable()
	must(h.rig.t, err)
	server := &host{rig: h.rig, name: h.name, dir: h.rig.t.TempDir()}
	server.begin([]string{webEnvironment + "=:8080"}, self)
	h.rig.t.Cleanup(server.kill)
	return server.kill
}

// give writes the host's part, as the agent does.
func (h *host) give(p api.BGPPart) {
	h.rig.t.Helper()
	raw, err := json.Marshal(p)
	must(h.rig.t, err)
	path := filepath.Join(h.dir, "part")
	must(h.rig.t, os.WriteFile(path+".new", raw, 0o600))
	must(h.rig.t, os.Rename(path+".new", path))
}

func (h *host) client() *Client { return NewClient(filepath.Join(h.dir, "socket")) }

// status may be empty: the speaker is only coming up.
func (h *host) status() Status {
	s, _ := h.client().Status(context.Background())
	return s
}

func (h *host) session(name string) Session {
	for _, s := range h.status().Sessions {
		if s.Name == name {
			return s
		}
	}
	return Session{}
}

// routes are those of the kernel with our protocol number: "prefix via" lines.
func (h *host) routes() string {
	h.rig.t.Helper()
	return h.in("ip", "route", "show", "proto", "217") + h.in("ip", "-6", "route", "show", "proto", "217")
}

func (h *host) has(prefix, via string) func() error {
	return func() error {
		for _, line := range strings.Split(h.routes(), "\n") {
			if strings.HasPrefix(line, prefix+" via "+via+" ") {
				return nil
			}
		}
		return fmt.Errorf("%s lacks %s via %s; it has:\n%s", h.name, prefix, via, h.routes())
	}
}

func (h *host) lacks(prefix string) func() error {
	return func() error {
		if strings.Contains("\n"+h.routes(), "\n"+prefix+" ") {
			return fmt.Errorf("%s has %s:\n%s", h.name, prefix, h.routes())
		}
		return nil
	}
}

func up(h *host, name string) func() error {
	return func() error {
		if s := h.session(name); !s.Established() {
			return fmt.Errorf("%s's session with %s is %q (%s); %s", h.name, name, s.State, s.Reason, h.status().Line())
		}
		return nil
	}
}

// eventually waits until all of it is so.
func eventually(t testing.TB, checks ...func() error) {
	t.Helper()
	waittest.Pass(t, time.Minute, checks...)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func exact(list ...string) []api.PrefixFilter { return exactly(prefixes(list...)) }

func write(t testing.TB, path, text string) string {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// frr runs FRR's zebra and bgpd on the host until the test ends; dir has their VTYs.
func (h *host) frr(conf string) (dir string) {
	t := h.rig.t
	t.Helper()
	zebra, bgpd := need(t, "/usr/lib/frr/zebra"), need(t, "/usr/lib/frr/bgpd")
	dir, err := os.MkdirTemp("", "frr") // which zebra, as frr, reaches
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o777))
	file := write(t, filepath.Join(dir, "bgpd.conf"), conf)
	empty := filepath.Join(dir, "empty.conf")
	must(t, os.WriteFile(empty, nil, 0o644))
	zserv := filepath.Join(dir, "zserv")
	routing := &host{rig: h.rig, name: h.name, dir: t.TempDir()}
	t.Cleanup(routing.kill)
	routing.begin(nil, zebra, "-f", empty, "-z", zserv, "-i", filepath.Join(dir, "zebra.pid"), "--vty_socket", dir, "-P", "0", "--log", "stdout")
	eventually(t, func() error { _, err := os.Stat(zserv); return err })
	h.begin(nil, bgpd, "-S", "-f", file, "-z", zserv, "-i", filepath.Join(dir, "bgpd.pid"), "--vty_socket", dir, "-P", "0", "--log", "stdout")
	return dir
}
