package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/flanneltest"
	"github.com/rackweft/rackweft/internal/namespace"
	"github.com/rackweft/rackweft/nodeagent"
)

// BenchmarkOverlay is `make bench-overlay`. BENCH lines go to standard output,
// what explains them to standard error; the runs of both sides take turns.
func BenchmarkOverlay(b *testing.B) {
	b.Run("program", benchmarkProgram)
	b.Run("reconcile", benchmarkReconcile)
	b.Run("change", benchmarkChange)
	b.Run("networks", benchmarkNetworks)
	b.Run("data", benchmarkData)
}

func remark(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// figure prints a line; the bar is an upper one with "<=", a lower one with ">=".
func figure(name, unit string, ours float64, peer string, theirs, ratio float64, op string, bar float64) {
	verdict := "short"
	if op == "<=" && ratio <= bar || op == ">=" && ratio >= bar {
		verdict = "ok"
	}
	fmt.Printf("BENCH overlay-%s ours=%.4g%s %s=%.4g%s ratio=%.2f bar=%s%.2f %s\n", name, ours, unit, peer, theirs, unit, ratio, op, bar, verdict)
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// benchmarkProgram is from the start of a process until the kernel has the
// routes to all of a Network's hosts: nodeagent with its HostSpec in the cache,
// flanneld with the leases in an etcd on the same host.
func benchmarkProgram(b *testing.B) {
	stock := flanneltest.Binary(b)
	for _, c := range []struct {
		hosts, runs int
		bar         float64
	}{{1000, 3, 1}, {5000, 3, 10}} {
		var ours, theirs []float64
		for range c.runs {
			ours = append(ours, programAgent(b, c.hosts))
			theirs = append(theirs, programFlanneld(b, stock, c.hosts))
		}
		remark("%d hosts: nodeagent %.3v s, flanneld %.3v s", c.hosts, ours, theirs)
		figure(fmt.Sprintf("program-%d", c.hosts), "s", median(ours), "flanneld", median(theirs), median(theirs)/median(ours), ">=", c.bar)
	}
}

func programAgent(b *testing.B, hosts int) float64 {
	h := newFabric(b, 1, false).hosts[0]
	agent := newAgent(b, h)
	agent.cache(manyPeers(red(), hosts))
	start := time.Now()
	agent.start()
	until(b, func() bool {
		p, err := openPlace(h.tenantPath(red()))
		if err != nil {
			return false // not there yet
		}
		defer p.close()
		return p.hasRoutes(vxlanName(red().vni), hosts)
	})
	took := time.Since(start).Seconds()
	agent.kill()
	return took
}

func programFlanneld(b *testing.B, binary string, hosts int) float64 {
	f := newFabric(b, 1, false)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	s := &stockHost{testHost: f.hosts[0], network: red(), index: 1, ctx: ctx}
	s.etcd = startEtcd(b, s.place)
	s.put("config", `{"Network": "10.0.0.0/8", "SubnetLen": 24, "SubnetMin": "10.200.0.0", "SubnetMax": "10.200.0.0", "Backend": {"Type": "vxlan", "VNI": 101, "Port": 8472}}`)
	for some := range slices.Chunk(manyPeers(red(), hosts).Value.(*api.NetworkPart).Peers, 100) {
		var ops []clientv3.Op
		for _, p := range some {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("/coreos.com/network/red/subnets/%s-24", p.Lease.Addr()),
				fmt.Sprintf(`{"PublicIP": %q, "BackendType": "vxlan", "BackendData": {"VNI": 101, "VtepMAC": %q}}`, p.VTEP, p.MAC)))
		}
		_, err := s.etcd.Txn(ctx).Then(ops...).Commit()
		must(b, err)
	}
	log, err := os.Create(filepath.Join(b.TempDir(), "flanneld.log"))
	must(b, err)
	defer func() { _ = log.Close() }()
	cmd := exec.Command(binary, "-etcd-endpoints=http://127.0.0.1:2379", "-etcd-prefix=/coreos.com/network/red",
		"-iface=eth0", "-iptables-forward-rules=false", "-subnet-file="+filepath.Join(b.TempDir(), "subnet.env"))
	cmd.Stdout, cmd.Stderr = log, log
	start := time.Now()
	must(b, within(s.ns, cmd.Start))
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	until(b, func() bool { return s.hasRoutes("flannel.101", hosts) })
	return time.Since(start).Seconds()
}

