package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/internal/wait/waittest"
	"github.com/rackweft/rackweft/lab/bmc"
)

// TestMain makes the test binary its own helpers: an owner of a rack that is to be killed, and a bootd.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "bootd" { // first: it has the owner's environment
		os.Exit(standInBootd())
	}
	if dir := os.Getenv("LAB_TEST_OWNER"); dir != "" {
		os.Exit(ownRack(dir, os.Getenv("LAB_TEST_NAME")))
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	nstest.Root(t, nstest.Namespaces)
	if testing.Short() {
		t.Skip("builds a rack of real QEMUs")
	}
}

// shortDir is a directory whose path leaves room for unix sockets, which t.TempDir's does not.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// newRack brings a rack up for a test, takes it down after, and checks that nothing of it is left.
func newRack(t *testing.T, change func(*Config)) *Rack {
	t.Helper()
	needRoot(t)
	config := Config{Name: randomName(), Dir: shortDir(t)}
	if change != nil {
		change(&config)
	}
	before := traces(t, config)
	r, err := New(t.Context(), config, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if after := traces(t, config); !slices.Equal(before, after) {
			t.Errorf("the rack leaves traces:\nbefore %q\nafter  %q", before, after)
		}
	})
	return r
}

// traces lists all that a rack could leave: its namespaces, the mounts of namespaces, processes that have
// its directory or a namespace of its name in their arguments, sockets.
func traces(t *testing.T, c Config) []string {
	t.Helper()
	var found []string
	spaces, err := filepath.Glob(filepath.Join(namespaceDir, c.Name+"-*"))
	if err != nil {
		t.Fatal(err)
	}
	found = append(found, spaces...)
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, namespaceDir) && strings.Contains(line, c.Name) {
			found = append(found, line)
		}
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range commands {
		line, err := os.ReadFile(path)
		if err != nil {
			continue // gone meanwhile
		}
		cwd, _ := os.Readlink(filepath.Join(filepath.Dir(path), "cwd"))
		if bytes.Contains(line, []byte(c.Dir)) || bytes.Contains(line, []byte(c.Name+"-net")) || strings.HasPrefix(cwd, c.Dir) {
			found = append(found, path+" "+string(line))
		}
	}
	err = filepath.WalkDir(c.Dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && (d.Type()&os.ModeSocket != 0 || d.Name() == "rack.json") {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func randomName() string { return "t" + strings.ToLower(rand.Text()[:6]) }

func testLog(t *testing.T) *slog.Logger {
	w := io.Writer(io.Discard)
	if testing.Verbose() {
		w = t.Output()
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func only(firmware Firmware) func(*Config) {
	return func(c *Config) {
		c.Machines = []MachineConfig{{Name: "m1", Unit: 1, Firmware: firmware, MemoryMiB: 512}}
	}
}

// waitConsole waits for text on a machine's console, after the first skip bytes of it.
func waitConsole(t *testing.T, m *Machine, skip int, text string) {
	t.Helper()
	var body []byte
	printed := waittest.Soon(2*time.Minute, func() bool {
		var err error
		body, err = os.ReadFile(m.ConsoleLog())
		return err == nil && bytes.Contains(plainText(body[min(skip, len(body)):]), []byte(text))
	})
	if !printed {
		t.Fatalf("%s has not printed %q; its console:\n%s", m.Name(), text, tail(body, tailLines))
	}
}

func consoleLength(t *testing.T, m *Machine) int {
	t.Helper()
	info, err := os.Stat(m.ConsoleLog())
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Size())
}

// redfish sends a request from bootd's server to a machine's BMC and returns the answer.
func redfish(t *testing.T, r *Rack, m *Machine, method, path, body string) (int, map[string]any) {
	t.Helper()
	transport := &http.Transport{DialContext: r.DialContext, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	url := "https://" + m.Config().BMCAddress().String() + path
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.SetBasicAuth(BMCUser, r.BMCPassword())
	response, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	answer := map[string]any{}
	_ = json.NewDecoder(response.Body).Decode(&answer) // 204 has no body
	return response.StatusCode, answer
}

const systemPath = "/redfish/v1/Systems/1"

func resetType(t *testing.T, r *Rack, m *Machine, kind string, want int) {
	t.Helper()
	status, answer := redfish(t, r, m, "POST", systemPath+"/Actions/ComputerSystem.Reset", `{"ResetType":"`+kind+`"}`)
	if status != want {
		t.Fatalf("%s: status %d, want %d: %v", kind, status, want, answer)
	}
}

// bootRequests collects the MACs that ask for a network boot (DHCP, PXEClient), until every machine has.
func bootRequests(r *Rack, network string, patience time.Duration) (map[string]bool, error) {
	fd := -1
	err := inNamespace(r.bootdNamespace(), func() error {
		i, err := net.InterfaceByName(network)
		if err != nil {
			return err
		}
		const all = 0x0300 // ETH_P_ALL in network order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index}); err != nil {
			return err
		}
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000})
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	macs, frame := map[string]bool{}, make([]byte, 2048)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline) && len(macs) < len(r.Machines()); {
		n, _, err := unix.Recvfrom(fd, frame, 0)
		if err != nil {
			continue // the timeout
		}
		// Ethernet, IPv4 without options, UDP to port 67.
		if n > 42 && frame[36] == 0 && frame[37] == 67 && bytes.Contains(frame[:n], []byte("PXEClient")) {
			macs[net.HardwareAddr(frame[6:12]).String()] = true
		}
	}
	return macs, nil
}

func TestFirmwareBootsFromTheProvisioningNetworkOnly(t *testing.T) {
	r := newRack(t, func(c *Config) { c.Machines = DefaultMachines()[:2] })
	var onPXE, onProd map[string]bool
	var watchers errgroup.Group
	watchers.Go(func() (err error) { onPXE, err = bootRequests(r, "pxe", 2*time.Minute); return err })
	watchers.Go(func() (err error) { onProd, err = bootRequests(r, "prod", 40*time.Second); return err })
	for _, m := range r.Machines() {
		resetType(t, r, m, "On", 204)
	}
	waitConsole(t, r.Machine("r1u01"), 0, "iPXE")
	waitConsole(t, r.Machine("r1u02"), 0, "Start PXE over IPv4")
	if err := watchers.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, m := range r.Machines() {
		if !onPXE[m.Config().MAC(0)] {
			t.Errorf("%s has not asked for a boot; %v have", m.Name(), onPXE)
		}
	}
	if len(onProd) > 0 {
		t.Errorf("%v ask for a boot on the production network", onProd)
	}
}

func TestPowerThroughRedfish(t *testing.T) {
	r := newRack(t, only(BIOS))
	m := r.Machine("m1")
	system := func() map[string]any {
		t.Helper()
		status, body := redfish(t, r, m, "GET", systemPath, "")
		if status != 200 {
			t.Fatalf("status %d: %v", status, body)
		}
		return body
	}
	if got := system(); got["PowerState"] != "Off" || got["SerialNumber"] != "RWLAB-m1" {
		t.Fatalf("a new rack's machine is %v, serial %v", got["PowerState"], got["SerialNumber"])
	}
	resetType(t, r, m, "ForceOff", 409)
	resetType(t, r, m, "On", 204)
	resetType(t, r, m, "On", 409)
	first := m.current().process.pid
	if got := system()["PowerState"]; got != "On" {
		t.Fatalf("PowerState %v after On", got)
	}
	waitConsole(t, m, 0, "SeaBIOS")

	// A reset by the BMC keeps the QEMU, a power cycle does not.
	length := consoleLength(t, m)
	resetType(t, r, m, "ForceRestart", 204)
	waitConsole(t, m, length, "SeaBIOS")
	if pid := m.current().process.pid; pid != first {
		t.Errorf("ForceRestart replaced QEMU %d by %d", first, pid)
	}
	length = consoleLength(t, m)
	resetType(t, r, m, "PowerCycle", 204)
	waitConsole(t, m, length, "--- power on ")
	if pid := m.current().process.pid; pid == first {
		t.Error("PowerCycle kept QEMU")
	}
	// Firmware that boots ignores the button, as in a real machine.
	resetType(t, r, m, "GracefulShutdown", 204)
	resetType(t, r, m, "Nmi", 204)
	resetType(t, r, m, "ForceOff", 204)
	if got := system()["PowerState"]; got != "Off" || m.current() != nil {
		t.Errorf("PowerState %v after ForceOff", got)
	}
	// A QEMU that dies is seen without anybody asking.
	resetType(t, r, m, "PushPowerButton", 204)
	if err := m.PullPower(); err != nil {
		t.Fatal(err)
	}
	if got := system()["PowerState"]; got != "Off" {
		t.Errorf("PowerState %v after the power was pulled", got)
	}
	if err := m.PullPower(); !errors.Is(err, bmc.ErrOff) {
		t.Errorf("pulling the power of a machine that is off: %v", err)
	}
}

func TestSpontaneousResetIsNoticed(t *testing.T) {
	r := newRack(t, only(BIOS))
	m := r.Machine("m1")
	resetType(t, r, m, "On", 204)
	waitConsole(t, m, 0, "SeaBIOS")
	_, before := redfish(t, r, m, "GET", systemPath, "")
	time.Sleep(1100 * time.Millisecond) // LastResetTime has seconds
	if err := m.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, after := redfish(t, r, m, "GET", systemPath, "")
	if before["LastResetTime"] == after["LastResetTime"] || after["PowerState"] != "On" {
		t.Errorf("LastResetTime %v, then %v; power %v", before["LastResetTime"], after["LastResetTime"], after["PowerState"])
	}
	_, entry := redfish(t, r, m, "GET", systemPath+"/LogServices/EventLog/Entries/2", "")
	if entry["Message"] != "The server was reset by the server itself." {
		t.Errorf("the event log says %v", entry["Message"])
	}
}

// TestBootOverride sees the order that the firmware is given: SeaBIOS tells what it boots from.
func TestBootOverride(t *testing.T) {
	r := newRack(t, only(BIOS))
	m := r.Machine("m1")
	override := func(target, enabled string) {
		t.Helper()
		body := `{"Boot":{"BootSourceOverrideTarget":"` + target + `","BootSourceOverrideEnabled":"` + enabled + `"}}`
		if status, answer := redfish(t, r, m, "PATCH", systemPath, body); status != 200 {
			t.Fatalf("override %s %s: %d %v", target, enabled, status, answer)
		}
	}
	standing := func() any {
		_, body := redfish(t, r, m, "GET", systemPath, "")
		return body["Boot"].(map[string]any)["BootSourceOverrideTarget"]
	}
	const disk, network = "Booting from Hard Disk", "Booting from ROM"

	override("Pxe", "Once")
	resetType(t, r, m, "On", 204)
	if got := standing(); got != "None" {
		t.Errorf("the override for one boot is still %v after it", got)
	}
	waitConsole(t, m, 0, network)

	length := consoleLength(t, m) // its own order again
	if err := m.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitConsole(t, m, length, disk)

	// Set while it runs, taken by the reset that the server makes itself, and gone after.
	override("Pxe", "Once")
	length = consoleLength(t, m)
	if err := m.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitConsole(t, m, length, network)
	if got := standing(); got != "None" {
		t.Errorf("the override for one boot is still %v after the server's own reset", got)
	}

	override("Pxe", "Continuous")
	for range 2 {
		length = consoleLength(t, m)
		resetType(t, r, m, "ForceRestart", 204)
		waitConsole(t, m, length, network)
	}
	if got := standing(); got != "Pxe" {
		t.Errorf("the continuous override is %v after two boots", got)
	}
	override("Hdd", "Continuous")
	length = consoleLength(t, m)
	resetType(t, r, m, "PowerCycle", 204)
	waitConsole(t, m, length, disk)
}

func TestUefiHTTPOverride(t *testing.T) {
	r := newRack(t, only(UEFI))
	m := r.Machine("m1")
	status, answer := redfish(t, r, m, "PATCH", systemPath, `{"Boot":{"BootSourceOverrideTarget":"UefiHttp","BootSourceOverrideEnabled":"Once"}}`)
	if status != 200 {
		t.Fatalf("%d %v", status, answer)
	}
	resetType(t, r, m, "On", 204)
	waitConsole(t, m, 0, "Start HTTP Boot over IPv4")
	if body, err := os.ReadFile(m.ConsoleLog()); err != nil || bytes.Contains(body, []byte("Start PXE")) {
		t.Errorf("it has tried PXE too (%v)", err)
	}
	length := consoleLength(t, m)
	if status, answer := redfish(t, r, m, "PATCH", systemPath, `{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once"}}`); status != 200 {
		t.Fatalf("%d %v", status, answer)
	}
	resetType(t, r, m, "ForceRestart", 204)
	waitConsole(t, m, length, "Start PXE over IPv4")
}

// TestHttpBootUri: OVMF asks for exactly the URL that was handed to the BMC. dnsmasq gives the address.
func TestHttpBootUri(t *testing.T) {
	dnsmasq, err := exec.LookPath("dnsmasq")
	if err != nil {
		t.Skip("needs dnsmasq (package dnsmasq-base)")
	}
	r := newRack(t, only(UEFI))
	m := r.Machine("m1")
	argv := inside(r.bootdNamespace(), dnsmasq, "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=pxe",
		"--bind-interfaces", "--dhcp-range=198.18.0.100,198.18.0.110", "--dhcp-leasefile="+filepath.Join(r.Dir(), "leases"))
	server, err := r.spawner.start("dnsmasq", exec.Command(argv[0], argv[1:]...))
	if err != nil {
		t.Fatal(err)
	}
	defer server.kill()
	listener, err := r.listen(r.bootdNamespace(), "198.18.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 16)
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		select {
		case asked <- q.URL.Path:
		default:
		}
		http.NotFound(w, q)
	}))
	_ = web.Listener.Close()
	web.Listener = listener
	web.Start()
	defer web.Close()

	body := `{"Boot":{"BootSourceOverrideTarget":"UefiHttp","BootSourceOverrideEnabled":"Once","HttpBootUri":"http://198.18.0.1:8080/f3a9c1/boot.efi"}}`
	if status, answer := redfish(t, r, m, "PATCH", systemPath, body); status != 200 {
		t.Fatalf("%d %v", status, answer)
	}
	resetType(t, r, m, "On", 204)
	select {
	case path := <-asked:
		if path != "/f3a9c1/boot.efi" {
			t.Errorf("OVMF asks for %s", path)
		}
	case <-time.After(2 * time.Minute):
		t.Fatalf("OVMF asks for nothing%s", tailReport(m.ConsoleLog(), 0))
	}
}

