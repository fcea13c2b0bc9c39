package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/beacon"
)

func TestBeacon(t *testing.T) {
	h := beacon.Handler{Dir: filepath.Join(t.TempDir(), "beacons")}
	path := filepath.Join(h.Dir, "u1.json")
	p := nodeagent.Part{Name: "beacon/x", UID: "u1", Value: &api.BeaconPart{UID: "u1", Address: netip.MustParseAddrPort("198.18.0.9:4711"), Password: "hush"}}
	for _, c := range []struct {
		want    nodeagent.Want
		key     string
		written bool
	}{{nodeagent.Present, "beacon/x", true}, {nodeagent.Orphaned, "beacon/x", true}, {nodeagent.Removed, "beacon/x@u1", false}, {nodeagent.Removed, "beacon/x@u1", false}} {
		p.Want = c.want
		if got := h.Reconcile(t.Context(), []nodeagent.Part{p}); got[c.key].State != api.PartApplied {
			t.Errorf("%d: %+v", c.want, got)
		}
		if raw, _ := os.ReadFile(path); strings.Contains(string(raw), "hush") != c.written {
			t.Errorf("%d: the file has %q", c.want, raw)
		}
	}
	p.UID, p.Want = "../x", nodeagent.Present
	if got := h.Reconcile(t.Context(), []nodeagent.Part{p}); got["beacon/x"].State != api.PartFailed {
		t.Errorf("an invalid uid: %+v", got)
	}
}