func until(b *testing.B, is func() bool) {
	b.Helper()
	for end := time.Now().Add(3 * time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatal("it takes more than three minutes")
		}
	}
}

// hasRoutes reports whether an interface has as many routes with a length of
// 24. It lists them, which costs the measured process its time, only when one of
// the last peers is reached already.
func (p place) hasRoutes(name string, want int) bool {
	last := netip.AddrFrom4([4]byte{10, byte((want - 1) >> 8), byte(want - 1), 1})
	if _, err := p.RouteGet(last.AsSlice()); err != nil {
		return false
	}
	l, err := p.LinkByName(name)
	if err != nil {
		return false
	}
	routes, err := p.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: l.Attrs().Index}, netlink.RT_FILTER_OIF)
	if err != nil {
		return false // changed while they were read
	}
	count := 0
	for _, r := range routes {
		if toPrefix(r.Dst).Bits() == 24 {
			count++
		}
	}
	return count >= want
}

// benchmarkReconcile is a full list and diff that finds nothing to do.
func benchmarkReconcile(b *testing.B) {
	const bar = 100 // ms
	for _, c := range []struct {
		hosts int
		name  string
	}{{2500, "reconcile-10000-entries"}, {10000, ""}} {
		h := newFabric(b, 1, false).hosts[0]
		part := manyPeers(red(), c.hosts)
		h.reconcile(part)
		var took []float64
		for range 15 {
			start := time.Now()
			h.reconcile(part)
			took = append(took, float64(time.Since(start).Microseconds())/1000)
		}
		entries := h.overlay.Stats()[0].Entries
		remark("a pass over %d hosts, %d entries: %.1f ms", c.hosts, entries, median(took))
		if c.name != "" {
			figure(c.name, "ms", median(took), "limit", bar, median(took)/bar, "<=", 1)
		}
	}
}

// benchmarkChange is one more host in a Network of fifty, on each of which the
// kernel is to have it: all at once, on this one machine. The time that bootd
// takes to tell them is measured by BenchmarkChange of package hostspec; the
// sum of both at their 99th percentiles is the figure.
func benchmarkChange(b *testing.B) {
	const hosts, changes = 50, 20
	f := newFabric(b, hosts, false)
	f.reconcile(red())
	var took []float64
	var mu sync.Mutex
	for change := range changes {
		var parts []nodeagent.Part
		for i := range f.hosts {
			p := f.part(red(), i+1)
			value := p.Value.(*api.NetworkPart)
			value.Peers = append(value.Peers, manyPeers(red(), change+1).Value.(*api.NetworkPart).Peers...)
			p.Digest = fmt.Sprint("change ", change)
			parts = append(parts, p)
		}
		start := time.Now()
		var all sync.WaitGroup
		for i, h := range f.hosts {
			all.Go(func() {
				status := h.overlay.Reconcile(context.Background(), parts[i:i+1])
				if status[parts[i].Key()].State != api.PartApplied {
					b.Errorf("%s: %+v", h.name, status)
				}
				mu.Lock()
				defer mu.Unlock()
				took = append(took, time.Since(start).Seconds())
			})
		}
		all.Wait()
	}
	slices.Sort(took)
	fmt.Printf("PART overlay-change-50 %.4f\n", took[len(took)*99/100])
	remark("from a change that 50 hosts have been told of to programmed on the last of them: median %.3f s, p99 %.3f s", median(took), took[len(took)*99/100])
}

