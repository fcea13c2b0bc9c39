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

	// MaxObjectBytes limits one stored object.
	MaxObjectBytes = 3 << 19 // 1.5 MiB
	// requestBytes is etcd's own limit: an object, its key and the transaction around it.
	requestBytes = MaxObjectBytes + 64<<10

	requestTimeout = 10 * time.Second
	pageSize       = 500
)

// Config configures the store. Only Dir is required.
type Config struct {
	// Dir is the state directory: bootd.lock, etcd.sock and etcd/ are kept in it.
	Dir string
	// Endpoints are an external etcd cluster's; embedded etcd runs without them.
	Endpoints []string
	// CAFile, CertFile and KeyFile (PEM) are for an external cluster.
	CAFile, CertFile, KeyFile string
	// Username and Password are for an external cluster with authentication.
	Username, Password string
	// Quota limits embedded etcd's database, in bytes. Default: 2 GiB.
	Quota int64
	// Reserve is how many bytes the file system must keep free for embedded etcd to accept writes. Default: 96
	// MiB. Etcd cannot continue when its log cannot grow by a segment of 64 MiB, so writes are refused before
	// that.
	Reserve int64
	// Scratch is the directory for a copy of embedded etcd's data while Dir cannot be written: stored data can
	// then still be read. Without it a store on such a file system is not opened.
	Scratch string
	// KeepHistory is how long a watch can go back, up to twice that. All of it is in memory, by mmap. Default: 1m.
	KeepHistory time.Duration
	// SessionTTL is how long to wait for a lost leader. Default: 10s.
	SessionTTL time.Duration
	// OnFatal is called once, from a goroutine of its own, when embedded etcd cannot continue. It must end the
	// process, which loses nothing that was acknowledged. Default: log the error and exit with 1.
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
		c.KeepHistory = time.Minute
	}
	if c.SessionTTL == 0 {
		c.SessionTTL = 10 * time.Second
	}
	return c
}

// Sealer encrypts values that must not be readable on the disk. aad binds a sealed value to its place.
type Sealer interface {
	Seal(plain, aad []byte) ([]byte, error)
	Open(sealed, aad []byte) ([]byte, error)
	// Digest compares values without revealing them.
	Digest(plain []byte) string
}

// Store holds the objects of one Site, and bootd's own values. It is safe for concurrent use.
type Store struct {
	*etcd
	*holds
	*dumps
	Raw     *Raw
	Flannel *Flannel
	VNIs    *VNIs

	sealer Sealer
}

// SealWith sets the Sealer of Secrets, before the first one is written: only the store may know whether a key is
// its own.
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
		// Machines can still boot from the existing data.
		e.log.Error("the store can only be read", "error", err)
	case err != nil:
		return fmt.Errorf("open the store: %w", err)
	}
	if e.server != nil {
		return e.dropElections(ctx)
	}
	return nil
}

// Close stops what Open started. Caches, watches and elections on the store must end before.
func (e *etcd) Close() error { return e.close() }