func TestCable(t *testing.T) {
	r := newRack(t, only(BIOS))
	m := r.Machine("m1")
	if err := m.Unplug(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	// iPXE's virtio driver does not look at the link, so only the wire tells.
	waitConsole(t, m, 0, "Configuring (net0")
	if macs, err := bootRequests(r, "pxe", 5*time.Second); err != nil || len(macs) > 0 {
		t.Errorf("boot requests from %v through a cable that is out (%v)", macs, err)
	}
	if err := m.Plug(t.Context()); err != nil {
		t.Fatal(err)
	}
	resetType(t, r, m, "ForceRestart", 204)
	if macs, err := bootRequests(r, "pxe", time.Minute); err != nil || !macs[m.Config().MAC(0)] {
		t.Errorf("no boot request after the cable was plugged in (%v)", err)
	}
}

func TestBMCFaults(t *testing.T) {
	r := newRack(t, only(BIOS))
	m := r.Machine("m1")
	m.BMC().SetPassword("another")
	if status, _ := redfish(t, r, m, "GET", systemPath, ""); status != 401 {
		t.Errorf("status %d with the old password", status)
	}
	m.BMC().SetPassword(r.BMCPassword())
	m.BMC().FailNext(1, 503, "{}")
	if status, _ := redfish(t, r, m, "GET", systemPath, ""); status != 503 {
		t.Errorf("status %d with a failure injected", status)
	}
	m.BMC().SetUnreachable(true)
	conn, err := r.DialContext(t.Context(), "tcp", net.JoinHostPort(m.Config().BMCAddress().String(), "443"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
	if err := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(t.Context()); err == nil {
		t.Error("an unreachable BMC shakes hands")
	}
	m.BMC().SetUnreachable(false)
	if status, _ := redfish(t, r, m, "GET", systemPath, ""); status != 200 {
		t.Errorf("status %d of a BMC that is back", status)
	}
}

// TestConsoleSocket: the console can be read live while it is logged.
func TestConsoleSocket(t *testing.T) {
	r := newRack(t, only(BIOS))
	m := r.Machine("m1")
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", m.ConsoleSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	var got []byte
	buffer := make([]byte, 1024)
	for !bytes.Contains(got, []byte("iPXE")) {
		n, err := conn.Read(buffer)
		if err != nil {
			t.Fatalf("%v after %q", err, got)
		}
		got = append(got, buffer[:n]...)
	}
	waitConsole(t, m, 0, "iPXE")
}

func TestTwoRacksSideBySide(t *testing.T) {
	a, b := newRack(t, only(BIOS)), newRack(t, only(BIOS))
	resetType(t, a, a.Machine("m1"), "On", 204)
	if got := b.Machine("m1").Power(); got != bmc.Off {
		t.Errorf("the machine of the other rack is %s", got)
	}
	if a.BMCPassword() == b.BMCPassword() || a.Machine("m1").BMC().Fingerprint() == b.Machine("m1").BMC().Fingerprint() {
		t.Error("two racks share a password or a certificate")
	}
	if _, err := New(t.Context(), Config{Name: a.config.Name, Dir: shortDir(t)}, testLog(t)); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("a second rack of the same name: %v", err)
	}
	if _, err := New(t.Context(), Config{Name: randomName(), Dir: a.Dir()}, testLog(t)); !errors.Is(err, ErrInUse) {
		t.Errorf("a second rack in the same directory: %v", err)
	}
}

func TestDirIsKeptUnlessFresh(t *testing.T) {
	needRoot(t)
	config := Config{Name: randomName(), Dir: shortDir(t)}
	only(BIOS)(&config)
	up := func() (password, fingerprint, uuid string) {
		t.Helper()
		r, err := New(t.Context(), config, testLog(t))
		if err != nil {
			t.Fatal(err)
		}
		m := r.Machine("m1")
		if err := r.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(t.Context()); err != nil {
			t.Errorf("closing again: %v", err)
		}
		return r.BMCPassword(), m.BMC().Fingerprint(), m.uuid
	}
	password, fingerprint, uuid := up()
	if p, f, u := up(); p != password || f != fingerprint || u != uuid {
		t.Error("the second rack in a directory has another password, certificate or UUID")
	}
	config.Fresh = true
	if p, f, _ := up(); p == password || f == fingerprint {
		t.Error("a fresh rack has the old password or certificate")
	}
}

// ownRack is the helper process: it brings a rack up, powers its machine on, says so, and waits to be killed.
func ownRack(dir, name string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	config := Config{Name: name, Dir: dir}
	only(BIOS)(&config)
	config.Binaries = os.Getenv("LAB_TEST_BINARIES")
	r, err := New(context.Background(), config, log)
	if err != nil {
		log.Error(err.Error())
		return 1
	}
	err = errors.Join(r.StartBootd(context.Background()), r.Machine("m1").PowerOn(context.Background()))
	if err != nil {
		log.Error(err.Error())
		return 1
	}
	fmt.Println("up")
	if err := r.Serve(context.Background()); !errors.Is(err, ErrDown) {
		log.Error("serve", "error", err)
		return 1
	}
	if err := r.Close(context.Background()); err != nil {
		log.Error(err.Error())
		return 1
	}
	return 0
}

// startOwner runs the helper and returns once its rack is up.
func startOwner(t *testing.T, config Config) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	owner := exec.Command(self)
	owner.Env = append(os.Environ(), "LAB_TEST_OWNER="+config.Dir, "LAB_TEST_NAME="+config.Name, "LAB_TEST_BINARIES="+standInDir(t))
	owner.Stderr = t.Output()
	output, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = owner.Process.Kill() })
	said := make([]byte, 3)
	if _, err := io.ReadFull(output, said); err != nil {
		t.Fatalf("the owner has not brought its rack up: %v", err)
	}
	return owner
}

