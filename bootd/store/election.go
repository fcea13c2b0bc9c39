package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/rackweft/rackweft/internal/wait"
)

const electionPrefix = internalPrefix + "elections/"

// Elect calls run while this process is the leader, of which there is one among all processes on the same store.
// The context of run ends when the leadership is lost; then Elect campaigns again. It returns when run ends by
// itself, with run's error, or when ctx ends.
func (h *holds) Elect(ctx context.Context, name, id string, run func(context.Context) error) error {
	for {
		lost, err := h.lead(ctx, name, id, run)
		switch {
		case ctx.Err() != nil && !lost:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case !lost:
			return err
		}
		h.etcd.log.Warn("the election is held again", "election", name, "reason", err)
		if err := wait.For(ctx, time.Second); err != nil {
			return err
		}
	}
}

// lead campaigns once and runs while it leads. lost says that the leadership, or the campaign, was lost.
func (h *holds) lead(ctx context.Context, name, id string, run func(context.Context) error) (lost bool, err error) {
	// The tenure must outlive ctx: resigning needs it.
	t, err := h.etcd.newTenure(ctx)
	if err != nil {
		return true, fmt.Errorf("campaign in the election: %w", err)
	}
	defer t.end()
	session, err := concurrency.NewSession(h.etcd.client, concurrency.WithLease(t.lease))
	if err != nil {
		return true, fmt.Errorf("campaign in the election: %w", err)
	}
	defer session.Orphan()
	election := concurrency.NewElection(session, electionPrefix+name)

	leading, cancel := context.WithCancelCause(context.WithValue(ctx, tenureKey{}, t))
	defer cancel(nil)
	for _, end := range []context.Context{session.Ctx(), t.lost} {
		stop := context.AfterFunc(end, func() { cancel(errLost) })
		defer stop()
	}

	if err := election.Campaign(leading, id); err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		return true, fmt.Errorf("campaign in the election: %w", err)
	}
	h.etcd.log.Info("leading", "election", name, "id", id)
	err = run(leading)
	if errors.Is(context.Cause(leading), errLost) {
		return true, fmt.Errorf("the leadership was lost: %w", errLost)
	}
	return false, err
}

type tenureKey struct{}

// CheckLead is nil while the leader whose context this is certainly leads, by this machine's own clock. Call it
// right before an action that cannot be undone, such as a command to a BMC: the context of a leader that was
// suspended may end only after the action.
func CheckLead(ctx context.Context) error {
	t, _ := ctx.Value(tenureKey{}).(*tenure)
	if t == nil {
		return errors.New("this is done by the elected bootd only")
	}
	if err := t.check(); err != nil {
		return fmt.Errorf("the leadership is lost: %w", err)
	}
	return nil
}

// dropElections removes the leadership from before a restart. With embedded etcd the lock on the state directory
// proves that no other bootd leads.
func (e *etcd) dropElections(ctx context.Context) error {
	_, err := e.commit(Urgent(ctx), transaction{then: []clientv3.Op{clientv3.OpDelete(electionPrefix, clientv3.WithPrefix())}})
	if err != nil {
		return fmt.Errorf("forget earlier elections: %w", err)
	}
	return nil
}
