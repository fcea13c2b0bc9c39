package dhcp

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	packets, replies, drops *prometheus.CounterVec
	latency                 prometheus.Histogram
}

func newMetrics() *metrics {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	return &metrics{
		packets: counter("rackweft_dhcp_packets_total", "DHCP packets received, by message type.", "type"),
		replies: counter("rackweft_dhcp_replies_total", "DHCP replies built, by message type.", "type"),
		drops:   counter("rackweft_dhcp_drops_total", "DHCP packets that got no reply, by reason.", "reason"),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "rackweft_dhcp_handle_seconds",
			Help:    "Time from taking a DHCP packet off the queue until its reply is sent.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9), // 0.1 ms to 6.5 s
		}),
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.packets, m.replies, m.drops, m.latency}
}

func (m *metrics) packet(messageType string) { m.packets.WithLabelValues(messageType).Inc() }
func (m *metrics) reply(messageType string)  { m.replies.WithLabelValues(messageType).Inc() }
func (m *metrics) drop(reason string)        { m.drops.WithLabelValues(reason).Inc() }
