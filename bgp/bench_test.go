package bgp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/nstest"
)

// BenchmarkReflector has clients come up at once at a reflector, each with some
// prefixes, and measures until each has those of all others: for ours, BIRD,
// FRR and gobgpd in turns. RACKWEFT_BENCH_CLIENTS=50,200 has fewer of them,
// RACKWEFT_BENCH_RUNS=1 fewer runs.
func BenchmarkReflector(b *testing.B) {
	runs, _ := strconv.Atoi(os.Getenv("RACKWEFT_BENCH_RUNS"))
	runs = max(runs, 1)
	for _, clients := range []int{50, 200, 400} {
		if only := os.Getenv("RACKWEFT_BENCH_CLIENTS"); only != "" && !slices.Contains(strings.Split(only, ","), strconv.Itoa(clients)) {
			continue
		}
		for _, each := range []int{1, 5, 10} {
			taken := map[string][]cost{}
			for range runs {
				for _, d := range []string{"ours", allPaths, "bird", "frr", "gobgpd"} {
					taken[d] = append(taken[d], measure(b, d, clients, each))
				}
			}
			printBench(fmt.Sprintf("%dx%d", clients, each), taken)
		}
	}
}

// allPaths is ours with clients that ask for all paths (RFC 7911).
const allPaths = "all-paths"

// cost is what one run took of a daemon: until all had all, and what was
// resident once it had had the time to give back what only that took.
type cost struct{ converge, cpu, rss float64 } // seconds, seconds, MiB

// rest is that time.
const rest = 3 * time.Second

func printBench(shape string, taken map[string][]cost) {
	for _, m := range []struct {
		name, unit string
		bar        float64 // times BIRD's
		of         func(cost) float64
	}{
		{"convergence", "s", 1.2, func(c cost) float64 { return c.converge }},
		{"cpu", "s", 2, func(c cost) float64 { return c.cpu }},
		{"rss", "MiB", 4, func(c cost) float64 { return c.rss }},
	} {
		median := func(d string) float64 {
			var all []float64
			for _, c := range taken[d] {
				all = append(all, m.of(c))
			}
			slices.Sort(all)
			return all[len(all)/2]
		}
		ours, bird := median("ours"), median("bird")
		verdict := "ok"
		if ours > m.bar*bird {
			verdict = "short"
		}
		_, _ = fmt.Printf("BENCH bgp-reflector-%s-%s ours=%.2f%s bird=%.2f%s frr=%.2f%s gobgpd=%.2f%s all-paths=%.2f%s ratio=%.2f bar=<=%.1f %s\n",
			shape, m.name, ours, m.unit, bird, m.unit, median("frr"), m.unit, median("gobgpd"), m.unit, median(allPaths), m.unit, ours/bird, m.bar, verdict)
	}
}

// measure runs one daemon in a namespace of its own, with the clients on
// addresses of its loopback.
func measure(b *testing.B, daemon string, clients, each int) cost {
	nstest.Root(b, nstest.Namespaces)
	r := &rig{t: b, id: fmt.Sprintf("rwbench%d", os.Getpid()), hosts: map[string]*host{}}
	r.run("ip", "netns", "add", r.id+"r")
	defer func() { _ = exec.Command("ip", "netns", "del", r.id+"r").Run() }()
	h := &host{rig: r, name: "r", address: netip.MustParseAddr("198.18.0.1"), dir: b.TempDir()}
	r.run("ip", "-n", r.id+"r", "link", "set", "lo", "up")
	h.in("ip", "addr", "add", "198.18.0.1/32", "dev", "lo")
	h.in("ip", "route", "add", "local", "198.18.128.0/17", "dev", "lo")
	begin(b, h, daemon, clients, each)
	defer h.kill()
	s := &swarm{clients: clients, each: each, allPaths: daemon == allPaths}
	pid := h.process.Process.Pid // ip-netns(8) has become it
	time.Sleep(2 * time.Second)  // it is up
	before := cpuSeconds(b, pid)
	began := time.Now()
	var c cost
	err := s.run(r.id+"r", func() {
		c = cost{converge: time.Since(began).Seconds(), cpu: cpuSeconds(b, pid) - before}
		time.Sleep(rest)
		c.rss = residentMiB(b, pid)
	})
	if err != nil {
		b.Fatalf("%s, %d clients with %d prefixes: %v", daemon, clients, each, err)
	}
	return c
}

func clientAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, 128 + byte(i/250), byte(1 + i%250)})
}

func clientPrefix(i, j int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, byte(i >> 4), byte(i<<4 + j)}), 32)
}

func begin(b *testing.B, h *host, daemon string, clients, each int) {
	switch daemon {
	case "ours", allPaths:
		p := api.BGPPart{Zone: "bench", AllPaths: daemon == allPaths, ASN: zoneASN, RouterID: h.address, Role: api.BGPReflector, Community: mark, Listen: []netip.Addr{h.address}}
		for i := range clients {
			name := fmt.Sprintf("c%d", i)
			p.Neighbors = append(p.Neighbors, api.BGPNeighbor{Name: name, Address: clientAddress(i), ASN: zoneASN, Role: api.BGPClient, Passive: true, Hops: 2, Families: []string{"ipv4"}})
			a := api.BGPAccept{Client: name, NextHops: []netip.Addr{clientAddress(i)}}
			for j := range each {
				a.Prefixes = append(a.Prefixes, clientPrefix(i, j))
			}
			p.Accept = append(p.Accept, a)
		}
		h.give(p)
		h.speak()
		eventually(b, func() error {
			if got := len(h.status().Sessions); got != clients {
				return fmt.Errorf("%d sessions", got)
			}
			return nil
		})
	case "bird":
		text := fmt.Sprintf("router id %s;\nprotocol device { scan time 600; }\n", h.address)
		for i := range clients {
			text += fmt.Sprintf("protocol bgp c%d { local %s as %d; neighbor %s as %[3]d; rr client; passive; multihop 2; ipv4 { import all; export all; }; }\n", i, h.address, zoneASN, clientAddress(i))
		}
		h.begin(nil, need(b, "bird"), "-f", "-c", write(b, filepath.Join(h.dir, "bird.conf"), text), "-s", filepath.Join(h.dir, "ctl"))
	case "frr":
		conf := fmt.Sprintf("router bgp %d\n bgp router-id %s\n bgp listen limit 5000\n neighbor c peer-group\n neighbor c remote-as %[1]d\n bgp listen range 198.18.128.0/17 peer-group c\n address-family ipv4 unicast\n  neighbor c route-reflector-client\n  neighbor c activate\n", zoneASN, h.address)
		h.begin(nil, need(b, "/usr/lib/frr/bgpd"), "-Z", "-S", "-n", "-f", write(b, filepath.Join(h.dir, "bgpd.conf"), conf), "-i", filepath.Join(h.dir, "pid"), "--vty_socket", h.dir, "-P", "0")
	case "gobgpd":
		conf := fmt.Sprintf("[global.config]\n  as = %d\n  router-id = \"%s\"\n[[peer-groups]]\n  [peer-groups.config]\n    peer-group-name = \"c\"\n    peer-as = %[1]d\n  [peer-groups.route-reflector.config]\n    route-reflector-client = true\n    route-reflector-cluster-id = \"%[2]s\"\n[[dynamic-neighbors]]\n  [dynamic-neighbors.config]\n    prefix = \"198.18.128.0/17\"\n    peer-group = \"c\"\n", zoneASN, h.address)
		h.begin(nil, need(b, "gobgpd"), "-f", write(b, filepath.Join(h.dir, "gobgpd.toml"), conf), "--api-hosts", "127.0.0.1:50051")
	}
}

func cpuSeconds(b *testing.B, pid int) float64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(b, err)
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+2:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return float64(user+system) / 100 // USER_HZ
}

func residentMiB(b *testing.B, pid int) float64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	must(b, err)
	pages, _ := strconv.Atoi(strings.Fields(string(raw))[1])
	return float64(pages*os.Getpagesize()) / (1 << 20)
}

// swarm is the clients: they speak as little BGP as will do.
type swarm struct {
	clients, each int
	allPaths      bool
}

