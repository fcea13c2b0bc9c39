package backup

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// chunkBytes is how much of the store is gathered into one piece: a tar entry
// must say its size first.
const chunkBytes = 2 << 20

// Records gathers records into pieces of the archive.
type Records struct {
	to     *Writer
	buf    bytes.Buffer
	chunks int
}

// Records begins the store's part. One is enough for an archive.
func (b *Writer) Records() *Records { return &Records{to: b} }

// Add adds one record.
func (r *Records) Add(rec Record) error {
	raw, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode the record of %s: %w", rec.Key, err)
	}
	if r.buf.Len() > 0 && r.buf.Len()+len(raw) > chunkBytes {
		if err := r.Flush(); err != nil {
			return err
		}
	}
	r.buf.Write(raw)
	r.buf.WriteByte('\n')
	return nil
}

// Flush writes what is gathered.
func (r *Records) Flush() error {
	if r.buf.Len() == 0 {
		return nil
	}
	r.chunks++
	err := r.to.Piece(fmt.Sprintf("%s%06d", StorePrefix, r.chunks), int64(r.buf.Len()), &r.buf)
	r.buf.Reset()
	return err
}

// ReadRecords reads the records of one piece.
func ReadRecords(r io.Reader, fn func(Record) error) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil {
			return damaged("a record of the store ends in its middle: %s", err)
		}
		var rec Record
		if err := json.Unmarshal(line, &rec); err != nil || rec.Key == "" {
			return damaged("a record of the store cannot be read")
		}
		if err := fn(rec); err != nil {
			return err
		}
	}
}
