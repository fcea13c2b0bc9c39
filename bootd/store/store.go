package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/rackweft/rackweft/api"
)

const (
	objectPrefix   = "/" + api.Version + "/"
	internalPrefix = "/rackweft/internal/"

	// MaxObjectBytes bounds one object as it is stored.
	MaxObjectBytes = 3 << 19 // 1.5 MiB
	// requestBytes is etcd's own bound: an object, its key and the transaction around it.
	requestBytes = MaxObjectBytes + 64<<10

	requestTimeout = 10 * time.Second
	pageSize       = 500
)

// Config says where the store is. The zero value of everything but Dir is good.
type Config struct {
	// Dir is the state directory: bootd.lock, etcd.sock and etcd/ are kept in it.
	Dir string
	// Endpoints are an external etcd cluster's; embedded etcd runs without them.
	Endpoints []string
	// CAFile, CertFile and KeyFile (PEM) are for an external cluster.
	CAFile, CertFile, KeyFile string
	// Username and Password are for an external cluster with authentication.
	Username, Password string
	// Quota bounds embedded etcd's database in bytes; 2 GiB when 0.
	Quota int64
	// Reserve is how many bytes the file system must keep free for embedded
	// etcd to be written to; 96 MiB when 0. Etcd cannot go on when its log
	// cannot grow by a segment of 64 MiB, so writes are refused before that.
	Reserve int64
	// Scratch is where embedded etcd works on a copy of its data while Dir cannot
	// be written: what is stored can then still be read. Without it a store on
	// such a file system is not opened.
	Scratch string
	// KeepHistory is for how long a watch can go back; 5m when 0.
	KeepHistory time.Duration
	// SessionTTL is how long a lost leader is waited for; 10s when 0.
	SessionTTL time.Duration
	// OnFatal is called when embedded etcd cannot go on, from a goroutine of
	// its own, once. It must end the process, which loses nothing that was
	// acknowledged. When nil, the error is logged and the process exits with 1.
	OnFatal func(error)
}

func (c Config) withDefaults() Config {
	if c.Quota == 0 {
		c.Quota = 2 << 30
	}
	if c.Reserve == 0 {
		c.Reserve = 96 << 20
	}
	if c.KeepHistory == 0 {
		c.KeepHistory = 5 * time.Minute
	}
	if c.SessionTTL == 0 {
		c.SessionTTL = 10 * time.Second
	}
	return c
}

// Sealer encrypts what must not be read from a disk. aad binds a sealed value
// to the place that it belongs to.
type Sealer interface {
	Seal(plain, aad []byte) ([]byte, error)
	Open(sealed, aad []byte) ([]byte, error)
	// Digest tells equal values from different ones without giving them away.
	Digest(plain []byte) string
}

// Store is the objects of one Site. It is safe for concurrent use.
type Store struct {
	conf   Config
	sealer Sealer
	log    *slog.Logger
	where  string // for messages

	lock   *os.File
	server *embedded // nil with an external cluster
	stale  error     // why etcd works on a copy; nil when it does not
	hold   *hold     // of the Site, with an external cluster
	client *clientv3.Client
	space  *space

	close func() error
}

// SealWith gives the store what seals Secrets, before the first one is written:
// whether a key is the store's own may only be known from the store.
func (s *Store) SealWith(sealer Sealer) { s.sealer = sealer }

// Open locks the state directory, starts etcd or connects to it, and returns
// when it answers. A second bootd on the same directory is refused.
func Open(ctx context.Context, conf Config, sealer Sealer, log *slog.Logger) (*Store, error) {
	s := &Store{conf: conf.withDefaults(), sealer: sealer, log: log}
	s.close = sync.OnceValue(s.shutdown)
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	if s.conf.Dir == "" {
		return errors.New("open the store: no state directory is given")
	}
	if err := os.MkdirAll(s.conf.Dir, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	var err error
	if s.lock, err = lockDir(s.conf.Dir); err != nil {
		return err
	}
	if len(s.conf.Endpoints) > 0 {
		err = s.connect()
	} else {
		err = s.embed(ctx)
	}
	if err != nil {
		return err
	}
	s.space = newSpace(s)
	switch err := s.Ready(ctx); {
	case Unwritable(err):
		// Machines can still boot from what is there.
		s.log.Error("the store can only be read", "error", err)
	case err != nil:
		return fmt.Errorf("open the store: %w", err)
	}
	if s.server != nil {
		return s.dropElections(ctx)
	}
	return nil
}

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

// Close stops what Open started. Caches, watches and elections on the store
// must have ended before.
func (s *Store) Close() error { return s.close() }

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

// GetRaw reads a value of bootd's own, or nil when there is none.
func (s *Store) GetRaw(ctx context.Context, key string) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := s.client.Get(limited, internalPrefix+"raw/"+key)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, s.explain(ctx, err))
	}
	if len(resp.Kvs) == 0 {
		return nil, nil
	}
	return opened(string(resp.Kvs[0].Key), resp.Kvs[0].Value)
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

// DeleteRaw forgets a value of bootd's own; one that is not there is no error.
func (s *Store) DeleteRaw(ctx context.Context, key string) error {
	_, err := s.commit(ctx, transaction{then: []clientv3.Op{clientv3.OpDelete(internalPrefix + "raw/" + key)}})
	if err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// PutRaw writes a small value of bootd's own.
func (s *Store) PutRaw(ctx context.Context, key string, value []byte) error {
	path := internalPrefix + "raw/" + key
	_, err := s.write(ctx, transaction{then: []clientv3.Op{clientv3.OpPut(path, summed(path, value))}})
	if err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return nil
}

// ListRaw reads the values of bootd's own whose keys begin with a prefix, by the
// rest of their keys.
func (s *Store) ListRaw(ctx context.Context, prefix string) (map[string][]byte, error) {
	values := map[string][]byte{}
	from := internalPrefix + "raw/" + prefix
	var fault error
	_, err := s.scan(ctx, from, func(kv *mvccpb.KeyValue) {
		value, err := opened(string(kv.Key), kv.Value)
		fault = errors.Join(fault, err)
		values[strings.TrimPrefix(string(kv.Key), from)] = value
	})
	if err := errors.Join(err, fault); err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	return values, nil
}

// CreateRaw writes a small value of bootd's own unless there is one, and
// returns the one that then stands.
func (s *Store) CreateRaw(ctx context.Context, key string, value []byte) ([]byte, error) {
	path := internalPrefix + "raw/" + key
	resp, err := s.write(ctx, transaction{
		when: []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(path), "=", 0)},
		then: []clientv3.Op{clientv3.OpPut(path, summed(path, value))}, instead: []clientv3.Op{clientv3.OpGet(path)},
	})
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", key, err)
	}
	if resp.Succeeded {
		return value, nil
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return nil, fmt.Errorf("write %s: it is there and is not", key)
	}
	return opened(path, kvs[0].Value)
}
