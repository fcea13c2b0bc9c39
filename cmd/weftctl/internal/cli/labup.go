package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/lab"
)

func (a *labCommands) labUpCommand() *cobra.Command {
	var o labOptions
	c := &cobra.Command{
		Use: "up", Short: "Bring a rack up, from powered off to Active", Args: cobra.NoArgs,
		Long: `up wires a virtual rack on this machine and starts bootd in it, applies the rack's manifests as a person would,
and shows each machine on its way to Active: power on over Redfish, PXE, iPXE, kernel, Ignition, nodeagent.
Ctrl-C at any moment takes everything down again.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.complete(); err != nil {
				return err
			}
			return a.labUp(c.Context(), o)
		},
	}
	rackFlags(c, &o)
	c.Flags().BoolVar(&o.keep, "keep", false, "leave the rack up when it fails, to inspect it")
	c.Flags().DurationVar(&o.timeout, "timeout", 30*time.Minute, "give up after this time")
	return c
}

func (a *labCommands) labUp(ctx context.Context, o labOptions) error {
	if r, err := lab.Status(ctx, o.dir); err == nil {
		return fmt.Errorf("a rack is already up in %s (owner pid %d, since %s): `weftctl lab status` shows it, `weftctl lab down` takes it down",
			o.dir, r.OwnerPID, r.Started.Local().Format(time.TimeOnly))
	}
	start := time.Now()
	bounded, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	owner, err := startOwner(o)
	if err != nil {
		return err
	}
	report, err := a.bringUp(bounded, o, owner, start)
	if err == nil {
		return a.labDone(bounded, o, report, start)
	}
	switch {
	case ctx.Err() != nil:
		err = errors.New("interrupted")
	case bounded.Err() != nil:
		err = fmt.Errorf("gave up after %s: %w", o.timeout, err)
	}
	return a.takeDown(ctx, o, owner, report, err)
}

// takeDown ends a rack that did not come up, after printing what is known about it.
func (a *labCommands) takeDown(ctx context.Context, o labOptions, owner *owner, report lab.Report, cause error) error {
	if ctx.Err() == nil {
		a.tellFailure(ctx, o, report, cause)
		if o.keep {
			a.note("the rack is kept up (--keep): `weftctl lab down --dir %s` takes it down", o.dir)
			return cause
		}
	}
	a.note("%s: taking the rack down …", cause)
	if err := owner.end(); err != nil {
		return errors.Join(cause, fmt.Errorf("take the rack down: %w; `weftctl lab down --dir %s` tries again", err, o.dir))
	}
	return fmt.Errorf("%w; the rack was taken down, logs stay in %s", cause, o.dir)
}

// bringUp starts bootd, applies the manifests and waits until every machine is Active.
func (a *labCommands) bringUp(ctx context.Context, o labOptions, owner *owner, start time.Time) (lab.Report, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	go func() { // a rack does not come up without its owner
		defer close(watched)
		select {
		case <-owner.exited:
			cancel(owner.failure())
		case <-ctx.Done():
		}
	}()
	report, err := a.steps(ctx, o, start)
	if cause := context.Cause(ctx); err != nil && cause != nil && cause != ctx.Err() {
		err = cause
	}
	cancel(nil)
	<-watched
	return report, err
}

func (a *labCommands) steps(ctx context.Context, o labOptions, start time.Time) (lab.Report, error) {
	a.note("%s  wiring rack %s of %s in %s", terminal.Clock(time.Since(start)), o.name, count(o.machines, "machine"), o.dir)
	report, err := waitRack(ctx, o.dir)
	if err != nil {
		return report, err
	}
	a.note("%s  bootd starts in namespace %s; machines run on %s", terminal.Clock(time.Since(start)), report.BootdNamespace, report.Accelerator)
	client, err := api.NewClient(api.ClientConfig{Server: "unix://" + report.BootdSocket})
	if err != nil {
		return report, err
	}
	if err := waitReady(ctx, client); err != nil {
		return report, err
	}
	a.note("%s  weftctl apply -f %s", terminal.Clock(time.Since(start)), filepath.Join(o.dir, "manifests"))
	if err := a.apply(ctx, client, report.Manifests, false); err != nil {
		return report, err
	}
	names := make([]string, len(report.Machines))
	for i, m := range report.Machines {
		names[i] = m.Name
	}
	return report, a.follow(ctx, client, names, start)
}

// waitRack waits until the owner serves and bootd runs.
func waitRack(ctx context.Context, dir string) (lab.Report, error) {
	for {
		report, err := lab.Status(ctx, dir)
		if err == nil {
			return report, nil
		}
		if !errors.Is(err, lab.ErrNotUp) {
			return report, err
		}
		if err := wait.For(ctx, 100*time.Millisecond); err != nil {
			return report, err
		}
	}
}

// waitReady waits until bootd can do its work; it may be restarting.
func waitReady(ctx context.Context, client *api.Client) error {
	for {
		resp, err := client.Do(ctx, http.MethodGet, "/readyz", nil)
		if err == nil {
			return resp.Body.Close()
		}
		if stop := wait.For(ctx, 100*time.Millisecond); stop != nil {
			return fmt.Errorf("bootd is not ready: %w", err)
		}
	}
}

// labDone shows the result.
func (a *labCommands) labDone(ctx context.Context, o labOptions, report lab.Report, start time.Time) error {
	client, err := api.NewClient(api.ClientConfig{Server: "unix://" + report.BootdSocket})
	if err != nil {
		return err
	}
	objects, _, err := client.List(ctx, api.KindOf(new(api.Machine)))
	if err != nil {
		return fmt.Errorf("list machines: %w", err)
	}
	_ = a.printf("\n")
	if err := a.printTables(objects, true); err != nil {
		return err
	}
	_ = a.printf("\n%s\n\n", a.out.Paint(terminal.Green, fmt.Sprintf("%s Active in %s, from power off.", count(len(report.Machines), "machine"), terminal.Short(time.Since(start)))))
	return a.nextSteps(report, o.dir)
}

// tellFailure prints what a person would look at next: explain, the console's end, the end of bootd's log.
func (a *labCommands) tellFailure(ctx context.Context, o labOptions, report lab.Report, cause error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var failed *machineError
	if errors.As(cause, &failed) {
		if client, err := api.NewClient(api.ClientConfig{Server: "unix://" + report.BootdSocket}); err == nil {
			if x, err := client.Explain(ctx, failed.name); err == nil {
				_ = a.printExplanation(a.err, failed.name, x)
			}
		}
		for _, m := range report.Machines {
			if m.Name == failed.name {
				a.showTail(m.ConsoleLog)
			}
		}
	}
	a.showTail(filepath.Join(o.dir, "bootd", "bootd.log"))
	a.showTail(filepath.Join(o.dir, ownerLog))
}

// tailLines is about a screen.
const tailLines = 25

func (a *labCommands) showTail(path string) {
	lines := fileTail(path, tailLines)
	if len(lines) == 0 {
		return
	}
	a.note("\n%s", a.err.Paint(terminal.Bold, "the end of "+path))
	for _, line := range lines {
		a.note("  %s", line)
	}
}

// fileTail returns the last n lines of a file that are not empty, made safe for a terminal.
func fileTail(path string, n int) []string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	raw = raw[max(0, len(raw)-64<<10):]
	var lines []string
	for line := range bytes.Lines(raw) {
		if text := terminal.Clean(string(bytes.TrimSpace(line))); text != "" {
			lines = append(lines, text)
		}
	}
	return tail(lines, n)
}

// ownerLog is the log of the rack's owner, below its directory.
const ownerLog = "lab.log"

// owner is the detached process that owns the rack.
type owner struct {
	dir    string
	cmd    *exec.Cmd
	exited chan struct{} // closed once it is reaped
}

// startOwner starts `weftctl lab run` in a session of its own: Ctrl-C on this terminal does not reach it.
func startOwner(o labOptions) (*owner, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find weftctl itself: %w", err)
	}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return nil, fmt.Errorf("rack directory: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(o.dir, ownerLog), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("rack log: %w", err)
	}
	defer func() { _ = log.Close() }() // the owner has its own
	cmd := exec.Command(self, o.arguments()...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the rack's owner: %w", err)
	}
	own := &owner{dir: o.dir, cmd: cmd, exited: make(chan struct{})}
	go func() { // ends with the owner, or with this program, which the owner outlives
		_ = cmd.Wait() // ProcessState has the result
		close(own.exited)
	}()
	return own, nil
}

// failure says why the owner ended.
func (o *owner) failure() error {
	for _, line := range fileTail(filepath.Join(o.dir, ownerLog), 1) {
		if why, ok := strings.CutPrefix(line, "error: "); ok {
			return errors.New(why)
		}
	}
	return fmt.Errorf("the rack's owner (pid %d) has ended: %s", o.cmd.Process.Pid, o.cmd.ProcessState)
}

// end has the owner take the rack down, and cleans up if it does not.
func (o *owner) end() error {
	_ = o.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-o.exited:
	case <-time.After(downTime):
		_ = o.cmd.Process.Kill()
		<-o.exited
	}
	return lab.Clean(o.dir)
}
