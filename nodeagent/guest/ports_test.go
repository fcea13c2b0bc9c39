package guest

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

// switchboard keeps what ports there are to be.
type switchboard struct{ ports []nodeagent.Port }

func (s *switchboard) SetPorts(ports []nodeagent.Port) { s.ports = ports }

func (s *switchboard) Attach(context.Context, nodeagent.Port) (nodeagent.Attachment, error) {
	return nodeagent.Attachment{}, errors.New("nobody attaches here")
}

func (s *switchboard) Traffic() map[string]api.LinkUsage { return nil }

// A Guest that runs keeps its port although no part names it: the agent's cache
// may be lost. One that is removed, or that ran no more, does not.
func TestPortsWithoutParts(t *testing.T) {
	board, dir := new(switchboard), t.TempDir()
	h := New(Options{StateDir: dir, RunDir: filepath.Join(dir, "run"), Network: board, Log: slog.New(slog.DiscardHandler)})
	for uid, r := range map[string]record{
		"u1": {Name: "runs", Expected: true, Part: api.GuestPart{UID: "u1", Network: "blue"}},
		"u2": {Name: "stopped", Part: api.GuestPart{UID: "u2", Network: "blue"}},
		"u3": {Name: "removed", Expected: true, Part: api.GuestPart{UID: "u3", Network: "blue"}},
		"u4": {Name: "alone", Expected: true, Part: api.GuestPart{UID: "u4"}},
	} {
		if err := r.write(filepath.Join(dir, "guests", uid)); err != nil {
			t.Fatal(err)
		}
	}
	parts := []nodeagent.Part{{Name: "guest/removed", UID: "u3", Want: nodeagent.Removed}}
	ports := h.unnamed(parts)
	if len(ports) != 1 || ports[0].UID != "u1" || ports[0].Guest != "runs" || ports[0].Network != "blue" {
		t.Errorf("the ports are %+v", ports)
	}
	h.Reconcile(t.Context(), nil)
	if len(board.ports) != 2 { // the tombstone is unknown now, too
		t.Errorf("the ports are %+v", board.ports)
	}
}
