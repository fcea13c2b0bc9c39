package overlay

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait/waittest"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/wireguard"
	"github.com/rackweft/rackweft/nodeagent/wireguard/wgtest"
)

// sealedHost is a host whose underlay is encrypted.
type sealedHost struct {
	*testHost
	key       *ecdh.PrivateKey
	driver    wireguard.Driver
	encrypter nodeagent.Encrypter
	log       bytes.Buffer
}

// sealedFabric is a fabric whose first hosts have keys; it has one more, which
// nobody knows.
type sealedFabric struct {
	*fabric
	members []*sealedHost
	wire    *wire
	v6      bool
}

func newSealedFabric(t *testing.T, members int, v6 bool) *sealedFabric {
	f := &sealedFabric{fabric: newFabric(t, members+1, v6), v6: v6}
	for _, h := range f.hosts[:members] {
		s := &sealedHost{testHost: h, key: newKey(t), driver: wgtest.Driver(t)}
		s.restart()
		f.members = append(f.members, s)
	}
	f.wire = f.tap()
	return f
}

func newKey(t *testing.T) *ecdh.PrivateKey {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	b[0] &= 248
	b[31] = b[31]&127 | 64
	key, err := ecdh.X25519().NewPrivateKey(b)
	must(t, err)
	return key
}

// restart is a new agent.
func (s *sealedHost) restart() {
	s.testHost.restart()
	s.log.Reset()
	s.encrypter = s.overlay.Guard(wireguard.New(s.driver, slog.New(slog.NewTextHandler(&s.log, nil))))
}

// underlayOf is what bootd tells of a host's underlay; hosts without a key are
// left out.
func (f *sealedFabric) underlayOf(s *sealedHost, encrypted bool) api.Underlay {
	u := api.Underlay{Interface: "eth0", Addresses: []netip.Addr{s.underlay}}
	if !encrypted {
		return u
	}
	u.Encryption = &api.Encryption{Port: api.WireGuardPort}
	for _, o := range f.members {
		if o != s && o.key != nil {
			u.Encryption.Peers = append(u.Encryption.Peers, api.EncryptionPeer{Host: o.name,
				PublicKey: base64.StdEncoding.EncodeToString(o.key.PublicKey().Bytes()), Addresses: []netip.Addr{o.underlay}})
		}
	}
	return u
}

// encrypt is the base part's pass.
func (s *sealedHost) encrypt(u api.Underlay) error {
	key := s.key
	return within(s.ns, func() error { return s.encrypter.Encrypt(context.Background(), key, u) })
}

// pass is one of both parts on every member.
func (f *sealedFabric) pass(encrypted bool, networks ...tenant) {
	f.t.Helper()
	for i, s := range f.members {
		if s.key == nil {
			continue
		}
		u := f.underlayOf(s, encrypted)
		must(f.t, s.encrypt(u))
		s.overlay.SetUnderlay(u)
		s.reconcile(f.sealedParts(i+1, encrypted, networks)...)
	}
}

// sealedParts leave the MTU to the host, and know nothing of the stranger. That
// they ask for direct routes must not count where these would be in clear.
func (f *sealedFabric) sealedParts(i int, encrypted bool, networks []tenant) []nodeagent.Part {
	var parts []nodeagent.Part
	for _, n := range networks {
		p := withoutPeer(f.part(n, i), f.hosts[len(f.hosts)-1].name)
		part := p.Value.(*api.NetworkPart)
		part.MTU, part.Direct = 0, encrypted && n.name == red().name
		parts = append(parts, p)
	}
	return parts
}

// reaches pings from each member to each, with packets as large as they may be.
func (f *sealedFabric) reaches(n tenant) {
	f.t.Helper()
	for i, from := range f.members {
		p := newPinger(f.t, from.tenant(n).ns, first(n.lease(i+1)))
		l, err := from.tenant(n).LinkByName(vxlanName(n.vni))
		must(f.t, err)
		for j := range f.members {
			if err := p.ping(first(n.lease(j+1)), l.Attrs().MTU-28, patience); err != nil {
				f.t.Fatalf("%s: %s does not reach h%d: %v", n.name, from.name, j+1, err)
			}
		}
	}
}

// wire sees every frame between the hosts.
type wire struct {
	mu     sync.Mutex
	inner  int // frames that a tenant's words are in
	clear  int // VXLAN packets
	sealed int // WireGuard's
	marked map[string]bool
	marks  int // calls of since
}

const words = "what a tenant says to its own"

