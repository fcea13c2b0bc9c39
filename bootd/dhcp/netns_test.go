package dhcp

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/pin/tftp/v3"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/internal/logtest"
	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// segment is one Ethernet segment: a bridge br0 with 198.18.0.1/24 in a namespace of its own.
type segment struct {
	t  *testing.T
	ns string
}

func newSegment(t *testing.T) *segment {
	t.Helper()
	if testing.Short() {
		t.Skip("needs several seconds")
	}
	s := &segment{t, nstest.New(t)}
	s.ip("link", "add", "br0", "type", "bridge")
	s.ip("link", "set", "br0", "up")
	s.ip("addr", "add", "198.18.0.1/24", "dev", "br0")
	return s
}

// station adds a namespace with eth0 on the segment.
func (s *segment) station() string {
	s.t.Helper()
	name := nstest.New(s.t)
	port := "p" + strings.ToLower(rand.Text()[:8])
	s.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
	s.ip("link", "set", port, "master", "br0", "up")
	nstest.Run(s.t, "ip", "-n", name, "link", "set", "eth0", "up")
	return name
}

func (s *segment) ip(args ...string) {
	s.t.Helper()
	nstest.Run(s.t, "ip", append([]string{"-n", s.ns}, args...)...)
}

func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
}

// within begins to run f on a thread that is in the namespace.
func within(t *testing.T, ns string, f func() error) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- nstest.Within(ns, f) }()
	return done
}

// serve runs a server on br0 until the test ends.
func (s *segment) serve(d Decider) *Server {
	s.t.Helper()
	server, err := New(Config{
		Interfaces: []string{"br0"},
		Log:        slog.New(slog.NewTextHandler(s.t.Output(), nil)),
		Metrics:    prometheus.NewRegistry(),
	}, d)
	if err != nil {
		s.t.Fatal(err)
	}
	waittest.Serve(s.t, func(ctx context.Context) error { return nstest.Within(s.ns, func() error { return server.Run(ctx) }) }, server.Ready())
	return server
}

// rack is a Decider with an address for every MAC, and a record of what it was asked.
type rack struct {
	Endpoints
	lease time.Duration
	style Style
	proxy bool

	mu     sync.Mutex
	addrs  map[string]netip.Addr
	events []string
	seen   chan struct{} // one token per event; it never blocks the server
}

func newRack() *rack {
	return &rack{
		Endpoints: Endpoints{TFTP: netip.MustParseAddr("198.18.0.1"), HTTP: "http://198.18.0.1:8080", Script: "/boot.ipxe", Files: DefaultFiles()},
		lease:     time.Hour,
		addrs:     map[string]netip.Addr{},
		seen:      make(chan struct{}, 10000),
	}
}

func (r *rack) record(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
	select {
	case r.seen <- struct{}{}:
	default:
	}
}

func (r *rack) has(event string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if strings.HasPrefix(e, event) {
			return true
		}
	}
	return false
}

// await waits for events in any order.
func (r *rack) await(t *testing.T, d time.Duration, events ...string) {
	t.Helper()
	deadline := time.After(d)
	for {
		var missing []string
		for _, e := range events {
			if !r.has(e) {
				missing = append(missing, e)
			}
		}
		if len(missing) == 0 {
			return
		}
		select {
		case <-r.seen:
		case <-deadline:
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Fatalf("after %s still no %q; seen:\n%s", d, missing, strings.Join(r.events, "\n"))
		}
	}
}

