package nodeagent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rackweft/rackweft/api"
)

// A host reports while bootd asks for it, and then no more.
func TestUsageWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w, start := newUsageWatch(), time.Now()
		measured, faults := 0, 0
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			w.run(ctx, func(context.Context) (*api.HostUsage, error) {
				if measured++; measured == 2 {
					return nil, errors.New("the kernel says nothing")
				}
				return &api.HostUsage{Uptime: api.Duration(time.Since(start))}, nil
			}, func(error) { faults++ })
		}()
		var got []time.Duration
		listen := func(d time.Duration) {
			for end := time.After(d); ; {
				select {
				case u := <-w.reports:
					got = append(got, time.Duration(u.Uptime))
				case <-end:
					return
				}
			}
		}
		listen(time.Minute)
		w.ask(api.UsageRequest{Every: api.Duration(2 * time.Second), For: api.Duration(5 * time.Second)})
		listen(4500 * time.Millisecond)
		w.ask(api.UsageRequest{Every: api.Duration(2 * time.Second), For: api.Duration(5 * time.Second)}) // before it is over
		listen(time.Minute)
		w.ask(api.UsageRequest{Every: 1, For: api.Duration(1500 * time.Millisecond)}) // more often than it may
		listen(time.Minute)
		at := func(seconds ...int) (list []time.Duration) {
			for _, s := range seconds {
				list = append(list, time.Duration(s)*time.Second)
			}
			return list
		}
		again := 124500 * time.Millisecond // after two minutes and the time in between
		want := append(at(60, 64, 66, 68), again, again+time.Second)
		if !slices.Equal(got, want) || faults != 1 {
			t.Errorf("reports came at %v with %d faults, want %v and 1", got, faults, want)
		}
		cancel()
		<-ended
	})
}

// metered is a handler of Guests that use something.
type metered struct{ *recorder }

func (metered) Usage(context.Context) []api.GuestUsage {
	return []api.GuestUsage{{Name: "web", UID: "g1", CPU: 1.5, Disk: &api.DiskUsage{Reads: 3}}}
}

func TestUsageIsReported(t *testing.T) {
	b := newFakeBootd(t)
	b.stream = func(_ int, s *fakeStream) bool {
		s.send(api.ServerFrame{Usage: &api.UsageRequest{Every: api.Duration(time.Second), For: api.Duration(30 * time.Second)}})
		return false
	}
	b.start(nil)
	h := newHost(t, b)
	_, stop := runAgent(t, h, metered{newRecorder("guest")})
	defer stop()
	b.waitFor("two reports", func() bool { return len(b.usages) > 1 })
	b.mu.Lock()
	defer b.mu.Unlock()
	old, now := b.usages[0], b.usages[1]
	if now.Uptime <= old.Uptime || now.CPU < old.CPU || now.CPUs < 1 || now.Memory.Used <= 0 || now.Memory.Used >= now.Memory.Total {
		t.Errorf("the host reported %+v, then %+v", old, now)
	}
	if len(now.Guests) != 1 || now.Guests[0].Name != "web" || now.Guests[0].CPU != 1.5 || now.Guests[0].Disk.Reads != 3 || now.Guests[0].Link != nil {
		t.Errorf("of Guests it reported %+v", now.Guests)
	}
}

// What the kernel has counted, of a made-up host: a disk, its partition and a
// loop; an underlay beside other interfaces.
func TestHostUsage(t *testing.T) {
	dir := t.TempDir()
	for path, text := range map[string]string{
		"proc/stat":              "cpu  100 20 30 5000 7 3 2 0 60 10\ncpu0 50 10 15 2500 3 2 1 0 30 5\ncpu1 50 10 15 2500 4 1 1 0 30 5\nbtime 1\n",
		"proc/meminfo":           "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\n",
		"proc/diskstats":         "8 0 sda 10 0 80 5 20 0 160 5 0 0 0\n8 1 sda1 9 0 72 5 20 0 160 5 0 0 0\n7 0 loop0 5 0 40 1 0 0 0 0 0 0 0\n",
		"proc/net/dev":           "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n  prod: 1000 10 0 1 0 0 0 0 2000 20 0 2 0 0 0 0\n  mgmt: 5 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n",
		"sys/block/sda/device/x": "", "sys/block/loop0/x": "",
	} {
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(".", filepath.Join(dir, "proc", "self")); err != nil {
		t.Fatal(err)
	}
	u, err := hostUsage(filepath.Join(dir, "proc"), filepath.Join(dir, "sys"), "prod")
	if err != nil {
		t.Fatal(err)
	}
	if u.CPUs != 2 || u.CPU < 1.54 || u.CPU > 1.56 || u.Memory != (api.MemoryUsage{Total: 1000 << 10, Used: 600 << 10}) {
		t.Errorf("processors and memory: %+v", u)
	}
	if u.Disk != (api.DiskUsage{ReadBytes: 80 * 512, WrittenBytes: 160 * 512, Reads: 10, Writes: 20}) || u.Link != (api.LinkUsage{ReceivedBytes: 1000, SentBytes: 2000, Dropped: 3}) {
		t.Errorf("disks and underlay: %+v", u)
	}
}
