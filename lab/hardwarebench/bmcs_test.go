package hardwarebench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/rackweft/rackweft/hardware/redfishtest"
)

// vendors are in the fleet in turn, HPE most of all.
func vendors() []string {
	return []string{"hpe-ilo5", "hpe-ilo7", "dell-idrac9", "hpe-ilo5", "lenovo-xcc", "openbmc"}
}

// answerTime is what each BMC takes for a request.
const answerTime = 100 * time.Millisecond

// node is one server with its BMC. A silent one has none: it accepts connections and answers nothing.
type node struct {
	name    string
	mac     string
	address netip.Addr // that it boots with
	bmcAt   netip.Addr
	bmc     *redfishtest.BMC
	booted  chan time.Time
}

func newNode(n int) *node {
	return &node{name: fmt.Sprintf("m%04d", n), mac: fmt.Sprintf("52:54:00:00:%02x:%02x", n>>8, n&255),
		address: netip.AddrFrom4([4]byte{198, 18, byte(4 + n>>8), byte(n)}), bmcAt: netip.AddrFrom4([4]byte{198, 19, byte(n >> 8), byte(n)}),
		booted: make(chan time.Time, 16)}
}

// fleet has all BMCs behind one listener, told apart by the addresses that they are called at.
type fleet struct {
	nodes  []*node // those that answer
	silent []*node
	byBMC  map[netip.Addr]*node
}

func newFleet(b *testing.B, n, silent int) *fleet {
	b.Helper()
	f := &fleet{byBMC: map[netip.Addr]*node{}}
	trees := map[string]redfishtest.Tree{}
	for i := range n + silent {
		o := newNode(i)
		f.byBMC[o.bmcAt] = o
		if i >= n {
			f.silent = append(f.silent, o)
			continue
		}
		v, err := redfishtest.VendorOf(vendors()[i%len(vendors())])
		must(b, err)
		if trees[v.Name] == nil {
			trees[v.Name], err = v.Tree()
			must(b, err)
		}
		o.bmc, err = redfishtest.New(trees[v.Name], v.Traits...)
		must(b, err)
		o.bmc.Clock, o.bmc.Delay, o.bmc.PostTime = redfishtest.RealClock(), answerTime, postTime
		o.bmc.Set(v.System, "SerialNumber", o.name)
		o.bmc.OnBoot = func(boot redfishtest.Boot) { o.booted <- boot.At }
		f.nodes = append(f.nodes, o)
	}
	f.serve(b)
	return f
}

// serve answers at every BMC's address until the benchmark ends.
func (f *fleet) serve(b *testing.B) {
	b.Helper()
	certificate, err := redfishtest.Certificate()
	must(b, err)
	plain, err := net.Listen("tcp4", ":443")
	must(b, err)
	base, cancel := context.WithCancel(context.Background())
	server := &http.Server{Handler: f, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}}, ReadHeaderTimeout: 2 * time.Minute,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, BaseContext: func(net.Listener) context.Context { return base },
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(&mute{Listener: plain, fleet: f}, "", "") }()
	b.Cleanup(func() {
		cancel()
		_ = server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			b.Error(err)
		}
	})
}

func (f *fleet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if o := f.byBMC[addressOf(local)]; o != nil && o.bmc != nil {
		o.bmc.ServeHTTP(w, r)
		return
	}
	http.NotFound(w, r)
}

func addressOf(a net.Addr) netip.Addr {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

// mute keeps the connections of silent BMCs, and hands on the others.
type mute struct {
	net.Listener
	fleet *fleet
	held  []net.Conn
}

// Accept is net.Listener's.
func (m *mute) Accept() (net.Conn, error) {
	for {
		c, err := m.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if o := m.fleet.byBMC[addressOf(c.LocalAddr())]; o == nil || o.bmc != nil {
			return c, nil
		}
		m.held = append(m.held, c)
	}
}

// Close is net.Listener's.
func (m *mute) Close() error {
	err := m.Listener.Close()
	for _, c := range m.held {
		_ = c.Close()
	}
	return err
}

// forget has every BMC count from here.
func (f *fleet) forget() {
	for _, o := range f.nodes {
		o.bmc.Forget()
	}
}

// requests are how many each BMC has had, fewest first.
func (f *fleet) requests() []int {
	var all []int
	for _, o := range f.nodes {
		all = append(all, o.bmc.Count())
	}
	slices.Sort(all)
	return all
}
