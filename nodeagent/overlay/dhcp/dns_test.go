package dhcp

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/time/rate"

	"github.com/rackweft/rackweft/internal/nstest"
)

// dnsmasq is a real resolver outside of the Network.
func (r *rig) dnsmasq(args ...string) {
	r.t.Helper()
	need(r.t, "dnsmasq")
	background(r.t, r.outside, `address=$1; shift; exec dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --pid-file --listen-address="$address" --bind-interfaces "$@"`,
		append([]string{resolver().String(), "--address=/www.example/198.18.7.7", "--user=root"}, args...)...)
	eventually(r.t, "dnsmasq answers", func() bool {
		var c net.Conn
		err := nstest.Within(r.outside, func() (err error) {
			c, err = net.DialTimeout("tcp", resolver().String()+":53", time.Second)
			return err
		})
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// ask asks from a namespace, and again when nothing comes back.
func ask(t *testing.T, ns, network, server string, q *dns.Msg) *dns.Msg {
	t.Helper()
	var conn net.Conn
	must(t, nstest.Within(ns, func() (err error) {
		conn, err = net.DialTimeout(network, server, patience)
		return err
	}))
	defer func() { _ = conn.Close() }()
	for range 5 {
		m, _, err := (&dns.Client{Timeout: 4 * time.Second}).ExchangeWithConn(q, &dns.Conn{Conn: conn})
		if err == nil {
			return m
		}
		t.Logf("asked %s once more: %v", q.Question[0].Name, err)
	}
	t.Fatalf("no answer to %s", q.Question[0].Name)
	return nil
}

func query(name string, kind uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, kind) }

func values(m *dns.Msg) string {
	var list []string
	for _, rr := range m.Answer {
		list = append(list, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return strings.Join(list, " ")
}

func TestDNS(t *testing.T) {
	r := newRig(t, one(), two())
	var texts []string
	for i := range 12 {
		texts = append(texts, fmt.Sprintf("--txt-record=long.example,%s%02d", strings.Repeat("x", 200), i))
	}
	r.dnsmasq(texts...)
	r.serve()
	ns := r.configured(one())
	gateways := []string{"169.254.1.1:53", "[fe80::1%" + index(t, ns) + "]:53"}
	for _, c := range []struct {
		name string
		kind uint16
		code int
		want string
	}{
		{"www.example.", dns.TypeA, dns.RcodeSuccess, "198.18.7.7"},
		{"one.", dns.TypeA, dns.RcodeSuccess, "10.5.3.2"},
		{"TWO.Tenant.Example.", dns.TypeA, dns.RcodeSuccess, "10.5.3.4"},
		{"two.tenant.example.", dns.TypeAAAA, dns.RcodeSuccess, "fd00:5:3::4"},
		{"two.tenant.example.", dns.TypeMX, dns.RcodeSuccess, ""},
		{"4.3.5.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, "two.tenant.example."},
		{"4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.0.5.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, dns.RcodeSuccess, "two.tenant.example."},
		{"www.example.", dns.TypeAXFR, dns.RcodeRefused, ""},
	} {
		for _, network := range []string{"udp", "tcp"} {
			for _, gateway := range gateways {
				m := ask(t, ns, network, gateway, query(c.name, c.kind))
				if m.Rcode != c.code || values(m) != c.want {
					t.Errorf("%s %s by %s at %s: %s %q, not %q", c.name, dns.TypeToString[c.kind], network, gateway, dns.RcodeToString[m.Rcode], values(m), c.want)
				}
				if !m.RecursionAvailable || len(m.Extra) > 0 {
					t.Errorf("%s by %s at %s: %s", c.name, network, gateway, m)
				}
			}
		}
	}
	long := ask(t, ns, "udp", gateways[0], query("long.example.", dns.TypeTXT))
	if !long.Truncated || long.Len() > dns.MinMsgSize {
		t.Errorf("a long answer by UDP has %d bytes, truncated %v", long.Len(), long.Truncated)
	}
	if long = ask(t, ns, "tcp", gateways[0], query("long.example.", dns.TypeTXT)); long.Truncated || len(long.Answer) != 12 {
		t.Errorf("a long answer by TCP has %d records, truncated %v", len(long.Answer), long.Truncated)
	}
	edns := query("www.example.", dns.TypeA)
	edns.SetEdns0(4096, false)
	if m := ask(t, ns, "udp", gateways[0], edns); m.IsEdns0() == nil {
		t.Error("a guest that uses EDNS gets none")
	}
}

// Who is not in the table is refused by UDP and cut off by TCP.
func TestDNSStranger(t *testing.T) {
	r := newRig(t, one())
	r.dnsmasq()
	r.serve()
	ns := r.configured(two())
	if m := ask(t, ns, "udp", "169.254.1.1:53", query("www.example.", dns.TypeA)); m.Rcode != dns.RcodeRefused || len(m.Answer) > 0 {
		t.Errorf("a stranger gets %s", m)
	}
	if m := ask(t, ns, "udp", "[fe80::1%"+index(t, ns)+"]:53", query("one.", dns.TypeA)); m.Rcode != dns.RcodeRefused || len(m.Answer) > 0 {
		t.Errorf("a stranger gets %s by IPv6", m)
	}
	var conn net.Conn
	must(t, nstest.Within(ns, func() (err error) {
		conn, err = net.DialTimeout("tcp", "169.254.1.1:53", patience)
		return err
	}))
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil || os.IsTimeout(err) {
		t.Errorf("a stranger's connection stays open: %v", err)
	}
}

// Without resolvers the host's are asked, and without those it is said.
func TestHostResolvers(t *testing.T) {
	r := newRig(t, one())
	r.network.Resolvers = nil
	r.dnsmasq()
	r.serve()
	ns := r.configured(one())
	if m := ask(t, ns, "udp", "169.254.1.1:53", query("www.example.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure || !r.log.has("lists none; give the Network or the Site DNS servers") {
		t.Errorf("without resolvers: %s", m)
	}
	must(t, os.WriteFile(r.server.forward.path, []byte("nameserver "+resolver().String()+"\n"), 0o644))
	r.server.forward.mu.Lock()
	r.server.forward.read = time.Time{} // time passes
	r.server.forward.mu.Unlock()
	if m := ask(t, ns, "udp", "169.254.1.1:53", query("www.example.", dns.TypeA)); values(m) != "198.18.7.7" {
		t.Errorf("with the host's resolver: %s", m)
	}
}

// A resolver that is gone or refuses leaves the question to the next.
func TestNextResolver(t *testing.T) {
	r := newRig(t, one())
	r.network.Resolvers = []netip.Addr{netip.MustParseAddr("198.18.53.99"), resolver()}
	nstest.IP(t, r.outside, "addr", "add", "198.18.53.99/32", "dev", "lo") // refuses by ICMP
	r.dnsmasq()
	r.serve()
	if m := ask(t, r.configured(one()), "udp", "169.254.1.1:53", query("www.example.", dns.TypeA)); values(m) != "198.18.7.7" {
		t.Errorf("the second resolver is not asked: %s", m)
	}
}

// One guest's flood of questions that nobody answers is bounded, and another
// guest is served meanwhile.
func TestFloodIsBounded(t *testing.T) {
	r := newRig(t, one(), two())
	// A resolver that never answers for some names.
	var asked, most atomic.Int64
	r.silentResolver(&asked, &most)
	r.serve()
	flood, calm := r.configured(one()), r.configured(two())
	var conn net.Conn
	must(t, nstest.Within(flood, func() (err error) {
		conn, err = net.Dial("udp", "169.254.1.1:53")
		return err
	}))
	t.Cleanup(func() { _ = conn.Close() })
	for i := range 1000 {
		b, err := query(fmt.Sprintf("n%d.silent.", i), dns.TypeA).Pack()
		must(t, err)
		_, err = conn.Write(b)
		must(t, err)
	}
	if m := ask(t, calm, "udp", "169.254.1.1:53", query("www.example.", dns.TypeA)); values(m) != "198.18.7.7" {
		t.Errorf("the other guest gets %s", m)
	}
	if most.Load() > perGuest {
		t.Errorf("%d questions of one guest were forwarded at the same time", most.Load())
	}
	if asked.Load() == 0 {
		t.Error("no question of the flood was forwarded: the test floods nothing")
	}
}

// silentResolver answers for www.example only and counts what it leaves unanswered.
func (r *rig) silentResolver(asked, most *atomic.Int64) {
	r.t.Helper()
	var conn net.PacketConn
	must(r.t, nstest.Within(r.outside, func() (err error) {
		conn, err = net.ListenPacket("udp", resolver().String()+":53")
		return err
	}))
	var mu sync.Mutex
	open := map[string]time.Time{} // by who asks: one socket for each question
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if q.Question[0].Name == "www.example." {
			m := new(dns.Msg).SetReply(q)
			rr, _ := dns.NewRR("www.example. 60 IN A 198.18.7.7")
			m.Answer = append(m.Answer, rr)
			_ = w.WriteMsg(m)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		asked.Add(1)
		now := time.Now()
		for who, until := range open {
			if now.After(until) {
				delete(open, who)
			}
		}
		open[w.RemoteAddr().String()] = now.Add(resolverTime - 100*time.Millisecond)
		most.Store(max(most.Load(), int64(len(open))))
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.ActivateAndServe() }()
	r.t.Cleanup(func() { _ = conn.Close(); <-done })
}

func TestShare(t *testing.T) {
	s := newShare()
	a, b := one().MAC, two().MAC
	var give []func()
	for range perGuest {
		done, ok := s.forward(a)
		if !ok {
			t.Fatal("a guest does not get its places")
		}
		give = append(give, done)
	}
	if _, ok := s.forward(a); ok {
		t.Error("a guest gets more than its places")
	}
	if _, ok := s.forward(b); !ok {
		t.Error("a guest takes another's places")
	}
	give[0]()
	if _, ok := s.forward(a); !ok {
		t.Error("a place that was given back is lost")
	}
	s.of[a].rate = rate.NewLimiter(0, 1)
	if !s.question(a) || s.question(a) || !s.question(b) {
		t.Error("the rate is not each guest's own")
	}
	s.keep(map[MAC]*Guest{b: nil})
	if len(s.of) != 1 {
		t.Error("a guest that is gone is remembered")
	}
}

func TestReversed(t *testing.T) {
	for name, want := range map[string]string{
		"4.3.5.10.in-addr.arpa.": "10.5.3.4",
		"3.5.10.in-addr.arpa.":   "invalid IP",
		"a.b.c.d.in-addr.arpa.":  "invalid IP",
		"4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.0.5.0.0.0.0.0.d.f.ip6.arpa.": "fd00:5:3::4",
		"1.ip6.arpa.":  "invalid IP",
		"www.example.": "invalid IP",
	} {
		if got := reversed(name).String(); got != want {
			t.Errorf("%s is %s, not %s", name, got, want)
		}
	}
}

func FuzzQuestion(f *testing.F) {
	for _, q := range []*dns.Msg{query("one.", dns.TypeA), query("4.3.5.10.in-addr.arpa.", dns.TypePTR), query("www.example.", dns.TypeANY)} {
		q.SetEdns0(4096, true)
		b, err := q.Pack()
		must(f, err)
		f.Add(b)
	}
	table := testTable()
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil {
			return
		}
		m := table.answer(q)
		if m == nil {
			if len(q.Question) != 1 {
				t.Error("what is no question would be forwarded")
			}
			return
		}
		packed, err := packUDP(q, m)
		if err == nil && len(packed) > udpSize {
			t.Errorf("an answer of %d bytes", len(packed))
		}
	})
}

func FuzzNeighbour(f *testing.F) {
	f.Add(make([]byte, 12))
	f.Add(append(make([]byte, 12), 10, 0, 2, 0, 2, 0, 0, 0, 0, 1, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, ok := linkLayer(b); ok && len(b) < 12+4+len(MAC{}) {
			t.Error("a MAC from nowhere")
		}
	})
}
