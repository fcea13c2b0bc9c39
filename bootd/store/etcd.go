package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

func (s *Store) connect() error {
	s.where = strings.Join(s.conf.Endpoints, ", ")
	conf := clientv3.Config{Endpoints: s.conf.Endpoints, Username: s.conf.Username, Password: s.conf.Password}
	info := transport.TLSInfo{CertFile: s.conf.CertFile, KeyFile: s.conf.KeyFile, TrustedCAFile: s.conf.CAFile}
	if !info.Empty() || s.conf.CAFile != "" {
		tls, err := info.ClientConfig()
		if err != nil {
			return fmt.Errorf("read the TLS files for etcd: %w", err)
		}
		conf.TLS = tls
	}
	return s.dial(conf)
}

func (s *Store) embed(ctx context.Context) error {
	conf := s.conf
	var err error
	if s.stale = unwritable(conf.Dir, startFloor); s.stale != nil {
		conf.Dir, err = s.copyAside()
	} else if conf.Scratch != "" {
		err = os.RemoveAll(s.copyDir()) // a copy that was killed would fill the memory
	}
	if err != nil {
		return err
	}
	if s.server, err = startEmbedded(ctx, conf, s.log); err != nil {
		return err
	}
	s.where = "embedded"
	return s.dial(clientv3.Config{Endpoints: []string{s.server.endpoint}})
}

func (s *Store) dial(conf clientv3.Config) error {
	// Its warnings are of tries that it repeats; what fails in the end is returned.
	conf.Logger = zap.New(newBridge(s.log.With("component", "etcd-client"), zapcore.ErrorLevel))
	conf.DialTimeout = requestTimeout
	conf.DialKeepAliveTime, conf.DialKeepAliveTimeout = 30*time.Second, requestTimeout
	conf.MaxCallSendMsgSize = requestBytes + 64<<10
	// An etcd that comes back should be found soon: gRPC waits up to two minutes.
	reconnect := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: requestTimeout}
	reconnect.Backoff.MaxDelay = 3 * time.Second
	conf.DialOptions = []grpc.DialOption{grpc.WithConnectParams(reconnect)}
	var err error
	if s.client, err = clientv3.New(conf); err != nil {
		return fmt.Errorf("connect to etcd (%s): %w", s.where, err)
	}
	return nil
}

func (s *Store) shutdown() error {
	var errs []error
	if s.space != nil {
		s.space.stop()
	}
	if s.hold != nil {
		s.hold.end()
	}
	if s.client != nil {
		errs = append(errs, s.client.Close())
	}
	if s.server != nil {
		s.server.stop()
	}
	if s.stale != nil && s.conf.Scratch != "" {
		errs = append(errs, os.RemoveAll(s.copyDir()))
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Client gives access to etcd itself.
func (s *Store) Client() *clientv3.Client { return s.client }

// Ready reports why the store cannot be read or written right now.
func (s *Store) Ready(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if _, err := s.client.Get(limited, internalPrefix, clientv3.WithCountOnly()); err != nil {
		return s.explain(ctx, err)
	}
	return s.space.check(ctx)
}

// Empty reports whether the store holds nothing of a Site yet.
func (s *Store) Empty(ctx context.Context) (bool, error) {
	for _, prefix := range []string{objectPrefix, internalPrefix + "raw/"} {
		limited, cancel := context.WithTimeout(ctx, requestTimeout)
		resp, err := s.client.Get(limited, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		cancel()
		if err != nil {
			return false, fmt.Errorf("look whether the store is empty: %w", s.explain(ctx, err))
		}
		if resp.Count > 0 {
			return false, nil
		}
	}
	return true, nil
}

// Revision is the one that the store stands at.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := s.client.Get(limited, internalPrefix, clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("read the store's revision: %w", s.explain(ctx, err))
	}
	return resp.Header.Revision, nil
}

// transaction is what is done when something holds, or instead of it.
type transaction struct {
	when    []clientv3.Cmp
	then    []clientv3.Op
	instead []clientv3.Op
}

// write runs a transaction that takes room, unless there is none.
func (s *Store) write(ctx context.Context, txn transaction) (*clientv3.TxnResponse, error) {
	if err := s.space.check(ctx); err != nil {
		return nil, err
	}
	return s.commit(ctx, txn)
}

// commit runs a transaction; one that deletes is welcome when there is no room.
func (s *Store) commit(ctx context.Context, txn transaction) (*clientv3.TxnResponse, error) {
	if s.stale != nil && !isUrgent(ctx) {
		return nil, s.stale
	}
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if s.hold != nil {
		return s.hold.commit(ctx, limited, txn)
	}
	resp, err := s.client.Txn(limited).If(txn.when...).Then(txn.then...).Else(txn.instead...).Commit()
	return resp, s.explain(ctx, err)
}

// scan calls fn with every key under a prefix, in order, as they stand at one
// revision, which is returned. It reads a page at a time.
func (s *Store) scan(ctx context.Context, from string, fn func(*mvccpb.KeyValue)) (int64, error) {
	return s.scanAt(ctx, from, 0, fn)
}

// scanAt is scan at a revision; 0 for now.
func (s *Store) scanAt(ctx context.Context, from string, revision int64, fn func(*mvccpb.KeyValue)) (int64, error) {
	end := clientv3.GetPrefixRangeEnd(from)
	for {
		resp, err := s.page(ctx, from, end, revision)
		if err != nil {
			return 0, err
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			fn(kv)
		}
		if !resp.More {
			return revision, nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

func (s *Store) page(ctx context.Context, from, end string, revision int64) (*clientv3.GetResponse, error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := s.client.Get(limited, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(revision))
	return resp, s.explain(ctx, err)
}

// follow yields etcd's own watch of a prefix after a revision (0: from now).
// The caller cancels ctx when it has seen enough.
func (s *Store) follow(ctx context.Context, prefix string, after int64, opts ...clientv3.OpOption) iter.Seq2[clientv3.WatchResponse, error] {
	return func(yield func(clientv3.WatchResponse, error) bool) {
		opts := append(opts, clientv3.WithPrefix(), clientv3.WithCreatedNotify(), clientv3.WithProgressNotify())
		if after > 0 {
			opts = append(opts, clientv3.WithRev(after+1))
		}
		for resp := range s.client.Watch(clientv3.WithRequireLeader(ctx), prefix, opts...) {
			err := s.explain(ctx, resp.Err())
			if resp.CompactRevision > 0 {
				err = ErrCompacted
			}
			// Etcd would wait for a revision that is still to come, which after
			// the restore of a backup is one from another history.
			if resp.Created && resp.Header.Revision < after {
				err = ErrCompacted
			}
			if !yield(resp, err) || err != nil {
				return
			}
		}
		err := ctx.Err()
		if err == nil {
			err = errors.New("etcd ended the watch")
		}
		yield(clientv3.WatchResponse{}, err)
	}
}

// compact drops the history up to now.
func (s *Store) compact(ctx context.Context) error {
	now, err := s.client.Get(ctx, internalPrefix, clientv3.WithCountOnly())
	if err != nil {
		return fmt.Errorf("read etcd's revision: %w", err)
	}
	if _, err := s.client.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		return fmt.Errorf("compact etcd: %w", err)
	}
	return nil
}
