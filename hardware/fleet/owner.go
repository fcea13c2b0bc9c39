package fleet

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// job is one call that waits for its turn.
type job struct {
	ctx      context.Context
	endpoint hardware.Endpoint
	call     func(context.Context, hardware.BMC) error
	done     chan error // takes one
}

// owner is the one goroutine that talks to a BMC.
type owner struct {
	fleet *Fleet
	key   key
	jobs  chan job
	freed chan struct{} // wakes the owner to see whether it is needed

	waiting, held int // calls on their way here, and consoles that are open; guarded by Fleet.mu

	// The login: of the goroutine alone.
	endpoint hardware.Endpoint
	service  hardware.Service // nil while logged out
	systems  map[string]hardware.BMC
}

// run carries out calls until the BMC was idle for long enough.
func (o *owner) run() {
	defer o.logout()
	for {
		idle := time.NewTimer(o.patience())
		select {
		case j := <-o.jobs:
			o.take(j)
		case <-o.freed:
		case <-idle.C:
			if o.fleet.holds(o) {
				continue
			}
			o.logout() // before the next owner may log in
			if o.fleet.retire(o) {
				return
			}
		case <-o.fleet.ctx.Done():
			o.fleet.retire(o)
			return
		}
		idle.Stop()
	}
}

func (o *owner) wake() {
	select {
	case o.freed <- struct{}{}:
	default:
	}
}

// patience is how long to wait for the next call: not at all without a login to keep, or with one that others need.
func (o *owner) patience() time.Duration {
	o.fleet.mu.Lock()
	defer o.fleet.mu.Unlock()
	if o.waiting == 0 && o.held == 0 && (o.service == nil || !o.service.Spare()) {
		return 0
	}
	return keep
}

// serve logs in where needed and carries out one call.
func (o *owner) serve(j job) error {
	ctx, cancel := context.WithCancel(j.ctx)
	defer cancel()
	defer context.AfterFunc(o.fleet.ctx, cancel)()
	if o.fleet.ctx.Err() != nil {
		return ErrClosed
	}
	bmc, err := o.enter(ctx, j.endpoint)
	if err == nil {
		err = j.call(hardware.WithYield(ctx, o.yield), bmc)
	}
	if ctx.Err() == nil {
		o.fleet.answered(o.key, err)
	}
	if errors.Is(err, hardware.ErrUnauthorized) || errors.Is(err, hardware.ErrPasswordChange) {
		o.logout() // the next call may come with another password
	}
	return err
}

// enter gives the system, logged in as the endpoint says.
func (o *owner) enter(ctx context.Context, endpoint hardware.Endpoint) (hardware.BMC, error) {
	if o.service != nil && !o.same(endpoint) {
		o.logout()
	}
	if o.service == nil {
		if o.fleet.wasSilent(o.key) {
			endpoint.ConnectTimeout = shortConnect
		}
		service, err := o.fleet.connect(ctx, endpoint)
		if err != nil {
			return nil, err
		}
		o.endpoint, o.service, o.systems = endpoint, service, map[string]hardware.BMC{}
	}
	if bmc := o.systems[endpoint.SystemID]; bmc != nil {
		return bmc, nil
	}
	bmc, err := o.service.System(ctx, endpoint.SystemID)
	if err != nil {
		return nil, err
	}
	o.systems[endpoint.SystemID] = bmc
	return bmc, nil
}

// same reports whether the login is one that the endpoint would lead to.
func (o *owner) same(e hardware.Endpoint) bool {
	pinned := e.Fingerprint == "" && !e.PinnedOnly || strings.EqualFold(e.Fingerprint, o.service.Fingerprint())
	spoken := e.Protocol == o.endpoint.Protocol && e.Fallback == o.endpoint.Fallback && e.IPMI == o.endpoint.IPMI
	return pinned && spoken && e.Password == o.endpoint.Password
}

func (o *owner) logout() {
	if o.service == nil {
		return
	}
	if err := o.service.Close(context.Background()); err != nil { // it takes ten seconds at most
		o.fleet.log.Warn("log out of BMC", "bmc", o.key.address, "error", err)
	}
	o.service, o.systems = nil, nil
}

// yield carries out the calls that wait, in the middle of a long one. They may log out: the long one fails then.
func (o *owner) yield() {
	for {
		select {
		case j := <-o.jobs:
			o.take(j)
		default:
			return
		}
	}
}

// take carries out a call whose turn it is.
func (o *owner) take(j job) {
	o.fleet.mu.Lock()
	o.waiting--
	o.fleet.mu.Unlock()
	j.done <- o.serve(j)
}
