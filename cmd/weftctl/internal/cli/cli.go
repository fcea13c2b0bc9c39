// Package cli owns weftctl's commands: what each requests from bootd, and what it prints. Everything goes through
// api.Client; no package of bootd is linked.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/manifest"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/show"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

// Process holds what the operating system gives a program.
type Process struct {
	Version  string
	Args     []string
	Env      func(string) string
	In       io.Reader
	Out, Err io.Writer
}

// The exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// app holds what the commands share.
type app struct {
	Process
	out, err   *terminal.Terminal
	connection connection
	// running is set once a command's own work begins: an error before that is a usage error.
	running bool
}

// usageError is an error in the command line that a command finds itself.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// errQuiet fails a command whose output says all there is to say.
var errQuiet = errors.New("failed")

// Run runs one command line and returns the exit code: 0 done, 1 failed, 2 usage; of guest exec the command's own.
func Run(ctx context.Context, p Process) int {
	a := &app{Process: p, out: terminal.New(p.Out, p.Env), err: terminal.New(p.Err, p.Env)}
	root := a.root()
	root.SetArgs(p.Args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errQuiet):
		return exitFailed
	}
	if code := exitCode(0); errors.As(err, &code) {
		return int(code)
	}
	a.complain(a.advise(err))
	if errors.As(err, new(usageError)) || !a.running {
		return exitUsage
	}
	return exitFailed
}

// complain prints an error; a fault in a file with the line that it concerns.
func (a *app) complain(err error) {
	label := a.err.Paint(terminal.Red, "error:")
	var faults manifest.Faults
	var fault manifest.Fault
	switch {
	case errors.As(err, &faults):
		a.printFaults(faults)
		_, _ = fmt.Fprintf(a.err, "%s %s\n", label, summary(faults))
	case errors.As(err, &fault):
		a.printFaults(manifest.Faults{fault})
		_, _ = fmt.Fprintf(a.err, "%s %s\n", label, summary(manifest.Faults{fault}))
	default:
		_, _ = fmt.Fprintf(a.err, "%s %s\n", label, err)
	}
}

func (a *app) printFaults(faults manifest.Faults) {
	for _, f := range faults {
		_, _ = fmt.Fprintln(a.err, a.err.Paint(terminal.Bold, f.Error()))
		if f.Text != "" {
			_, _ = fmt.Fprintf(a.err, "%s %s\n", a.err.Paint(terminal.Dim, fmt.Sprintf("%5d |", f.Line)), f.Text)
		}
	}
}

func summary(faults manifest.Faults) string {
	files := map[string]bool{}
	for _, f := range faults {
		files[f.File] = true
	}
	return fmt.Sprintf("%s in %s; nothing was sent", count(len(faults), "fault"), count(len(files), "file"))
}

func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "weftctl",
		Short: "Control bootd: bare metal in, fabric out",
		Long: `weftctl applies objects to bootd, shows their state, and explains it.

Objects are YAML or JSON files; "weftctl explain KIND" describes their fields.
Exit codes: 0 done, 1 failed, 2 usage.`,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRun: func(*cobra.Command, []string) { a.running = true },
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetIn(a.In)
	a.connection.flags(root, a.Env)
	m := &manifests{a}
	apply, objects, shows := &applyCommands{m}, &objectCommands{m}, &showCommands{a}
	machine := &machineCommands{a}
	root.AddCommand(
		apply.applyCommand(), objects.getCommand(), shows.describeCommand(), objects.deleteCommand(), apply.editCommand(), apply.diffCommand(), objects.waitCommand(),
		shows.explainCommand(), shows.eventsCommand(), (&topCommands{a}).topCommand(), machine.consoleCommand(), machine.machineCommand(),
		(&bmcCommands{a}).bmcCommand(),
		(&networkCommands{a}).networkCommand(), (&bgpCommands{a}).bgpCommand(), (&guestCommands{a}).guestCommand(), (&imageCommands{m}).imageCommand(),
		(&restoreCommands{a}).restoreCommand(), (&labCommands{m}).labCommand(), a.versionCommand(),
	)
	return root
}

// group is a command that only has subcommands.
func group(use, short string, below ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, RunE: func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("unknown command %q: see %q", args[0], c.CommandPath()+" --help")
		}
		return c.Help()
	}}
	c.AddCommand(below...)
	return c
}

// atLeast requires at least n arguments and names them.
func atLeast(n int, words string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < n {
			return usagef("%s: want %s", c.CommandPath(), words)
		}
		return nil
	}
}

// exactly requires n arguments and names them.
func exactly(n int, words string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return usagef("%s: want %s", c.CommandPath(), words)
		}
		return nil
	}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.out, a.Version)
			return err
		}}
}

// client connects by flags, environment and configuration.
func (a *app) client() (*api.Client, error) { return a.connection.client(a.Env) }

func (a *app) printer() show.Printer { return show.Printer{Paint: a.out.Paint, Now: time.Now()} }

func (a *app) bold(s string) string { return a.out.Paint(terminal.Bold, s) }

// printf writes to standard output.
func (a *app) printf(format string, args ...any) error {
	_, err := fmt.Fprintf(a.out, format, args...)
	return err
}

// warn writes a line to standard error.
func (a *app) warn(format string, args ...any) {
	_, _ = fmt.Fprintf(a.err, "%s %s\n", a.err.Paint(terminal.Yellow, "warning:"), fmt.Sprintf(format, args...))
}

// note writes a line of progress to standard error.
func (a *app) note(format string, args ...any) {
	_, _ = fmt.Fprintf(a.err, format+"\n", args...)
}

// lookupKind finds a kind by any of its names; the error lists the kinds.
func lookupKind(word string) (api.Kind, error) {
	k, err := api.LookupKind(word)
	if err == nil {
		return k, nil
	}
	var names []string
	for _, k := range api.Kinds() {
		names = append(names, k.Plural)
	}
	return k, usagef("%w: the kinds are %s", err, strings.Join(names, ", "))
}

// title is kind/name, as people write it.
func title(k api.Kind, name string) string { return strings.ToLower(k.Name) + "/" + name }
