package overlay

import (
	"context"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

// round is one Reconcile: its jobs, and the status of each part.
type round struct {
	overlay  *Overlay
	host     place
	underlay underlay
	jobs     []job
	networks []network // of the jobs
	out      map[string]api.PartStatus
}

// plan creates a job for each part that can be applied; fault is the underlay's.
func (r *round) plan(parts []nodeagent.Part, fault error) {
	for _, asked := range parts {
		part, ok := asked.Value.(*api.NetworkPart)
		switch {
		case asked.Want == nodeagent.Removed || !ok:
			continue
		case fault != nil:
			r.out[asked.Key()] = pending(fault)
			continue
		}
		n, notes, err := compile(api.PartObject(asked.Name), *part, r.underlay)
		if err != nil {
			r.out[asked.Key()] = api.PartStatus{State: api.PartFailed, Message: err.Error()}
			continue
		}
		n.digest = asked.Digest
		r.jobs = append(r.jobs, newJob(asked.Key(), n, notes))
	}
	joinNetworks(r.jobs)
	settleDirect(r.jobs, r.underlay)
	settleAdvertised(r.jobs, r.underlay)
	if len(r.jobs) > 0 && r.overlay.probe.verdict() {
		for i := range r.jobs {
			r.jobs[i].note(api.PartApplied, "this kernel sends wrong checksums inside VXLAN: their offload is off")
		}
	}
	for _, j := range r.jobs {
		r.networks = append(r.networks, j.network)
	}
}

// fail sets the jobs of some Networks to pending because of an error.
func (r *round) fail(err error, of func(network) bool) {
	for _, j := range r.jobs {
		if of(j.network) {
			r.out[j.key] = pending(err)
		}
	}
}

// work applies each Network's own namespace.
func (r *round) work(ctx context.Context) {
	for _, j := range r.jobs {
		r.out[j.key] = r.one(ctx, j, alone)
	}
}

// routes sets the host's routes to direct and advertised Networks.
func (r *round) routes() {
	if err := r.overlay.host.routes(r.host, r.underlay, r.networks); err != nil {
		r.overlay.log.Warn("overlay: cannot set the host's routes to Networks", "error", err)
		r.fail(err, network.routed)
	}
}

// passages joins Networks, which needs both namespaces.
func (r *round) passages(ctx context.Context) {
	for _, j := range r.jobs {
		if len(j.network.passages) > 0 && r.out[j.key].State != api.PartPending {
			r.out[j.key] = r.one(ctx, j, joined)
		}
	}
}

// hold reports applied Networks as not reaching other hosts while an underlay that
// should be encrypted is not.
func (r *round) hold() {
	if !r.underlay.encrypted || r.underlay.sealed {
		return
	}
	for _, j := range r.jobs {
		if r.out[j.key].State == api.PartApplied {
			r.out[j.key] = pending(errUnsealed)
		}
	}
}

// one takes a Network through a stage.
func (r *round) one(ctx context.Context, j job, s stage) api.PartStatus {
	if ctx.Err() != nil {
		return pending(ctx.Err())
	}
	if err := r.overlay.ensure(ctx, r.host, j.network, r.networks, s); err != nil {
		r.overlay.log.Warn("overlay: cannot apply a Network", "network", j.network.name, "error", err)
		return pending(err)
	}
	if s == alone {
		if err := r.overlay.peer(ctx, j.network); err != nil {
			r.overlay.log.Warn("overlay: guests cannot peer", "network", j.network.name, "error", err)
			return pending(err)
		}
	}
	return api.PartStatus{State: j.state, Message: summary(j.notes)}
}