// TestKilledOwner: kill -9 of the owner ends every child, and Clean removes the rest.
func TestKilledOwner(t *testing.T) {
	needRoot(t)
	config := Config{Name: randomName(), Dir: shortDir(t)}
	before := traces(t, config)
	owner := startOwner(t, config)
	file, err := readRackFile(config.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(file.Processes) != 2 || len(file.Namespaces) != 2 {
		t.Fatalf("rack.json has %+v, want a QEMU, a bootd and two namespaces", file)
	}
	if err := Clean(config.Dir); !errors.Is(err, ErrInUse) {
		t.Errorf("cleaning a rack that is up: %v", err)
	}
	if err := owner.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait() // killed
	for _, p := range file.Processes {
		for i := 0; p.alive(file.BootID); i++ {
			if i == 500 {
				t.Fatalf("%s (pid %d) outlives its owner", p.What, p.PID)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	if err := Clean(config.Dir); err != nil {
		t.Fatal(err)
	}
	if after := traces(t, config); !slices.Equal(before, after) {
		t.Errorf("Clean leaves traces:\nbefore %q\nafter  %q", before, after)
	}
	if err := Clean(config.Dir); err != nil {
		t.Errorf("cleaning again: %v", err)
	}
}

// TestCleanKillsOnlyItsOwn: a record whose pid is somebody else's by now proves nothing.
func TestCleanKillsOnlyItsOwn(t *testing.T) {
	sleeper := exec.Command("sleep", "60")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
	}()
	id, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	start, err := startTime(sleeper.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	mine := processRecord{What: "sleep", PID: sleeper.Process.Pid, Start: start}
	other := mine
	other.Start++
	if err := errors.Join(other.kill(id), mine.kill("another boot")); err != nil {
		t.Fatal(err)
	}
	if !mine.alive(id) {
		t.Fatal("a process was killed without proof")
	}
	if err := mine.kill(id); err != nil {
		t.Fatal(err)
	}
	if mine.alive(id) {
		t.Error("a proven process lives on")
	}
}

func TestStatusAndDown(t *testing.T) {
	needRoot(t)
	config := Config{Name: randomName(), Dir: shortDir(t)}
	before := traces(t, config)
	if _, err := Status(t.Context(), config.Dir); !errors.Is(err, ErrNotUp) {
		t.Errorf("status of no rack: %v", err)
	}
	if err := Down(t.Context(), config.Dir); err != nil {
		t.Errorf("taking down no rack: %v", err)
	}
	owner := startOwner(t, config)
	report, err := waitStatus(t, config.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if report.Name != config.Name || report.OwnerPID != owner.Process.Pid || len(report.Machines) != 1 || report.Machines[0].Power != "On" || report.BootdPID == 0 {
		t.Errorf("report %+v", report)
	}
	ended := make(chan error, 1)
	go func() { ended <- owner.Wait() }()
	if err := Down(t.Context(), config.Dir); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the owner: %v", err)
	}
	if after := traces(t, config); !slices.Equal(before, after) {
		t.Errorf("Down leaves traces:\nbefore %q\nafter  %q", before, after)
	}
}

func waitStatus(t *testing.T, dir string) (report Report, err error) {
	t.Helper()
	for range 200 {
		if report, err = Status(t.Context(), dir); err == nil {
			return report, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return report, err
}
