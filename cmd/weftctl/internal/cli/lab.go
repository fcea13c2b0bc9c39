package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/show"
	"github.com/rackweft/rackweft/lab"
)

// defaultLabDir is short: unix socket addresses are below it.
const defaultLabDir = "/var/lib/rackweft-lab"

// labOptions describe the rack to bring up.
type labOptions struct {
	dir, name, image, bin string
	machines              int
	keep, keepState       bool
	timeout               time.Duration
}

// labCommands run the virtual rack.
type labCommands struct{ *manifests }

func (a *labCommands) labCommand() *cobra.Command {
	return group("lab", "A virtual rack on this machine: real firmware, Redfish BMCs, bootd in the middle",
		a.labUpCommand(), a.labRunCommand(), a.labStatusCommand(), a.labDownCommand())
}

func labDirFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "dir", defaultLabDir, "where the rack keeps its logs, disks and sockets")
}

// rackFlags are the flags that lab up passes to lab run.
func rackFlags(c *cobra.Command, o *labOptions) {
	labDirFlag(c, &o.dir)
	f := c.Flags()
	f.StringVar(&o.name, "name", "lab", "the rack's name, which prefixes its network namespaces")
	f.StringVar(&o.image, "image", "", "directory of the netboot image (vmlinuz, initrd, rootfs.squashfs, SHA256SUMS)")
	f.StringVar(&o.bin, "bin", "", "directory of bootd and nodeagent. Default: weftctl's own")
	f.IntVar(&o.machines, "machines", 3, "how many machines")
	f.BoolVar(&o.keepState, "keep-state", false, "continue with the disks and the bootd state of the last rack in --dir")
}

// arguments are the same flags, for lab run.
func (o labOptions) arguments() []string {
	return []string{"lab", "run", "--dir", o.dir, "--name", o.name, "--image", o.image, "--bin", o.bin,
		"--machines", strconv.Itoa(o.machines), "--keep-state=" + strconv.FormatBool(o.keepState)}
}

func (o *labOptions) complete() error {
	if o.machines < 1 || o.machines > 40 {
		return usagef("invalid --machines %d: want 1 to 40", o.machines)
	}
	if os.Geteuid() != 0 {
		return errors.New("a rack needs network namespaces and taps: run it as root (sudo)")
	}
	if o.bin == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find weftctl's own directory: %w", err)
		}
		o.bin = filepath.Dir(self)
	}
	for _, path := range []*string{&o.dir, &o.bin, &o.image} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = absolute
	}
	for _, program := range []string{"bootd", "nodeagent"} {
		if _, err := os.Stat(filepath.Join(o.bin, program)); err != nil {
			return usagef("--bin %s has no %s: `make build` makes it", o.bin, program)
		}
	}
	if o.image == "" {
		return usagef("name the netboot image with --image DIRECTORY: `lab/image/build` makes one and prints where it is")
	}
	for _, file := range []string{"vmlinuz", "initrd", "rootfs.squashfs", "SHA256SUMS"} {
		if _, err := os.Stat(filepath.Join(o.image, file)); err != nil {
			return usagef("--image %s has no %s: `lab/image/build` makes a complete image", o.image, file)
		}
	}
	return nil
}

func (o labOptions) config(accelerator lab.Accelerator) lab.Config {
	return lab.Config{Name: o.name, Dir: o.dir, Fresh: !o.keepState, Machines: rackOf(o.machines), Accelerator: accelerator,
		Binaries: o.bin, SuperviseBootd: true, ImageDir: o.image}
}

// rackOf is a rack of n machines: the default ones, then one BIOS for every two UEFI.
func rackOf(n int) []lab.MachineConfig {
	machines := lab.DefaultMachines()
	for unit := len(machines) + 1; unit <= n; unit++ {
		firmware := lab.UEFI
		if unit%3 == 1 {
			firmware = lab.BIOS
		}
		machines = append(machines, lab.MachineConfig{Name: fmt.Sprintf("r1u%02d", unit), Unit: unit, Firmware: firmware})
	}
	return machines[:n]
}

// labRunCommand is the rack's owner: all of the rack's processes end with it.
func (a *labCommands) labRunCommand() *cobra.Command {
	var o labOptions
	c := &cobra.Command{
		Use: "run", Short: "Own a rack until it is asked to go down", Args: cobra.NoArgs, Hidden: true,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.complete(); err != nil {
				return err
			}
			return a.labRun(c.Context(), o, slog.New(slog.NewTextHandler(a.err, nil)))
		},
	}
	rackFlags(c, &o)
	return c
}

func (a *labCommands) labRun(ctx context.Context, o labOptions, log *slog.Logger) error {
	accelerator, err := lab.PickAccelerator(ctx, filepath.Join(o.image, "vmlinuz"), filepath.Dir(o.image), log)
	if err != nil {
		return err
	}
	rack, err := lab.New(ctx, o.config(accelerator), log)
	if err != nil {
		return err
	}
	err = rack.StartBootd(ctx)
	if err == nil {
		err = rack.Serve(ctx)
	}
	if errors.Is(err, lab.ErrDown) {
		err = nil
	}
	log.Info("taking the rack down")
	return errors.Join(err, rack.Close(context.WithoutCancel(ctx)))
}

