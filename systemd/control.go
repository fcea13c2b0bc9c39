package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Start starts a unit, and does not wait until it is up.
func Start(ctx context.Context, unit string) error { return control(ctx, "start", "--no-block", unit) }

// Stop stops a unit, and waits until it is down.
func Stop(ctx context.Context, unit string) error { return control(ctx, "stop", unit) }

func control(ctx context.Context, args ...string) error {
	unit := args[len(args)-1]
	if _, err := os.Stat("/run/systemd/system"); err != nil { // sd_booted(3)
		return fmt.Errorf("%s %s: this machine does not run systemd: do it by hand", args[0], unit)
	}
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("%s %s: systemctl is not installed: it is part of systemd", args[0], unit)
	}
	return fmt.Errorf("systemctl %s %s: %w: %s", args[0], unit, err, strings.Join(strings.Fields(string(out)), " "))
}
