package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
)

// Query selects records.
type Query[T any] struct {
	Since  uint64               // only records after this sequence number
	Limit  int                  // only the newest so many. Default: all
	Filter func(Record[T]) bool // only matching records. Default: all
}

// Query returns records, newest last. It skips lines that are invalid or do not
// decode as T.
func (j *Journal[T]) Query(ctx context.Context, q Query[T]) ([]Record[T], error) {
	limit := q.Limit
	if limit <= 0 {
		limit = math.MaxInt
	}
	segments, _, _ := j.state()
	var parts [][]Record[T] // newest first
	count := 0
	for i := len(segments) - 1; i >= 0 && count < limit; i-- {
		part, err := j.querySegment(ctx, segments[i], q, limit-count)
		if err != nil {
			return nil, fmt.Errorf("query journal %s: %w", j.name, err)
		}
		parts = append(parts, part)
		count += len(part)
		if segments[i].first <= q.Since {
			break // all older ones are before Since
		}
	}
	found := make([]Record[T], 0, count)
	for i := len(parts) - 1; i >= 0; i-- {
		found = append(found, parts[i]...)
	}
	return found, nil
}

// querySegment returns the newest limit records of one file that match.
func (j *Journal[T]) querySegment(ctx context.Context, seg segment, q Query[T], limit int) ([]Record[T], error) {
	f, err := os.Open(seg.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // removed meanwhile, as the oldest
	}
	if err != nil {
		return nil, err
	}
	var found []Record[T]
	after := seg.first - 1
	err = j.scan(ctx, io.NewSectionReader(f, 0, seg.size), seg.first, 0, &after, func(r Record[T], _ int64) error {
		if r.Seq <= q.Since || (q.Filter != nil && !q.Filter(r)) {
			return nil
		}
		if len(found) >= 2*limit && limit < math.MaxInt/2 { // keep the newest, without moving them each time
			found = append(found[:0], found[len(found)-limit:]...)
		}
		found = append(found, r)
		return nil
	})
	if len(found) > limit {
		found = found[len(found)-limit:]
	}
	return found, errors.Join(err, f.Close())
}

// scan calls f with every record of r whose sequence number is above *after,
// which it updates, and with the offset behind the record. r begins at offset
// start of the segment that begins with number first.
func (j *Journal[T]) scan(ctx context.Context, r io.Reader, first uint64, start int64, after *uint64, f func(Record[T], int64) error) error {
	return lines(r, func(line []byte, end int64) error {
		end += start
		if err := ctx.Err(); err != nil {
			return err
		}
		raw, ok := decode(line, first, *after, end)
		if !ok {
			return nil
		}
		*after = raw.Seq
		rec := Record[T]{Seq: raw.Seq, Time: raw.Time, Lost: raw.Lost}
		if err := json.Unmarshal(raw.Data, &rec.Data); err != nil {
			return nil // written by another version of this program
		}
		return f(rec, end)
	})
}

// Watch yields the records after since, and then every new one, until the loop
// ends, ctx ends (the last error is its cause) or the journal is closed
// (ErrClosed). A gap in Seq shows that older records were removed, because the
// reader was slower than the writers.
func (j *Journal[T]) Watch(ctx context.Context, since uint64) iter.Seq2[Record[T], error] {
	return func(yield func(Record[T], error) bool) {
		c := cursor[T]{j: j, after: since}
		defer c.close()
		for {
			segments, changed, closed := j.state() // before reading, so that no record is missed
			err := c.read(ctx, segments, func(r Record[T]) bool { return yield(r, nil) })
			switch {
			case errors.Is(err, errLeft):
				return
			case err == nil && closed:
				err = ErrClosed
			}
			if err != nil {
				yield(Record[T]{}, fmt.Errorf("watch journal %s: %w", j.name, err))
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				yield(Record[T]{}, fmt.Errorf("watch journal %s: %w", j.name, context.Cause(ctx)))
				return
			}
		}
	}
}

var errLeft = errors.New("the loop was left")

// cursor is the position of a watch. It keeps its file open, so that a removal
// does not interrupt it.
type cursor[T any] struct {
	j     *Journal[T]
	after uint64
	file  *os.File
	first uint64 // of file's segment
	off   int64
}

func (c *cursor[T]) close() {
	if c.file != nil {
		_ = c.file.Close() // was only read
	}
}

// read yields the records in segments behind the cursor.
func (c *cursor[T]) read(ctx context.Context, segments []segment, yield func(Record[T]) bool) error {
	if c.file != nil && c.first < segments[0].first { // removed, but still open
		st, err := c.file.Stat()
		if err != nil {
			return err
		}
		if err := c.readFile(ctx, st.Size(), yield); err != nil {
			return err
		}
	}
	for i, seg := range segments {
		if i+1 < len(segments) && segments[i+1].first <= c.after+1 {
			continue // all of it is before the cursor
		}
		if c.file != nil && seg.first < c.first {
			continue
		}
		if c.file == nil || seg.first > c.first {
			if err := c.enter(seg); err != nil {
				return err
			}
		}
		if c.file == nil {
			continue // removed meanwhile
		}
		if err := c.readFile(ctx, seg.size, yield); err != nil {
			return err
		}
	}
	return nil
}

func (c *cursor[T]) enter(seg segment) error {
	c.close()
	f, err := os.Open(seg.path)
	if errors.Is(err, os.ErrNotExist) {
		c.file = nil
		return nil
	}
	if err != nil {
		c.file = nil
		return err
	}
	c.file, c.first, c.off = f, seg.first, 0
	return nil
}

func (c *cursor[T]) readFile(ctx context.Context, size int64, yield func(Record[T]) bool) error {
	after := max(c.after, c.first-1)
	rest := io.NewSectionReader(c.file, c.off, size-c.off)
	err := c.j.scan(ctx, rest, c.first, c.off, &after, func(r Record[T], end int64) error {
		c.after, c.off = r.Seq, end
		if !yield(r) {
			return errLeft
		}
		return nil
	})
	if err == nil {
		c.off = size
		c.after = max(c.after, after)
	}
	return err
}
