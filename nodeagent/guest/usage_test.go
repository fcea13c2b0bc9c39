package guest

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
)

// wired is a switchboard that nothing is plugged into.
type wired struct{ nodeagent.Attachment }

func (wired) SetPorts([]nodeagent.Port) {}

func (w wired) Attach(context.Context, nodeagent.Port) (nodeagent.Attachment, error) {
	return w.Attachment, nil
}

func (wired) Traffic() map[string]api.LinkUsage {
	return map[string]api.LinkUsage{uid1: {ReceivedBytes: 12, SentBytes: 34, Dropped: 5}, "another": {SentBytes: 1}}
}

// series is what /metrics shows of Guests.
func (h *host) series() string {
	h.t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(h.handler)
	answer := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if answer.Code != http.StatusOK {
		h.t.Fatal(answer.Body)
	}
	return answer.Body.String()
}

func (h *host) usage(guest string) *api.GuestUsage {
	for _, u := range h.handler.Usage(h.t.Context()) {
		if u.Name == guest {
			return &u
		}
	}
	return nil
}

func TestUsage(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	t.Parallel()
	h := newHost(t)
	h.with = func(o *Options) { o.Network = wired{} }
	g := linux(h)
	g.Disks = []api.GuestDisk{{Name: "root", Size: quantity("8Mi")}, {Name: "idle", Size: quantity("1Mi"), Format: "raw"}}
	web, small := part("web", uid1, g), part("small", uid2, bare(h))
	h.run()
	h.want(web, small)
	h.wait("it counts", func() bool { return h.lastTick(uid1) > 0 })
	h.wait("the other runs", h.is("guest/small", api.PartApplied, "Running"))
	if got := h.tell(uid1, "fill root"); got != "ok" {
		t.Fatalf("it writes: %s", got)
	}
	h.wait("what it wrote is measured", func() bool {
		u := h.usage("web")
		return u != nil && u.Disk != nil && u.Disk.WrittenBytes >= 8<<20 && u.Disk.Writes > 0 && u.Disk.Errors == 0
	})
	u := h.usage("web")
	if u.UID != uid1 || u.CPU < 0.1 || u.Memory.Total != 192<<20 || u.Memory.Used < 32<<20 || u.Link == nil || *u.Link != (api.LinkUsage{ReceivedBytes: 12, SentBytes: 34, Dropped: 5}) {
		t.Errorf("it is measured as %+v", u)
	}
	if u := h.usage("small"); u.Link != nil {
		t.Errorf("the other has used %+v", u.Link)
	}
	text := h.series()
	for _, want := range []string{
		`rackweft_guest_cpu_seconds_total{guest="web",network=""} `,
		`rackweft_guest_memory_balloon_bytes{guest="web",network=""} 2.01326592e+08`,
		`rackweft_guest_memory_resident_bytes{guest="small",network=""} `,
		`rackweft_guest_disk_bytes_total{disk="root",guest="web",network="",operation="write"} 8.`,
		`rackweft_guest_disk_bytes_total{disk="idle",guest="web",network="",operation="write"} 0`,
		`rackweft_guest_disk_operations_total{disk="root",guest="small",network="",operation="flush"} `,
		`rackweft_guest_disk_errors_total{disk="root",guest="web",network="",operation="write"} 0`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}

	// One that hangs is still known by what the kernel says of it, and keeps the
	// others' figures from nobody.
	id, err := launch.ReadIdentity(h.runDir(uid2))
	if err != nil {
		t.Fatal(err)
	}
	process, err := launch.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer process.Close()
	if err := process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	h.wait("nothing of its disks is known any more", func() bool {
		text = h.series()
		return !strings.Contains(text, `disk="root",guest="small"`)
	})
	if !strings.Contains(text, `resident_bytes{guest="small"`) || !strings.Contains(text, `disk="root",guest="web"`) {
		t.Errorf("while one hangs:\n%s", text)
	}
	if u := h.usage("small"); u == nil || u.Disk != nil {
		t.Errorf("the one that hangs is measured as %+v", u)
	}
	if err := process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}

	// Nothing is left of one that has stopped, and of one that goes.
	g.State = "Stopped"
	h.want(part("web", uid1, g), removed("small", uid2))
	h.wait("it is stopped", h.is("guest/web", api.PartApplied, "Stopped"))
	h.wait("nothing is measured", func() bool { return !strings.Contains(h.series(), "guest=") && len(h.handler.Usage(t.Context())) == 0 })
}
