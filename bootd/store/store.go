package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

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

// Store is the objects of one Site, and what bootd keeps beside them. It is safe
// for concurrent use.
type Store struct {
	*etcd
	*holds
	*dumps
	Raw     *Raw
	Flannel *Flannel
	VNIs    *VNIs

	sealer Sealer
}

// SealWith gives the store what seals Secrets, before the first one is written:
// whether a key is the store's own may only be known from the store.
func (s *Store) SealWith(sealer Sealer) { s.sealer = sealer }

// Open locks the state directory, starts etcd or connects to it, and returns
// when it answers. A second bootd on the same directory is refused.
func Open(ctx context.Context, conf Config, sealer Sealer, log *slog.Logger) (*Store, error) {
	e := &etcd{conf: conf.withDefaults(), log: log}
	e.close = sync.OnceValue(e.shutdown)
	raw := &Raw{e}
	s := &Store{
		etcd: e, holds: &holds{e}, dumps: &dumps{e, raw},
		Raw: raw, Flannel: &Flannel{e}, VNIs: &VNIs{e}, sealer: sealer,
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (e *etcd) open(ctx context.Context) error {
	if e.conf.Dir == "" {
		return errors.New("open the store: no state directory is given")
	}
	if err := os.MkdirAll(e.conf.Dir, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	var err error
	if e.lock, err = lockDir(e.conf.Dir); err != nil {
		return err
	}
	if len(e.conf.Endpoints) > 0 {
		err = e.connect()
	} else {
		err = e.embed(ctx)
	}
	if err != nil {
		return err
	}
	e.space = newSpace(e)
	switch err := e.Ready(ctx); {
	case Unwritable(err):
		// Machines can still boot from what is there.
		e.log.Error("the store can only be read", "error", err)
	case err != nil:
		return fmt.Errorf("open the store: %w", err)
	}
	if e.server != nil {
		return e.dropElections(ctx)
	}
	return nil
}

// Close stops what Open started. Caches, watches and elections on the store
// must have ended before.
func (e *etcd) Close() error { return e.close() }
