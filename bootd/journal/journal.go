package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/file"
)

// Sync says when records are synced to disk.
type Sync int

const (
	Batched Sync = iota // within a second; a power failure can take the last second's records
	Each                // before Append returns
)

// Options configure a Journal.
type Options struct {
	MaxBytes int64 // of one file, at least 4 KiB. Default: 8 MiB
	MaxFiles int   // 2 or more. Default: 8
	Sync     Sync
	Log      *slog.Logger
}

// Recovery reports what Open has repaired.
type Recovery struct {
	CutBytes int64 // behind the last complete record, left by a crash and cut off
	Damaged  int   // invalid lines in the newest file, which are skipped
}

// Journal keeps records of T. Its methods are safe for concurrent use, in one
// process at a time.
type Journal[T any] struct {
	dir, name string
	opts      Options
	recovered Recovery

	mu       sync.Mutex
	segments []segment // oldest first; the last one is written
	file     *os.File  // of the last segment
	retired  []*os.File
	seq      uint64 // of the newest record
	lost     uint64 // since the newest record
	allLost  uint64
	dirty    bool
	closed   bool
	changed  chan struct{} // closed by the next record, or by Close

	flushing sync.Mutex // before mu
	durable  uint64     // the newest record that was synced; guarded by flushing
	stop     chan struct{}
	flusher  sync.WaitGroup
}

// ErrClosed is returned by methods of a closed Journal.
var ErrClosed = errors.New("the journal is closed")

// flushEvery bounds what Batched can lose.
const flushEvery = time.Second

// Open opens the journal name in dir, and creates both if necessary.
func Open[T any](dir, name string, opts Options) (*Journal[T], error) {
	if opts.MaxBytes <= 0 {
		opts.MaxBytes = 8 << 20
	}
	if opts.MaxFiles <= 0 {
		opts.MaxFiles = 8
	}
	opts.MaxBytes, opts.MaxFiles = max(opts.MaxBytes, 4<<10), max(opts.MaxFiles, 2)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	j := &Journal[T]{dir: dir, name: name, opts: opts, changed: make(chan struct{}), stop: make(chan struct{})}
	if err := j.open(); err != nil {
		return nil, fmt.Errorf("open journal %s in %s: %w", name, dir, err)
	}
	j.durable = j.seq
	if opts.Sync == Batched {
		j.flusher.Go(j.flushLoop)
	}
	return j, nil
}

// open continues or begins the newest file. If the file system is full or
// read-only, the journal can still be read; records are lost and counted.
func (j *Journal[T]) open() error {
	if err := os.MkdirAll(j.dir, 0o750); err != nil && !unwritable(err) {
		return err
	}
	var err error
	if j.segments, err = findSegments(j.dir, j.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(j.segments) == 0 {
		if err := j.begin(1); !unwritable(err) {
			return err
		}
		return nil
	}
	last := &j.segments[len(j.segments)-1]
	j.file, err = os.OpenFile(last.path, os.O_RDWR, 0)
	if errors.Is(err, unix.EROFS) {
		j.file, err = os.Open(last.path)
	}
	if err != nil {
		return err
	}
	if err := j.repair(last); err != nil {
		return errors.Join(err, j.file.Close())
	}
	return nil
}

// repair finds the last complete record and cuts off what is behind it.
func (j *Journal[T]) repair(last *segment) error {
	j.seq = last.first - 1
	var good int64
	damaged, inside := 0, 0 // invalid lines: all, and those before the last record
	err := lines(j.file, func(line []byte, end int64) error {
		if r, ok := decode(line, last.first, 0, end); ok { // in any order: a wrong number must not cost the records behind it
			j.seq, good, inside = max(j.seq, r.Seq), end, damaged
		} else {
			damaged++
		}
		return nil
	})
	if err != nil {
		return err
	}
	j.recovered = Recovery{CutBytes: last.size - good, Damaged: inside}
	last.size = good
	if j.recovered == (Recovery{}) {
		return nil
	}
	j.opts.Log.Warn("journal: repaired after a crash", "file", last.path,
		"cutBytes", j.recovered.CutBytes, "damagedLines", j.recovered.Damaged)
	if j.recovered.CutBytes == 0 {
		return nil
	}
	if unix.Access(last.path, unix.W_OK) != nil {
		return nil // readers go by last.size
	}
	return errors.Join(j.file.Truncate(good), j.file.Sync())
}

// unwritable reports whether a file system is full or read-only.
func unwritable(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, fs.ErrNotExist)
}

// Recovered reports what Open has repaired.
func (j *Journal[T]) Recovered() Recovery { return j.recovered }

// Lost counts the records that could not be written since Open.
func (j *Journal[T]) Lost() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.allLost
}

// LastSeq is the sequence number of the newest record; 0 if there has never
// been one.
func (j *Journal[T]) LastSeq() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.seq
}

// begin starts a new segment, and makes room for it first.
func (j *Journal[T]) begin(first uint64) error {
	for len(j.segments) >= j.opts.MaxFiles {
		if err := os.Remove(j.segments[0].path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		j.segments = j.segments[1:]
	}
	path := segmentPath(j.dir, j.name, first)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o640)
	if err != nil {
		return err
	}
	if j.opts.Sync == Each {
		if err := file.SyncDir(j.dir); err != nil {
			return errors.Join(err, f.Close(), os.Remove(path))
		}
	}
	if j.file != nil {
		j.retired = append(j.retired, j.file)
	}
	j.file = f
	j.segments = append(j.segments, segment{path: path, first: first})
	return nil
}

