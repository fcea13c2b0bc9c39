package nodeagent

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rackweft/rackweft/api"
)

// counting is a handler with a metric of its own.
type counting struct{ prometheus.Gauge }

func (counting) Kind() string { return "network" }

func (counting) Reconcile(_ context.Context, parts []Part) map[string]api.PartStatus {
	out := map[string]api.PartStatus{}
	for _, p := range parts {
		out[p.Key()] = api.PartStatus{State: api.PartFailed, Message: "no"}
	}
	return out
}

func TestMetrics(t *testing.T) {
	b := newFakeBootd(t).start(nil)
	b.parts["network/blue"] = api.Part(`{"uid":"n1"}`)
	h := newHost(t, b)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.config.Metrics = taken.Addr().String()
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "a_handlers_own"})
	log, stop := runAgent(t, h, counting{gauge})
	log.waitFor(t, "metrics are not served yet")
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	log.waitFor(t, "msg=metrics address="+h.config.Metrics)
	b.waitFor("all parts have been looked at", func() bool {
		return b.status.Parts["network/blue"].State == api.PartFailed && b.status.Parts[api.PartBase].State == api.PartApplied && b.status.Revision == 10
	})

	text := scrape(t, h.config.Metrics)
	for _, want := range []string{
		`rackweft_agent_info{machine="` + testMachine + `",version="test"} 1`,
		"rackweft_agent_connected 1",
		`rackweft_agent_parts{kind="base",state="Applied"} 1`,
		`rackweft_agent_parts{kind="network",state="Failed"} 1`,
		"rackweft_agent_hostspec_known_revision 10",
		"rackweft_agent_hostspec_applied_revision 10",
		"rackweft_agent_clock_skew_seconds ",
		"a_handlers_own 0",
		"go_goroutines ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
	stop()
	if _, err := net.Dial("tcp", h.config.Metrics); err == nil {
		t.Error("an agent that has ended still listens")
	}
}

func scrape(t *testing.T, address string) string {
	t.Helper()
	r, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	text, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("GET /metrics: %s, %v", r.Status, err)
	}
	return string(text)
}
