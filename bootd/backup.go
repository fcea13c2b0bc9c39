package bootd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/backup"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/file"
)

// BackupOptions say what is backed up, and to whom the backup is encrypted.
type BackupOptions struct {
	Config Config
	File   string
	To     []backup.Recipient
	Blobs  bool
}

// BackupReport describes a backup.
type BackupReport struct {
	backup.Header
	Running bool // it is from a running bootd
	Records int
	Blobs   int
	Bytes   int64 // of the file
}

// Backup writes a backup of the running bootd, or of its state when none runs. The file is written completely, and
// synced, or not at all.
func Backup(ctx context.Context, o BackupOptions, log *slog.Logger) (*BackupReport, error) {
	from, running, err := o.open(ctx, log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = from.Close() }() // read to its end by then
	report := &BackupReport{Running: running}
	err = file.ReplaceWith(o.File, file.Options{}, func(f *os.File) error {
		counted := &counter{w: f}
		sealed, err := backup.Encrypt(counted, o.To...)
		if err != nil {
			return err
		}
		// The backup is read again and checked before it counts.
		if report.Header, err = backup.Read(io.TeeReader(from, sealed), report.count); err != nil {
			return errors.Join(from.fault(), err)
		}
		err = sealed.Close()
		report.Bytes = counted.n
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("back up to %s: %w", o.File, err)
	}
	return report, nil
}

func (r *BackupReport) count(_ backup.Header, p backup.Piece) error {
	if backup.IsBlob(p.Name) {
		r.Blobs++
	}
	if backup.IsRecords(p.Name) {
		return backup.ReadRecords(p, func(backup.Record) error { r.Records++; return nil })
	}
	return nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// plainBackup is a stream of the unencrypted archive.
type plainBackup struct {
	io.ReadCloser
	fault func() error // its source's error, once it has ended
}

// open requests the archive from the running bootd; if none runs, it reads the state itself.
func (o BackupOptions) open(ctx context.Context, log *slog.Logger) (*plainBackup, bool, error) {
	socket := filepath.Join(o.Config.RunDir, "bootd.sock")
	client, err := api.NewClient(api.ClientConfig{Server: "unix://" + socket})
	if err != nil {
		return nil, false, err
	}
	resp, err := client.Do(ctx, "GET", fmt.Sprintf("/v1/backup?blobs=%t", o.Blobs), nil)
	switch {
	case err == nil:
		said := func() error {
			if text := resp.Trailer.Get("Rackweft-Error"); text != "" {
				return fmt.Errorf("bootd answers: %s", text)
			}
			return nil
		}
		return &plainBackup{resp.Body, said}, true, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		p, err := o.offline(ctx, log)
		return p, false, err
	}
	return nil, false, fmt.Errorf("ask the bootd at %s for a backup: %w", socket, err)
}

// offline opens the state of a bootd that does not run.
func (o BackupOptions) offline(ctx context.Context, log *slog.Logger) (*plainBackup, error) {
	c := o.Config
	if _, err := os.Stat(filepath.Join(c.StateDir, "ca")); err != nil {
		return nil, fmt.Errorf("no bootd runs with --run-dir %s, and %s holds no state to read: %w (name them with --run-dir and --state-dir)", c.RunDir, c.StateDir, err)
	}
	keyring, err := ca.FindKeyring(c.StateDir, os.Getenv("CREDENTIALS_DIRECTORY"))
	if err != nil {
		return nil, err
	}
	s, err := store.Open(ctx, c.storeConfig(), keyring, log)
	if err != nil {
		return nil, err
	}
	blobs, err := blob.Open(filepath.Join(c.StateDir, "blobs"), blob.Options{})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	src := backupSource{config: c, store: s, keyring: keyring, blobs: blobs}
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := src.write(ctx, w, o.Blobs)
		_ = w.CloseWithError(err)
		done <- errors.Join(blobs.Close(), s.Close())
	}()
	return &plainBackup{pipeEnd{r, done}, func() error { return nil }}, nil
}

// pipeEnd waits for the goroutine that writes into the pipe.
type pipeEnd struct {
	*io.PipeReader
	done <-chan error
}

func (p pipeEnd) Close() error { return errors.Join(p.PipeReader.Close(), <-p.done) }

// backupSource is the state that is backed up.
type backupSource struct {
	config  Config
	store   *store.Store
	keyring *ca.Keyring
	blobs   *blob.Store
}

func (d *daemon) backupSource() backupSource {
	return backupSource{config: d.config, store: d.store, keyring: d.keyring, blobs: d.blobs}
}

// write writes the archive. The header contains the revision, so the revision is read before the records.
func (s backupSource) write(ctx context.Context, to io.Writer, blobs bool) error {
	cert, key, err := ca.Export(s.config.StateDir)
	if err != nil {
		return err
	}
	epoch, err := readEpoch(ctx, s.store)
	if err != nil {
		return err
	}
	revision, err := s.store.Revision(ctx)
	if err != nil {
		return err
	}
	w, err := backup.NewWriter(to, backup.Header{Created: time.Now().UTC(), Bootd: s.config.Version, Epoch: epoch, Revision: revision,
		Endpoints: s.config.Store.Endpoints, Blobs: blobs})
	if err != nil {
		return err
	}
	for _, p := range []struct {
		name    string
		content []byte
	}{{backup.SealKey, s.keyring.Export()}, {backup.CACert, cert}, {backup.CAKey, key}} {
		if err := w.Piece(p.name, int64(len(p.content)), bytes.NewReader(p.content)); err != nil {
			return err
		}
	}
	records := w.Records()
	err = s.store.Dump(ctx, revision, func(r store.Record) error { return records.Add(backup.Record(r)) })
	if err := errors.Join(err, records.Flush()); err != nil {
		return err
	}
	if blobs {
		if err := s.writeBlobs(ctx, w); err != nil {
			return err
		}
	}
	return w.Close()
}

func (s backupSource) writeBlobs(ctx context.Context, w *backup.Writer) error {
	list, err := s.blobs.List()
	if err != nil {
		return err
	}
	for _, b := range list {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f, info, err := s.blobs.Get(b.Digest)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted since
		}
		if err != nil {
			return err
		}
		err = w.Piece(backup.BlobPrefix+b.Digest.Hex(), info.Size, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}
