package httpboot

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	requests *prometheus.CounterVec
	bytes    prometheus.Counter
	aborted  prometheus.Counter
	held     prometheus.Counter
	refused  *prometheus.CounterVec
	conns    prometheus.Gauge
}

func newMetrics() *metrics {
	return &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rackweft_httpboot_requests_total",
			Help: "HTTP boot requests answered, by route and status code.",
		}, []string{"route", "code"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rackweft_httpboot_bytes_total",
			Help: "Bytes of boot files and blobs handed to the network.",
		}),
		aborted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rackweft_httpboot_aborted_total",
			Help: "Transfers of boot files and blobs that ended before all was sent.",
		}),
		held: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rackweft_httpboot_held_total",
			Help: "Requests for scripts and pointers answered with an order to wait.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rackweft_httpboot_refused_connections_total",
			Help: "Connections closed at once, by the limit that was reached (total, peer, strangers), and idle ones closed to make room (idle).",
		}, []string{"limit"}),
		conns: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rackweft_httpboot_connections",
			Help: "Open connections.",
		}),
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.bytes, m.aborted, m.held, m.refused, m.conns}
}
