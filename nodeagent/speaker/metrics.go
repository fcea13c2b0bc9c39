package speaker

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bgp"
)

// scrapePatience is how long a scrape waits for the speaker.
const scrapePatience = 3 * time.Second

// metrics collects the speaker's metrics. The speaker's counters start at zero when
// it restarts.
type metrics struct {
	up, sessions, prefixes, flaps                  *prometheus.Desc
	learned, routes, repairs, heals, memory, began *prometheus.Desc
	services, failures                             *prometheus.Desc

	// Metrics of the speakers inside Networks.
	insideSessions, insideFlaps, insideRoutes, insideMemory *prometheus.Desc
}

func newMetrics() metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return metrics{
		up:       desc("rackweft_bgp_up", "Whether the speaker answers; without a bgp part there is no such metric."),
		sessions: desc("rackweft_bgp_sessions", "Sessions, by the neighbour's role and the session's state.", "role", "state"),
		prefixes: desc("rackweft_bgp_prefixes", "Paths of a session: received, accepted by policy, or advertised.", "neighbor", "role", "kind"),
		flaps:    desc("rackweft_bgp_flaps_total", "How often a session ended, by reason.", "neighbor", "role", "reason"),
		learned:  desc("rackweft_bgp_learned", "Prefixes that were learned for the kernel."),
		routes:   desc("rackweft_bgp_fib_routes", "Routes in the kernel: programmed, held although no neighbour advertises them, or unresolved, which are not there or not by all their next hops.", "kind"),
		repairs:  desc("rackweft_bgp_fib_repairs_total", "Changes to the kernel's routes although nothing else had been learned: drift that was mended."),
		heals:    desc("rackweft_bgp_audit_heals_total", "How often all routes were advertised to a neighbour again because it missed some."),
		memory:   desc("rackweft_bgp_resident_bytes", "Memory that the speaker has resident."),
		began:    desc("rackweft_bgp_start_time_seconds", "When the speaker started, since 1970."),
		services: desc("rackweft_bgp_service_announced", "Whether an address of a service is announced; as a last resort does not count.", "service", "address"),
		failures: desc("rackweft_bgp_service_failures_total", "How often an address of a service came to fail its check.", "service", "address"),

		insideSessions: desc("rackweft_network_bgp_sessions", "Sessions of a Network's speaker, by the neighbour's role and the session's state. Of those that never came up there are none.", "network", "role", "state"),
		insideFlaps:    desc("rackweft_network_bgp_flaps_total", "How often a session of a Network's speaker ended.", "network", "neighbor", "role"),
		insideRoutes:   desc("rackweft_network_bgp_fib_routes", "Routes of guests in the Network's namespace: programmed, held although no neighbour advertises them, or unresolved.", "network", "kind"),
		insideMemory:   desc("rackweft_network_bgp_resident_bytes", "Resident memory of a Network's speaker.", "network"),
	}
}

// Describe implements prometheus.Collector.
func (s *Speaker) Describe(out chan<- *prometheus.Desc) {
	m := s.metrics
	for _, d := range []*prometheus.Desc{m.up, m.sessions, m.prefixes, m.flaps, m.learned, m.routes, m.repairs, m.heals, m.memory, m.began, m.services, m.failures,
		m.insideSessions, m.insideFlaps, m.insideRoutes, m.insideMemory} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (s *Speaker) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapePatience)
	defer cancel()
	if s.options.Inside != nil {
		for _, status := range s.options.Inside.statuses(ctx) {
			s.metrics.collectInside(out, status)
		}
	}
	if !s.hasPart() {
		return
	}
	status, err := s.client.Status(ctx)
	if err != nil {
		out <- prometheus.MustNewConstMetric(s.metrics.up, prometheus.GaugeValue, 0)
		return
	}
	s.metrics.collect(out, status)
}

func (m metrics) collect(out chan<- prometheus.Metric, s bgp.Status) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	counter := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, value, labels...)
	}
	gauge(m.up, 1)
	gauge(m.learned, float64(s.Learned))
	gauge(m.routes, float64(s.FIB.Installed), "programmed")
	gauge(m.routes, float64(s.FIB.Held), "held")
	gauge(m.routes, float64(s.FIB.Unsettled), "unresolved")
	counter(m.repairs, float64(s.FIB.Repairs))
	counter(m.heals, float64(s.Healed))
	gauge(m.memory, float64(s.Memory))
	gauge(m.began, float64(s.Started.UnixMilli())/1000)
	type group struct{ role, state string }
	count := map[group]int{}
	for _, n := range s.Sessions {
		count[group{n.Role, n.State}]++
		for kind, value := range map[string]int{"received": n.Received, "accepted": n.Accepted, "advertised": n.Advertised} {
			gauge(m.prefixes, float64(value), n.Name, n.Role, kind)
		}
		for reason, times := range n.Losses {
			counter(m.flaps, float64(times), n.Name, n.Role, reason)
		}
	}
	for of, n := range count {
		gauge(m.sessions, float64(n), of.role, of.state)
	}
	for _, x := range s.Services {
		announced := 0.0
		if x.State == api.ServiceAnnounced {
			announced = 1
		}
		gauge(m.services, announced, x.Service, x.Address.String())
		counter(m.failures, float64(x.Failures), x.Service, x.Address.String())
	}
}

func (m metrics) collectInside(out chan<- prometheus.Metric, s bgp.Status) {
	gauge := func(d *prometheus.Desc, value int, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), append([]string{s.Network}, labels...)...)
	}
	type group struct{ role, state string }
	count := map[group]int{}
	for _, n := range s.Sessions {
		if n.Silent() {
			continue
		}
		count[group{n.Role, n.State}]++
		out <- prometheus.MustNewConstMetric(m.insideFlaps, prometheus.CounterValue, float64(n.Flaps()), s.Network, peerName(n), n.Role)
	}
	for of, n := range count {
		gauge(m.insideSessions, n, of.role, of.state)
	}
	gauge(m.insideRoutes, s.FIB.Installed, "programmed")
	gauge(m.insideRoutes, s.FIB.Held, "held")
	gauge(m.insideRoutes, s.FIB.Unsettled, "unresolved")
	gauge(m.insideMemory, int(s.Memory))
}
