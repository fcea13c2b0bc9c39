package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

const electionPrefix = internalPrefix + "elections/"

// Elect calls run whenever this process leads the election, one at a time of
// all processes on the same store. The context that run gets ends when the
// lead is lost; then Elect stands for election again. It returns when run ends
// by itself, with run's error, or when ctx ends.
func (s *Store) Elect(ctx context.Context, name, id string, run func(context.Context) error) error {
	for {
		lost, err := s.lead(ctx, name, id, run)
		switch {
		case ctx.Err() != nil && !lost:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case !lost:
			return err
		}
		s.log.Warn("the election is held again", "election", name, "reason", err)
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
}

// lead stands for election once and runs while it leads. lost says that the
// lead, or the way to it, was lost.
func (s *Store) lead(ctx context.Context, name, id string, run func(context.Context) error) (lost bool, err error) {
	// The session's own context must outlive ctx: resigning needs it.
	session, err := s.session(ctx)
	if err != nil {
		return true, err
	}
	defer s.leave(session)
	election := concurrency.NewElection(session, electionPrefix+name)

	leading, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(session.Ctx(), func() { cancel(errLost) })
	defer stop()

	if err := election.Campaign(leading, id); err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		return true, fmt.Errorf("stand for election: %w", err)
	}
	s.log.Info("leading", "election", name, "id", id)
	err = run(leading)
	if errors.Is(context.Cause(leading), errLost) {
		return true, errLost
	}
	return false, err
}

var errLost = errors.New("the lead was lost: etcd did not hear from this bootd in time")

func (s *Store) session(ctx context.Context) (*concurrency.Session, error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	lease, err := s.client.Grant(limited, int64(max(s.conf.SessionTTL/time.Second, 1)))
	if err != nil {
		return nil, fmt.Errorf("stand for election: %w", s.explain(ctx, err))
	}
	session, err := concurrency.NewSession(s.client, concurrency.WithLease(lease.ID))
	if err != nil {
		return nil, fmt.Errorf("stand for election: %w", err)
	}
	return session, nil
}

// leave gives up the lead and the place in the queue at once; without it the
// next one waits for SessionTTL.
func (s *Store) leave(session *concurrency.Session) {
	session.Orphan()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err := s.client.Revoke(ctx, session.Lease())
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		s.log.Warn("the lead could not be given up; it ends by itself", "error", err)
	}
}

// dropElections forgets who led before a restart. With embedded etcd the lock
// on the state directory proves that nobody else leads.
func (s *Store) dropElections(ctx context.Context) error {
	_, err := s.commit(Urgent(ctx), func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.client.Txn(ctx).Then(clientv3.OpDelete(electionPrefix, clientv3.WithPrefix())).Commit()
	})
	if err != nil {
		return fmt.Errorf("forget earlier elections: %w", err)
	}
	return nil
}