func (r *rack) answer(c Client) Answer {
	boot := Bootfile(c, r.Endpoints)
	boot.Style = r.style
	a := Answer{Prefix: netip.MustParsePrefix("198.18.0.0/24"), Lease: r.lease, Boot: boot, MTU: 1500}
	if r.proxy {
		return a
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	addr, ok := r.addrs[c.MAC.String()]
	if !ok {
		n := len(r.addrs)
		addr = netip.AddrFrom4([4]byte{198, 18, byte(1 + n/250), byte(1 + n%250)})
		if n < 90 {
			addr = netip.AddrFrom4([4]byte{198, 18, 0, byte(10 + n)})
		}
		r.addrs[c.MAC.String()] = addr
	}
	a.Address = addr
	return a
}

func (r *rack) Offer(_ context.Context, c Client) (Answer, error) {
	r.record("offer %s http=%v", c.Kind, c.HTTP)
	return r.answer(c), nil
}

func (r *rack) Request(_ context.Context, c Client, addr netip.Addr) (Answer, error) {
	if r.proxy {
		return Answer{}, ErrNotMine
	}
	a := r.answer(c)
	if a.Address != addr {
		return Answer{}, &Refusal{Reason: "not your address"}
	}
	r.record("request %s state=%d", c.Kind, c.State)
	return a, nil
}

func (r *rack) Inform(_ context.Context, c Client) (Answer, error) {
	r.record("inform %s", c.Kind)
	return r.answer(c), nil
}

func (r *rack) Boot(_ context.Context, c Client) (Boot, error) {
	r.record("boot %s", c.Kind)
	return r.answer(c).Boot, nil
}

func (r *rack) Release(_ context.Context, _ Client, addr netip.Addr) error {
	r.record("release %s", addr)
	return nil
}

func (r *rack) Decline(_ context.Context, _ Client, addr netip.Addr) error {
	r.record("decline %s", addr)
	return nil
}

func TestDhclient(t *testing.T) {
	need(t, "dhclient")
	s := newSegment(t)
	d := newRack()
	d.lease = 6 * time.Second
	s.serve(d)
	client := s.station()

	dir := t.TempDir()
	script := filepath.Join(dir, "script") // the system's own would rewrite /etc/resolv.conf
	text := "#!/bin/sh\n" +
		"echo \"$reason $new_ip_address $new_interface_mtu\" >>" + dir + "/log\n" +
		"case $reason in BOUND|RENEW|REBIND|REBOOT) ip addr replace $new_ip_address/24 dev $interface;; esac\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	args := []string{"netns", "exec", client, "dhclient", "-4", "-d", "-v", "-cf", "/dev/null", "-sf", script,
		"-lf", dir + "/leases", "-pf", dir + "/pid", "eth0"}
	start(t, "ip", args...)
	d.await(t, 20*time.Second, "offer none", "request none state=0", "request none state=2")
	nstest.Run(t, "ip", append([]string{"netns", "exec", client, "dhclient", "-r"}, args[4:]...)...)
	d.await(t, 10*time.Second, "release 198.18.0.10")
	log, err := os.ReadFile(dir + "/log")
	if err != nil || !strings.Contains(string(log), "BOUND 198.18.0.10 1500") || !strings.Contains(string(log), "RENEW 198.18.0.10") {
		t.Errorf("dhclient: %v\n%s", err, log)
	}
}

// start runs a program until the test ends and returns its output so far when called.
func start(t *testing.T, name string, args ...string) func() string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out logtest.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // no Pdeathsig: it fires when within's threads end
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, out.String())
		}
	})
	return out.String
}

