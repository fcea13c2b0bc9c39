package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/procfs"
	"github.com/prometheus/procfs/blockdevice"

	"github.com/rackweft/rackweft/api"
)

// Metered is a Handler that measures the usage of Guests.
type Metered interface {
	// Usage returns the usage of running Guests, by name.
	Usage(ctx context.Context) []api.GuestUsage
}

// Bounds of bootd's requests.
const (
	minUsageEvery = time.Second
	maxUsageFor   = time.Minute
)

// usageWatch reports usage as long as bootd requests it. It belongs to one stream.
type usageWatch struct {
	asks    chan api.UsageRequest
	reports chan *api.HostUsage
}

func newUsageWatch() *usageWatch {
	return &usageWatch{asks: make(chan api.UsageRequest, 1), reports: make(chan *api.HostUsage)}
}

// ask accepts a request, which replaces the one before.
func (w *usageWatch) ask(r api.UsageRequest) {
	select {
	case <-w.asks:
	default:
	}
	w.asks <- r // the only writer
}

// run measures until ctx is done. The next report is made only after the stream has
// taken the last.
func (w *usageWatch) run(ctx context.Context, measure func(context.Context) (*api.HostUsage, error), failed func(error)) {
	var until time.Time
	next := time.NewTicker(time.Hour)
	next.Stop()
	defer next.Stop()
	for {
		select {
		case r := <-w.asks:
			idle := time.Now().After(until)
			until = time.Now().Add(min(time.Duration(r.For), maxUsageFor))
			if !idle {
				continue
			}
			next.Reset(max(time.Duration(r.Every), minUsageEvery))
		case <-next.C:
			if time.Now().After(until) {
				next.Stop()
				continue
			}
		case <-ctx.Done():
			return
		}
		usage, err := measure(ctx)
		if err != nil {
			failed(err)
			continue
		}
		select {
		case w.reports <- usage:
		case <-ctx.Done():
			return
		}
	}
}

// usage returns the usage of the host and its Guests.
func (a *Agent) usage(ctx context.Context) (*api.HostUsage, error) {
	var underlay string
	if err := a.do(ctx, func() { underlay = a.spec.underlay().Interface }); err != nil {
		return nil, err
	}
	u, err := hostUsage("/proc", "/sys", underlay)
	if err != nil {
		return nil, err
	}
	for _, w := range a.workers {
		if m, ok := w.handler.(Metered); ok {
			u.Guests = m.Usage(ctx)
			u.Guests = u.Guests[:min(len(u.Guests), api.MaxUsageGuests)]
		}
	}
	u.Uptime = api.Duration(time.Since(a.began)) // last, so that it is not earlier than the counters
	return u, nil
}

// hostUsage reads the kernel's counters of the host.
func hostUsage(proc, sys, underlay string) (*api.HostUsage, error) {
	fs, err := procfs.NewFS(proc)
	if err != nil {
		return nil, fmt.Errorf("what the host uses: %w", err)
	}
	var u api.HostUsage
	err = errors.Join(processors(fs, &u), memory(fs, &u.Memory), disks(proc, sys, &u.Disk), link(fs, underlay, &u.Link))
	if err != nil {
		return nil, fmt.Errorf("what the host uses: %w", err)
	}
	return &u, nil
}

func processors(fs procfs.FS, u *api.HostUsage) error {
	stat, err := fs.Stat()
	if err != nil {
		return err
	}
	// User and Nice include Guests' time (proc(5)).
	t := stat.CPUTotal
	u.CPUs, u.CPU = len(stat.CPU), t.User+t.Nice+t.System+t.IRQ+t.SoftIRQ
	return nil
}

func memory(fs procfs.FS, m *api.MemoryUsage) error {
	info, err := fs.Meminfo()
	if err != nil {
		return err
	}
	if info.MemTotalBytes == nil || info.MemAvailableBytes == nil {
		return errors.New("the kernel does not report MemAvailable")
	}
	m.Total, m.Used = int64(*info.MemTotalBytes), int64(*info.MemTotalBytes-*info.MemAvailableBytes)
	return nil
}

// disks sums up the disks that are devices: the I/O of others, such as a RAID or a
// loop device, is counted at the devices below.
func disks(proc, sys string, d *api.DiskUsage) error {
	fs, err := blockdevice.NewFS(proc, sys)
	if err != nil {
		return err
	}
	all, err := fs.ProcDiskstats()
	if err != nil {
		return err
	}
	const sector = 512 // unit of /proc/diskstats, whatever the disk's sector size
	for _, s := range all {
		if _, err := os.Stat(filepath.Join(sys, "block", s.DeviceName, "device")); err != nil {
			continue
		}
		d.Reads += s.ReadIOs
		d.Writes += s.WriteIOs
		d.ReadBytes += s.ReadSectors * sector
		d.WrittenBytes += s.WriteSectors * sector
	}
	return nil
}

func link(fs procfs.FS, name string, l *api.LinkUsage) error {
	all, err := fs.NetDev()
	if err != nil {
		return err
	}
	s := all[name] // zero without an underlay
	l.ReceivedBytes, l.SentBytes, l.Dropped = s.RxBytes, s.TxBytes, s.RxDropped+s.TxDropped
	return nil
}
