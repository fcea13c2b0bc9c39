package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bgp"
	"github.com/rackweft/rackweft/internal/namespace"
	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/systemd"
)

// TestMain runs nodeagent itself when it is started as a speaker.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "speaker" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A speaker inside a Network outlives the agent that started it, and the next
// agent finds it.
func TestSpeakerInside(t *testing.T) {
	nstest.Root(t, nstest.Namespaces)
	if systemd.Booted() {
		t.Skip("systemd runs this machine: the speaker would be a unit of it")
	}
	dir, err := os.MkdirTemp("", "in") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "netns", "red")
	if err := namespace.Pin(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = namespace.Unpin(path)
		_ = exec.Command("umount", filepath.Dir(path)).Run()
	})
	address := func() {
		t.Helper()
		for _, line := range []string{"link set lo up", "addr add 10.5.1.1/24 dev lo"} {
			if out, err := exec.Command("sh", "-c", fmt.Sprintf("nsenter --net=%s ip %s", path, line)).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", line, err, out)
			}
		}
	}
	address()
	s := settings{runDir: filepath.Join(dir, "run"), stateDir: filepath.Join(dir, "state")}
	self := netip.MustParseAddr("10.5.1.1")
	part := api.BGPPart{Zone: "yellow", Network: "red", ASN: 64601, RouterID: self, Role: api.BGPNetwork, Community: "64601:1:1", Listen: []netip.Addr{self}, NextHops: []netip.Addr{self}}
	status := func() bgp.Status {
		s, _ := bgp.NewClient(filepath.Join(s.insideDir(), "uid", "socket")).Status(t.Context())
		return s
	}
	pid := 0
	for range 2 { // two agents
		inside, err := newInside(s, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = inside.Stop(context.WithoutCancel(t.Context()), "uid") })
		if runs, err := inside.Give("uid", part); err != nil || runs != (pid != 0) {
			t.Fatalf("the part is given: %v, runs: %v", err, runs)
		}
		if err := inside.Run(t.Context(), "uid", "red", path); err != nil {
			t.Fatal(err)
		}
		if got := status().PID; pid != 0 && got != pid || got == 0 {
			t.Errorf("the speaker is process %d, and was %d", got, pid)
		}
		pid = status().PID
	}
	isThere := func() {
		t.Helper()
		own, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", status().PID))
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if !os.SameFile(own, want) {
			t.Error("the speaker is not in the Network's namespace")
		}
	}
	isThere()
	inside, err := newInside(s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	// The namespace is lost, and made anew.
	if err := errors.Join(namespace.Unpin(path), namespace.Pin(path)); err != nil {
		t.Fatal(err)
	}
	address()
	if err := inside.Run(t.Context(), "uid", "red", path); err != nil {
		t.Fatal(err)
	}
	isThere()
	for _, want := range []bool{true, false} {
		if stopped, err := inside.Stop(t.Context(), "uid"); err != nil || stopped != want {
			t.Errorf("stopped: %v, %v", stopped, err)
		}
	}
	if s := status(); s.PID != 0 {
		t.Errorf("process %d still answers", s.PID)
	}
}
