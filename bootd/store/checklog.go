package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"

	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Checks of etcd's log for damage. Etcd takes some damage for a write that a power loss has torn, and truncates
// what follows, which was acknowledged. See etcd's server/storage/wal for the layout.
const (
	walMetadata, walEntry, walState, walCRC, walSnapshot = 1, 2, 3, 4, 5

	// walSegment is the size with which every file of the log is created. The last one
	// is never smaller.
	walSegment = 64 * 1000 * 1000
	sector     = 512
)

// log is a log that is being checked.
type raftLog struct {
	crc      uint32
	last     uint64 // index of the newest entry; 0 before the first
	first    uint64 // index of the oldest entry, 0 without
	commit   uint64
	term     uint64
	metadata []byte
	snapshot uint64 // index of the newest snapshot that the log names
	// starting says that etcd has not finished starting since it last opened the log: it truncates the newest
	// file after the last record, and then extends it again.
	starting bool
}

// checkLog reads etcd's log. A write at its end that a power loss has torn, and that was therefore never
// acknowledged, is erased. Errors say which file is damaged.
func checkLog(dir string, starting bool) (*raftLog, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	l := &raftLog{starting: starting}
	for i, path := range files {
		if i > 0 && sequence(path) != sequence(files[i-1])+1 {
			return nil, &fs.PathError{Op: "check", Path: path, Err: errors.New("the file of the log before it is missing")}
		}
		newest := i == len(files)-1
		err := mapped(path, func(content []byte) error {
			end, err := l.read(content, newest)
			if err == nil && newest {
				err = erase(path, content, end)
			}
			return err
		})
		if err != nil {
			return nil, &fs.PathError{Op: "check", Path: path, Err: err}
		}
	}
	if l.commit > l.last {
		return nil, &fs.PathError{Op: "check", Path: files[len(files)-1], Err: fmt.Errorf("it ends with entry %d, and entry %d was committed", l.last, l.commit)}
	}
	return l, nil
}

// mapped calls fn with a file's content. A file of the log has 64 MB, which should not be copied into bootd's
// memory; a read error of the disk is an error.
func mapped(path string, fn func([]byte) error) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() == 0 {
		return fn(nil)
	}
	content, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map it: %w", err)
	}
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			fault, ok := p.(interface{ Addr() uintptr })
			if !ok {
				panic(p)
			}
			err = fmt.Errorf("it cannot be read (fault at %#x)", fault.Addr())
		}
		err = errors.Join(err, unix.Munmap(content))
	}()
	return fn(content)
}

func sequence(path string) (seq uint64) {
	_, _ = fmt.Sscanf(filepath.Base(path), "%x-", &seq)
	return seq
}