// TestPerfdhcp runs complete exchanges by way of a relay, and reports dnsmasq's rate beside ours.
func TestPerfdhcp(t *testing.T) {
	need(t, "perfdhcp")
	s := newSegment(t)
	server := s.serve(newRack())
	relay := s.station()
	nstest.Run(t, "ip", "-n", relay, "addr", "add", "198.18.0.2/24", "dev", "eth0")
	perfdhcp := func(rate int) (drops, rps string) {
		// What other tests delay by taking the CPU away is late, not lost: -d, -W.
		out, err := command.Output(exec.Command("ip", "netns", "exec", relay, "perfdhcp", "-4", "-l", "eth0",
			"-r", strconv.Itoa(rate), "-R", "200", "-p", "4", "-d", "5", "-W", "1000000", "198.18.0.1"))
		if err != nil && len(out) == 0 {
			t.Fatalf("perfdhcp: %v", err)
		}
		find := func(re string) string {
			all := regexp.MustCompile(re).FindAllStringSubmatch(string(out), -1)
			if len(all) == 0 {
				t.Fatalf("perfdhcp said:\n%s", out)
			}
			return all[len(all)-1][1]
		}
		return find(`drops: (\d+)`), find(`Rate: ([0-9.]+) 4-way`)
	}
	for attempt := 1; ; attempt++ { // perfdhcp loses packets itself when others take the CPU away
		drops, rps := perfdhcp(300)
		if drops == "0" {
			break
		}
		if attempt == 3 {
			t.Fatalf("%s drops at %s exchanges/s", drops, rps)
		}
	}
	if drops := collect(server.metrics.drops); len(drops) > 0 {
		t.Errorf("the server dropped packets: %s", drops)
	}
	drops, rps := perfdhcp(4000)
	t.Logf("offered 4000/s: %s exchanges/s, %s drops, of these by the server: %s", rps, drops, collect(server.metrics.drops))

	if _, err := exec.LookPath("dnsmasq"); err != nil {
		return
	}
	peer := newSegment(t)
	relay = peer.station()
	nstest.Run(t, "ip", "-n", relay, "addr", "add", "198.18.0.2/24", "dev", "eth0")
	peer.dnsmasq(peer.ns, "br0", "198.18.0.10,198.18.0.250")
	_, theirs := perfdhcp(4000)
	t.Logf("dnsmasq, offered 4000/s: %s exchanges/s", theirs)
}

func collect(c prometheus.Collector) (metrics []string) {
	r := prometheus.NewRegistry()
	r.MustRegister(c)
	families, err := r.Gather()
	if err != nil {
		return []string{err.Error()}
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			metrics = append(metrics, m.String())
		}
	}
	return metrics
}

func (s *segment) dnsmasq(ns, dev, addresses string) {
	s.t.Helper()
	dir := s.t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		s.t.Fatal(err)
	}
	log := start(s.t, "ip", "netns", "exec", ns, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--bind-interfaces",
		"--interface="+dev, "--user=root", "--pid-file="+dir+"/pid", "--dhcp-leasefile="+dir+"/leases", "--dhcp-authoritative",
		"--no-ping", "--dhcp-lease-max=10000", "--dhcp-range="+addresses+",1h")
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(log(), "DHCP, IP range"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("dnsmasq does not start:\n%s", log())
		}
	}
}

func TestBusyPort(t *testing.T) {
	s := newSegment(t)
	for _, port := range []int{serverPort, bootPort} {
		var holder net.PacketConn
		if err := <-within(t, s.ns, func() (err error) {
			holder, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		server, err := New(Config{Interfaces: []string{"br0"}}, newRack())
		if err != nil {
			t.Fatal(err)
		}
		err = <-within(t, s.ns, func() error { return server.Run(t.Context()) })
		want := fmt.Sprintf(`listen on br0 UDP port %d: address already in use: another DHCP server runs here; find it with "ss -ulnp sport = :%d" and stop it`, port, port)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error is %v", err)
		}
		if err := holder.Close(); err != nil {
			t.Error(err)
		}
	}
	server, err := New(Config{Interfaces: []string{"eth9"}}, newRack())
	if err != nil {
		t.Fatal(err)
	}
	if err := <-within(t, s.ns, func() error { return server.Run(t.Context()) }); err == nil || err.Error() != "listen on eth9: no such interface; this machine has br0" {
		t.Errorf("error is %v", err)
	}
}

func TestInterfaceDisappears(t *testing.T) {
	s := newSegment(t)
	server, err := New(Config{Interfaces: []string{"br0"}}, newRack())
	if err != nil {
		t.Fatal(err)
	}
	done := within(t, s.ns, func() error { return server.Run(t.Context()) })
	<-server.Ready()
	s.ip("link", "del", "br0")
	if err := <-done; err == nil || !strings.Contains(err.Error(), "br0 is gone") {
		t.Errorf("error is %v", err)
	}
}

// TestRelays sends through two relays on other ports than 67 and looks where the answers arrive.
func TestRelays(t *testing.T) {
	s := newSegment(t)
	s.serve(newRack())
	for i, giaddr := range []string{"198.18.0.2", "198.18.0.3"} {
		ns := s.station()
		nstest.Run(t, "ip", "-n", ns, "addr", "add", giaddr+"/24", "dev", "eth0")
		var conn, sender net.PacketConn
		if err := <-within(t, ns, func() (err error) {
			if conn, err = net.ListenPacket("udp4", ":67"); err != nil {
				return err
			}
			sender, err = net.ListenPacket("udp4", ":0")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = conn.Close(), sender.Close() })
		req := packet(dhcpv4.MessageTypeDiscover, map[uint8]string{82: fmt.Sprintf("\x01\x04Eth%d", i)}, relay(giaddr))
		req.ClientHWAddr[5] = byte(i)
		if _, err := sender.WriteTo(req.ToBytes(), &net.UDPAddr{IP: net.IPv4(198, 18, 0, 1), Port: 67}); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1500)
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, peer, err := conn.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		r, err := dhcpv4.FromBytes(b[:n])
		if err != nil || r.MessageType() != dhcpv4.MessageTypeOffer || opt(r, 82) != fmt.Sprintf("\x01\x04Eth%d", i) || peer.String() != "198.18.0.1:67" {
			t.Errorf("relay %s got %v from %s, %v", giaddr, r, peer, err)
		}
	}
}

