package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

type event struct {
	Machine string `json:"machine"`
	N       int    `json:"n"`
}

func open(t testing.TB, dir string, opts Options) *Journal[event] {
	t.Helper()
	j, err := Open[event](dir, "events", opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return j
}

func appendN(t testing.TB, j *Journal[event], from, to int) {
	t.Helper()
	for n := from; n <= to; n++ {
		if err := j.Append(t.Context(), event{Machine: fmt.Sprintf("m%d", n%3), N: n}); err != nil {
			t.Fatal(err)
		}
	}
}

func query(t testing.TB, j *Journal[event], q Query[event]) []Record[event] {
	t.Helper()
	got, err := j.Query(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// numbers are the sequence numbers in short; every record N has been given N as its number.
func numbers(t testing.TB, rs []Record[event]) string {
	t.Helper()
	var parts []string
	for _, r := range rs {
		if r.Seq != uint64(r.Data.N) {
			t.Errorf("record %d holds %d", r.Seq, r.Data.N)
		}
		parts = append(parts, fmt.Sprint(r.Seq))
	}
	return strings.Join(parts, " ")
}

func files(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "events.*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestQuery(t *testing.T) {
	for name, sync := range map[string]Sync{"batched": Batched, "each": Each} {
		t.Run(name, func(t *testing.T) {
			j := open(t, t.TempDir(), Options{Sync: sync})
			appendN(t, j, 1, 9)
			m1 := func(r Record[event]) bool { return r.Data.Machine == "m1" }
			for want, q := range map[string]Query[event]{
				"1 2 3 4 5 6 7 8 9": {},
				"8 9":               {Since: 7},
				"7 8 9":             {Limit: 3},
				"1 4 7":             {Filter: m1},
				"4 7":               {Filter: m1, Limit: 2},
				"7":                 {Filter: m1, Since: 4},
				"":                  {Since: 9},
			} {
				if got := numbers(t, query(t, j, q)); got != want {
					t.Errorf("%+v: %q, want %q", q, got, want)
				}
			}
		})
	}
}

func TestReopenGoesOn(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		j, err := Open[event](dir, "events", Options{})
		if err != nil {
			t.Fatal(err)
		}
		appendN(t, j, 2*i+1, 2*i+2)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		if err := j.Append(t.Context(), event{}); !errors.Is(err, ErrClosed) {
			t.Errorf("Append after Close: %v", err)
		}
	}
	j := open(t, dir, Options{})
	if got := numbers(t, query(t, j, Query[event]{})); got != "1 2 3 4 5 6" || j.Recovered() != (Recovery{}) {
		t.Errorf("got %s, %+v", got, j.Recovered())
	}
}

func TestRotation(t *testing.T) {
	for name, sync := range map[string]Sync{"batched": Batched, "each": Each} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "events.old.jsonl"), []byte("not ours"), 0o600); err != nil {
				t.Fatal(err)
			}
			j := open(t, dir, Options{MaxBytes: 4 << 10, MaxFiles: 3, Sync: sync})
			appendN(t, j, 1, 400)
			if err := j.Flush(); err != nil {
				t.Fatal(err)
			}
			names := files(t, dir)
			if len(names) != 3+1 {
				t.Fatalf("files %v", names)
			}
			for _, name := range names {
				if st, err := os.Stat(name); err != nil || st.Size() > 4<<10 {
					t.Errorf("%s has %d bytes, %v", name, st.Size(), err)
				}
			}
			all := query(t, j, Query[event]{})
			if len(all) < 50 || all[len(all)-1].Seq != 400 || all[0].Seq != 400-uint64(len(all))+1 {
				t.Errorf("%d records from %d to %d", len(all), all[0].Seq, all[len(all)-1].Seq)
			}
			numbers(t, all)
			if got := query(t, j, Query[event]{Limit: 60}); len(got) != 60 || got[0].Seq != 341 {
				t.Errorf("the newest 60: %d from %d", len(got), got[0].Seq)
			}
		})
	}
}