// benchmarkNetworks is 500 Networks of three hosts on one of them: until they
// are up; a pass that finds nothing to do, which must
// fit between two; and what nodeagent holds for each.
func benchmarkNetworks(b *testing.B) {
	const count = 500
	const interval = 30 // seconds between two passes
	f := newFabric(b, 3, false)
	h := f.hosts[0]
	agent := newAgent(b, h)
	var parts, tombstones []nodeagent.Part
	for i := range count {
		n := tenant{name: fmt.Sprint("t", i), uid: fmt.Sprint("uid-", i), vni: uint32(2000 + i), second: 5}
		parts, tombstones = append(parts, f.part(n, 1)), append(tombstones, removed(n))
	}
	var ours []float64
	for range 3 {
		start := time.Now()
		h.reconcile(parts...)
		ours = append(ours, time.Since(start).Seconds())
		if len(ours) < 3 {
			h.reconcile(tombstones...)
		}
	}
	remark("500 Networks up: %.3v s; by ip(8), without filters: %.3v s", ours, networksByHand(b, f, parts))
	figure("networks-500-up", "s", median(ours), "limit", interval, median(ours)/interval, "<=", 1)
	var took []float64
	for range 3 {
		start := time.Now()
		h.reconcile(parts...)
		took = append(took, time.Since(start).Seconds())
	}
	figure("networks-500-pass", "s", median(took), "limit", interval, median(took)/interval, "<=", 1)

	resident := func(parts ...nodeagent.Part) float64 {
		agent.cache(parts...)
		agent.start()
		defer agent.kill()
		agent.settled()
		time.Sleep(2 * time.Second) // the runtime gives back what the start took
		return residentKiB(b, agent.cmd.Process.Pid)
	}
	one, all := resident(parts[0]), resident(parts...)
	each := (all - one) / (count - 1)
	remark("nodeagent holds %.1f MiB with one Network, %.1f MiB with %d", one/1024, all/1024, count)
	figure("memory-per-network", "KiB", each, "limit", 100, each/100, "<=", 1)
}

func residentKiB(b *testing.B, pid int) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(b, err)
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	must(b, err)
	return float64(kib)
}

// networksByHand makes namespaces, bridges, VXLANs and peers as a script would,
// and takes them away again.
func networksByHand(b *testing.B, f *fabric, parts []nodeagent.Part) float64 {
	b.Helper()
	h := f.hosts[1]
	dir := b.TempDir()
	start := time.Now()
	for i, part := range parts {
		value := *part.Value.(*api.NetworkPart)
		value.VNI += 100000
		f.byHand(h, filepath.Join(dir, strconv.Itoa(i)), value)
	}
	took := time.Since(start).Seconds()
	for i := range parts {
		must(b, namespace.Unpin(filepath.Join(dir, strconv.Itoa(i))))
	}
	_ = unix.Unmount(dir, unix.MNT_DETACH)
	return took
}

// byHand makes one Network with ip(8) and bridge(8) alone.
func (f *fabric) byHand(h *testHost, path string, n api.NetworkPart) {
	f.t.Helper()
	must(f.t, namespace.Pin(path))
	ns, err := openNamespace(path)
	must(f.t, err)
	defer func() { _ = ns.Close() }()
	f.ip(int(h.ns), fmt.Sprintf("link add vx%[1]d type vxlan id %[1]d dstport %[2]d local %[3]s dev eth0 nolearning\nlink set vx%[1]d address %[4]s mtu %[5]d netns /proc/%[6]d/fd/%[7]d\n",
		n.VNI, Port, h.underlay, n.MAC, n.MTU, os.Getpid(), int(ns)))
	var script strings.Builder
	fmt.Fprintf(&script, "link set lo up\nlink add br0 type bridge\nlink set br0 mtu %d up\nlink set vx%d up\naddr add %s/32 dev vx%d\naddr add %s/24 dev br0\naddr add %s dev br0\n",
		n.MTU, n.VNI, n.Lease.Addr(), n.VNI, first(n.Lease), gatewayAddress())
	for _, p := range n.Peers {
		fmt.Fprintf(&script, "neigh replace %[1]s lladdr %[2]s dev vx%[3]d nud permanent\nroute replace %[4]s via %[1]s dev vx%[3]d onlink\n", p.Lease.Addr(), p.MAC, n.VNI, p.Lease)
	}
	f.ip(int(ns), script.String())
	must(f.t, within(ns, func() error {
		for _, p := range n.Peers {
			if out, err := exec.Command("bridge", "fdb", "replace", string(p.MAC), "dev", fmt.Sprint("vx", n.VNI), "dst", p.VTEP.String()).CombinedOutput(); err != nil {
				return fmt.Errorf("bridge fdb: %w: %s", err, out)
			}
		}
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
	}))
}

