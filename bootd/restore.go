package bootd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/backup"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/lease"
	"github.com/rackweft/rackweft/bootd/recovery"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/file"
)

// RestoreOptions say what is restored, and where.
type RestoreOptions struct {
	Config Config
	File   string
	With   []backup.Identity
	// Replace moves the content of the state directory aside.
	Replace bool
	// WithoutStore does not change the store: it is an external etcd that was not lost.
	WithoutStore bool
	// CheckOnly writes nothing.
	CheckOnly bool
}

// RestoreReport is the result of a restore.
type RestoreReport struct {
	backup.Header
	File, StateDir string
	CheckOnly      bool
	Aside          string // the path of the former state
	Into           []string
	Records, Blobs int
	NewEpoch       int64
}

// content is the content of a backup, except its records and blobs.
type content struct {
	sealKey, cert, key []byte
	records, blobs     int
}

// restoringFile exists in a state directory while it is being restored.
const restoringFile = "restoring"

// Restore creates the state of a bootd from a backup. The whole backup is checked before anything is written.
func Restore(ctx context.Context, o RestoreOptions, log *slog.Logger) (*RestoreReport, error) {
	if o.WithoutStore && len(o.Config.Store.Endpoints) == 0 {
		return nil, errors.New("--without-store is for a store that is an external etcd, and the configuration names none in store.endpoints")
	}
	var c content
	head, err := o.read(func(_ backup.Header, p backup.Piece) error { return c.check(p) })
	if err == nil {
		err = c.whole()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.File, err)
	}
	r := &RestoreReport{Header: head, File: o.File, StateDir: o.Config.StateDir, CheckOnly: o.CheckOnly, Into: o.Config.Store.Endpoints, Records: c.records, Blobs: c.blobs}
	if o.CheckOnly {
		return r, nil
	}
	if r.Aside, err = o.prepare(); err != nil {
		return nil, err
	}
	if err := o.write(ctx, &c, r, log); err != nil {
		return nil, fmt.Errorf("restore into %s: %w", o.Config.StateDir, err)
	}
	return r, nil
}

func (o RestoreOptions) read(visit func(backup.Header, backup.Piece) error) (backup.Header, error) {
	f, err := os.Open(o.File)
	if err != nil {
		return backup.Header{}, fmt.Errorf("open the backup: %w", err)
	}
	defer func() { _ = f.Close() }()
	plain, err := backup.Decrypt(f, o.With...)
	if err != nil {
		return backup.Header{}, err
	}
	return backup.Read(plain, visit)
}

// check reads a piece, if it is small, and checks its content.
func (c *content) check(p backup.Piece) (err error) {
	switch {
	case p.Name == backup.SealKey:
		c.sealKey, err = io.ReadAll(p)
	case p.Name == backup.CACert:
		c.cert, err = io.ReadAll(p)
	case p.Name == backup.CAKey:
		c.key, err = io.ReadAll(p)
	case backup.IsRecords(p.Name):
		return backup.ReadRecords(p, func(backup.Record) error { c.records++; return nil })
	case backup.IsBlob(p.Name):
		c.blobs++
		sum := sha256.New()
		if _, err = io.Copy(sum, p); err == nil && p.Name != backup.BlobPrefix+hex.EncodeToString(sum.Sum(nil)) {
			return errors.New("the blob was damaged when it was backed up: back up without --blobs, or import its Image again first")
		}
	}
	return err
}

// whole returns an error that names what a backup lacks.
func (c *content) whole() error {
	if err := ca.CheckKeys(c.sealKey); err != nil {
		return fmt.Errorf("%w: %w", backup.ErrDamaged, err)
	}
	if err := ca.CheckPair(c.cert, c.key); err != nil {
		return fmt.Errorf("%w: %w", backup.ErrDamaged, err)
	}
	if c.records == 0 {
		return fmt.Errorf("%w: it has no records of the store", backup.ErrDamaged)
	}
	return nil
}

