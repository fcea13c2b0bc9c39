// Package rig brings up a whole rack for a test or a benchmark: it builds the
// programs and the image, starts the machines of package lab in a rack of their
// own and bootd, and applies the rack's manifests. Everything is removed when
// the test ends.
package rig

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/lab"
)

// Patience bounds the Wait methods: a boot takes one to two minutes on an
// emulated processor, and several run at a time.
const Patience = 8 * time.Minute

// startPatience is for bootd alone.
const startPatience = time.Minute

// Options configure Up. The zero value is the rack of `make lab`.
type Options struct {
	// Machines of the rack. Default: lab.DefaultMachines.
	Machines []lab.MachineConfig
	// Manifests is called with each of the rack's manifests (site.yaml,
	// machines.yaml, …), and returns what to apply instead; nil skips the file.
	Manifests func(name string, content []byte) []byte
	// NoManifests leaves bootd empty.
	NoManifests bool
	// BootdConfig is bootd's configuration file. Default: one that offers hosts
	// bootd's address on the production network.
	BootdConfig []byte
	// Guests makes the machines boot the image with QEMU.
	Guests bool
	// BootdFlags come after the rack's own.
	BootdFlags []string
}

// Rig is a rack that is up. Its methods fail the test instead of returning errors.
type Rig struct {
	Rack     *lab.Rack
	Client   *api.Client
	Binaries Binaries
	ImageDir string

	tb testing.TB
}

// For returns the same rig for a subtest, which is then the test that fails.
func (r *Rig) For(tb testing.TB) *Rig {
	same := *r
	same.tb = tb
	return &same
}

// Up brings up a rack, with its machines off and bootd about to power on those
// whose manifests want Active. bootd is supervised: it restarts after a kill.
// The rack's directory is removed at the end, unless RACKWEFT_KEEP is set.
func Up(tb testing.TB, o Options) *Rig {
	tb.Helper()
	nstest.Root(tb, nstest.Namespaces)
	if testing.Short() {
		tb.Skip("boots machines, which takes minutes")
	}
	r := &Rig{Binaries: Build(tb), tb: tb}
	if o.Guests {
		r.ImageDir = GuestsImage(tb)
	} else {
		r.ImageDir = Image(tb)
	}
	r.build(o)
	ctx, cancel := context.WithTimeout(tb.Context(), startPatience)
	defer cancel()
	if err := r.Rack.StartBootd(ctx, o.BootdFlags...); err != nil {
		tb.Fatal(err)
	}
	client, err := api.NewClient(api.ClientConfig{Server: r.server()})
	if err != nil {
		tb.Fatal(err)
	}
	r.Client = client
	if !o.NoManifests {
		r.Apply(r.edited(o.Manifests)...)
	}
	return r
}

func (r *Rig) build(o Options) {
	r.tb.Helper()
	if err := sweep(); err != nil {
		r.tb.Logf("what an earlier rack left: %v", err)
	}
	name := randomName(r.tb)
	dir := filepath.Join(os.TempDir(), name) // short, because it is part of unix addresses
	if len(o.BootdConfig) == 0 {
		o.BootdConfig = []byte("advertise: [\"https://198.18.8.1:8443\"]\n")
	}
	rack, err := lab.New(r.tb.Context(), lab.Config{
		Name: name, Dir: dir, Fresh: true, Machines: o.Machines, Binaries: r.Binaries.Dir, ImageDir: r.ImageDir,
		BootdConfig: o.BootdConfig, SuperviseBootd: true,
	}, slog.New(slog.NewTextHandler(r.tb.Output(), nil)))
	if err != nil {
		r.tb.Fatal(err)
	}
	r.Rack = rack
	addRack(rack)
	r.tb.Cleanup(func() {
		if err := removeRack(rack); err != nil {
			r.tb.Error(err)
		}
		if os.Getenv("RACKWEFT_KEEP") != "" {
			r.tb.Logf("the rack's logs, disks and state are in %s", dir)
		}
	})
}

// namePrefix is the prefix of the names of all rigs' racks and directories.
const namePrefix = "rig-"

// randomName distinguishes racks that run at the same time.
func randomName(tb testing.TB) string {
	tb.Helper()
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		tb.Fatal(err)
	}
	return namePrefix + hex.EncodeToString(b[:])
}

func (r *Rig) server() string { return "unix://" + r.Rack.BootdSocket() }

