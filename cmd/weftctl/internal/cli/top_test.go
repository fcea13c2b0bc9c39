package cli

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
)

func someUsage() api.Usage {
	return api.Usage{
		Hosts: []api.HostLoad{
			{Host: "r1u07", Zone: "yellow", CPUs: 4, Guests: 2, Memory: api.MemoryUsage{Total: 16 << 30, Used: 4 << 30}, Load: &api.Load{CPU: 1, ReceivedBytes: 2048}},
			{Host: "r1u08", Message: "it is not connected to this bootd"},
		},
		Guests: []api.GuestLoad{
			{Guest: "db", Network: "blue", Host: "r1u07", CPUs: 2, Memory: api.MemoryUsage{Total: 1 << 30, Used: 700 << 20}, Load: &api.Load{CPU: 0.5, WrittenBytes: 5 << 20, Writes: 80, DiskErrors: 2}},
			{Guest: "new", Network: "blue", Host: "r1u07", CPUs: 1, Memory: api.MemoryUsage{Total: 1 << 30, Used: 90 << 20}},
			{Guest: "web", Network: "red", Host: "r1u07", CPUs: 1, Memory: api.MemoryUsage{Total: 2 << 30, Used: 300 << 20}, Load: &api.Load{CPU: 0.9, SentBytes: 100, Dropped: 0.5}},
		},
	}
}

func TestTop(t *testing.T) {
	b := newBootd(t)
	b.usage = func(host string) (api.Usage, bool) { return someUsage(), host != "r9u99" }
	b.run(t, "", "top").want(t, 0, `HOST    ZONE     GUESTS   CPU   OF   MEMORY    OF         READ/S   WRITTEN/S   OPS/S   RECEIVED/S   SENT/S   REMARK
r1u07   yellow   2        25%   4    4.0 GiB   16.0 GiB   0 B      0 B         0       2.0 KiB      0 B      
r1u08   -        0        -     -    -         -          -        -           -       -            -        it is not connected to this bootd

GUEST   NETWORK   HOST    CPU   OF   MEMORY      OF        READ/S   WRITTEN/S   OPS/S   RECEIVED/S   SENT/S   REMARK
web     red       r1u07   90%   1    300.0 MiB   2.0 GiB   0 B      0 B         0       0 B          100 B    0.5 packets/s dropped
db      blue      r1u07   25%   2    700.0 MiB   1.0 GiB   0 B      5.0 MiB     80      0 B          0 B      2.0 disk errors/s
new     blue      r1u07   -     1    90.0 MiB    1.0 GiB   -        -           -       -            -        
`)
	first := func(args ...string) string {
		r := b.run(t, "", append([]string{"top"}, args...)...)
		lines := strings.Split(r.out, "\n")
		if r.code != 0 || len(lines) < 2 {
			t.Fatalf("%v: %+v", args, r)
		}
		name, _, _ := strings.Cut(lines[1], " ")
		return name
	}
	for sort, want := range map[string]string{"memory": "db", "disk": "db", "net": "web", "name": "db", "cpu": "web"} {
		if got := first("guests", "--sort", sort); got != want {
			t.Errorf("by %s %s comes first, not %s", sort, got, want)
		}
	}
	if got := first("guests", "--network", "blue"); got != "db" {
		t.Errorf("of the Network blue %s comes first", got)
	}
	if r := b.run(t, "", "top", "hosts", "--host", "r1u07", "-o", "json"); r.code != 0 || !strings.Contains(r.out, `"host": "r1u07"`) || strings.Contains(r.out, `"guest"`) {
		t.Errorf("%+v", r)
	}
	b.run(t, "", "top", "--host", "r9u99").want(t, 1, "", "there is none")
	b.run(t, "", "top", "networks").want(t, 2, "", `invalid argument "networks"`)
	b.run(t, "", "top", "--sort", "age").want(t, 2, "", "cpu, disk, memory, name, net")
	b.run(t, "", "top", "-o", "yaml").want(t, 2, "", "table or json")
}

// Watched, it goes on until it is interrupted, which is no failure.
func TestTopWatch(t *testing.T) {
	b := newBootd(t)
	ctx, cancel := context.WithCancel(t.Context())
	looks := 0
	b.usage = func(string) (api.Usage, bool) {
		if looks++; looks == 2 {
			cancel()
		}
		return someUsage(), true
	}
	r := runWith(t, ctx, map[string]string{"RACKWEFT_SERVER": "unix://" + b.socket}, "", "top", "hosts", "--watch")
	if r.code != 0 || strings.Count(r.out, "HOST ") < 1 || looks != 2 {
		t.Errorf("%d looks, %+v", looks, r)
	}
}

func (b *bootd) serveUsage(w http.ResponseWriter, r *http.Request) {
	u, ok := b.usage(r.URL.Query().Get("host"))
	if !ok {
		b.problem(w, &api.Problem{Status: 404, Title: "Not Found", Detail: "there is none"})
		return
	}
	b.json(w, u)
}