// Append adds a record. It fails only if v cannot be a record (it does not
// marshal, or is longer than a megabyte or a file), the journal is closed, or
// ctx has ended. If the record cannot be written to disk, that is counted and
// logged, and Append succeeds.
func (j *Journal[T]) Append(ctx context.Context, v T) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("append to journal %s: %w", j.name, err)
	}
	seq, err := j.add(v)
	if err != nil {
		return fmt.Errorf("append to journal %s: %w", j.name, err)
	}
	if j.opts.Sync == Each {
		j.settle(seq)
	}
	return nil
}

// add writes a record without syncing it, and returns its number; 0 if it could
// not be written.
func (j *Journal[T]) add(v T) (uint64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return 0, ErrClosed
	}
	line, err := json.Marshal(Record[T]{Seq: j.seq + 1, Time: time.Now().UTC(), Lost: j.lost, Data: v})
	if err != nil {
		return 0, err
	}
	if len(line) >= maxRecord || int64(len(line)) >= j.opts.MaxBytes {
		return 0, fmt.Errorf("invalid record of %d bytes: want at most %d", len(line), min(maxRecord, j.opts.MaxBytes)-1)
	}
	if err := j.write(append(line, '\n')); err != nil {
		j.lose(1, err)
		return 0, nil
	}
	if j.lost > 0 {
		j.opts.Log.Warn("journal: records are kept again", "journal", j.name, "lost", j.lost)
	}
	j.seq++
	j.lost = 0
	j.dirty = true
	close(j.changed)
	j.changed = make(chan struct{})
	return j.seq, nil
}

// lose counts records that could not be written. The caller holds mu.
func (j *Journal[T]) lose(n uint64, err error) {
	if j.lost == 0 {
		j.opts.Log.Error("journal: records are lost until this is repaired: free space on the file system, or repair the disk",
			"journal", j.name, "dir", j.dir, "error", err)
	}
	j.lost += n
	j.allLost += n
}

// settle returns when a record is synced. One sync covers all records written
// before it began, so concurrent appends wait for two at most.
func (j *Journal[T]) settle(seq uint64) {
	j.flushing.Lock()
	defer j.flushing.Unlock()
	if j.durable >= seq {
		return
	}
	before := j.durable
	err := j.flush()
	if err == nil {
		return
	}
	// The kernel reports a failed write only once: a second sync would prove
	// nothing.
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lose(j.durable-before, err)
}

// write adds a line, or leaves the journal unchanged.
func (j *Journal[T]) write(line []byte) error {
	if len(j.segments) == 0 {
		if err := j.begin(j.seq + 1); err != nil {
			return err
		}
	}
	cur := &j.segments[len(j.segments)-1]
	if cur.size > 0 && cur.size+int64(len(line)) > j.opts.MaxBytes {
		if err := j.begin(j.seq + 1); err != nil {
			return err
		}
		cur = &j.segments[len(j.segments)-1]
	}
	// Always at the end of the last complete record, so that an incomplete line
	// of a failed write is overwritten.
	if _, err := j.file.WriteAt(line, cur.size); err != nil {
		return errors.Join(err, j.file.Truncate(cur.size))
	}
	cur.size += int64(len(line))
	return nil
}

// closeRetired closes the files of full segments, whose records are synced.
func (j *Journal[T]) closeRetired() {
	for _, f := range j.retired {
		if err := f.Close(); err != nil {
			j.opts.Log.Warn("journal: closing a full file failed", "error", err)
		}
	}
	j.retired = nil
}

func (j *Journal[T]) flushLoop() {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-j.stop:
			return
		case <-tick.C:
		}
		if err := j.Flush(); err != nil {
			j.opts.Log.Error("journal: the newest records may not be synced", "journal", j.name, "error", err)
		}
	}
}

// Flush syncs all records. Appends continue meanwhile.
func (j *Journal[T]) Flush() error {
	j.flushing.Lock()
	defer j.flushing.Unlock()
	return j.flush()
}

// flush is called with flushing held.
func (j *Journal[T]) flush() error {
	j.mu.Lock()
	if !j.dirty && len(j.retired) == 0 {
		j.mu.Unlock()
		return nil
	}
	current, retired := j.file, j.retired
	j.retired, j.dirty, j.durable = nil, false, j.seq
	j.mu.Unlock()

	// Only flush closes what is or was the current file, and only one flush runs.
	var errs []error
	for _, f := range retired {
		errs = append(errs, f.Sync(), f.Close())
	}
	errs = append(errs, current.Sync())
	if len(retired) > 0 {
		errs = append(errs, file.SyncDir(j.dir))
	}
	return errors.Join(errs...)
}

// Close syncs all records and ends all watches.
func (j *Journal[T]) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	close(j.changed)
	j.mu.Unlock()
	close(j.stop)
	j.flusher.Wait()
	err := j.Flush()
	j.closeRetired()
	if j.file != nil {
		err = errors.Join(err, j.file.Close())
	}
	if err != nil {
		return fmt.Errorf("close journal %s: %w", j.name, err)
	}
	return nil
}

// state returns what readers need: the current files, and a channel that is
// closed by the next record.
func (j *Journal[T]) state() (segments []segment, changed <-chan struct{}, closed bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]segment(nil), j.segments...), j.changed, j.closed
}
