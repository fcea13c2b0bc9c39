package dhcp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"testing"

	"github.com/rackweft/rackweft/internal/nstest"
)

// BenchmarkServers tells what a Server at rest costs.
func BenchmarkServers(b *testing.B) {
	for _, c := range []struct {
		name  string
		guest Guest
	}{
		{"IPv4", Guest{Name: "one", MAC: one().MAC, Addresses: one().Addresses[:1]}},
		{"IPv4+IPv6", one()},
	} {
		b.Run(c.name, func(b *testing.B) { benchServers(b, c.guest) })
	}
}

func benchServers(b *testing.B, guest Guest) {
	r := newRig(b, guest)
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	f := NewForwarder(new(net.Dialer).DialContext, "/etc/resolv.conf")
	const servers = 100
	for i := range servers {
		nstest.IP(b, r.tenant, "link", "add", fmt.Sprintf("br-%d", 100+i), "address", fmt.Sprintf("02:00:a9:fe:02:%02x", i), "up", "type", "bridge")
	}
	before := resident()
	for i := range servers {
		s, err := Open(Options{Within: func(f func() error) error { return nstest.Within(r.tenant, f) }, Bridge: fmt.Sprintf("br-%d", 100+i),
			Forwarder: f, Log: slog.New(slog.DiscardHandler)}, r.network)
		must(b, err)
		all.Go(func() { _ = s.Run(ctx) })
	}
	for b.Loop() {
		runtime.Gosched()
	}
	b.ReportMetric(float64(resident()-before)/servers, "B/server")
}

// resident is what the heap and the stacks hold.
func resident() int64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
