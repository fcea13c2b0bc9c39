package overlay

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics collects Stats of each Network. A scrape reads only the counters of taps
// from the kernel.
type metrics struct {
	peers, entries, ports, repairs                         *prometheus.Desc
	receivedBytes, receivedPackets, sentBytes, sentPackets *prometheus.Desc
	drops, portReceived, portSent, portDrops               *prometheus.Desc
	hostRepairs, offload, wanted, working                  *prometheus.Desc
}

func newMetrics() metrics {
	host := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }
	of := func(name, help string, more ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append([]string{"network", "vni"}, more...), nil)
	}
	return metrics{
		peers:           of("rackweft_network_peers", "Other hosts of the Network, moved Guests' leases included."),
		entries:         of("rackweft_network_entries", "Routes, nexthops, neighbours and FDB entries in the kernel for them."),
		ports:           of("rackweft_network_ports", "Guests that are plugged in on this host."),
		repairs:         of("rackweft_network_repairs_total", "Changes that repaired what another program had changed."),
		receivedBytes:   of("rackweft_network_received_bytes_total", "Bytes that came from other hosts by VXLAN."),
		receivedPackets: of("rackweft_network_received_packets_total", "Packets that came from other hosts by VXLAN."),
		sentBytes:       of("rackweft_network_transmitted_bytes_total", "Bytes that went to other hosts by VXLAN."),
		sentPackets:     of("rackweft_network_transmitted_packets_total", "Packets that went to other hosts by VXLAN."),
		drops:           of("rackweft_network_drops_total", "Packets dropped at the VXLAN device and by the limits of all guests together.", "reason"),
		portReceived:    of("rackweft_network_port_received_bytes_total", "Bytes that went to the Guest.", "guest"),
		portSent:        of("rackweft_network_port_transmitted_bytes_total", "Bytes that the Guest sent, before its filter.", "guest"),
		portDrops:       of("rackweft_network_port_drops_total", "Packets dropped at the Guest's tap.", "guest", "reason"),
		hostRepairs:     host("rackweft_network_host_repairs_total", "Changes that repaired the host's filter."),
		offload:         host("rackweft_network_checksum_offload", "Whether checksums inside VXLAN are left to the underlay: 0 where this kernel gets them wrong."),
		wanted:          host("rackweft_network_encryption_wanted", "Whether the Zone requires an encrypted underlay."),
		working:         host("rackweft_network_encryption_working", "Whether the underlay is encrypted; where it should be and is not, nothing goes to other hosts."),
	}
}

// Describe implements prometheus.Collector.
func (o *Overlay) Describe(out chan<- *prometheus.Desc) {
	m := o.metrics
	for _, d := range []*prometheus.Desc{m.peers, m.entries, m.ports, m.repairs, m.receivedBytes, m.receivedPackets, m.sentBytes, m.sentPackets,
		m.drops, m.portReceived, m.portSent, m.portDrops, m.hostRepairs, m.offload, m.wanted, m.working} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (o *Overlay) Collect(out chan<- prometheus.Metric) {
	m := o.metrics
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	list := o.Stats()
	o.countPorts(list)
	for _, s := range list {
		m.collect(out, s)
	}
	if len(list) > 0 { // otherwise the probe has not run yet
		gauge(m.offload, truth(list[0].Offload))
	}
	o.mu.Lock()
	wanted, working := o.underlay.Encryption != nil, o.encrypted
	o.mu.Unlock()
	gauge(m.wanted, truth(wanted))
	gauge(m.working, truth(working))
	out <- prometheus.MustNewConstMetric(m.hostRepairs, prometheus.CounterValue, float64(o.HostRepairs()))
}

func (m metrics) collect(out chan<- prometheus.Metric, s Stats) {
	show := func(d *prometheus.Desc, as prometheus.ValueType, value float64, more ...string) {
		out <- prometheus.MustNewConstMetric(d, as, value, append([]string{s.Network, strconv.Itoa(int(s.VNI))}, more...)...)
	}
	count := func(d *prometheus.Desc, value uint64, more ...string) {
		show(d, prometheus.CounterValue, float64(value), more...)
	}
	show(m.peers, prometheus.GaugeValue, float64(s.Peers))
	show(m.entries, prometheus.GaugeValue, float64(s.Entries))
	show(m.ports, prometheus.GaugeValue, float64(len(s.Ports)))
	count(m.repairs, uint64(s.Repairs))
	count(m.receivedBytes, s.Traffic.InBytes)
	count(m.receivedPackets, s.Traffic.InPackets)
	count(m.sentBytes, s.Traffic.OutBytes)
	count(m.sentPackets, s.Traffic.OutPackets)
	count(m.drops, s.Traffic.InDropped, "received")
	count(m.drops, s.Traffic.OutDropped, "transmitted")
	count(m.drops, s.Drops.LimitedIn, "limited_in")
	count(m.drops, s.Drops.LimitedOut, "limited_out")
	for _, p := range s.Ports {
		count(m.portReceived, p.Traffic.InBytes, p.Guest)
		count(m.portSent, p.Traffic.OutBytes, p.Guest)
		count(m.portDrops, p.Traffic.InDropped, p.Guest, "received")
		count(m.portDrops, p.Traffic.OutDropped, p.Guest, "transmitted")
		count(m.portDrops, p.Drops.Spoofed, p.Guest, "spoofed")
		count(m.portDrops, p.Drops.LimitedIn, p.Guest, "limited_in")
		count(m.portDrops, p.Drops.LimitedOut, p.Guest, "limited_out")
	}
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