// ip runs a batch in a namespace of which fd is this process's.
func (f *fabric) ip(fd int, batch string) {
	f.t.Helper()
	cmd := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), fd), "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(batch)
	if out, err := cmd.CombinedOutput(); err != nil {
		f.t.Fatalf("ip -batch: %v: %s\n%s", err, out, batch)
	}
}

// span is a pair of guests on two hosts.
type span struct {
	from, to end
}

// benchmarkData is what goes between guests of two hosts: TCP and small UDP, by
// the same namespaces, bridges and VXLANs that ip(8) makes, by ours without our
// filters, and with them.
func benchmarkData(b *testing.B) {
	const runs = 9
	f := newFabric(b, 4, false)
	handmade, off, on := f.handmade(), red(), tenant{name: "white", uid: "uid-white", vni: 77, second: 7}
	for i, h := range f.hosts[:2] {
		h.reconcile(f.part(off, i+1), f.part(on, i+1))
	}
	spans := map[string]span{"by-hand": handmade, "off": f.filtered(off), "on": f.filtered(on)}
	f.unfiltered(off)
	taken := map[string][]float64{}
	for range runs {
		for _, name := range []string{"by-hand", "off", "on"} {
			taken["tcp "+name] = append(taken["tcp "+name], spans[name].tcp(b))
			taken["udp "+name] = append(taken["udp "+name], spans[name].udp(b))
		}
	}
	for _, c := range []struct {
		kind, unit string
	}{{"tcp", "Gbit/s"}, {"udp64", "kpps"}} {
		key := strings.TrimSuffix(c.kind, "64")
		for _, filters := range []struct {
			name string
			bar  float64
		}{{"off", 0.95}, {"on", 0.90}} {
			remark("%s: filters %s: %.3v %s; by hand %.3v", c.kind, filters.name, taken[key+" "+filters.name], c.unit, taken[key+" by-hand"])
			ours, peer := median(taken[key+" "+filters.name]), median(taken[key+" by-hand"])
			figure(c.kind+"-filters-"+filters.name, c.unit, ours, "by-hand", peer, ours/peer, ">=", filters.bar)
		}
	}
}

// handmade are guests of a Network that ip(8) made on hosts 3 and 4.
func (f *fabric) handmade() span {
	f.t.Helper()
	n := tenant{name: "hand", uid: "uid-hand", vni: 55, second: 9}
	var ends [2]end
	for i, h := range f.hosts[2:4] {
		value := *f.part(n, i+3).Value.(*api.NetworkPart)
		path := filepath.Join(f.dir, fmt.Sprint("hand", i))
		f.byHand(h, path, value)
		f.t.Cleanup(func() { _ = namespace.Unpin(path) })
		p, err := openPlace(path)
		must(f.t, err)
		f.t.Cleanup(p.close)
		ends[i] = f.wired(n, i+3, p, "br0", "tap0")
	}
	return span{ends[0], ends[1]}
}