func TestCrash(t *testing.T) {
	whole := `{"seq":4,"time":"2026-11-21T00:00:00Z","data":{"n":4}}` + "\n"
	cases := map[string]struct {
		tail string
		want string // after record 3, and then one more
		rec  Recovery
	}{
		"half a line":       {`{"seq":4,"ti`, "1 2 3 4", Recovery{CutBytes: 12}},
		"zeros":             {strings.Repeat("\x00", 100), "1 2 3 4", Recovery{CutBytes: 100}},
		"a line of garbage": {"x\n", "1 2 3 4", Recovery{CutBytes: 2}},
		"no line end":       {strings.TrimSuffix(whole, "\n"), "1 2 3 4", Recovery{CutBytes: int64(len(whole)) - 1}},
		"damage inside":     {"x\n" + whole, "1 2 3 4 5", Recovery{Damaged: 1}},
		"a wrong number":    {`{"seq":900,"data":{"n":900}}` + "\n" + whole, "1 2 3 4 5", Recovery{Damaged: 1}},
		"both":              {"x\n" + whole + "{", "1 2 3 4 5", Recovery{Damaged: 1, CutBytes: 1}},
		"endless line":      {strings.Repeat("x", 3<<20) + "\n" + whole, "1 2 3 4 5", Recovery{Damaged: 1}},
		"nothing":           {"", "1 2 3 4", Recovery{}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j, err := Open[event](dir, "events", Options{})
			if err != nil {
				t.Fatal(err)
			}
			appendN(t, j, 1, 3)
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(files(t, dir)[0], os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString(c.tail); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			j = open(t, dir, Options{})
			if j.Recovered() != c.rec {
				t.Errorf("recovered %+v, want %+v", j.Recovered(), c.rec)
			}
			next := int(j.LastSeq()) + 1
			appendN(t, j, next, next)
			if got := numbers(t, query(t, j, Query[event]{})); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestFullDisk fills a real, small file system.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("cannot mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	j := open(t, dir, Options{})
	appendN(t, j, 1, 1)
	if err := os.WriteFile(ballast, bytes.Repeat([]byte("x"), 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	failed := 0
	for n := 2; n < 100; n++ { // the page that the file has is not full yet
		if err := j.Append(t.Context(), event{Machine: strings.Repeat("m", 500), N: n}); err != nil {
			t.Fatalf("a full disk failed the caller: %v", err)
		}
		if j.Lost() > 0 {
			failed++
		}
	}
	kept := j.LastSeq()
	if failed == 0 || j.Lost() != uint64(failed) || kept+uint64(failed) != 99 {
		t.Fatalf("%d failed, %d lost, %d kept", failed, j.Lost(), kept)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	appendN(t, j, int(kept)+1, int(kept)+2)
	got := query(t, j, Query[event]{Since: kept})
	if len(got) != 2 || got[0].Lost != uint64(failed) || got[1].Lost != 0 {
		t.Errorf("got %+v", got)
	}
	if numbers(t, query(t, j, Query[event]{})); j.Recovered() != (Recovery{}) {
		t.Error(j.Recovered())
	}
}

func TestUnfitRecords(t *testing.T) {
	j, err := Open[any](t.TempDir(), "x", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	for name, v := range map[string]any{"no JSON": func() {}, "too long": strings.Repeat("x", maxRecord)} {
		if err := j.Append(t.Context(), v); err == nil {
			t.Errorf("%s was kept", name)
		}
	}
	if j.Lost() != 0 || j.LastSeq() != 0 {
		t.Errorf("lost %d, seq %d", j.Lost(), j.LastSeq())
	}
}

// TestWatch follows a writer over rotations; one watcher starts before and one in the middle.
func TestWatch(t *testing.T) {
	j := open(t, t.TempDir(), Options{MaxBytes: 4 << 10, MaxFiles: 1000})
	var wg sync.WaitGroup
	for _, since := range []uint64{0, 0, 150, 350} {
		wg.Go(func() {
			want := since + 1
			for r, err := range j.Watch(t.Context(), since) {
				if err != nil {
					t.Errorf("after %d: %v", want-1, err)
					return
				}
				if r.Seq != want || r.Data.N != int(want) {
					t.Errorf("got %d with %d, want %d", r.Seq, r.Data.N, want)
					return
				}
				if want++; want > 500 {
					return
				}
			}
		})
	}
	appendN(t, j, 1, 500)
	wg.Wait()
}

func TestWatchEnds(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	stopped := errors.New("stopped")
	appendN(t, j, 1, 1)
	var last error
	for r, err := range j.Watch(ctx, 0) {
		last = err
		if r.Seq == 1 {
			cancel(stopped)
		}
	}
	if !errors.Is(last, stopped) && !errors.Is(last, context.Canceled) {
		t.Errorf("cancelled: %v", last)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for _, err := range j.Watch(t.Context(), 1) {
			last = err
		}
	})
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if !errors.Is(last, ErrClosed) {
		t.Errorf("closed: %v", last)
	}
}

// TestSlowWatch loses nothing of the file that it is in, and sees a gap after it.
func TestSlowWatch(t *testing.T) {
	j := open(t, t.TempDir(), Options{MaxBytes: 4 << 10, MaxFiles: 2})
	appendN(t, j, 1, 2)
	var seen []uint64
	for r, err := range j.Watch(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Seq == 2 {
			appendN(t, j, 3, 500) // removes the file that is being read
		}
		seen = append(seen, r.Seq)
		if r.Seq == 500 {
			break
		}
	}
	gaps := 0
	for i := 1; i < len(seen); i++ {
		if seen[i] != seen[i-1]+1 {
			gaps++
		}
	}
	if gaps != 1 || len(seen) < 50 {
		t.Errorf("%d gaps in %v", gaps, seen)
	}
}

func TestConcurrent(t *testing.T) {
	j := open(t, t.TempDir(), Options{MaxBytes: 64 << 10, MaxFiles: 100})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := range 500 {
				if err := j.Append(t.Context(), event{Machine: "m", N: w*500 + n}); err != nil {
					t.Error(err)
				}
				if n%100 == 0 {
					if _, err := j.Query(t.Context(), Query[event]{Limit: 10}); err != nil {
						t.Error(err)
					}
					if err := j.Flush(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	all := query(t, j, Query[event]{})
	for i, r := range all {
		if r.Seq != uint64(i+1) {
			t.Fatalf("record %d has number %d", i, r.Seq)
		}
	}
	if len(all) != 2000 {
		t.Errorf("%d records", len(all))
	}
}

// TestEachIsOnTheDisk appends from many sides, through changes of files: what was
// appended when Append returns, a sync that began later has covered.
func TestEachIsOnTheDisk(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{MaxBytes: 4 << 10, MaxFiles: 100, Sync: Each})
	appendN(t, j, 1, 3)
	var returned atomic.Uint64
	returned.Store(3)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 20 {
				if err := j.Append(t.Context(), event{Machine: "m"}); err != nil {
					t.Error(err)
				}
				least := returned.Add(1)
				j.flushing.Lock()
				if j.durable < least {
					t.Errorf("%d appends have returned, and %d records are on the disk", least, j.durable)
				}
				j.flushing.Unlock()
			}
		})
	}
	wg.Wait()
	if len(j.retired) > 0 {
		t.Errorf("%d full files are still open", len(j.retired))
	}
}

// TestSyncFails closes the file under the journal, so that a sync fails: the
// records are counted as lost, and the next one tells.
func TestSyncFails(t *testing.T) {
	j, err := Open[event](t.TempDir(), "events", Options{Sync: Each})
	if err != nil {
		t.Fatal(err)
	}
	appendN(t, j, 1, 2)
	broken, err := os.Open("/proc/self/status") // what cannot be synced
	if err != nil {
		t.Fatal(err)
	}
	j.mu.Lock()
	j.retired = append(j.retired, broken)
	j.mu.Unlock()
	appendN(t, j, 3, 3)
	if j.Lost() != 1 {
		t.Errorf("%d records are lost", j.Lost())
	}
	appendN(t, j, 4, 4)
	if all := query(t, j, Query[event]{}); len(all) != 4 || all[3].Lost != 1 {
		t.Errorf("%+v", all)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}

// FuzzOpen opens any bytes, appends to them, and opens them again.
func FuzzOpen(f *testing.F) {
	record := `{"seq":1,"time":"2026-11-21T00:00:00Z","data":{"n":1}}` + "\n"
	for _, s := range []string{"", record, record + record, record[:20], "\x00\x00", "\n\n\n", `{"seq":9223372036854775807,"data":1}` + "\n",
		`{"seq":5,"data":{"n":"x"}}` + "\n" + `{"seq":3,"data":{}}` + "\n", "null\n{}\n[]\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(segmentPath(dir, "events", 1), content, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := Open[event](dir, "events", Options{MaxBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		before := query(t, j, Query[event]{})
		seq := j.LastSeq()
		if err := j.Append(t.Context(), event{Machine: "new", N: 7}); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		j = open(t, dir, Options{MaxBytes: 1 << 20})
		after := query(t, j, Query[event]{})
		if len(after) != len(before)+1 || j.LastSeq() != seq+1 || j.Recovered().CutBytes != 0 {
			t.Fatalf("%d records, then %d; number %d, then %d; %+v", len(before), len(after), seq, j.LastSeq(), j.Recovered())
		}
		var last uint64
		for _, r := range after {
			if r.Seq <= last {
				t.Fatalf("number %d after %d", r.Seq, last)
			}
			last = r.Seq
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for name, sync := range map[string]Sync{"batched": Batched, "each": Each} {
		b.Run(name, func(b *testing.B) {
			j := open(b, b.TempDir(), Options{Sync: sync})
			for b.Loop() {
				if err := j.Append(b.Context(), event{Machine: "r1u07", N: 1}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
