package guest

import (
	"path/filepath"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/qmp"
)

// throttles are the limits that QEMU holds a Guest's disks to.
func (h *host) throttles(uid string) map[string]attachedThrottle {
	h.t.Helper()
	client, err := qmp.Dial(h.t.Context(), filepath.Join(h.runDir(uid), "monitor.sock"), nil)
	if err != nil {
		h.t.Fatal(err)
	}
	defer client.Close()
	var blocks []struct {
		Inserted attachedThrottle `json:"inserted"`
	}
	if err := client.Execute(h.t.Context(), "query-block", nil, &blocks); err != nil {
		h.t.Fatal(err)
	}
	all := map[string]attachedThrottle{}
	for _, b := range blocks {
		all[b.Inserted.Node] = b.Inserted
	}
	return all
}

type attachedThrottle struct {
	Node  string `json:"node-name"`
	Group string `json:"group"`
	throttle
}

// Limits of a Guest's disks are for all of them together, and change while it
// runs, whoever was there when they did.
func TestDiskLimits(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	g := bare(h)
	g.Disks = append(g.Disks, api.GuestDisk{Name: "data", Size: quantity("1Mi"), Format: "raw"})
	g.Limits = api.GuestLimits{DiskBytes: quantity("2Mi"), DiskOperations: 300}
	h.run()
	set := func(bytes string, operations int) {
		h.t.Helper()
		g.Limits = api.GuestLimits{DiskBytes: quantity(bytes), DiskOperations: operations}
		h.want(part("web", uid1, g))
	}
	is := func(want throttle) {
		h.t.Helper()
		h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
		h.wait("its disks have the limits", func() bool {
			all := h.throttles(uid1)
			root, data := all["disk-root"], all["disk-data"]
			return root.throttle == want && data.throttle == want && root.Group == data.Group && (want == throttle{} || root.Group != "")
		})
	}
	h.want(part("web", uid1, g))
	is(throttle{Bytes: 2 << 20, Operations: 300})

	set("8Mi", 0)
	is(throttle{Bytes: 8 << 20})
	if c := h.status("guest/web").Guest.Conditions.Get(conditionCurrent); c == nil || c.Status != api.True {
		t.Errorf("it is said to need a restart: %+v", c)
	}

	h.stop() // the next agent finds them changed
	set("0", 50)
	h.run()
	is(throttle{Operations: 50})

	set("0", 0)
	is(throttle{})
}