func (f *sealedFabric) tap() *wire {
	f.t.Helper()
	var fd int
	must(f.t, within(f.bridge.ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		return err
	}))
	timeout := unix.NsecToTimeval(int64(20 * time.Millisecond))
	must(f.t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	w := &wire{marked: map[string]bool{}}
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		b := make([]byte, 65536)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err == nil {
				w.saw(b[:n])
			}
		}
	})
	f.t.Cleanup(func() { close(stop); reader.Wait(); _ = unix.Close(fd) })
	return w
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (w *wire) saw(frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if bytes.Contains(frame, []byte(words)) {
		w.inner++
	}
	if at := bytes.Index(frame, []byte("<mark ")); at >= 0 {
		mark, _, _ := bytes.Cut(frame[at:], []byte(">"))
		w.marked[string(mark)+">"] = true
	}
	udp := 14 + 20
	if len(frame) > 14 && frame[14]>>4 == 6 {
		udp = 14 + 40
	}
	if len(frame) < udp+8 {
		return
	}
	switch uint16(frame[udp+2])<<8 | uint16(frame[udp+3]) {
	case Port:
		w.clear++
	case api.WireGuardPort:
		w.sealed++
	}
}

// after is since, when there must have been something.
func (f *sealedFabric) after() (inner, clear, sealed int) {
	w := f.wire
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		w.mu.Lock()
		seen := w.clear + w.sealed
		w.mu.Unlock()
		if seen > 0 {
			break
		}
	}
	return f.since()
}

// since answers what was seen since the last call, once all that was sent
// before it has been: each member's mark goes the way that its VXLAN packets
// would go in clear, behind them.
func (f *sealedFabric) since() (inner, clear, sealed int) {
	f.t.Helper()
	w := f.wire
	w.marks++
	var marks []string
	for i, from := range f.members {
		for j, to := range f.members {
			if i != j {
				mark := fmt.Sprintf("<mark %d of h%d for h%d>", w.marks, i+1, j+1)
				sendTo(f.t, from.place, netip.AddrPortFrom(to.underlay, 9), []byte(mark))
				marks = append(marks, mark)
			}
		}
	}
	waittest.Until(f.t, patience, "every mark is on the wire", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return !slices.ContainsFunc(marks, func(m string) bool { return !w.marked[m] })
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	inner, clear, sealed = w.inner, w.clear, w.sealed
	w.inner, w.clear, w.sealed = 0, 0, 0
	return inner, clear, sealed
}

// say has every member send words to every other, in a Network.
func (f *sealedFabric) say(n tenant) {
	f.t.Helper()
	for i, s := range f.members {
		var to []netip.Addr
		for j := range f.members {
			if j != i {
				to = append(to, first(n.lease(j+1)))
			}
		}
		send(f.t, s.tenant(n), words, to)
	}
}

// nothingInClear wants sealed packets only.
func (f *sealedFabric) nothingInClear(when string) {
	f.t.Helper()
	if inner, clear, sealed := f.after(); inner != 0 || clear != 0 || sealed == 0 {
		f.t.Errorf("%s: %d frames with a tenant's words and %d VXLAN packets on the wire, %d sealed", when, inner, clear, sealed)
	}
}

func TestEncryptedUnderlay(t *testing.T) {
	if testing.Short() {
		t.Skip("encrypts in user space, which takes seconds")
	}
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprint("v6=", v6), func(t *testing.T) { testEncryptedUnderlay(t, v6) })
	}
}

func testEncryptedUnderlay(t *testing.T, v6 bool) {
	f := newSealedFabric(t, 3, v6)
	both := []tenant{red(), blue()}
	f.pass(false, both...)
	before := map[string]bool{}
	for _, s := range f.members {
		before[s.summaryOf()] = true
	}
	f.since()
	f.say(red())
	if inner, clear, sealed := f.after(); inner == 0 || clear == 0 || sealed != 0 {
		t.Fatalf("%d frames with words, %d of VXLAN, %d sealed in a Zone without encryption: the wire is not seen", inner, clear, sealed)
	}
	vxlan := f.vxlanIndex(red())

	// Switched on: the devices of the Networks stay, and all goes on.
	f.pass(true, both...)
	f.since()
	for _, n := range both {
		f.reaches(n)
		f.say(n)
	}
	f.nothingInClear("encrypted")
	if now := f.vxlanIndex(red()); now != vxlan {
		t.Error("the Network's device was made anew")
	}
	f.strangersAreNotHeard()
	f.restartsUnderTraffic(both)

	// Another key: the others follow, whichever hears of it first.
	f.members[1].key = newKey(t)
	f.pass(true, both...)
	f.reaches(red())

	f.driftIsMended(both)
	f.portIsClosed(both)
	f.hostWithoutKey(both)

	// Switched off, nothing is left.
	f.members[2].key = newKey(t)
	f.pass(false, both...)
	f.since()
	f.reaches(red())
	if _, clear, sealed := f.after(); clear == 0 || sealed != 0 {
		t.Errorf("switched off: %d packets of VXLAN, %d sealed", clear, sealed)
	}
	for _, s := range f.members {
		if after := s.summaryOf(); !before[after] {
			t.Errorf("%s: left is\n%s", s.name, after)
		}
	}
}

