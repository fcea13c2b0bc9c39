package speaker

import (
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bgp"
	"github.com/rackweft/rackweft/bgp/fib"
	"github.com/rackweft/rackweft/nodeagent"
)

// scrape is what /metrics shows, without the help.
func scrape(t *testing.T, c prometheus.Collector) string {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(c); err != nil {
		t.Fatal(err)
	}
	answer := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}).ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	return regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(answer.Body.String(), "")
}

// fixed shows one Status.
type fixed struct {
	*Speaker
	status bgp.Status
}

func (f fixed) Collect(out chan<- prometheus.Metric) { f.metrics.collect(out, f.status) }

func TestMetrics(t *testing.T) {
	status := bgp.Status{Zone: "yellow", Started: time.Unix(1700000000, 0), Learned: 5, Healed: 2, Memory: 4096,
		FIB: fib.State{Installed: 7, Held: 1, Unsettled: 3, Repairs: 4},
		Sessions: []bgp.Session{
			{Name: "c1", Role: "client", State: "established", Received: 3, Accepted: 2, Advertised: 9},
			{Name: "c2", Role: "client", State: "established", Losses: map[string]int{"read-failed": 2, "hold-timer-expired": 1}},
			{Name: "leaf", Role: "uplink", State: "idle"},
		},
		Services: []api.BGPServiceStatus{{Service: "dns", Address: netip.MustParseAddr("198.19.200.1"), State: api.ServiceLastResort, Failures: 6},
			{Service: "dns", Address: netip.MustParseAddr("198.19.200.2"), State: api.ServiceAnnounced}}}
	text := scrape(t, fixed{New(Options{}), status})
	for _, want := range []string{
		`rackweft_bgp_up 1`,
		`rackweft_bgp_sessions{role="client",state="established"} 2`,
		`rackweft_bgp_sessions{role="uplink",state="idle"} 1`,
		`rackweft_bgp_prefixes{kind="received",neighbor="c1",role="client"} 3`,
		`rackweft_bgp_prefixes{kind="accepted",neighbor="c1",role="client"} 2`,
		`rackweft_bgp_prefixes{kind="advertised",neighbor="c1",role="client"} 9`,
		`rackweft_bgp_flaps_total{neighbor="c2",reason="hold-timer-expired",role="client"} 1`,
		`rackweft_bgp_flaps_total{neighbor="c2",reason="read-failed",role="client"} 2`,
		`rackweft_bgp_learned 5`,
		`rackweft_bgp_fib_routes{kind="programmed"} 7`,
		`rackweft_bgp_fib_routes{kind="held"} 1`,
		`rackweft_bgp_fib_routes{kind="unresolved"} 3`,
		`rackweft_bgp_fib_repairs_total 4`,
		`rackweft_bgp_audit_heals_total 2`,
		`rackweft_bgp_resident_bytes 4096`,
		`rackweft_bgp_start_time_seconds 1.7e+09`,
		`rackweft_bgp_service_announced{address="198.19.200.1",service="dns"} 0`,
		`rackweft_bgp_service_announced{address="198.19.200.2",service="dns"} 1`,
		`rackweft_bgp_service_failures_total{address="198.19.200.1",service="dns"} 6`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// A real speaker's are shown, and that it is gone too; without a part there is
// nothing to show.
func TestMetricsOfSpeaker(t *testing.T) {
	s, u := newBench(t)
	if got := scrape(t, s); got != "" {
		t.Errorf("without a part there is\n%s", got)
	}
	if got := s.Reconcile(t.Context(), []nodeagent.Part{{Name: "bgp", Value: part()}})["bgp"]; got.State != api.PartApplied {
		t.Fatalf("%+v", got)
	}
	got := scrape(t, s)
	for _, want := range []string{`rackweft_bgp_up 1\n`, `rackweft_bgp_prefixes{kind="advertised",neighbor="c1",role="client"} 0\n`, `rackweft_bgp_resident_bytes [1-9][0-9.]*e\+0[78]\n`} {
		if !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	if err := u.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := scrape(t, s); got != "rackweft_bgp_up 0\n" {
		t.Errorf("without the speaker there is\n%s", got)
	}
}

func TestBestWays(t *testing.T) {
	route := func(prefix, hop, from string, best bool) bgp.Route {
		return bgp.Route{Prefix: netip.MustParsePrefix(prefix), NextHop: netip.MustParseAddr(hop), Neighbor: from, Best: best}
	}
	got := bestWays([]bgp.Route{
		route("198.19.1.0/24", "198.18.9.1", "direct", true), route("198.19.1.0/24", "198.18.9.1", "reflected", true),
		route("198.19.1.0/24", "198.18.9.2", "other", true), route("198.19.1.0/24", "198.18.9.3", "worse", false),
		route("198.19.2.0/24", "198.18.9.1", "direct", true),
	})
	var from []string
	for _, r := range got {
		from = append(from, r.Neighbor)
	}
	if text := strings.Join(from, " "); text != "direct other direct" {
		t.Errorf("reported: %s", text)
	}
}

// What happens to a service is told once.
func TestServiceEvents(t *testing.T) {
	l := &listener{}
	r := reporter{host: l}
	for _, state := range []string{api.ServiceChecking, api.ServiceAnnounced, api.ServiceWithdrawn, api.ServiceWithdrawn, api.ServiceAnnounced, api.ServiceLastResort} {
		r.serviceEvents(bgp.Status{Zone: "yellow", Services: []api.BGPServiceStatus{{Service: "dns", Address: netip.MustParseAddr("198.19.200.1"), State: state, LastError: "connection refused"}}})
	}
	var got []string
	for _, e := range l.events {
		got = append(got, e.Reason+" "+e.Message)
	}
	want := "ServiceDown 198.19.200.1 of service dns is withdrawn: connection refused; ServiceUp 198.19.200.1 of service dns is announced again; ServiceDown 198.19.200.1 of service dns is announced as a last resort only: connection refused"
	if text := strings.Join(got, "; "); text != want {
		t.Errorf("events: %s", text)
	}
}

// fixedInside shows one Status of a speaker inside of a Network.
type fixedInside struct {
	*Speaker
	status bgp.Status
}

func (f fixedInside) Collect(out chan<- prometheus.Metric) { f.metrics.collectInside(out, f.status) }

func TestMetricsInside(t *testing.T) {
	text := scrape(t, fixedInside{New(Options{}), bgp.Status{Network: "blue", Memory: 4096, FIB: fib.State{Installed: 7, Held: 1, Unsettled: 3},
		Sessions: []bgp.Session{
			{Name: "guest/a", Role: "guest", State: "established", Losses: map[string]int{"read-failed": 2}},
			{Name: "host/a", Role: "host", State: "established"}, {Name: "guest/b", Role: "guest", State: "active"},
		}}})
	want := `rackweft_network_bgp_fib_routes{kind="held",network="blue"} 1
rackweft_network_bgp_fib_routes{kind="programmed",network="blue"} 7
rackweft_network_bgp_fib_routes{kind="unresolved",network="blue"} 3
rackweft_network_bgp_flaps_total{neighbor="a",network="blue",role="guest"} 2
rackweft_network_bgp_flaps_total{neighbor="a",network="blue",role="host"} 0
rackweft_network_bgp_resident_bytes{network="blue"} 4096
rackweft_network_bgp_sessions{network="blue",role="guest",state="established"} 1
rackweft_network_bgp_sessions{network="blue",role="host",state="established"} 1
`
	if text != want {
		t.Errorf("it shows\n%s", text)
	}
}
