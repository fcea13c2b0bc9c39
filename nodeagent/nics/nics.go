// Package nics lists and watches the network interfaces of a host.
package nics

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/kernel"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// List asks the kernel for the interfaces of this network namespace, all
// but loopback and those that rackweft makes by the thousand (taps, VXLAN, what
// bears its mark).
func List() ([]api.HostNIC, error) {
	links, err := kernel.List(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the network interfaces: %w", err)
	}
	addrs, err := kernel.List(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the addresses: %w", err)
	}
	byLink := map[int][]netip.Prefix{}
	for _, a := range addrs {
		if p, ok := prefix(a.IPNet); ok {
			byLink[a.LinkIndex] = append(byLink[a.LinkIndex], p)
		}
	}
	nics := []api.HostNIC{}
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback != 0 || l.Type() == "tuntap" || l.Type() == "vxlan" || strings.HasPrefix(a.Alias, "rackweft:") {
			continue
		}
		nic := api.HostNIC{Name: a.Name, MTU: a.MTU, Up: a.RawFlags&unix.IFF_UP != 0 && a.RawFlags&unix.IFF_RUNNING != 0,
			Addresses: byLink[a.Index]}
		if len(a.HardwareAddr) == 6 {
			nic.MAC = api.MAC(a.HardwareAddr.String())
		}
		slices.SortFunc(nic.Addresses, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) }) // IPv4 first
		nics = append(nics, nic)
	}
	slices.SortFunc(nics, func(a, b api.HostNIC) int { return strings.Compare(a.Name, b.Name) })
	return nics, nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones), ok
}

// Watch calls changed with the host's NICs at the start, after each change
// and once a minute, until ctx is done.
func Watch(ctx context.Context, log *slog.Logger, changed func([]api.HostNIC)) {
	for ctx.Err() == nil {
		err := watch(ctx, changed)
		if ctx.Err() != nil {
			return
		}
		// ENOBUFS: more events than the socket holds. A new subscription lists again.
		log.Warn("the watch of network interfaces broke; listing again", "error", err)
		_ = wait.For(ctx, time.Second)
	}
}

func watch(ctx context.Context, changed func([]api.HostNIC)) error {
	links, addrs := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64)
	lost := make(chan error, 1)
	report := func(err error) {
		select {
		case lost <- err:
		default:
		}
	}
	stopLinks, stopAddrs := make(chan struct{}), make(chan struct{})
	err := netlink.LinkSubscribeWithOptions(links, stopLinks, netlink.LinkSubscribeOptions{ErrorCallback: report})
	if err != nil {
		close(stopLinks)
		return fmt.Errorf("subscribe to links: %w", err)
	}
	defer drain(links, stopLinks)
	err = netlink.AddrSubscribeWithOptions(addrs, stopAddrs, netlink.AddrSubscribeOptions{ErrorCallback: report})
	if err != nil {
		close(stopAddrs)
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	defer drain(addrs, stopAddrs)

	const settle, relist = 100 * time.Millisecond, time.Minute
	timer := time.NewTimer(0)
	defer timer.Stop()
	soon := false // a listing is due within settle
	for {
		select {
		case _, open := <-links:
			if !open {
				return <-lost
			}
		case _, open := <-addrs:
			if !open {
				return <-lost
			}
		case err := <-lost:
			return err
		case <-timer.C:
			nics, err := List()
			if err != nil {
				return err
			}
			changed(nics)
			soon = false
			timer.Reset(relist)
			continue
		case <-ctx.Done():
			return ctx.Err()
		}
		if !soon { // a flood of events must not put the listing off for ever
			soon = true
			timer.Reset(settle)
		}
	}
}

// drain ends a subscription and waits until its reader has gone.
func drain[T any](events <-chan T, stop chan struct{}) {
	close(stop)
	for range events {
	}
}
