package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

func (a *machineCommands) consoleCommand() *cobra.Command {
	log := false
	c := &cobra.Command{
		Use:   "console MACHINE",
		Short: "Open a Machine's serial console",
		Long: `console connects this terminal to a Machine's serial console through its BMC. Its last lines come first. Others
may be attached at the same time: they see the same. --log prints the last lines that bootd has received, and does not connect.` + consoleEscapes,
		Args:              exactly(1, "MACHINE"),
		ValidArgsFunction: a.completeOne("machines"),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if log {
				return a.consoleLog(c.Context(), client, args[0])
			}
			far, err := client.Console(c.Context(), args[0])
			if err != nil {
				return fmt.Errorf("console of machine/%s: %w", args[0], err)
			}
			return a.attach(c.Context(), far, args[0])
		},
	}
	c.Flags().BoolVar(&log, "log", false, "print the last lines that bootd has received")
	return c
}

// consoleLog prints what bootd has received of a Machine's console.
func (a *app) consoleLog(ctx context.Context, client *api.Client, name string) error {
	log, err := client.ConsoleLog(ctx, name)
	if err != nil {
		return fmt.Errorf("console of machine/%s: %w", name, err)
	}
	switch {
	case len(log.Lines) > 0:
		return printConsole(a.out, log.Lines)
	case log.Console == api.NoConsole:
		a.note("the BMC of %s has no serial console", name)
	default:
		a.note("nothing was received from the console of %s: bootd listens while a BootAttempt is open, or someone is attached", name)
	}
	return nil
}

// printConsole prints lines of a console with the time at which they were received.
func printConsole(w io.Writer, lines []api.ConsoleLine) error {
	for _, line := range lines {
		if _, err := fmt.Fprintf(w, "  %s  %s\n", line.Time.Local().Format(time.DateTime), terminal.Clean(line.Text)); err != nil {
			return err
		}
	}
	return nil
}

const consoleEscapes = ` As in ssh, at the beginning of a line:

  ~.  detach
  ~~  send one ~
  ~?  list these`

// attach connects the terminal to a console, and says so.
func (a *app) attach(ctx context.Context, far io.ReadWriteCloser, name string) error {
	a.note("connected to the console of %s; detach with ~. at the beginning of a line", name)
	err := a.console(ctx, far)
	a.note("\ndetached from %s", name)
	return err
}

// console copies both ways until either end closes, ~. is typed or ctx ends. The terminal is always restored.
func (a *app) console(ctx context.Context, far io.ReadWriteCloser) error {
	if f, ok := a.In.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		state, err := term.MakeRaw(int(f.Fd()))
		if err != nil {
			return errors.Join(fmt.Errorf("set the terminal to raw mode: %w", err), far.Close())
		}
		defer func() { _ = term.Restore(int(f.Fd()), state) }()
	}
	out := make(chan error, 1)
	go func() { // ends when far closes. A console's bytes are passed to the terminal unchanged
		_, err := io.Copy(a.Out, far)
		out <- err
	}()
	in := make(chan error, 1)
	go func() { // a read of a terminal cannot be interrupted: it ends with the program
		in <- copyKeys(far, a.In, a.Err)
	}()
	var err error
	select {
	case err = <-out:
		return errors.Join(err, far.Close())
	case err = <-in:
		if err == nil { // the end of a file that is piped in: the far end's output is still wanted
			select {
			case err = <-out:
			case <-ctx.Done():
			}
		}
	case <-ctx.Done():
	}
	_ = far.Close()
	if errors.Is(err, errDetached) {
		return nil
	}
	return err
}

var errDetached = errors.New("detached")

// copyKeys sends what is typed, and handles ssh's escapes at the beginning of a line.
func copyKeys(far io.Writer, in io.Reader, hints io.Writer) error {
	keys := escape{lineStart: true}
	buffer := make([]byte, 4096)
	for {
		n, err := in.Read(buffer)
		send, detach, help := keys.filter(buffer[:n])
		if help {
			_, _ = io.WriteString(hints, "\r\n~.  detach   ~~  send ~   ~?  this\r\n")
		}
		if len(send) > 0 {
			if _, err := far.Write(send); err != nil {
				return err
			}
		}
		if detach {
			return errDetached
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// escape finds ~ sequences in a stream of keys.
type escape struct {
	lineStart bool
	tilde     bool // the last key was a ~ at the beginning of a line
}

func (e *escape) filter(keys []byte) (send []byte, detach, help bool) {
	for _, k := range keys {
		if e.tilde {
			e.tilde = false
			switch k {
			case '.':
				return send, true, help
			case '?':
				help = true
				continue
			case '~':
			default:
				send = append(send, '~')
			}
		} else if k == '~' && e.lineStart {
			e.tilde = true
			continue
		}
		send = append(send, k)
		e.lineStart = k == '\r' || k == '\n'
	}
	return send, false, help
}
