package journal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Record is one entry of a Journal.
type Record[T any] struct {
	Seq  uint64    `json:"seq"` // 1 for the first, then rising by one
	Time time.Time `json:"time"`
	Lost uint64    `json:"lost,omitzero"` // records that could not be written right before this one
	Data T         `json:"data"`
}

// maxRecord is the longest line in bytes.
const maxRecord = 1 << 20

// segment is one file of a journal.
type segment struct {
	path  string
	first uint64 // sequence number of its first record
	size  int64  // bytes of whole records
}

func segmentPath(dir, name string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s.%020d.jsonl", name, first))
}

// findSegments lists a journal's files, oldest first. It ignores other files in
// dir.
func findSegments(dir, name string) ([]segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []segment
	for _, e := range entries {
		middle, ok := strings.CutPrefix(e.Name(), name+".")
		if !ok || !e.Type().IsRegular() {
			continue
		}
		number, ok := strings.CutSuffix(middle, ".jsonl")
		if !ok || len(number) != 20 {
			continue
		}
		first, err := strconv.ParseUint(number, 10, 63)
		if err != nil {
			continue
		}
		st, err := e.Info()
		if err != nil {
			return nil, err
		}
		found = append(found, segment{path: filepath.Join(dir, e.Name()), first: first, size: st.Size()})
	}
	slices.SortFunc(found, func(a, b segment) int {
		if a.first < b.first {
			return -1
		}
		return 1 // names are unique
	})
	return found, nil
}

// lines calls f with every complete line of r, without its end, and the offset
// behind it; with nil for a line longer than maxRecord. It returns early with
// f's error.
func lines(r io.Reader, f func(line []byte, end int64) error) error {
	br := bufio.NewReaderSize(r, 64<<10)
	var end int64
	var long []byte // the beginning of a line longer than the buffer
	tooLong := false
	for {
		part, err := br.ReadSlice('\n')
		end += int64(len(part))
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if err == io.EOF {
				return nil // an incomplete line does not count
			}
			return err
		}
		tooLong = tooLong || len(long)+len(part) > maxRecord
		if err != nil { // the line continues
			if tooLong {
				part, long = nil, nil
			}
			long = append(long, part...)
			continue
		}
		line := part
		if len(long) > 0 {
			line = append(long, part...)
		}
		if tooLong {
			line = nil
		}
		if err := f(bytes.TrimSuffix(line, []byte("\n")), end); err != nil {
			return err
		}
		long, tooLong = nil, false
	}
}

// decode parses the line that ends at offset end of a segment; it returns false
// for an invalid one. Numbers begin at first and rise by one per line, so end
// bounds them: a higher number is damage, and must not hide the records behind
// it.
func decode(line []byte, first, after uint64, end int64) (Record[json.RawMessage], bool) {
	var r Record[json.RawMessage]
	if err := json.Unmarshal(line, &r); err != nil {
		return r, false
	}
	return r, r.Seq >= first && r.Seq > after && r.Seq < first+uint64(end) && len(r.Data) > 0
}
