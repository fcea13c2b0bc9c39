package bootd

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// interfaces caches the addresses of this machine's interfaces: every DHCP packet needs them, and reading them from
// the kernel is too slow for that.
type interfaces struct {
	now atomic.Pointer[map[string][]netip.Prefix]
}

const interfacesEvery = 2 * time.Second

func (i *interfaces) get() map[string][]netip.Prefix { return *i.now.Load() }

// run reads the interfaces periodically, and calls changed when they differ.
func (i *interfaces) run(ctx context.Context, log *slog.Logger, changed func()) error {
	tick := time.NewTicker(interfacesEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		differs, err := i.read()
		if err != nil {
			log.Warn("read the interfaces", "error", err)
		}
		if differs {
			changed()
		}
	}
}

func (i *interfaces) read() (changed bool, err error) {
	list, err := net.Interfaces()
	if err != nil {
		return false, err
	}
	next := map[string][]netip.Prefix{}
	for _, l := range list {
		addrs, err := l.Addrs()
		if err != nil {
			continue // it was removed in between
		}
		next[l.Name] = nil
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
				next[l.Name] = append(next[l.Name], p)
			}
		}
	}
	old := i.now.Swap(&next)
	return old == nil || !maps.EqualFunc(*old, next, slices.Equal), nil
}
