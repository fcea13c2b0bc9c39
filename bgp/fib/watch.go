package fib

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/rackweft/rackweft/internal/wait"
)

// Watch sets changed when a route that is not ours or a link changes, and when
// changes may have been missed. It returns when ctx is done, or with an error
// when the kernel ends the subscription, so that the caller can subscribe
// again.
func Watch(ctx context.Context, changed wait.Signal) error {
	done := make(chan struct{})
	defer close(done)
	failed := make(chan error, 2)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	routes := make(chan netlink.RouteUpdate, 256)
	err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: fail, ReceiveBufferSize: 4 << 20, ReceiveBufferForceSize: true})
	if err != nil {
		return fmt.Errorf("watch the kernel's routes: %w", err)
	}
	links := make(chan netlink.LinkUpdate, 256)
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: fail}); err != nil {
		return fmt.Errorf("watch the kernel's links: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-routes:
			if !ok {
				return ended(failed)
			}
			if u.Protocol == Protocol {
				continue
			}
		case _, ok := <-links:
			if !ok {
				return ended(failed)
			}
		}
		changed.Set()
	}
}

func ended(failed <-chan error) error {
	select {
	case err := <-failed:
		return fmt.Errorf("the kernel ends the watch of routes: %w", err)
	default:
		return fmt.Errorf("the kernel ends the watch of routes")
	}
}
