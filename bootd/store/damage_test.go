package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/rackweft/rackweft/api"
)

// written is a real store that was killed in the middle of its work, and what it
// had acknowledged.
type written struct {
	dir   string
	names map[string]string // Machine → the value it was given last
	// The change during which the store was killed: never acknowledged, and stored or not.
	unanswered, unansweredValue string
	wal                         string // the newest file of the log
	used                        int64  // bytes of it
}

// damage is done to one file of a store.
type damage struct {
	what, file string
	change     func(b []byte) []byte
	whole      bool // etcd is started in any case, which takes its time
}

func newWritten(t *testing.T) *written {
	t.Helper()
	w := &written{dir: t.TempDir(), names: map[string]string{}}
	for _, part := range []int{1200, 60} { // past a snapshot, then a short log behind it
		cmd, out := startHelper(t, w.dir, "change", os.Stderr)
		for n := 0; out.Scan(); n++ {
			name, value, _ := strings.Cut(out.Text(), " ")
			w.names[name] = value
			w.unanswered, w.unansweredValue = changeOf(cmd.Process.Pid, n+1)
			if n == part {
				if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait()
	}
	logs, err := filepath.Glob(filepath.Join(w.dir, "etcd", "member", "wal", "*.wal"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	w.wal = logs[len(logs)-1]
	content, err := os.ReadFile(w.wal)
	if err != nil {
		t.Fatal(err)
	}
	for w.used = int64(len(content)); content[w.used-1] == 0; w.used-- {
	}
	return w
}

// changeOf is the n-th change of the helper, a process.
func changeOf(pid, n int) (name, value string) {
	return fmt.Sprintf("m%d", n%50), fmt.Sprintf("%d-%d", pid, n)
}

// missing are the Machines that a store does not hold as they were acknowledged.
func (w *written) missing(t *testing.T, s *Store) (missing []string) {
	t.Helper()
	for name, want := range w.names {
		m, err := Get[api.Machine](t.Context(), s, name)
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		got := m.Metadata.Annotations["value"]
		if got != want && (name != w.unanswered || got != w.unansweredValue) {
			missing = append(missing, fmt.Sprintf("%s: %s, want %s", name, got, want))
		}
	}
	return missing
}

// changing is the helper that changes objects over and over, and prints each
// change once it was acknowledged.
func changing(ctx context.Context, s *Store) int {
	for i := 0; ; i++ {
		name, value := changeOf(os.Getpid(), i)
		m := new(api.Machine)
		m.Metadata.Name = name
		m.Metadata.Annotations = map[string]string{"value": value}
		err := s.Create(ctx, m)
		if errors.Is(err, ErrExists) {
			_, err = Mutate(ctx, s, name, func(m *api.Machine) error {
				m.Metadata.Annotations = map[string]string{"value": value}
				return nil
			})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 4
		}
		fmt.Println(name, value)
	}
}

// try opens a copy of the store in which one file is changed. It must either
// hold everything that was acknowledged, or say what is damaged and what to do.
func (w *written) try(t *testing.T, d damage) (refused bool) {
	t.Helper()
	b, err := os.ReadFile(d.file)
	if err != nil {
		t.Fatal(err)
	}
	b = d.change(b)
	if dir := w.with(t, d.file, b, os.Link); !d.whole {
		if err := checkData(filepath.Join(dir, "etcd")); err != nil {
			if !strings.Contains(err.Error(), dir) {
				t.Errorf("%s: the error names no file: %v", d.what, err)
			}
			return true
		}
	}
	dir := w.with(t, d.file, b, copySparse)
	s, err := Open(t.Context(), Config{Dir: dir}, newSealer(t), slog.New(slog.DiscardHandler))
	if err != nil {
		var damaged *DamagedError
		if !errors.As(err, &damaged) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "bootd restore FILE") {
			t.Errorf("%s: the error does not help: %v", d.what, err)
		}
		return true
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}()
	if missing := w.missing(t, s); len(missing) > 0 {
		t.Errorf("%s: it starts, and is not as it was acknowledged: %q", d.what, missing)
		return false
	}
	if _, err := Mutate(t.Context(), s, "m1", func(m *api.Machine) error { m.Metadata.Labels = map[string]string{"a": "b"}; return nil }); err != nil {
		t.Errorf("%s: it starts, and takes nothing: %v", d.what, err)
	}
	return false
}

// with is a state directory with the store, in which one file is other content,
// or gone.
func (w *written) with(t *testing.T, file string, content []byte, copy func(from, to string) error) string {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"wal", "snap"} {
		from := filepath.Join("etcd", "member", sub)
		if err := os.MkdirAll(filepath.Join(dir, from), 0o700); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(filepath.Join(w.dir, from))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			path := filepath.Join(w.dir, from, e.Name())
			to := filepath.Join(dir, from, e.Name())
			switch {
			case path != file && filepath.Ext(path) != ".tmp":
				err = copy(path, to)
			case path == file && content != nil:
				err = os.WriteFile(to, content, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func flipped(at int64, bit int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 1 << bit; return b }
}

func cutTo(n int64) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }

func zeroed(at int64) func([]byte) []byte {
	return func(b []byte) []byte {
		at = at / sector * sector
		clear(b[at:min(at+sector, int64(len(b)))])
		return b
	}
}

// TestDamagedStore turns bits, cuts and zeroes parts of every kind of file.
func TestDamagedStore(t *testing.T) {
	if raceDetector {
		t.Skip("starts etcd on 190 damaged stores: it runs without the race detector, which has nothing to see here")
	}
	if testing.Short() {
		t.Skip("opens a store many times")
	}
	w := newWritten(t)
	if w.try(t, damage{what: "nothing", file: w.wal, change: func(b []byte) []byte { return b }}) {
		t.Fatal("the undamaged store is refused")
	}
	var refused atomic.Int32
	all := w.damages(t)
	t.Run("each", func(t *testing.T) { // and all have ended when it has
		for _, d := range all {
			t.Run(d.what, func(t *testing.T) {
				t.Parallel()
				if w.try(t, d) {
					refused.Add(1)
				}
			})
		}
	})
	n := int(refused.Load())
	t.Logf("%d of %d were refused, the others lost nothing", n, len(all))
	if n < len(all)/3 || n == len(all) {
		t.Errorf("%d of %d were refused", n, len(all))
	}
}

// damages are those of TestDamagedStore, the same in every run for the same store.
func (w *written) damages(t *testing.T) (all []damage) {
	t.Helper()
	rng := rand.New(rand.NewPCG(7, 11))
	try := func(what, file string, change func([]byte) []byte) {
		all = append(all, damage{filepath.Base(file) + ": " + what, file, change, len(all)%10 == 8})
	}

	for _, at := range w.frames(t, 6) { // the newest records: length, kind, checksum and content
		for _, off := range []int64{0, 1, 6, 7, 9, 11, 20} {
			try(fmt.Sprintf("bit of byte %d", at+off), w.wal, flipped(at+off, rng.IntN(8)))
		}
		try(fmt.Sprintf("cut to %d", at), w.wal, cutTo(at))
		try(fmt.Sprintf("cut to %d", at+13), w.wal, cutTo(at+13))
	}
	// Zeros in the last write look like one that was torn; before that they do not.
	for _, at := range w.frames(t, 18)[:6] {
		try(fmt.Sprintf("a sector at %d", at), w.wal, zeroed(at))
	}
	for range 25 {
		at := rng.Int64N(w.used)
		try(fmt.Sprintf("bit of byte %d", at), w.wal, flipped(at, rng.IntN(8)))
	}
	for _, at := range []int64{w.used / 2, w.used / 3} {
		try(fmt.Sprintf("a sector at %d", at), w.wal, zeroed(at))
	}
	try("a bit behind its end", w.wal, flipped(w.used+100_000, 3))
	try("empty", w.wal, cutTo(0))
	try("gone", w.wal, func([]byte) []byte { return nil })

	db := filepath.Join(w.dir, "etcd", "member", "snap", "db")
	st, err := os.Stat(db)
	if err != nil {
		t.Fatal(err)
	}
	for page := int64(0); page < st.Size()/4096; page++ {
		if page > 8 && rng.IntN(int(st.Size()/4096)) > 12 {
			continue
		}
		at := page*4096 + rng.Int64N(16)
		try(fmt.Sprintf("bit of byte %d", at), db, flipped(at, rng.IntN(8)))
		at = page*4096 + 16 + rng.Int64N(200)
		try(fmt.Sprintf("bit of byte %d", at), db, flipped(at, rng.IntN(8)))
		at = page*4096 + rng.Int64N(4096)
		try(fmt.Sprintf("bit of byte %d", at), db, flipped(at, rng.IntN(8)))
	}
	for _, size := range []int64{0, 1, 4095, 4096, 8192, 12_000, st.Size() / 2, st.Size() - 4096} {
		try(fmt.Sprintf("cut to %d", size), db, cutTo(size))
	}
	try("gone", db, func([]byte) []byte { return nil })
	try("something else", db, func(b []byte) []byte { return []byte(strings.Repeat("something else\n", len(b)/15)) })

	snaps, err := filepath.Glob(filepath.Join(w.dir, "etcd", "member", "snap", "*.snap"))
	if err != nil || len(snaps) == 0 {
		t.Fatal("there is no snapshot", err)
	}
	for _, snap := range snaps {
		st, err := os.Stat(snap)
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			at := rng.Int64N(st.Size())
			try(fmt.Sprintf("bit of byte %d", at), snap, flipped(at, rng.IntN(8)))
		}
		for _, size := range []int64{0, 10, st.Size() - 1} {
			try(fmt.Sprintf("cut to %d", size), snap, cutTo(size))
		}
		try("gone", snap, func([]byte) []byte { return nil })
	}
	return all
}

// frames are where the newest records of the log begin.
func (w *written) frames(t *testing.T, n int) []int64 {
	t.Helper()
	b, err := os.ReadFile(w.wal)
	if err != nil {
		t.Fatal(err)
	}
	var at []int64
	for next := int64(0); binary.LittleEndian.Uint64(b[next:]) != 0; {
		at = append(at, next)
		_, size, err := frame(b[next:])
		if err != nil {
			t.Fatal(err)
		}
		next += int64(size)
	}
	return at[max(0, len(at)-n):]
}

// TestKilledAtFirstStart kills the store at any moment of its first start: the
// next start is like the first, and never finds it damaged.
func TestKilledAtFirstStart(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	dir := t.TempDir()
	for i := range 24 {
		if err := os.RemoveAll(filepath.Join(dir, "etcd")); err != nil {
			t.Fatal(err)
		}
		var stderr strings.Builder
		cmd, out := startHelper(t, dir, "", &stderr)
		time.Sleep(time.Duration(i) * 25 * time.Millisecond)
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		var names []string
		for out.Scan() {
			names = append(names, out.Text())
		}
		_ = cmd.Wait()
		s := open(t, Config{Dir: dir})
		for _, name := range names {
			if _, err := Get[api.Machine](t.Context(), s, name); err != nil {
				t.Error(err)
			}
		}
		create(t, s, machine("after"))
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	// What a first start leaves that was killed between its database and its log.
	wal := filepath.Join(dir, "etcd", "member", "wal")
	if err := os.RemoveAll(wal); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: dir}, nil, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "the log is missing") {
		t.Errorf("a store without its log: %v", err)
	}
	if err := os.Truncate(filepath.Join(dir, "etcd", "member", "snap", "db"), 0); err != nil {
		t.Fatal(err)
	}
	s := open(t, Config{Dir: dir})
	create(t, s, machine("first"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// One that was killed between its log and the first entry.
	logs, err := filepath.Glob(filepath.Join(wal, "*.wal"))
	if err != nil || len(logs) != 1 {
		t.Fatal(logs, err)
	}
	b, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for rec, size, err := frame(b); err == nil && rec.GetType() != walEntry; rec, size, err = frame(b[at:]) {
		at += size
	}
	clear(b[at:])
	if err := errors.Join(os.WriteFile(logs[0], b, 0o600), os.RemoveAll(filepath.Join(dir, "etcd", "member", "snap"))); err != nil {
		t.Fatal(err)
	}
	create(t, open(t, Config{Dir: dir}), machine("first-again"))
}

// TestLogThatEtcdWasCutting: etcd cuts its log behind the last record when it
// opens it, and makes it long again: a start that ends between the two, on a full
// disk for one, is no damage.
func TestLogThatEtcdWasCutting(t *testing.T) {
	w := newWritten(t)
	end := w.frames(t, 1)[0]
	if !w.try(t, damage{what: "cut", file: w.wal, change: cutTo(end)}) {
		t.Error("a log that was cut is not refused")
	}
	raw, err := os.ReadFile(w.wal)
	if err != nil {
		t.Fatal(err)
	}
	_, size, err := frame(raw[end:])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(w.wal, end+int64(size)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(startingFile(filepath.Join(w.dir, "etcd")), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, Config{Dir: w.dir})
	if missing := w.missing(t, s); len(missing) > 0 {
		t.Errorf("it is not as it was acknowledged: %q", missing)
	}
	if _, err := os.Stat(startingFile(filepath.Join(w.dir, "etcd"))); err == nil {
		t.Error("it is taken for starting for ever")
	}
	if st, err := os.Stat(w.wal); err != nil || st.Size() < walSegment {
		t.Errorf("the log stays short: %v, %v", st, err)
	}
}

// TestTornWrite takes what a loss of power leaves of a write that was never
// acknowledged: the store starts, and the log is whole again.
func TestTornWrite(t *testing.T) {
	w := newWritten(t)
	torn := func(b []byte) []byte {
		// A record whose second sector never came to the disk.
		at := (w.used + 7) / 8 * 8
		content := make([]byte, 2000)
		for i := range content {
			content[i] = 'x'
		}
		rec := append([]byte{0x08, 2, 0x10, 1, 0x1a, 0xd0, 0x0f}, content...)
		binary.LittleEndian.PutUint64(b[at:], uint64(len(rec))|(0x80|uint64((8-len(rec)%8)%8))<<56)
		copy(b[at+8:], rec)
		next := (at/sector + 2) * sector
		clear(b[next : next+sector])
		return b
	}
	if w.try(t, damage{what: "torn", file: w.wal, change: torn}) {
		t.Error("a torn write keeps the store from being opened")
	}
}

// smallDatabase is one as bbolt writes it.
func smallDatabase(f *testing.F) []byte {
	f.Helper()
	path := filepath.Join(f.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: true})
	if err != nil {
		f.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range []string{"key", "meta", "lease"} {
			b, err := tx.CreateBucket([]byte(name))
			if err != nil {
				return err
			}
			for i := 1; name == "key" && i < 100; i++ {
				key := append(binary.BigEndian.AppendUint64(nil, uint64(i)), "_\x00\x00\x00\x00\x00\x00\x00\x00"...)
				value, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte("k"), ModRevision: int64(i), CreateRevision: 1, Version: int64(i), Value: []byte(summed("k", []byte(`{"a":1}`)))})
				if err == nil {
					err = b.Put(key, value)
				}
				if err != nil {
					return err
				}
			}
		}
		return tx.Bucket([]byte("meta")).Put([]byte("consistent_index"), binary.BigEndian.AppendUint64(nil, 7))
	})
	if err = errors.Join(err, db.Close()); err != nil {
		f.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	if applied, err := checkDatabaseIn(bytes.NewReader(raw), int64(len(raw))); err != nil || applied != 7 {
		f.Fatalf("bbolt's own database: %d, %v", applied, err)
	}
	return raw
}

func FuzzCheckDatabase(f *testing.F) {
	f.Add([]byte("nothing"))
	f.Add(smallDatabase(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, at := range []int{pageHeader, 4096 + pageHeader} { // so that what lies behind is reached
			if len(b) >= at+metaSize {
				sum := fnv.New64a()
				_, _ = sum.Write(b[at : at+56])
				binary.LittleEndian.PutUint64(b[at+56:], sum.Sum64())
			}
		}
		_, _ = checkDatabaseIn(bytes.NewReader(b), int64(len(b)))
	})
}

// TestFaultInAMap: a disk that cannot give a part of a mapped file ends nothing.
func TestFaultInAMap(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	err := mapped(path, func(b []byte) error {
		if err := os.Truncate(path, 0); err != nil { // the kernel answers as for a failed read
			return err
		}
		sum := 0
		for _, c := range b {
			sum += int(c)
		}
		return fmt.Errorf("the sum is %d", sum)
	})
	if err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("%v", err)
	}
}

// appendRecord adds a record to a log as etcd writes it.
func appendRecord(b []byte, crc *uint32, typ int64, data []byte) []byte {
	*crc = rolling(*crc, data)
	rec := protowire.AppendTag(nil, 1, protowire.VarintType)
	rec = protowire.AppendVarint(rec, uint64(typ))
	rec = protowire.AppendTag(rec, 2, protowire.VarintType)
	rec = protowire.AppendVarint(rec, uint64(*crc))
	rec = protowire.AppendTag(rec, 3, protowire.BytesType)
	rec = protowire.AppendBytes(rec, data)
	field, pad := uint64(len(rec)), (8-len(rec)%8)%8
	if pad > 0 {
		field |= uint64(0x80|pad) << 56
	}
	b = binary.LittleEndian.AppendUint64(b, field)
	return append(append(b, rec...), make([]byte, pad)...)
}

// TestFullDiskAtTheEndOfASegment has a log whose last record the disk did not
// take whole: the file had to grow for it.
func TestFullDiskAtTheEndOfASegment(t *testing.T) {
	entry := func(index uint64, size int) []byte {
		e := raftpb.Entry{Term: proto.Uint64(1), Index: &index, Data: bytes.Repeat([]byte{0xa5}, size)}
		data, err := proto.Marshal(&e)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	var b []byte
	var crc uint32
	index := uint64(1)
	for ; len(b) < walSegment-2<<20; index++ {
		b = appendRecord(b, &crc, walEntry, entry(index, 1<<20))
	}
	b = appendRecord(b, &crc, walEntry, entry(index, walSegment-len(b)-2048))
	whole := len(b)
	before := crc
	b = appendRecord(b, &crc, walEntry, entry(index+1, 8192))
	for _, size := range []int{walSegment, walSegment + 4096} {
		if end, err := new(raftLog).read(b[:size], true); err != nil || end != whole {
			t.Errorf("of %d bytes: it ends at %d (%v), want %d", size, end, err, whole)
		}
	}
	// A record that was there, and whose length was changed, is damage.
	b = appendRecord(b[:whole], &before, walEntry, entry(index+1, 1024))
	b = append(b, make([]byte, max(0, walSegment-len(b)))...)
	b[whole+1] ^= 0x80
	if _, err := new(raftLog).read(b, true); err == nil {
		t.Error("a changed length is taken for a write that was cut off")
	}
}

// TestLostTailOfAWrite: of a write of several pages, the kernel had taken the first when the process was killed: what is
// missing is all at the end. A change of a record's length, or of its content, is damage all the same.
func TestLostTailOfAWrite(t *testing.T) {
	e := raftpb.Entry{Term: proto.Uint64(1), Index: proto.Uint64(1), Data: bytes.Repeat([]byte{0xa5}, 1<<20)}
	first, err := proto.Marshal(&e)
	if err != nil {
		t.Fatal(err)
	}
	e.Index = proto.Uint64(2)
	second, err := proto.Marshal(&e)
	if err != nil {
		t.Fatal(err)
	}
	var crc uint32
	b := appendRecord(nil, &crc, walEntry, first)
	whole := len(b)
	b = appendRecord(b, &crc, walEntry, second)
	all := len(b)
	b = append(b, make([]byte, walSegment-len(b))...)
	step := 1
	if raceDetector { // it takes a tenth of a second for each
		step = 7
	}
	for bit := 0; bit < 8*24; bit += step { // the frame, type, checksum and length, and the first of the content
		b[whole+bit/8] ^= 1 << (bit % 8)
		if end, err := new(raftLog).read(b, true); err == nil {
			t.Errorf("bit %d of the last record is changed, and it is taken to end at %d", bit, end)
		}
		b[whole+bit/8] ^= 1 << (bit % 8)
	}
	for at := all / sector * sector; at > whole; at -= step * 37 * sector {
		clear(b[at:all])
		if end, err := new(raftLog).read(b, true); err != nil || end != whole {
			t.Fatalf("cut at %d: it ends at %d (%v), want %d", at, end, err, whole)
		}
	}
}

func FuzzCheckLog(f *testing.F) {
	f.Add([]byte{4, 0, 0, 0, 0, 0, 0, 0x84, 8, 4, 16, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if end, err := new(raftLog).read(b, false); err == nil && end > len(b) {
			t.Errorf("it ends at %d of %d", end, len(b))
		}
		full := append(b, make([]byte, 4096)...)
		for at := 0; at < len(b); at += 8 {
			new(raftLog).torn(full, at)
		}
	})
}

func FuzzSummed(f *testing.F) {
	f.Add("k", []byte(`{"a":1}`), 3)
	f.Fuzz(func(t *testing.T, key string, object []byte, at int) {
		stored := []byte(summed(key, object))
		back, err := opened(key, stored)
		if err != nil || string(back) != string(object) {
			t.Skip() // what looks like a checksum by itself
		}
		if len(stored) == len(object) || at < 0 {
			return
		}
		stored[at%len(stored)] ^= 1
		if back, err := opened(key, stored); err == nil && len(back) != len(stored) {
			t.Errorf("%q is taken for whole", stored)
		}
	})
}
