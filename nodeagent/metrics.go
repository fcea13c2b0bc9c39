package nodeagent

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/budget"
)

// exporter serves an agent's /metrics.
type exporter struct{ agent *Agent }

// serve serves the metrics of the agent and of its handlers at the configured
// address. If it cannot listen there it retries: the interface may still come up.
func (e exporter) serve(ctx context.Context) {
	if e.agent.config.Metrics == "" {
		return
	}
	pause := backoff{min: e.agent.timing.minBackoff, max: e.agent.timing.maxBackoff}
	warned := false
	for ctx.Err() == nil {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", e.agent.config.Metrics)
		if err == nil {
			e.serveOn(ctx, listener)
			return
		}
		if !warned {
			warned = true
			e.agent.log.Warn("metrics are not served yet", "address", e.agent.config.Metrics, "error", err)
		}
		pause.wait(ctx)
	}
}

func (e exporter) serveOn(ctx context.Context, listener net.Listener) {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(e.registry(ctx), promhttp.HandlerOpts{MaxRequestsInFlight: 2, Timeout: 10 * time.Second}))
	server := &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 8 << 10}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	e.agent.log.Info("metrics", "address", listener.Addr().String())
	if err := server.Serve(budget.Listen(listener, budget.Limits{Total: 64, PerPeer: 16})); !errors.Is(err, http.ErrServerClosed) {
		e.agent.log.Error("metrics are no longer served", "error", err)
	}
}

// registry holds the collectors of /metrics: the agent's, and each Handler that is
// a prometheus.Collector.
func (e exporter) registry(ctx context.Context) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(newAgentCollector(ctx, e.agent), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, w := range e.agent.workers {
		c, ok := w.handler.(prometheus.Collector)
		if !ok {
			continue
		}
		if err := r.Register(c); err != nil {
			e.agent.log.Error("metrics of a handler are left out", "kind", w.handler.Kind(), "error", err)
		}
	}
	return r
}

// agentCollector collects the agent's state.
type agentCollector struct {
	ctx                                          context.Context // of the server that collects
	agent                                        *Agent
	info, connected, parts, known, applied, skew *prometheus.Desc
}

func newAgentCollector(ctx context.Context, a *Agent) *agentCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &agentCollector{ctx: ctx, agent: a,
		info:      desc("rackweft_agent_info", "Which nodeagent this is; always 1.", "machine", "version"),
		connected: desc("rackweft_agent_connected", "Whether the stream to bootd is open."),
		parts:     desc("rackweft_agent_parts", "Parts of the HostSpec, by kind and state.", "kind", "state"),
		known:     desc("rackweft_agent_hostspec_known_revision", "Revision of the HostSpec that the host has."),
		applied:   desc("rackweft_agent_hostspec_applied_revision", "Revision of the HostSpec that every handler has passed."),
		skew:      desc("rackweft_agent_clock_skew_seconds", "The host's clock minus bootd's, when it connected."),
	}
}

// Describe implements prometheus.Collector.
func (c *agentCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.info, c.connected, c.parts, c.known, c.applied, c.skew} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *agentCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	_ = c.agent.do(c.ctx, func() { // an agent that ends reports nothing
		a := c.agent
		gauge(c.info, 1, a.config.Machine, a.version)
		connected := 0.0
		if a.link.State == LinkConnected {
			connected = 1
		}
		gauge(c.connected, connected)
		gauge(c.known, float64(a.spec.index.Revision))
		gauge(c.applied, float64(a.applied.Revision))
		gauge(c.skew, a.skew.Seconds())
		for of, n := range countStates(a.parts) {
			gauge(c.parts, float64(n), of.kind, string(of.state))
		}
	})
}

type kindState struct {
	kind  string
	state api.PartState
}

func countStates(parts map[string]api.PartStatus) map[kindState]int {
	count := map[kindState]int{}
	for name, p := range parts {
		count[kindState{kindOf(name), p.State}]++
	}
	return count
}
