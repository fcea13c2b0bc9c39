package tftp

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	transfers *prometheus.CounterVec
	bytes     prometheus.Counter
	active    prometheus.Gauge
	duration  prometheus.Histogram
}

func newMetrics() *metrics {
	return &metrics{
		transfers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rackweft_tftp_transfers_total",
			Help: "TFTP requests that have ended, by outcome (done, missing, bad_name, write, busy, probe, duplicate, failed).",
		}, []string{"outcome"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rackweft_tftp_bytes_total",
			Help: "File bytes sent over TFTP, each counted once however often it was sent.",
		}),
		active: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rackweft_tftp_active_transfers",
			Help: "TFTP transfers that are running.",
		}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "rackweft_tftp_transfer_seconds",
			Help:    "Time that complete TFTP transfers took.",
			Buckets: prometheus.ExponentialBuckets(0.01, 4, 8), // 10 ms to 164 s
		}),
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.transfers, m.bytes, m.active, m.duration}
}

func (m *metrics) ended(outcome string, bytes int64) {
	m.transfers.WithLabelValues(outcome).Inc()
	m.bytes.Add(float64(bytes))
}

func (m *metrics) done(bytes int64, took time.Duration) {
	m.ended("done", bytes)
	m.duration.Observe(took.Seconds())
}
