// Package health checks periodically whether a service answers at an address of
// this host, and reports changes.
package health

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/rackweft/rackweft/api"
)

// Watch runs the check, whose fields are all set, on addr until ctx is done. It
// calls report after the first look, and whenever the result changes; fault is
// why the check fails.
func Watch(ctx context.Context, addr netip.Addr, check api.ServiceCheck, report func(passes bool, fault error)) {
	j := judge{rise: check.Rise, fall: check.Fall}
	tick := time.NewTicker(time.Duration(check.Interval))
	defer tick.Stop()
	for {
		fault := look(ctx, addr, check)
		if ctx.Err() != nil {
			return
		}
		if j.take(fault == nil) {
			report(j.passes, fault)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// judge keeps its result until several looks in a row differ. The first look
// counts by itself: a restart must not withdraw a healthy service.
type judge struct {
	rise, fall int
	known      bool
	passes     bool
	against    int // consecutive looks that differ
}

// take counts a look, and reports whether it changes the result.
func (j *judge) take(passes bool) bool {
	if !j.known {
		j.known, j.passes = true, passes
		return true
	}
	if passes == j.passes {
		j.against = 0
		return false
	}
	j.against++
	if passes && j.against < j.rise || !passes && j.against < j.fall {
		return false
	}
	j.passes, j.against = passes, 0
	return true
}

func look(ctx context.Context, addr netip.Addr, check api.ServiceCheck) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(check.Timeout))
	defer cancel()
	if check.Type == api.CheckHTTP {
		return lookHTTP(ctx, addr, check)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(addr.String(), strconv.Itoa(check.Port)))
	if err != nil {
		return err
	}
	_ = conn.Close() // a connection is all that the check requires
	return nil
}

func lookHTTP(ctx context.Context, addr netip.Addr, check api.ServiceCheck) error {
	r, err := check.Request(addr)
	if err != nil {
		return err
	}
	// Each look uses a new connection, no proxy and no redirect: it is about
	// this host.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(r.WithContext(ctx))
	if err != nil {
		return err
	}
	_ = response.Body.Close() // unread: only the status matters
	if response.StatusCode < 200 || response.StatusCode > 399 {
		return fmt.Errorf("%s answers %s", r.URL, response.Status)
	}
	return nil
}
