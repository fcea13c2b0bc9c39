package guest

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/procfs"
	"golang.org/x/sync/errgroup"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

// Measured only on demand. A host may have a hundred Guests, and one that hangs
// must not delay the figures of the others.
const (
	usageFresh    = time.Second // a measurement is reused for this long
	usageTime     = 3 * time.Second
	usageAnswer   = time.Second // limit for one QEMU
	usageParallel = 8
)

// measured holds the usage of one Guest.
type measured struct {
	name, uid, network string
	cpu                float64 // seconds
	resident           int64   // bytes
	balloon            int64   // memory that the balloon leaves the Guest, 0 when unknown
	disks              []measuredDisk
	answered           bool // QEMU has reported its disks
}

type measuredDisk struct {
	name string
	diskCounts
}

// diskCounts are QEMU's counters (BlockDeviceStats in qapi/block-core.json).
type diskCounts struct {
	ReadBytes    uint64 `json:"rd_bytes"`
	WrittenBytes uint64 `json:"wr_bytes"`
	Reads        uint64 `json:"rd_operations"`
	Writes       uint64 `json:"wr_operations"`
	Flushes      uint64 `json:"flush_operations"`
	ReadErrors   uint64 `json:"failed_rd_operations"`
	WriteErrors  uint64 `json:"failed_wr_operations"`
	FlushErrors  uint64 `json:"failed_flush_operations"`
}

// meter keeps the last measurement.
type meter struct {
	mu   sync.Mutex // held during a measurement
	at   time.Time
	last []measured

	cpu, resident, balloon, bytes, operations, errors *prometheus.Desc
}

// measure returns the usage of all running Guests by name.
func (h *Handler) measure(ctx context.Context) []measured {
	h.meter.mu.Lock()
	defer h.meter.mu.Unlock()
	if time.Since(h.meter.at) < usageFresh {
		return h.meter.last
	}
	ctx, cancel := context.WithTimeout(ctx, usageTime)
	defer cancel()
	h.mu.Lock()
	guests := make([]*guest, 0, len(h.guests))
	for _, g := range h.guests {
		guests = append(guests, g)
	}
	h.mu.Unlock()
	all := make([]*measured, len(guests))
	var group errgroup.Group
	group.SetLimit(usageParallel)
	for i, g := range guests {
		group.Go(func() error {
			all[i] = g.measure(ctx)
			return nil
		})
	}
	_ = group.Wait() // no function returns an error
	var list []measured
	for _, m := range all {
		if m != nil {
			list = append(list, *m)
		}
	}
	slices.SortFunc(list, func(a, b measured) int { return strings.Compare(a.name, b.name) })
	h.meter.at, h.meter.last = time.Now(), list
	return list
}

// measure returns nil when the Guest does not run. It leaves out what QEMU does
// not answer.
func (g *guest) measure(ctx context.Context) *measured {
	seen, ok := g.visible()
	if !ok {
		return nil
	}
	process, err := procfs.NewProc(seen.process.PID)
	if err != nil {
		return nil // it has ended
	}
	stat, err := process.Stat()
	if err != nil || stat.Starttime != seen.process.Start {
		return nil
	}
	m := &measured{name: g.name, uid: g.uid, network: seen.network, cpu: stat.CPUTime(), resident: int64(stat.ResidentMemory())}
	if seen.monitor == nil {
		return m
	}
	ctx, cancel := context.WithTimeout(ctx, usageAnswer)
	defer cancel()
	if m.disks, err = measureDisks(ctx, seen); err != nil {
		return m // it would delay the next query as well
	}
	m.answered = true
	var balloon struct {
		Actual int64 `json:"actual"`
	}
	if err := seen.monitor.Execute(ctx, "query-balloon", nil, &balloon); err == nil { // fails where there is no balloon
		m.balloon = balloon.Actual
	}
	return m
}

// measureDisks accepts only the disks that the Guest should have, each once: a
// QEMU taken over by its guest may report anything.
func measureDisks(ctx context.Context, seen glimpse) ([]measuredDisk, error) {
	var stats []struct {
		Device string     `json:"qdev"`
		Stats  diskCounts `json:"stats"`
	}
	if err := seen.monitor.Execute(ctx, "query-blockstats", nil, &stats); err != nil {
		return nil, err
	}
	var disks []measuredDisk
	for _, s := range stats {
		name, ok := strings.CutPrefix(filepath.Base(strings.TrimSuffix(s.Device, "/virtio-backend")), "blk-") // PCI devices have it below
		again := slices.ContainsFunc(disks, func(d measuredDisk) bool { return d.name == name })
		if ok && !again && slices.Contains(seen.disks, name) {
			disks = append(disks, measuredDisk{name, s.Stats})
		}
	}
	return disks, nil
}