// prepare ensures an empty state directory that no bootd uses, and returns the new path of its former content.
func (o RestoreOptions) prepare() (aside string, err error) {
	dir := o.Config.StateDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("create the state directory: %w (choose another with --state-dir)", err)
	}
	lock, err := store.Lock(dir)
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close() }()
	held, err := holds(dir)
	if err != nil {
		return "", err
	}
	_, err = os.Stat(filepath.Join(dir, restoringFile))
	switch interrupted := err == nil; {
	case interrupted:
		for _, name := range held {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return "", fmt.Errorf("remove the remains of an interrupted restore: %w", err)
			}
		}
	case len(held) > 0 && !o.Replace:
		return "", fmt.Errorf("%s is not empty (%s): restore into an empty directory, or move its content aside with --replace", dir, strings.Join(held, ", "))
	case len(held) > 0:
		if aside, err = moveAside(dir, held); err != nil {
			return "", err
		}
	}
	if err := file.Replace(filepath.Join(dir, restoringFile), []byte(o.File+"\n"), file.Options{}); err != nil {
		return "", fmt.Errorf("mark the state directory: %w", err)
	}
	return aside, nil
}

// holds lists the content of a state directory that a restore would collide with.
func holds(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the state directory: %w", err)
	}
	var names []string
	for _, e := range entries {
		if n := e.Name(); n != "lost+found" && n != store.LockFile && !strings.HasPrefix(n, asidePrefix) {
			names = append(names, n)
		}
	}
	return names, nil
}

const asidePrefix = "replaced-"

// moveAside stays inside the directory, which may be a mount.
func moveAside(dir string, names []string) (string, error) {
	aside := filepath.Join(dir, asidePrefix+time.Now().UTC().Format("20060102T150405"))
	if err := os.Mkdir(aside, 0o700); err != nil {
		return "", fmt.Errorf("move the old state aside: %w", err)
	}
	for _, name := range names {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(aside, name)); err != nil {
			return "", fmt.Errorf("move the old state aside: %w", err)
		}
	}
	return aside, nil
}

// write creates the state. Until its end the directory and the store are marked as incomplete, and bootd does not
// start on them.
func (o RestoreOptions) write(ctx context.Context, c *content, r *RestoreReport, log *slog.Logger) error {
	dir := o.Config.StateDir
	if err := ca.ImportKeyring(dir, c.sealKey); err != nil {
		return err
	}
	if err := ca.Import(dir, c.cert, c.key); err != nil {
		return err
	}
	if err := o.restoreBlobs(ctx); err != nil {
		return err
	}
	if !o.WithoutStore {
		keyring, err := ca.FindKeyring(dir, os.Getenv("CREDENTIALS_DIRECTORY"))
		if err != nil {
			return err
		}
		s, err := store.Open(ctx, o.Config.storeConfig(), keyring, log)
		if err != nil {
			return err
		}
		err = o.load(ctx, s, r)
		if err := errors.Join(err, s.Close()); err != nil {
			return err
		}
	}
	if err := file.Remove(filepath.Join(dir, restoringFile)); err != nil {
		return fmt.Errorf("mark the state as complete: %w", err)
	}
	return nil
}

func (o RestoreOptions) restoreBlobs(ctx context.Context) error {
	blobs, err := blob.Open(filepath.Join(o.Config.StateDir, "blobs"), blob.Options{})
	if err != nil {
		return err
	}
	_, err = o.read(func(_ backup.Header, p backup.Piece) error {
		if !backup.IsBlob(p.Name) {
			return nil
		}
		_, _, err := blobs.Put(ctx, p, blob.Digest("sha256:"+strings.TrimPrefix(p.Name, backup.BlobPrefix)))
		return err
	})
	return errors.Join(err, blobs.Close())
}

func (o RestoreOptions) load(ctx context.Context, s *store.Store, r *RestoreReport) error {
	if err := holdSite(ctx, s); err != nil {
		return err
	}
	if err := s.BeginRestore(ctx); err != nil {
		if errors.Is(err, store.ErrNotEmpty) {
			return fmt.Errorf("%w: a backup is restored only into an empty store: remove the keys of the old Site, or name another cluster", err)
		}
		return err
	}
	l := s.Loader()
	_, err := o.read(func(_ backup.Header, p backup.Piece) error {
		if !backup.IsRecords(p.Name) {
			return nil
		}
		return backup.ReadRecords(p, func(rec backup.Record) error { return l.Add(ctx, store.Record(rec)) })
	})
	if err != nil {
		return err
	}
	if err := l.Flush(ctx); err != nil {
		return err
	}
	now := time.Now()
	if r.NewEpoch, err = raiseEpoch(ctx, s, now); err != nil {
		return err
	}
	if err := recovery.Renew(ctx, s, r.NewEpoch, r.Created, now); err != nil {
		return err
	}
	return s.EndRestore(ctx)
}