func (a *labCommands) labStatusCommand() *cobra.Command {
	var dir, output string
	c := &cobra.Command{
		Use: "status", Short: "Show the rack's state", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			report, err := lab.Status(c.Context(), dir)
			if errors.Is(err, lab.ErrNotUp) {
				return fmt.Errorf("no rack is up in %s: `weftctl lab up` brings one up", dir)
			}
			if err != nil {
				return err
			}
			switch output {
			case "json":
				return a.indented(report)
			case "text":
				return a.printReport(c.Context(), report)
			}
			return usagef("invalid -o %s: want text or json", output)
		},
	}
	labDirFlag(c, &dir)
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	complete(c, "output", "text", "json")
	return c
}

func (a *labCommands) printReport(ctx context.Context, r lab.Report) error {
	bootd := "not running"
	if r.BootdPID != 0 {
		bootd = fmt.Sprintf("pid %d, restarted %s", r.BootdPID, count(r.BootdRestarts, "time"))
	}
	_ = a.printf("%s  up since %s, owner pid %d, machines run on %s\n", a.bold("rack "+r.Name), r.Started.Local().Format(time.DateTime), r.OwnerPID, r.Accelerator)
	_ = a.printf("bootd  %s, log %s\nserver  unix://%s\n\n", bootd, filepath.Join(r.Dir, "bootd", "bootd.log"), r.BootdSocket)
	phases := a.phases(ctx, r.BootdSocket)
	table := show.Table{Header: []string{"NAME", "PHASE", "FIRMWARE", "POWER", "PID", "BMC", "CONSOLE"}}
	for _, m := range r.Machines {
		pid := "-"
		if m.PID != 0 {
			pid = strconv.Itoa(m.PID)
		}
		phase := phases[m.Name]
		if phase == "" {
			phase = "-"
		}
		table.Rows = append(table.Rows, []string{m.Name, phase, string(m.Firmware), m.Power, pid, m.BMC, m.ConsoleLog})
	}
	return table.Print(a.out, a.bold)
}

// phases are those of the Machines, if bootd answers promptly.
func (a *labCommands) phases(ctx context.Context, socket string) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	client, err := api.NewClient(api.ClientConfig{Server: "unix://" + socket})
	if err != nil {
		return nil
	}
	objects, _, err := client.List(ctx, api.KindOf(new(api.Machine)))
	if err != nil {
		return nil
	}
	phases := map[string]string{}
	for _, o := range objects {
		phases[o.Meta().Name] = a.printer().Phase(phaseOf(o))
	}
	return phases
}

// downTime is long enough for bootd to stop and the QEMUs to end.
const downTime = time.Minute

func (a *labCommands) labDownCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "down", Short: "Take the rack down and leave nothing running", Args: cobra.NoArgs,
		Long: `down stops bootd, the machines and their BMCs and removes the namespaces, even when the rack's owner was killed.
Logs, disks and bootd's state stay in --dir.`,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := os.Stat(filepath.Join(dir, "rack.json"))
			if err != nil {
				return a.printf("no rack is up in %s\n", dir)
			}
			ctx, cancel := context.WithTimeout(c.Context(), downTime)
			defer cancel()
			if err := lab.Down(ctx, dir); err != nil {
				return fmt.Errorf("lab down: %w", err)
			}
			return a.printf("the rack in %s is down: no process, namespace or tap is left; logs and disks stay there\n", dir)
		},
	}
	labDirFlag(c, &dir)
	return c
}

// nextSteps are three things to try with a rack that is up.
func (a *labCommands) nextSteps(r lab.Report, dir string) error {
	if len(r.Machines) == 0 {
		return nil
	}
	first, last := r.Machines[0].Name, r.Machines[len(r.Machines)-1].Name
	weftctl := ownName()
	down := weftctl + " lab down"
	if dir != defaultLabDir {
		down += " --dir " + dir
	}
	steps := []string{a.bold("Three things to try next:")}
	server := "unix://" + r.BootdSocket
	if c, err := a.connection.resolve(a.Env); err != nil || c.Server != server {
		steps = append(steps, "  export RACKWEFT_SERVER="+server)
	}
	steps = append(steps,
		fmt.Sprintf("  %s explain machine %s", weftctl, first),
		fmt.Sprintf("  %s machine reprovision %s && %s get machines --watch", weftctl, last, weftctl),
		fmt.Sprintf("  %s console %s", weftctl, first),
		"",
		"and when done: "+down,
	)
	return a.printf("%s\n", strings.Join(steps, "\n"))
}

// ownName is the shortest name by which this shell finds this program.
func ownName() string {
	self, err := os.Executable()
	if err != nil {
		return "weftctl"
	}
	base := filepath.Base(self)
	if found, err := exec.LookPath(base); err == nil && sameFile(found, self) {
		return base
	}
	here, err := os.Getwd()
	if err != nil {
		return self
	}
	below, err := filepath.Rel(here, self)
	if err != nil || strings.HasPrefix(below, "..") {
		return self
	}
	if !strings.Contains(below, "/") {
		below = "./" + below
	}
	return below
}

func sameFile(a, b string) bool {
	x, xErr := os.Stat(a)
	y, yErr := os.Stat(b)
	return xErr == nil && yErr == nil && os.SameFile(x, y)
}