// Usage implements nodeagent.Metered.
func (h *Handler) Usage(ctx context.Context) []api.GuestUsage {
	all := h.measure(ctx)
	var traffic map[string]api.LinkUsage
	if h.o.Network != nil && len(all) > 0 {
		traffic = h.o.Network.Traffic()
	}
	list := make([]api.GuestUsage, 0, len(all))
	for _, m := range all {
		u := api.GuestUsage{Name: m.name, UID: m.uid, CPU: m.cpu, Memory: api.MemoryUsage{Used: m.resident, Total: m.balloon}}
		if l, ok := traffic[m.uid]; ok {
			u.Link = &l
		}
		if m.answered {
			u.Disk = sumDisks(m.disks)
		}
		list = append(list, u)
	}
	return list
}

func sumDisks(disks []measuredDisk) *api.DiskUsage {
	sum := new(api.DiskUsage)
	for _, d := range disks {
		sum.ReadBytes += d.ReadBytes
		sum.WrittenBytes += d.WrittenBytes
		sum.Reads += d.Reads
		sum.Writes += d.Writes
		sum.Errors += d.ReadErrors + d.WriteErrors + d.FlushErrors
	}
	return sum
}

func newMeter() *meter {
	desc := func(name, help string, more ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append([]string{"guest", "network"}, more...), nil)
	}
	return &meter{
		cpu:        desc("rackweft_guest_cpu_seconds_total", "Seconds of the host's processors that the Guest's QEMU has used."),
		resident:   desc("rackweft_guest_memory_resident_bytes", "What the Guest's QEMU has in the host's memory."),
		balloon:    desc("rackweft_guest_memory_balloon_bytes", "Memory that the balloon leaves the Guest."),
		bytes:      desc("rackweft_guest_disk_bytes_total", "Bytes read and written.", "disk", "operation"),
		operations: desc("rackweft_guest_disk_operations_total", "Operations on a disk.", "disk", "operation"),
		errors:     desc("rackweft_guest_disk_errors_total", "Operations on a disk that failed.", "disk", "operation"),
	}
}

// Describe implements prometheus.Collector.
func (h *Handler) Describe(out chan<- *prometheus.Desc) {
	h.configs.requests.Describe(out)
	for _, d := range []*prometheus.Desc{h.meter.cpu, h.meter.resident, h.meter.balloon, h.meter.bytes, h.meter.operations, h.meter.errors} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (h *Handler) Collect(out chan<- prometheus.Metric) {
	h.configs.requests.Collect(out)
	for _, g := range h.measure(context.Background()) { // measure bounds its own time
		h.meter.collect(out, g)
	}
}

func (m *meter) collect(out chan<- prometheus.Metric, g measured) {
	show := func(d *prometheus.Desc, as prometheus.ValueType, value float64, more ...string) {
		out <- prometheus.MustNewConstMetric(d, as, value, append([]string{g.name, g.network}, more...)...)
	}
	show(m.cpu, prometheus.CounterValue, g.cpu)
	show(m.resident, prometheus.GaugeValue, float64(g.resident))
	if g.balloon > 0 {
		show(m.balloon, prometheus.GaugeValue, float64(g.balloon))
	}
	for _, d := range g.disks {
		count := func(of *prometheus.Desc, operation string, value uint64) {
			show(of, prometheus.CounterValue, float64(value), d.name, operation)
		}
		count(m.bytes, "read", d.ReadBytes)
		count(m.bytes, "write", d.WrittenBytes)
		count(m.operations, "read", d.Reads)
		count(m.operations, "write", d.Writes)
		count(m.operations, "flush", d.Flushes)
		count(m.errors, "read", d.ReadErrors)
		count(m.errors, "write", d.WriteErrors)
		count(m.errors, "flush", d.FlushErrors)
	}
}

// visible returns the run of a Guest that is or was in the HostSpec, while no
// other Guest has its name.
func (g *guest) visible() (glimpse, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	seen := g.vm.glimpse()
	return seen, seen.process.PID != 0 && g.want.Want != nodeagent.Removed
}