// firmware is one QEMU machine with its NIC on the segment.
func (s *segment) firmware(args ...string) {
	s.t.Helper()
	need(s.t, "qemu-system-x86_64")
	tap := "t" + strings.ToLower(rand.Text()[:8])
	s.ip("tuntap", "add", tap, "mode", "tap")
	s.ip("link", "set", tap, "master", "br0", "up")
	args = append([]string{"netns", "exec", s.ns, "qemu-system-x86_64", "-machine", "q35,accel=tcg", "-m", "512", "-nodefaults",
		"-display", "none", "-serial", "stdio", "-boot", "n", "-netdev", "tap,id=n0,ifname=" + tap + ",script=no,downscript=no"}, args...)
	start(s.t, "ip", args...)
}

func (s *segment) seabios() {
	s.firmware("-device", "virtio-net-pci,netdev=n0,mac=52:54:00:01:07:00")
}

func (s *segment) ovmf(args ...string) {
	s.t.Helper()
	const code, vars = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
	data, err := os.ReadFile(vars)
	if err != nil {
		s.t.Skipf("OVMF is not installed: %v", err)
	}
	own := filepath.Join(s.t.TempDir(), "vars.fd")
	if err := os.WriteFile(own, data, 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.firmware(append(args, "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:01:07:01,romfile=", "-device", "virtio-rng-pci",
		"-drive", "if=pflash,format=raw,readonly=on,file="+code, "-drive", "if=pflash,format=raw,file="+own)...)
}

// bootServers serves iPXE's files by TFTP and HTTP and records what is fetched.
func (s *segment) bootServers(r *rack) {
	s.t.Helper()
	var udp net.PacketConn
	var tcp net.Listener
	if err := <-within(s.t, s.ns, func() (err error) {
		if udp, err = net.ListenPacket("udp4", "198.18.0.1:69"); err != nil {
			return err
		}
		tcp, err = net.Listen("tcp4", "198.18.0.1:8080")
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	files := tftp.NewServer(func(name string, w io.ReaderFrom) error {
		r.record("tftp %s", name)
		f, err := os.Open(filepath.Join("/usr/lib/ipxe", filepath.Base(name)))
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		_, err = w.ReadFrom(f)
		return err
	}, nil)
	files.EnableSinglePort() // new sockets would be made outside of the namespace
	files.SetBlockSize(1400)
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.record("%s %s %s", req.Method, req.URL.Path, req.UserAgent())
		if req.URL.Path == "/boot.ipxe" {
			_, _ = io.WriteString(w, "#!ipxe\necho script\nsleep 60\n")
			return
		}
		http.ServeFile(w, req, filepath.Join("/usr/lib/ipxe", filepath.Base(req.URL.Path)))
	})}
	var servers sync.WaitGroup
	servers.Go(func() { _ = files.Serve(udp.(*net.UDPConn)) })
	servers.Go(func() { _ = web.Serve(tcp) })
	s.t.Cleanup(func() {
		files.Shutdown()
		_ = web.Close()
		servers.Wait()
	})
}