// erase zeroes the file after the log's end, and makes it as long as etcd does.
func erase(path string, content []byte, end int) error {
	last := beforeZeros(content, end)
	if last == end && len(content) >= walSegment {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, last-end), int64(end))
	if len(content) < walSegment {
		err = errors.Join(err, f.Truncate(walSegment))
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// read reads the records of one file, and returns where they end.
func (l *raftLog) read(b []byte, newest bool) (end int, err error) {
	if newest && len(b) < walSegment && !l.starting {
		return 0, fmt.Errorf("it is cut short: it has %d bytes", len(b))
	}
	at := 0
	for at < len(b) {
		if len(b)-at < 8 {
			return at, nil
		}
		rec, size, err := frame(b[at:])
		if err == nil {
			err = l.take(rec)
		}
		if err == nil {
			at += size
			continue
		}
		if newest && l.torn(b, at) {
			return at, nil
		}
		return 0, fmt.Errorf("its record at byte %d is damaged: %w", at, err)
	}
	return at, nil
}

var errZeros = errors.New("want a record, found zeros")

// frame decodes the record at the beginning of b, strictly.
func frame(b []byte) (rec *walpb.Record, size int, err error) {
	field := binary.LittleEndian.Uint64(b)
	length, pad := int64(field&(1<<56-1)), int64(0)
	if field == 0 {
		return nil, 0, errZeros
	}
	if field>>63 == 1 {
		pad = int64(field >> 56 & 7)
	}
	want := uint64(0)
	if rest := (8 - length%8) % 8; rest > 0 {
		want = 0x80 | uint64(rest)
	}
	if field>>56 != want || length <= 0 || length > int64(len(b)-8)-pad {
		return nil, 0, errors.New("its length is wrong")
	}
	rec, n, err := record(b[8 : 8+length])
	if err == nil && n != int(length) {
		err = errors.New("its length is wrong")
	}
	return rec, int(8 + length + pad), err
}

// record decodes a walpb.Record as etcd writes it: type, crc and data in this
// order. n is where it ends, regardless of its frame.
func record(b []byte) (rec *walpb.Record, n int, err error) {
	broken := errors.New("it does not decode")
	rec = new(walpb.Record)
	var typ, crc uint64
	for i, to := range []*uint64{&typ, &crc} {
		num, wt, k := protowire.ConsumeTag(b[n:])
		if k < 0 || int(num) != i+1 || wt != protowire.VarintType {
			return nil, 0, broken
		}
		n += k
		v, k := protowire.ConsumeVarint(b[n:])
		if k < 0 || v > 1<<32-1 {
			return nil, 0, broken
		}
		n += k
		*to = v
	}
	t, c := int64(typ), uint32(crc)
	rec.Type, rec.Crc = &t, &c
	num, wt, k := protowire.ConsumeTag(b[n:])
	if k < 0 || num != 3 || wt != protowire.BytesType {
		return rec, n, nil // without data
	}
	data, m := protowire.ConsumeBytes(b[n+k:])
	if m < 0 {
		return nil, 0, broken
	}
	rec.Data = data
	return rec, n + k + m, nil
}

// take checks a record against those before it.
func (l *raftLog) take(rec *walpb.Record) error {
	if rec.GetType() == walCRC {
		if l.crc != 0 && rec.GetCrc() != l.crc || len(rec.Data) > 0 {
			return errors.New("the checksum of the records before it is wrong")
		}
		l.crc = rec.GetCrc()
		return nil
	}
	sum := rolling(l.crc, rec.Data)
	if rec.GetCrc() != sum {
		return errors.New("its checksum is wrong")
	}
	l.crc = sum
	return l.content(rec)
}

func (l *raftLog) content(rec *walpb.Record) error {
	switch rec.GetType() {
	case walMetadata:
		if l.metadata != nil && string(l.metadata) != string(rec.Data) {
			return errors.New("it belongs to another member")
		}
		l.metadata = bytes.Clone(rec.Data)
	case walEntry:
		var e raftpb.Entry
		if err := proto.Unmarshal(rec.Data, &e); err != nil || len(e.ProtoReflect().GetUnknown()) > 0 {
			return errors.New("its entry does not decode")
		}
		if l.last != 0 && e.GetIndex() != l.last+1 {
			return fmt.Errorf("it is entry %d, which cannot follow entry %d", e.GetIndex(), l.last)
		}
		if l.first == 0 {
			l.first = e.GetIndex()
		}
		l.last = e.GetIndex()
	case walState:
		var s raftpb.HardState
		if err := proto.Unmarshal(rec.Data, &s); err != nil || len(s.ProtoReflect().GetUnknown()) > 0 {
			return errors.New("its state does not decode")
		}
		if s.GetTerm() < l.term || s.GetCommit() < l.commit {
			return errors.New("its state is older than the one before it")
		}
		l.term, l.commit = s.GetTerm(), s.GetCommit()
	case walSnapshot:
		var s walpb.Snapshot
		if err := proto.Unmarshal(rec.Data, &s); err != nil {
			return errors.New("its snapshot does not decode")
		}
		l.snapshot = max(l.snapshot, s.GetIndex())
	default:
		return fmt.Errorf("its kind is %d", rec.GetType())
	}
	return nil
}

// beforeZeros is where the zeros at the end of b begin, but never before from. It looks at sectors first: most of a
// file of the log is zeros.
func beforeZeros(b []byte, from int) int {
	var zeros [sector]byte
	last := len(b)
	for last-sector >= from && bytes.Equal(b[last-sector:last], zeros[:]) {
		last -= sector
	}
	for last > from && b[last-1] == 0 {
		last--
	}
	return last
}

func rolling(crc uint32, data []byte) uint32 {
	return crc32.Update(crc, crc32.MakeTable(crc32.Castagnoli), data)
}

// torn reports whether the end of the newest file is a write that a power loss has truncated: it was never
// acknowledged. Whole sectors of such a write are missing, and no synchronized write follows it.
func (l *raftLog) torn(b []byte, at int) bool {
	last := beforeZeros(b, at)
	if last == at {
		return true // there is nothing
	}
	if overrun(b[at:]) {
		return !writtenBehind(b, at)
	}
	extent := last
	if rec, n, err := record(b[at+8:]); err == nil {
		if rec.GetType() != walCRC && rolling(l.crc, rec.Data) == rec.GetCrc() {
			return false // it is complete: its length or its content was changed
		}
		end := at + 8 + n
		extent = min(last, end)
		// The tail of a write of several pages is missing where the process was killed in the middle of it. One changed
		// bit does not make two lengths agree.
		boundary := (last + sector - 1) / sector * sector
		if length := binary.LittleEndian.Uint64(b[at:]) & (1<<56 - 1); length == uint64(n) && end-boundary >= 8 {
			extent = end
		}
	}
	return zeroSector(b, at, max(extent, at+8)) && !writtenBehind(b, at)
}

// overrun reports whether the record at the beginning of b extends beyond the end of the file, by its frame and
// by its own length: a full disk did not accept the rest, because the last record of a segment grows the file.
func overrun(b []byte) bool {
	field := binary.LittleEndian.Uint64(b)
	length := int64(field & (1<<56 - 1))
	if field>>63 == 0 && length%8 != 0 || length <= int64(len(b)-8) {
		return false
	}
	rest, n := b[8:], 0
	for _, want := range []protowire.Type{protowire.VarintType, protowire.VarintType, protowire.BytesType} {
		_, typ, k := protowire.ConsumeTag(rest[n:])
		if k < 0 || typ != want {
			return false
		}
		n += k
		v, k := protowire.ConsumeVarint(rest[n:])
		if k < 0 {
			return false
		}
		n += k
		if want == protowire.BytesType {
			return int64(n)+int64(v) == length
		}
	}
	return false
}

// zeroSector reports whether a sector, or the part of one, between two offsets contains only zeros.
func zeroSector(b []byte, from, to int) bool {
	for from < to {
		next := min((from/sector+1)*sector, to)
		zero := true
		for _, c := range b[from:next] {
			zero = zero && c == 0
		}
		if zero {
			return true
		}
		from = next
	}
	return false
}

// writtenBehind reports whether two synchronized writes follow an offset: the second began only after the first
// was on disk, so the data at the offset had been written completely.
func writtenBehind(b []byte, at int) bool {
	last := beforeZeros(b, at)
	for from := at + 8; from < last && from+8 <= len(b); from += 8 {
		if binary.LittleEndian.Uint64(b[from:]) == 0 {
			continue
		}
		writes, crc, before := 0, uint32(0), uint64(0)
		for next := from; next+8 <= len(b); {
			rec, size, err := frame(b[next:])
			if err != nil || next > from && rolling(crc, rec.Data) != rec.GetCrc() {
				break
			}
			if rec.GetType() == walEntry && before != walEntry {
				writes++
			}
			if writes == 2 {
				return true
			}
			crc, before, next = rec.GetCrc(), uint64(rec.GetType()), next+size
		}
	}
	return false
}
