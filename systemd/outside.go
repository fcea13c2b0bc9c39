package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// PrivateMounts reports whether mounts that this process makes are its own and
// die with it: it was started by systemd in a sandbox such as
// nodeagent.service's. What must outlive it is then done by RunOutside.
func PrivateMounts() bool {
	if _, err := os.Stat("/run/systemd/system"); err != nil { // sd_booted(3)
		return false
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return true
	}
	// A sandbox may well forbid to look at pid 1.
	first, err := os.Readlink("/proc/1/ns/mnt")
	return err != nil || own != first
}

// RunOutside runs a program to its end as a transient unit: a child of pid 1,
// with none of the caller's sandbox, cgroup and mounts. An error tells that the
// program failed; what it printed is in the journal.
func RunOutside(ctx context.Context, description string, argv ...string) error {
	// A oneshot's start is over when the program is. --wait would say the same,
	// but needs a message bus, which a small host has not.
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