// run has all of them connect, and calls done once each has all routes: they stay
// connected until it returns.
func (s *swarm) run(namespace string, done func()) error {
	conns := make([]net.Conn, s.clients)
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	}()
	faults := make(chan error, s.clients)
	dialed := make(chan int, s.clients)
	var dialer error // read once dialed is closed
	go func() {
		defer close(dialed)
		dialer = s.dial(namespace, conns, dialed)
	}()
	var all sync.WaitGroup
	for i := range dialed {
		all.Go(func() {
			if err := s.client(i, conns[i]); err != nil {
				faults <- fmt.Errorf("client %d: %w", i, err)
			}
		})
	}
	all.Wait()
	close(faults)
	errs := []error{dialer}
	for err := range faults {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	done()
	return nil
}

// dial connects from the namespace, one after the other.
func (s *swarm) dial(namespace string, conns []net.Conn, dialed chan<- int) error {
	// The thread must not end: the daemon may have been begun on it, and would
	// end with it (Pdeathsig).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		return err
	}
	defer func() { _ = errors.Join(netns.Set(own), own.Close()) }()
	ns, err := netns.GetFromName(namespace)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	if err := netns.Set(ns); err != nil {
		return err
	}
	for i := range conns {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: clientAddress(i).AsSlice()}, Timeout: 10 * time.Second}
		if conns[i], err = d.Dial("tcp", "198.18.0.1:179"); err != nil {
			return err
		}
		dialed <- i
	}
	return nil
}

func message(typ byte, body []byte) []byte {
	b := bytes.Repeat([]byte{0xff}, 16)
	b = binary.BigEndian.AppendUint16(b, uint16(19+len(body)))
	return append(append(b, typ), body...)
}

func (s *swarm) client(i int, c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		return err
	}
	id := clientAddress(i).AsSlice()
	asn := binary.BigEndian.AppendUint32(nil, zoneASN)
	capabilities := append([]byte{2, 12, 1, 4, 0, 1, 0, 1, 65, 4}, asn...)
	if s.allPaths {
		capabilities = append(capabilities, 69, 4, 0, 1, 1, 1) // ADD-PATH: receive IPv4 unicast
		capabilities[1] += 6
	}
	open := append([]byte{4, 0xfc, 0x59, 0, 180}, id...) // AS 64601, hold time
	open = append(append(open, byte(len(capabilities))), capabilities...)
	if _, err := c.Write(append(message(1, open), message(4, nil)...)); err != nil {
		return err
	}
	attrs := append([]byte{0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4}, id...)
	attrs = append(attrs, 0x40, 5, 4, 0, 0, 0, 100)
	update := append([]byte{0, 0}, binary.BigEndian.AppendUint16(nil, uint16(len(attrs)))...)
	update = append(update, attrs...)
	for j := range s.each {
		a := clientPrefix(i, j).Addr().As4()
		update = append(append(update, 32), a[:]...)
	}
	told := false
	seen := map[[4]byte]bool{}
	header := make([]byte, 19)
	for len(seen) < (s.clients-1)*s.each {
		if _, err := io.ReadFull(c, header); err != nil {
			return fmt.Errorf("has %d of %d: %w", len(seen), (s.clients-1)*s.each, err)
		}
		body := make([]byte, int(binary.BigEndian.Uint16(header[16:]))-19)
		if _, err := io.ReadFull(c, body); err != nil {
			return err
		}
		switch header[18] {
		case 4:
			if !told {
				told = true
				if _, err := c.Write(message(2, update)); err != nil {
					return err
				}
			}
		case 2:
			s.count(body, seen)
		case 3:
			return fmt.Errorf("notification %v", body)
		}
	}
	return nil
}

// count notes the prefixes of an update (RFC 4271, section 4.3), all /32 and
// with a path's identifier before it where all paths are told.
func (s *swarm) count(body []byte, seen map[[4]byte]bool) {
	withdrawn := int(binary.BigEndian.Uint16(body))
	attrs := int(binary.BigEndian.Uint16(body[2+withdrawn:]))
	identifier := 0
	if s.allPaths {
		identifier = 4
	}
	for nlri := body[4+withdrawn+attrs:]; len(nlri) >= identifier+5; nlri = nlri[identifier+5:] {
		seen[[4]byte(nlri[identifier+1:identifier+5])] = true
	}
}