// edited writes the rack's manifests as changed by edit, and returns their
// paths.
func (r *Rig) edited(edit func(string, []byte) []byte) []string {
	r.tb.Helper()
	if edit == nil {
		return r.Rack.Manifests()
	}
	var paths []string
	for _, path := range r.Rack.Manifests() {
		content, err := os.ReadFile(path)
		if err != nil {
			r.tb.Fatal(err)
		}
		changed := edit(filepath.Base(path), content)
		if changed == nil {
			continue
		}
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			r.tb.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

// File writes a manifest into the rack's directory and returns its path, for Apply and Weftctl.
func (r *Rig) File(name, content string) string {
	r.tb.Helper()
	path := filepath.Join(r.Rack.Dir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		r.tb.Fatal(err)
	}
	return path
}

// Apply applies manifests with weftctl, including the files of Images.
func (r *Rig) Apply(files ...string) {
	r.tb.Helper()
	args := []string{"apply"}
	for _, f := range files {
		args = append(args, "-f", f)
	}
	if out, err := r.Weftctl(args...); err != nil {
		r.tb.Fatalf("weftctl %q: %v\n%s", args, err, out)
	}
}

// Weftctl runs weftctl as root on bootd's server and returns all its output.
func (r *Rig) Weftctl(args ...string) (string, error) {
	cmd := exec.CommandContext(r.tb.Context(), r.Binaries.Path("weftctl"), args...)
	cmd.Env = append(os.Environ(), "RACKWEFT_SERVER="+r.server())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// Machine reads a Machine.
func (r *Rig) Machine(name string) *api.Machine {
	r.tb.Helper()
	m, err := api.Get[api.Machine](r.tb.Context(), r.Client, name)
	if err != nil {
		r.tb.Fatal(err)
	}
	return m
}

// SetState changes a Machine's desired state: Active, Off or Maintenance.
func (r *Rig) SetState(name string, state api.MachineState) {
	r.tb.Helper()
	m := r.Machine(name)
	m.Spec.State = state
	m.Metadata.ResourceVersion = "" // its status may have changed meanwhile
	if _, err := r.Client.Put(r.tb.Context(), m, false); err != nil {
		r.tb.Fatal(err)
	}
}

// WaitActive waits until the Machine is Active, and fails at once when it is Failed.
func (r *Rig) WaitActive(machine string) *api.Machine {
	r.tb.Helper()
	return r.WaitPhase(machine, api.PhaseActive)
}

// WaitPhase waits until the Machine is in a phase, and fails at once when it is
// Failed instead. The failure shows the last output of the machine and of
// bootd.
func (r *Rig) WaitPhase(machine string, phase api.Phase) *api.Machine {
	r.tb.Helper()
	ctx, cancel := context.WithTimeout(r.tb.Context(), Patience)
	defer cancel()
	if err := r.Rack.WaitPhase(ctx, lab.PhaseFrom(r.Client), machine, string(phase)); err != nil {
		r.tb.Fatal(err)
	}
	return r.Machine(machine)
}

// WaitStage waits until the Machine's BootAttempt has reached a stage or a
// later one.
func (r *Rig) WaitStage(machine string, stage api.Stage) *api.Machine {
	r.tb.Helper()
	return r.WaitMachine(machine, "stage "+string(stage), func(m *api.Machine) bool {
		return m.Status.Attempt.Reached(stage)
	})
}

// WaitMachine waits until is returns true for the Machine; what describes the
// wait in the failure.
func (r *Rig) WaitMachine(machine, what string, is func(*api.Machine) bool) *api.Machine {
	r.tb.Helper()
	ctx, cancel := context.WithTimeout(r.tb.Context(), Patience)
	defer cancel()
	var last *api.Machine
	for {
		m, err := api.Get[api.Machine](ctx, r.Client, machine)
		if err == nil {
			if last = m; is(m) {
				return m
			}
		} // otherwise bootd may be restarting
		if wait.For(ctx, 200*time.Millisecond) != nil {
			r.tb.Fatal(r.Rack.Explain(machine, fmt.Errorf("machine %s: %s: never; it is %s (last answer: %w)", machine, what, describe(last), err)))
		}
	}
}

func describe(m *api.Machine) string {
	if m == nil {
		return "unknown"
	}
	if a := m.Status.Attempt; a != nil {
		return fmt.Sprintf("%s, BootAttempt %d at %s %s", m.Status.Phase, a.Number, a.Stage, a.Message)
	}
	return string(m.Status.Phase)
}