// filtered are guests on hosts 1 and 2 by veth pairs that bear their taps'
// names, which have their filters: a tap's own queue would measure the test.
func (f *fabric) filtered(n tenant) span {
	f.t.Helper()
	var ends [2]end
	for i, h := range f.hosts[:2] {
		uid := fmt.Sprint("uid-", n.name, "-", i)
		ends[i] = f.wired(n, i+1, h.tenant(n), bridgeName(n.vni), tapName(uid))
		nic, err := ends[i].LinkByName("eth0")
		must(f.t, err)
		h.ports = append(h.ports, nodeagent.Port{Network: n.name, Guest: uid, UID: uid,
			MAC: api.MAC(nic.Attrs().HardwareAddr.String()), Addresses: []netip.Addr{ends[i].addr}})
		h.overlay.SetPorts(h.ports)
		if !slices.ContainsFunc(h.overlay.Stats(), func(s Stats) bool { return s.Network == n.name && len(s.Ports) == 1 }) {
			f.t.Fatalf("the guest of %s on %s has no filter", n.name, h.name)
		}
	}
	return span{ends[0], ends[1]}
}

// unfiltered takes all rules away from the Network's namespaces.
func (f *fabric) unfiltered(n tenant) {
	f.t.Helper()
	for _, h := range f.hosts[:2] {
		c := h.tenant(n).nft(f.t)
		c.FlushRuleset()
		must(f.t, c.Flush())
	}
}

// wired is a guest behind a port of a bridge.
func (f *fabric) wired(n tenant, i int, tenant place, bridge, port string) end {
	f.t.Helper()
	g := f.namespace(fmt.Sprintf("wired-%s-%d", n.name, i))
	f.plug(g, "eth0", tenant, port, bridge)
	b := n.lease(i).Addr().As4()
	b[3] = 8
	e := end{g, netip.AddrFrom4(b)}
	l, err := g.LinkByName("eth0")
	must(f.t, err)
	must(f.t, g.LinkSetMTU(l, underlayMTU-overheadIPv4))
	f.ip(int(g.ns), fmt.Sprintf("addr add %s/32 dev eth0\nroute add %[2]s dev eth0 scope link\nroute add default via %[2]s dev eth0\n", e.addr, gatewayAddress().Addr()))
	f.ip(int(tenant.ns), fmt.Sprintf("neigh replace %s lladdr %s dev %s nud permanent\n", e.addr, l.Attrs().HardwareAddr, bridge))
	return e
}

const dataTime = time.Second

// tcp answers Gbit/s.
func (r span) tcp(b *testing.B) float64 {
	b.Helper()
	var listener net.Listener
	must(b, within(r.to.ns, func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(r.to.addr, 0).String())
		return err
	}))
	defer func() { _ = listener.Close() }()
	got := make(chan int64, 1)
	go func() {
		c, err := listener.Accept()
		if err != nil {
			got <- 0
			return
		}
		defer func() { _ = c.Close() }()
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}()
	var c net.Conn
	must(b, within(r.from.ns, func() (err error) {
		c, err = (&net.Dialer{Timeout: patience}).Dial("tcp4", listener.Addr().String())
		return err
	}))
	buf := make([]byte, 1<<18)
	start := time.Now()
	for time.Since(start) < dataTime {
		_, err := c.Write(buf)
		must(b, err)
	}
	must(b, c.Close())
	n := <-got
	return float64(n) * 8 / time.Since(start).Seconds() / 1e9
}

// udp answers thousands of datagrams of 64 bytes that arrived in a second.
func (r span) udp(b *testing.B) float64 {
	b.Helper()
	var in net.PacketConn
	must(b, within(r.to.ns, func() (err error) {
		in, err = net.ListenPacket("udp4", netip.AddrPortFrom(r.to.addr, 0).String())
		return err
	}))
	var out net.Conn
	must(b, within(r.from.ns, func() (err error) {
		out, err = net.Dial("udp4", in.LocalAddr().String())
		return err
	}))
	got := make(chan int, 1)
	go func() {
		count, buf := 0, make([]byte, 128)
		for {
			if _, _, err := in.(*net.UDPConn).ReadFromUDPAddrPort(buf); err != nil {
				got <- count
				return
			}
			count++
		}
	}()
	buf := make([]byte, 64)
	start := time.Now()
	for time.Since(start) < dataTime {
		if _, err := out.Write(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
			b.Fatal(err)
		}
	}
	took := time.Since(start).Seconds()
	must(b, errors.Join(out.Close(), in.Close()))
	return float64(<-got) / took / 1000
}