func (f *sealedFabric) vxlanIndex(n tenant) int {
	f.t.Helper()
	l, err := f.members[0].tenant(n).LinkByName(vxlanName(n.vni))
	must(f.t, err)
	return l.Attrs().Index
}

// summaryOf tells of links, rules and routes in the host's namespace.
func (s *sealedHost) summaryOf() string {
	t := s.fabric.t
	t.Helper()
	var b strings.Builder
	links, err := s.LinkList()
	must(t, err)
	for _, l := range links {
		fmt.Fprintln(&b, l.Type(), l.Attrs().Name, l.Attrs().Alias)
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := s.RuleList(family)
		must(t, err)
		fmt.Fprintln(&b, rules)
		routes, err := s.RouteListFiltered(family, &netlink.Route{Protocol: Protocol, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		must(t, err)
		fmt.Fprintln(&b, len(routes))
	}
	return b.String() + s.rules(t)
}

// strangersAreNotHeard: VXLAN in clear is dropped, even by the address of a peer.
func (f *sealedFabric) strangersAreNotHeard() {
	t := f.t
	t.Helper()
	h, stranger := f.members[0], f.hosts[len(f.hosts)-1]
	guest, addr := f.guest(red(), 1, 8)
	heard := listen(t, guest)
	packet := func(text string) []byte {
		var vtep mac
		copy(vtep[:], red().mac(1).HardwareAddr())
		return vxlanPacket(red().vni, vtep, netip.MustParseAddr("10.5.2.8"), addr, text)
	}
	f.spoof(stranger, f.members[1].underlay, h)
	sendBy(t, stranger.place, f.members[1].underlay, netip.AddrPortFrom(h.underlay, Port), packet("clear, by a peer's address"))
	sendTo(t, stranger.place, netip.AddrPortFrom(h.underlay, Port), packet("clear"))
	// By the peer itself it is sealed, and taken.
	sendTo(t, f.members[1].place, netip.AddrPortFrom(h.underlay, Port), packet("sealed"))
	if got := heardSoon(heard, "sealed"); len(got) != 1 {
		t.Errorf("heard %q, want what was sealed only", got)
	}
}

// spoof lets a host send by the address of another to a victim, without
// anybody's neighbour tables noticing.
func (f *sealedFabric) spoof(h *testHost, as netip.Addr, victim *sealedHost) {
	t := f.t
	t.Helper()
	_, err := setSysctls(h.ns, []sysctl{{"net/ipv4/conf/all/arp_ignore", "8"}})
	must(t, err)
	h.address("lo", netip.PrefixFrom(as, as.BitLen()))
	from, err := h.LinkByName("eth0")
	must(t, err)
	to, err := victim.LinkByName("eth0")
	must(t, err)
	must(t, h.NeighSet(&netlink.Neigh{LinkIndex: from.Attrs().Index, State: netlink.NUD_PERMANENT, IP: victim.underlay.AsSlice(), HardwareAddr: to.Attrs().HardwareAddr}))
}

// restartsUnderTraffic: new agents touch nothing.
func (f *sealedFabric) restartsUnderTraffic(networks []tenant) {
	t := f.t
	t.Helper()
	f.pass(true, networks...)
	stop := traffic(t, way{f.members[0].tenant(red()).ns, first(red().lease(1)), first(red().lease(2)), 56})
	for range 10 {
		for _, s := range f.members {
			s.restart()
		}
		f.pass(true, networks...)
		for _, s := range f.members {
			if s.log.Len() > 0 {
				t.Errorf("%s: %s", s.name, s.log.String())
			}
		}
	}
	stop(20)
}

// driftIsMended: whatever is broken, nothing goes out in clear, and it is mended.
func (f *sealedFabric) driftIsMended(networks []tenant) {
	s := f.members[0]
	family := unix.AF_INET
	if f.v6 {
		family = unix.AF_INET6
	}
	for name, harm := range map[string]func() error{
		"no device": func() error {
			l, err := s.LinkByName(wireguard.Name)
			if err != nil {
				return err
			}
			return s.LinkDel(l)
		},
		"device down": func() error {
			l, err := s.LinkByName(wireguard.Name)
			if err != nil {
				return err
			}
			return s.LinkSetDown(l)
		},
		"no rule": func() error {
			rules, err := s.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range rules {
				if r.Protocol == Protocol {
					r.Family = family
					return s.RuleDel(&r)
				}
			}
			return fmt.Errorf("there is no rule in %v", rules)
		},
		"no routes": func() error {
			routes, err := s.RouteListFiltered(family, &netlink.Route{Protocol: Protocol, Table: 8472}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
			if err != nil || len(routes) != 2 {
				return fmt.Errorf("%d routes: %w", len(routes), err)
			}
			for _, r := range routes {
				if err := s.RouteDel(&r); err != nil {
					return err
				}
			}
			return nil
		},
		"another peer, another port": func() error {
			other := f.underlayOf(s, true)
			other.Encryption.Port = 9
			other.Encryption.Peers = []api.EncryptionPeer{{Host: "x", PublicKey: base64.StdEncoding.EncodeToString(newKey(f.t.(*testing.T)).PublicKey().Bytes()),
				Addresses: []netip.Addr{f.members[1].underlay}}}
			return s.encrypt(other)
		},
	} {
		must(f.t, harm())
		f.since()
		send(f.t, s.tenant(red()), words, []netip.Addr{first(red().lease(2)), first(red().lease(3))})
		if inner, clear, _ := f.since(); inner != 0 || clear != 0 {
			f.t.Errorf("%s: %d frames with a tenant's words, %d of VXLAN on the wire", name, inner, clear)
		}
		f.pass(true, networks...)
		f.t.Log("mended: " + name)
		f.reaches(red())
		if s.log.Len() == 0 {
			f.t.Errorf("%s: nothing is said of a repair", name)
		}
		s.log.Reset()
	}
}

// portIsClosed: a host without a VXLAN device answers in clear that its port is
// closed, but not with what it was sent. That is so before its first Networks, too.
func (f *sealedFabric) portIsClosed(networks []tenant) {
	t := f.t
	t.Helper()
	s := f.members[1]
	quoted := func(when string) {
		t.Helper()
		f.since()
		send(t, f.members[0].tenant(red()), words, []netip.Addr{first(red().lease(2))})
		if inner, _, sealed := f.after(); inner != 0 || sealed == 0 {
			t.Errorf("%s: %d frames with a tenant's words on the wire, %d sealed", when, inner, sealed)
		}
	}
	for _, n := range networks {
		l, err := s.tenant(n).LinkByName(vxlanName(n.vni))
		must(t, err)
		must(t, s.tenant(n).LinkDel(l))
	}
	quoted("no VXLAN device")

	c, err := nftables.New(nftables.WithNetNSFd(int(s.ns)))
	must(t, err)
	c.DelTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet})
	must(t, c.Flush())
	must(t, s.encrypt(f.underlayOf(s, true)))
	quoted("the filter of a new host")
	f.pass(true, networks...)
	f.reaches(red())
	s.log.Reset()
}

// hostWithoutKey is out of reach, in clear, too. Its own kernel has no
// WireGuard: it says so and sends nothing.
func (f *sealedFabric) hostWithoutKey(networks []tenant) {
	t := f.t
	t.Helper()
	s := f.members[2]
	s.key = nil
	f.pass(true, networks...)
	u := f.underlayOf(s, true)
	s.key = newKey(t.(*testing.T))
	must(t, s.encrypt(api.Underlay{}))
	s.encrypter = wireguard.New(wireguard.Driver{Kind: "wireguard", Open: s.driver.Open, Make: func(*netlink.Handle, string) error { return unix.EOPNOTSUPP }},
		slog.New(slog.DiscardHandler))
	if err := s.encrypt(u); err == nil || !strings.Contains(err.Error(), wireguard.Name) {
		t.Errorf("a kernel without WireGuard: %v", err)
	}
	s.overlay.SetUnderlay(u)
	for key, p := range s.overlay.Reconcile(context.Background(), f.sealedParts(3, true, networks)) {
		if p.State != api.PartPending || !strings.Contains(p.Message, "encrypted") {
			t.Errorf("%s: %+v", key, p)
		}
	}
	f.since()
	f.say(red())
	if inner, clear, sealed := f.after(); inner != 0 || clear != 0 || sealed == 0 {
		t.Errorf("a host without a key: %d frames with words, %d of VXLAN, %d sealed", inner, clear, sealed)
	}
	s.restart()
}

// sendBy is sendTo by one of the namespace's addresses.
func sendBy(t testing.TB, p place, from netip.Addr, to netip.AddrPort, payload []byte) {
	t.Helper()
	var conn net.PacketConn
	must(t, within(p.ns, func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)))
		return err
	}))
	defer func() { _ = conn.Close() }()
	_, _ = conn.WriteTo(payload, net.UDPAddrFromAddrPort(to))
}
