package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
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

// etcd is the connection to etcd, and to the one in this process if there is one.
type etcd struct {
	conf  Config
	log   *slog.Logger
	where string // for messages

	lock   *os.File
	server *embedded // nil with an external cluster
	stale  error     // why etcd works on a copy; nil when it does not
	hold   *hold     // of the Site, with an external cluster
	client *clientv3.Client
	space  *space

	close func() error
}

func (e *etcd) connect() error {
	e.where = strings.Join(e.conf.Endpoints, ", ")
	conf := clientv3.Config{Endpoints: e.conf.Endpoints, Username: e.conf.Username, Password: e.conf.Password}
	info := transport.TLSInfo{CertFile: e.conf.CertFile, KeyFile: e.conf.KeyFile, TrustedCAFile: e.conf.CAFile}
	if !info.Empty() || e.conf.CAFile != "" {
		tls, err := info.ClientConfig()
		if err != nil {
			return fmt.Errorf("read the TLS files for etcd: %w", err)
		}
		conf.TLS = tls
	}
	return e.dial(conf)
}

func (e *etcd) embed(ctx context.Context) error {
	conf := e.conf
	var err error
	if e.stale = unwritable(conf.Dir, startFloor); e.stale != nil {
		conf.Dir, err = e.copyAside()
	} else if conf.Scratch != "" {
		err = os.RemoveAll(e.copyDir()) // a copy left by a killed process would fill the memory
	}
	if err != nil {
		return err
	}
	if e.server, err = startEmbedded(ctx, conf, e.log); err != nil {
		return err
	}
	e.where = "embedded"
	return e.dial(clientv3.Config{Endpoints: []string{e.server.endpoint}})
}

func (e *etcd) dial(conf clientv3.Config) error {
	// Its warnings are about attempts that it repeats; the final failure is returned.
	conf.Logger = zap.New(newBridge(e.log.With("component", "etcd-client"), zapcore.ErrorLevel))
	conf.DialTimeout = requestTimeout
	conf.DialKeepAliveTime, conf.DialKeepAliveTimeout = 30*time.Second, requestTimeout
	conf.MaxCallSendMsgSize = requestBytes + 64<<10
	// An etcd that comes back should be found soon: gRPC waits up to two minutes.
	reconnect := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: requestTimeout}
	reconnect.Backoff.MaxDelay = 3 * time.Second
	conf.DialOptions = []grpc.DialOption{grpc.WithConnectParams(reconnect)}
	var err error
	if e.client, err = clientv3.New(conf); err != nil {
		return fmt.Errorf("connect to etcd (%s): %w", e.where, err)
	}
	return nil
}

func (e *etcd) shutdown() error {
	var errs []error
	if e.space != nil {
		e.space.stop()
	}
	if e.hold != nil {
		e.hold.end()
	}
	if e.client != nil {
		errs = append(errs, e.client.Close())
	}
	if e.server != nil {
		e.server.stop()
	}
	if e.stale != nil && e.conf.Scratch != "" {
		errs = append(errs, os.RemoveAll(e.copyDir()))
	}
	if e.lock != nil {
		errs = append(errs, e.lock.Close())
	}
	return errors.Join(errs...)
}

// Client gives access to etcd itself.
func (e *etcd) Client() *clientv3.Client { return e.client }

// Ready reports why the store cannot be read or written right now.
func (e *etcd) Ready(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if _, err := e.client.Get(limited, internalPrefix, clientv3.WithCountOnly()); err != nil {
		return e.explain(ctx, err)
	}
	return e.space.check(ctx)
}

// Empty reports whether the store does not contain a Site yet.
func (e *etcd) Empty(ctx context.Context) (bool, error) {
	for _, prefix := range []string{objectPrefix, internalPrefix + "raw/"} {
		limited, cancel := context.WithTimeout(ctx, requestTimeout)
		resp, err := e.client.Get(limited, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		cancel()
		if err != nil {
			return false, fmt.Errorf("check whether the store is empty: %w", e.explain(ctx, err))
		}
		if resp.Count > 0 {
			return false, nil
		}
	}
	return true, nil
}

// Revision is the store's newest revision.
func (e *etcd) Revision(ctx context.Context) (int64, error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := e.client.Get(limited, internalPrefix, clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("read the store's revision: %w", e.explain(ctx, err))
	}
	return resp.Header.Revision, nil
}

// transaction holds conditions, and the operations if they hold or else.
type transaction struct {
	when    []clientv3.Cmp
	then    []clientv3.Op
	instead []clientv3.Op
}

// write runs a transaction that needs space, unless there is none.
func (e *etcd) write(ctx context.Context, txn transaction) (*clientv3.TxnResponse, error) {
	if err := e.space.check(ctx); err != nil {
		return nil, err
	}
	return e.commit(ctx, txn)
}

// commit runs a transaction; deletions are permitted when there is no space.
func (e *etcd) commit(ctx context.Context, txn transaction) (*clientv3.TxnResponse, error) {
	if e.stale != nil && !isUrgent(ctx) {
		return nil, e.stale
	}
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if e.hold != nil {
		return e.hold.commit(ctx, limited, txn)
	}
	resp, err := e.client.Txn(limited).If(txn.when...).Then(txn.then...).Else(txn.instead...).Commit()
	return resp, e.explain(ctx, err)
}

// scan calls fn with every key under a prefix, in order, at one revision, which it returns. It reads a page at a
// time.
func (e *etcd) scan(ctx context.Context, from string, fn func(*mvccpb.KeyValue)) (int64, error) {
	return e.scanAt(ctx, from, 0, fn)
}

// scanAt is scan at a revision; 0 for now.
func (e *etcd) scanAt(ctx context.Context, from string, revision int64, fn func(*mvccpb.KeyValue)) (int64, error) {
	end := clientv3.GetPrefixRangeEnd(from)
	for {
		resp, err := e.page(ctx, from, end, revision)
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

func (e *etcd) page(ctx context.Context, from, end string, revision int64) (*clientv3.GetResponse, error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := e.client.Get(limited, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(revision))
	return resp, e.explain(ctx, err)
}

// follow yields etcd's own watch of a prefix after a revision (0: from now).
// The caller cancels ctx when it has seen enough.
func (e *etcd) follow(ctx context.Context, prefix string, after int64, opts ...clientv3.OpOption) iter.Seq2[clientv3.WatchResponse, error] {
	return func(yield func(clientv3.WatchResponse, error) bool) {
		opts := append(opts, clientv3.WithPrefix(), clientv3.WithCreatedNotify(), clientv3.WithProgressNotify())
		if after > 0 {
			opts = append(opts, clientv3.WithRev(after+1))
		}
		for resp := range e.client.Watch(clientv3.WithRequireLeader(ctx), prefix, opts...) {
			err := e.explain(ctx, resp.Err())
			if resp.CompactRevision > 0 {
				err = ErrCompacted
			}
			// Etcd would wait for a future revision, which after the restore of a backup is one from another
			// history.
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
func (e *etcd) compact(ctx context.Context) error {
	now, err := e.client.Get(ctx, internalPrefix, clientv3.WithCountOnly())
	if err != nil {
		return fmt.Errorf("read etcd's revision: %w", err)
	}
	if _, err := e.client.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		return fmt.Errorf("compact etcd: %w", err)
	}
	return nil
}
