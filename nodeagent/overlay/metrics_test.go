package overlay

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/rackweft/rackweft/api"
)

// scrape is what /metrics shows of the host, without the help.
func (h *testHost) scrape() string {
	t := h.fabric.t
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	must(t, r.Register(h.overlay))
	answer := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}).ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	text, err := io.ReadAll(answer.Result().Body)
	must(t, err)
	return regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(string(text), "")
}

func TestMetrics(t *testing.T) {
	f := newFabric(t, 3, false)
	f.reconcile(red(), blue())
	h := f.hosts[0]
	g, other := f.plugIn(red(), 1, 8), f.plugIn(red(), 2, 8)
	must(t, g.ping(other.addr, 1000, patience))
	must(t, g.send(ethernet(other.mac, mac{2, 9, 9, 9, 9, 9}, etherIPv4, make([]byte, 40)))) // a source that is not its own
	must(t, g.ping(other.addr, 56, patience))
	vxlan, err := h.tenant(red()).LinkByName(vxlanName(red().vni))
	must(t, err)
	must(t, h.tenant(red()).LinkSetMTU(vxlan, 1000))
	h.reconcile(f.part(red(), 1), f.part(blue(), 1))
	text := h.scrape()
	for _, want := range []string{
		`rackweft_network_peers\{network="red",vni="101"\} 2`,
		`rackweft_network_peers\{network="blue",vni="10003"\} 2`,
		`rackweft_network_entries\{network="red",vni="101"\} 8`,
		`rackweft_network_ports\{network="red",vni="101"\} 1`,
		`rackweft_network_ports\{network="blue",vni="10003"\} 0`,
		`rackweft_network_repairs_total\{network="red",vni="101"\} [1-9]`,
		`rackweft_network_repairs_total\{network="blue",vni="10003"\} 0`,
		`rackweft_network_received_bytes_total\{network="red",vni="101"\} \d{4}`,
		`rackweft_network_received_packets_total\{network="red",vni="101"\} [1-9]`,
		`rackweft_network_transmitted_bytes_total\{network="red",vni="101"\} \d{4}`,
		`rackweft_network_transmitted_packets_total\{network="red",vni="101"\} [1-9]`,
		`rackweft_network_transmitted_packets_total\{network="blue",vni="10003"\} 0`,
		`rackweft_network_drops_total\{network="red",reason="limited_in",vni="101"\} 0`,
		`rackweft_network_drops_total\{network="red",reason="transmitted",vni="101"\} 0`,
		`rackweft_network_port_received_bytes_total\{guest="g-10-5-1-8",network="red",vni="101"\} \d{4}`,
		`rackweft_network_port_transmitted_bytes_total\{guest="g-10-5-1-8",network="red",vni="101"\} \d{4}`,
		`rackweft_network_port_drops_total\{guest="g-10-5-1-8",network="red",reason="spoofed",vni="101"\} 1`,
		`rackweft_network_host_repairs_total 0`,
		`rackweft_network_checksum_offload [01]`,
		`rackweft_network_encryption_wanted 0`,
		`rackweft_network_encryption_working 0`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("no %s", want)
		}
	}
	before := h.overlay.Traffic()[g.port.UID]
	must(t, g.ping(other.addr, 1000, patience))
	if now := h.overlay.Traffic()[g.port.UID]; now.SentBytes < before.SentBytes+1000 || now.ReceivedBytes < before.ReceivedBytes+1000 || now.Dropped < 1 {
		t.Errorf("without another pass the tap has counted %+v, and before a ping %+v", now, before)
	}
	h.setUnderlay(func(u *api.Underlay) { u.Encryption = new(api.Encryption) })
	h.overlay.Reconcile(context.Background(), nil)
	sealed := h.scrape()
	for _, want := range []string{"rackweft_network_encryption_wanted 1", "rackweft_network_encryption_working 0"} {
		if !strings.Contains(sealed, want) {
			t.Errorf("no %s", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// A scrape looks at no kernel: it takes the same for 500 Networks that are gone.
func TestManyMetrics(t *testing.T) {
	o := New(Options{Log: slog.New(slog.DiscardHandler)})
	for i := range 500 {
		n := network{name: fmt.Sprint("t", i), uid: fmt.Sprint("uid-", i), vni: uint32(2000 + i)}
		o.ledger.note(&work{network: n, seen: true, stats: []PortStats{{Guest: "a"}, {Guest: "b"}}}, alone, "", nil)
	}
	all := make(chan prometheus.Metric, 1<<16)
	o.Collect(all)
	if len(all) != 500*(12+2*7)+4 {
		t.Errorf("%d metrics", len(all))
	}
}

// told is a Host that keeps the events.
type told struct {
	changes
	events []api.Event
}

func (h *told) Event(e api.Event) { h.events = append(h.events, e) }

func TestRepairsAreTold(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	now := time.Unix(1e9, 0)
	host := new(told)
	h.overlay.ledger.drift.now = func() time.Time { return now }
	h.overlay.ledger.tellTo(host)
	both := func() { t.Helper(); h.reconcile(f.part(red(), 1), f.part(blue(), 1)) }
	damage := func(n tenant) {
		t.Helper()
		l, err := h.tenant(n).LinkByName(bridgeName(n.vni))
		must(t, err)
		must(t, h.tenant(n).LinkSetMTU(l, 1000))
		both()
	}
	wants := func(count int, parts ...string) {
		t.Helper()
		if len(host.events) != count {
			t.Fatalf("%d events, want %d: %+v", len(host.events), count, host.events)
		}
		last := fmt.Sprintf("%+v", host.events[count-1])
		for _, part := range parts {
			if !strings.Contains(last, part) {
				t.Errorf("%s lacks %q", last, part)
			}
		}
	}
	both()
	both()
	if len(host.events) > 0 {
		t.Fatalf("making is no repair: %+v", host.events)
	}
	damage(red())
	wants(1, "Kind:Network Name:red UID:uid-red Type:Warning Reason:Repaired", "Network red was not as it had been left")
	now = now.Add(repairInterval - 1)
	damage(red())
	wants(1)
	damage(blue()) // of another Network at once
	wants(2, "Name:blue")
	now = now.Add(2)
	damage(red())
	wants(3, "Name:red", "; 1 more since the last event")

	c := h.nft(t)
	c.FlushRuleset()
	must(t, c.Flush())
	both()
	wants(4, "Kind:Machine", "the host's filter")

	h.overlay.ledger.tellTo(nil)
	now = now.Add(time.Hour)
	damage(red())
	wants(4)
	h.reconcile(removed(red()), removed(blue()))
	if len(h.overlay.ledger.drift.reported) != 1 { // the host's
		t.Errorf("%v", h.overlay.ledger.drift.reported)
	}
}
