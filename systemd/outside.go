package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// PrivateMounts reports whether mounts of this process disappear with it,
// because systemd started it in a sandbox such as nodeagent.service's. Mounts
// that must outlive it are then made with RunOutside.
func PrivateMounts() bool {
	if !Booted() {
		return false
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return true
	}
	// A sandbox may forbid access to pid 1.
	first, err := os.Readlink("/proc/1/ns/mnt")
	return err != nil || own != first
}

// RunOutside runs a program as a transient unit, a child of pid 1 outside the
// caller's sandbox, cgroup and mounts, and waits for it. An error means that
// the program failed; its output is in the journal.
func RunOutside(ctx context.Context, description string, argv ...string) error {
	// The start of a oneshot unit ends when the program does. --wait would do
	// the same, but needs a message bus, which a small host does not have.
	args := append([]string{"--quiet", "--collect", "--service-type=oneshot", "--description=" + description, "--"}, argv...)
	out, err := exec.CommandContext(ctx, "systemd-run", args...).CombinedOutput()
	if err == nil {
		return nil
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s: systemd-run is not installed: it is part of systemd", description)
	}
	return fmt.Errorf("%s: run %s as a unit of its own: %w: %s", description, argv[0], err, strings.Join(strings.Fields(string(out)), " "))
}

// Service is a transient unit that outlives the process that starts it.
type Service struct {
	Name        string // with its suffix, .service
	Description string
	Slice       string   // the unit's place among the cgroups
	Properties  []string // such as CPUWeight=200: see systemd.resource-control(5)
	Notify      bool     // the program reports when it is ready (sd_notify(3))
}

// StartOutside starts a service and returns when its program runs, or, with
// Notify, is ready. The caller knows that the program of an earlier unit of
// this name has ended; if that unit is still stopping, StartOutside waits for
// it.
func StartOutside(ctx context.Context, s Service, argv ...string) error {
	err := startOutside(ctx, s, argv)
	if err != nil && Stop(ctx, s.Name) == nil { // Stop fails for a unit that does not exist
		err = startOutside(ctx, s, argv)
	}
	return err
}

func startOutside(ctx context.Context, s Service, argv []string) error {
	// --collect also unloads a failed unit, so that its name is free again.
	kind := "exec"
	if s.Notify {
		kind = "notify"
	}
	args := []string{"--quiet", "--collect", "--service-type=" + kind, "--unit=" + s.Name, "--slice=" + s.Slice, "--description=" + s.Description}
	for _, p := range s.Properties {
		args = append(args, "--property="+p)
	}
	out, err := exec.CommandContext(ctx, "systemd-run", append(append(args, "--"), argv...)...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s: systemd-run is not installed: it is part of systemd", s.Description)
	}
	if err != nil {
		return fmt.Errorf("%s: start %s: %w: %s", s.Description, s.Name, err, strings.Join(strings.Fields(string(out)), " "))
	}
	return nil
}

// Booted reports whether systemd is the machine's pid 1 (sd_booted(3)).
func Booted() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}