// holdSite keeps every bootd off an external store during the restore.
func holdSite(ctx context.Context, s *store.Store) error {
	waiting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := s.Hold(waiting, func(h store.Holder) {
		cancel(fmt.Errorf("a bootd uses the store: %s: stop it first", h))
	})
	if cause := context.Cause(waiting); err != nil && cause != nil {
		return cause
	}
	return err
}

// raiseEpoch sets the epoch to one that no host has seen. The backup's plus one would not do: two restores of the
// same backup would have the same.
func raiseEpoch(ctx context.Context, s *store.Store, now time.Time) (int64, error) {
	old, err := readEpoch(ctx, s)
	if err != nil {
		return 0, err
	}
	next := max(old+1, now.Unix())
	return next, writeEpoch(ctx, s, next)
}

// restoring refuses a state of an unfinished restore.
func (d *daemon) restoring(ctx context.Context) error {
	const again = "a restore into %s was interrupted: run bootd restore FILE again"
	if _, err := os.Stat(filepath.Join(d.config.StateDir, restoringFile)); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf(again, d.config.StateDir), err)
	}
	if d.store == nil {
		return nil
	}
	under, err := d.store.Restoring(ctx)
	if err == nil && under {
		err = fmt.Errorf(again, strings.Join(slices.Concat(d.config.Store.Endpoints, []string{d.config.StateDir}), ", "))
	}
	return err
}

// keepLease records that a host uses an address, which a backup may lack.
func (d *daemon) keepLease(ctx context.Context, machine string, mac api.MAC, subnet *api.Subnet, addr netip.Addr) error {
	if _, ok := d.leases.Lookup(addr); ok {
		return nil
	}
	_, err := d.leases.Commit(ctx, lease.Holder{MAC: string(mac), Machine: machine, Hostname: machine}, subnet.Metadata.Name, addr, time.Duration(subnet.Spec.LeaseTime))
	return err
}

// Text is the report for a person.
func (r *RestoreReport) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is complete: taken %s of bootd %s at epoch %d, revision %d: %d keys of the store, %d blobs, the seal key and the CA.\n",
		r.File, r.Created.Format(time.RFC3339), r.Bootd, r.Epoch, r.Revision, r.Records, r.Blobs)
	if r.CheckOnly {
		return b.String() + "Nothing was written."
	}
	fmt.Fprintf(&b, "It is restored into %s", r.StateDir)
	if len(r.Into) > 0 {
		fmt.Fprintf(&b, ", its store into %s", strings.Join(r.Into, ", "))
	}
	if r.NewEpoch == 0 {
		return b.String() + "; the store is not changed. Start bootd."
	}
	fmt.Fprintf(&b, ", at epoch %d.\n", r.NewEpoch)
	if r.Aside != "" {
		fmt.Fprintf(&b, "The former state is in %s, with its keys: remove it when it is no longer needed.\n", r.Aside)
	}
	if !r.Header.Blobs {
		b.WriteString("The backup has no blobs: Images are Ready again when bootd has fetched their files, or you have imported them with weftctl image import.\n")
	}
	b.WriteString("Never start the old bootd again. Start this one: it changes nothing before it knows what every host runs.\n" +
		"  weftctl restore status      what it waits for")
	return b.String()
}

// Text is the report for a person.
func (r *BackupReport) Text(file string) string {
	var b strings.Builder
	how := "of the state, because no bootd runs"
	if r.Running {
		how = "of the running bootd"
	}
	fmt.Fprintf(&b, "%s: %d keys of the store, %d blobs, the seal key and the CA, %s; %d bytes, epoch %d, revision %d.", file, r.Records, r.Blobs, how, r.Bytes, r.Epoch, r.Revision)
	if len(r.Endpoints) > 0 {
		fmt.Fprintf(&b, "\nThe store is an external etcd (%s): the keys of this Site, under /rackweft/ and /coreos.com/network/, are in the backup, and no others of that cluster.", strings.Join(r.Endpoints, ", "))
	}
	if !r.Header.Blobs {
		b.WriteString("\nThe files of Images are not in it (--blobs includes them): a restored bootd fetches them again, or needs weftctl image import.")
	}
	b.WriteString("\nNot in it: bootd.yaml, journals (events, decisions, audit), and the certificates of people and flannelds in admin/ and flannel/, which bootd recreates.")
	return b.String()
}