// firmwareBoot is a boot of real firmware up to the script.
type firmwareBoot struct {
	name   string
	uefi   bool
	style  Style
	proxy  bool
	noHTTP bool // the first stage is refused HTTP
	args   []string
	want   []string
	never  string
}

// TestFirmwareBoots boots each kind of firmware; see TestFurtherFirmware.
func TestFirmwareBoots(t *testing.T) {
	bootAll(t, []firmwareBoot{
		{name: "iPXE ROM", want: []string{"offer ipxe http=true", "GET /boot.ipxe"}, never: "tftp"},
		{name: "iPXE ROM by TFTP", noHTTP: true, want: []string{"tftp undionly.kpxe", "GET /boot.ipxe"}},
		{name: "OVMF", uefi: true, want: []string{"offer pxe", "tftp snponly.efi", "offer ipxe http=true", "GET /boot.ipxe"}, never: "boot"},
		{name: "OVMF by HTTP", uefi: true, args: []string{"-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=no",
			"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no"},
			want: []string{"offer httpboot", "HEAD /snponly.efi UefiHttpBoot", "GET /snponly.efi UefiHttpBoot", "GET /boot.ipxe"}, never: "tftp"},
		{name: "OVMF beside another DHCP server", uefi: true, proxy: true, want: []string{"boot pxe", "tftp snponly.efi", "GET /boot.ipxe"}},
	})
}

// TestFurtherFirmware has the other ways in which the firmware of TestFirmwareBoots boots.
func TestFurtherFirmware(t *testing.T) {
	bootAll(t, []firmwareBoot{
		{name: "iPXE ROM beside another DHCP server", proxy: true, want: []string{"offer ipxe http=true", "GET /boot.ipxe"}},
		{name: "OVMF pinned to BootServer", uefi: true, style: BootServer, want: []string{"boot pxe", "tftp snponly.efi", "GET /boot.ipxe"}},
		{name: "OVMF pinned to Direct", uefi: true, style: Direct, want: []string{"tftp snponly.efi", "GET /boot.ipxe"}, never: "boot"},
	})
}

func bootAll(t *testing.T, boots []firmwareBoot) {
	for _, b := range boots {
		t.Run(b.name, func(t *testing.T) { t.Parallel(); b.run(t) })
	}
}

func (b firmwareBoot) run(t *testing.T) {
	const bootTimeout = 3 * time.Minute // emulated, on a machine that others use too
	s := newSegment(t)
	d := newRack()
	d.style, d.proxy = b.style, b.proxy
	if b.proxy {
		need(t, "dnsmasq")
		other := s.station()
		nstest.Run(t, "ip", "-n", other, "addr", "add", "198.18.0.5/24", "dev", "eth0")
		s.dnsmasq(other, "eth0", "198.18.0.200,198.18.0.250")
	}
	s.bootServers(d)
	if b.noHTTP {
		s.serve(&withoutHTTP{rack: d})
	} else {
		s.serve(d)
	}
	begin := time.Now()
	if b.uefi {
		s.ovmf(b.args...)
	} else {
		s.seabios()
	}
	d.await(t, bootTimeout, b.want...)
	t.Logf("script fetched after %s", time.Since(begin).Round(100*time.Millisecond))
	if b.never != "" && d.has(b.never) {
		t.Errorf("%q happened", b.never)
	}
}

// withoutHTTP takes HTTP from every client until undionly.kpxe was fetched.
type withoutHTTP struct{ *rack }

func (w *withoutHTTP) Offer(ctx context.Context, c Client) (Answer, error) {
	c.HTTP = c.HTTP && w.has("tftp")
	return w.rack.Offer(ctx, c)
}

func (w *withoutHTTP) Request(ctx context.Context, c Client, a netip.Addr) (Answer, error) {
	c.HTTP = c.HTTP && w.has("tftp")
	return w.rack.Request(ctx, c, a)
}
