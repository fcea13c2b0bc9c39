package server

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests     *prometheus.CounterVec
	latency      *prometheus.HistogramVec
	streams      *prometheus.GaugeVec
	authFailures prometheus.Counter
	refused      *prometheus.CounterVec
	conns        prometheus.Gauge
}

func newMetrics() *metrics {
	return &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rackweft_api_requests_total", Help: "API requests answered, by route and status.",
		}, []string{"route", "status"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rackweft_api_request_seconds", Help: "Time from a request's headers to the end of its answer; streams are left out.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8), // 1 ms to 16 s
		}, []string{"route"}),
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "rackweft_api_streams", Help: "Watches, consoles and host streams that are open, by route.",
		}, []string{"route"}),
		authFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rackweft_api_authentication_failures_total", Help: "Requests whose certificate or token was refused.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rackweft_api_refused_connections_total",
			Help: "Connections closed at once, by the limit that was reached (total, peer, strangers), and idle ones closed to make room (idle).",
		}, []string{"limit"}),
		conns: prometheus.NewGauge(prometheus.GaugeOpts{Name: "rackweft_api_connections", Help: "Open TLS connections."}),
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.latency, m.streams, m.authFailures, m.refused, m.conns}
}

func (m *metrics) answered(rt route, status int, took time.Duration) {
	m.requests.WithLabelValues(rt.String(), strconv.Itoa(status)).Inc()
	if !rt.stream {
		m.latency.WithLabelValues(rt.String()).Observe(took.Seconds())
	}
}
