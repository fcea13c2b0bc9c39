package recovery

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

func on(host, uid string, state api.GuestState, transfer *api.GuestTransfer) claim {
	return claim{api.GuestPlace{Host: host, HostUID: host + "-uid"},
		api.HeldGuest{Name: "web", UID: uid, Network: "blue", State: state, Transfer: transfer, Addresses: []netip.Addr{netip.MustParseAddr("10.5.1.2")}}}
}

func gone(c claim) claim {
	c.held.Gone = true
	return c
}

func share(role, id, peer string) *api.GuestTransfer {
	return &api.GuestTransfer{ID: id, Role: role, Peer: api.HostIdentity{Host: peer, UID: peer + "-uid"}}
}

// TestLocate has what hosts say of one Guest, which the backup has on host a.
func TestLocate(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name           string
		claims         []claim
		uid, host      string
		move           string // step and target
		left, conflict string
	}{
		{"where the backup has it", []claim{on("a", "u", "Running", nil)}, "u", "a", "", "", ""},
		{"it has moved since", []claim{on("b", "u", "Running", nil)}, "u", "b", "", "", ""},
		{"it has moved, and its disks are still where it was", []claim{on("a", "u", "Stopped", share(api.TransferLeft, "m", "b")), on("b", "u", "Running", nil)}, "u", "b", "", "a m", ""},
		{"it is moving", []claim{on("a", "u", "Running", share(api.TransferSource, "m", "b")), on("b", "u", "", share(api.TransferTarget, "m", "a"))}, "u", "a", "Transfer b", "", ""},
		{"it was moving to a host that is lost", []claim{on("a", "u", "Running", share(api.TransferSource, "m", "b"))}, "u", "a", "Back b", "", ""},
		{"its move is being called back", []claim{on("a", "u", "Running", share(api.TransferBack, "m", "b")), on("b", "u", "", share(api.TransferTarget, "m", "a"))}, "u", "a", "Back b", "b", ""},
		{"the target of a finished move", []claim{on("a", "u", "Running", nil), on("b", "u", "", share(api.TransferTarget, "m", "a"))}, "u", "a", "", "b", ""},
		{"a host that came back after its Guest was started elsewhere", []claim{on("a", "u", "", nil), on("b", "u", "Running", nil)}, "u", "b", "", "", "is on b and a"},
		{"an orphan", []claim{gone(on("a", "u", "Running", nil))}, "u", "a", "", "", ""},
		{"an orphan beside the real one", []claim{gone(on("a", "u", "Stopped", nil)), on("b", "u", "Stopped", nil)}, "u", "b", "", "", "is on b and a"},
		{"deleted and made again elsewhere", []claim{on("c", "v", "Running", nil)}, "v", "c", "", "", ""},
		{"only what is to come and what has left", []claim{on("b", "u", "", share(api.TransferTarget, "m", "a"))}, "u", "", "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := &api.Guest{}
			g.Metadata.Name, g.Metadata.UID = "web", "u"
			g.Status.Host, g.Status.HostUID = "a", "a-uid"
			w := locate(g, c.claims, now)
			host, move, left := "", "", ""
			if w.owner != nil {
				host = w.owner.place.Host
			}
			if w.move != nil {
				move = w.move.Step + " " + w.move.Target.Host
			}
			for _, p := range w.left {
				left = strings.TrimSpace(p.Host + " " + p.Held)
			}
			if w.uid != c.uid || host != c.host || move != c.move || left != c.left || (w.conflict == "") != (c.conflict == "") || !strings.Contains(w.conflict, c.conflict) {
				t.Errorf("uid %s on %q, move %q, left %q, conflict %q; want %s on %q, %q, %q, %q", w.uid, host, move, left, w.conflict, c.uid, c.host, c.move, c.left, c.conflict)
			}
			w.apply(g)
			if c.host != "" && (g.Status.Host != c.host || g.Status.HostUID != c.host+"-uid" || len(g.Status.Addresses) != 1) {
				t.Errorf("its status is %+v", g.Status)
			}
			if c.host == "" && g.Status.Host != "a" {
				t.Errorf("nobody has it, and its host has become %q", g.Status.Host)
			}
		})
	}
}

// TestUnknownGuest is one that the backup does not have.
func TestUnknownGuest(t *testing.T) {
	w := locate(nil, []claim{on("b", "v", "Running", nil), on("c", "w", "Stopped", nil)}, time.Now())
	if w.uid != "v" || w.owner == nil || len(w.others) != 1 {
		t.Fatalf("%+v", w)
	}
	if p := w.part(*w.owner); p.Name != "web" || p.UID != "v" || p.Host != "b" || p.Network != "blue" || len(p.Addresses) != 1 {
		t.Errorf("kept is %+v", p)
	}
}
