package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
)

func (a *guestCommands) guestConsoleCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "console NAME",
		Short: "Open a Guest's serial console",
		Long:  "console connects this terminal to a Guest's serial console through its host. It has one user at a time." + consoleEscapes,
		Args:  exactly(1, "NAME"), ValidArgsFunction: a.completeOne("guests"),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			far, err := client.GuestConsole(c.Context(), args[0])
			if err != nil {
				return fmt.Errorf("console of guest/%s: %w", args[0], err)
			}
			return a.attach(c.Context(), far, args[0])
		},
	}
}

// exitCode fails a command with an exit code of its own; its output has been printed.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func (a *guestCommands) guestExecCommand() *cobra.Command {
	var stdin bool
	var env []string
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "exec NAME -- COMMAND [ARGUMENT…]",
		Short: "Run a command inside a Guest",
		Long: fmt.Sprintf(`exec has a Guest's agent (qemu-ga) run a command, waits for its end, and prints its output. The exit code is the
command's, or 128 plus the signal that ended it. The command does not run in a shell: use sh -c '…' for one.

The output is printed when the command has ended: at most %d KiB each of standard output and standard error. A command
that takes longer than --timeout keeps running inside the Guest.`, api.MaxExecOutput>>10),
		Example: "  weftctl guest exec web -- systemctl is-system-running\n  weftctl guest exec web --stdin -- sh < repair.sh",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < 2 || c.ArgsLenAtDash() != 1 {
				return usagef("%s: want NAME -- COMMAND", c.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: a.completeOne("guests"),
		RunE: func(c *cobra.Command, args []string) error {
			e := api.GuestExec{Command: args[1:], Env: env, Timeout: api.Duration(timeout)}
			if stdin {
				raw, err := io.ReadAll(io.LimitReader(a.In, api.MaxExecStdin+1))
				if err != nil {
					return fmt.Errorf("read standard input: %w", err)
				}
				e.Stdin = raw
			}
			if err := e.Check(); err != nil {
				return usageError{err}
			}
			return a.guestExec(c.Context(), args[0], e)
		},
	}
	c.Flags().BoolVar(&stdin, "stdin", false, "pass standard input to the command, up to 1 MiB")
	c.Flags().StringArrayVar(&env, "env", nil, "NAME=VALUE (repeatable); once given, the command's whole environment")
	c.Flags().DurationVar(&timeout, "timeout", api.ExecTimeout, "how long to wait for the command's end, up to 1h")
	return c
}

func (a *guestCommands) guestExec(ctx context.Context, name string, e api.GuestExec) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	r, err := client.GuestExec(ctx, name, e)
	if err != nil {
		return fmt.Errorf("exec in guest/%s: %w", name, err)
	}
	_, outErr := a.Out.Write(r.Stdout)
	_, errErr := a.Err.Write(r.Stderr)
	if err := errors.Join(outErr, errErr); err != nil {
		return err
	}
	if r.StdoutTruncated {
		a.note("weftctl: its standard output was longer than this, and is cut off")
	}
	if r.StderrTruncated {
		a.note("weftctl: its standard error was longer than this, and is cut off")
	}
	switch {
	case r.Signal != 0:
		return exitCode(128 + r.Signal&127)
	case r.ExitCode != 0:
		return exitCode(max(r.ExitCode&255, 1)) // Windows' are wider
	}
	return nil
}

func (a *guestCommands) guestVNCCommand() *cobra.Command {
	var listen string
	var ticket bool
	c := &cobra.Command{
		Use:   "vnc NAME",
		Short: "Connect to a Guest's display",
		Long: `vnc listens on a port of this machine, for any VNC viewer, until it is interrupted. Each viewer is connected to the
Guest's display through bootd and the Guest's host. Anyone who can reach the port can use the display: leave it on loopback.

With --ticket it prints a URL for noVNC instead, which is valid once, within 30 s.`,
		Example: "  weftctl guest vnc web --listen 127.0.0.1:5901 & vncviewer 127.0.0.1:1",
		Args:    exactly(1, "NAME"), ValidArgsFunction: a.completeOne("guests"),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			t, err := client.GuestVNCTicket(c.Context(), args[0]) // report a fault before a viewer connects
			if err != nil {
				return fmt.Errorf("display of guest/%s: %w", args[0], err)
			}
			if ticket {
				return a.printTicket(t)
			}
			return a.serveVNC(c.Context(), client, listen, args[0])
		},
	}
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "address and port for viewers; port 0 picks a free one")
	c.Flags().BoolVar(&ticket, "ticket", false, "print a URL for a WebSocket viewer")
	c.MarkFlagsMutuallyExclusive("listen", "ticket")
	return c
}

func (a *guestCommands) printTicket(t *api.VNCTicket) error {
	conn, err := a.connection.resolve(a.Env)
	if err != nil {
		return err
	}
	server, ok := strings.CutPrefix(conn.Server, "https://")
	if !ok {
		a.note("put wss:// and bootd's address before it: %s works on this machine only", conn.Server)
		return a.printf("%s\n", t.Path)
	}
	return a.printf("wss://%s%s\n", strings.TrimSuffix(server, "/"), t.Path)
}

// serveVNC connects each viewer to the display over a stream of its own, until ctx ends.
func (a *guestCommands) serveVNC(ctx context.Context, client *api.Client, listen, name string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("listen for viewers: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	if err := a.printf("vnc://%s\n", l.Addr()); err != nil {
		return err
	}
	var viewers sync.WaitGroup
	defer viewers.Wait()
	var saying sync.Mutex
	note := func(format string, args ...any) {
		saying.Lock()
		defer saying.Unlock()
		a.note(format, args...)
	}
	for {
		near, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait for viewers: %w", err)
		}
		viewers.Go(func() {
			note("viewer from %s connected", near.RemoteAddr())
			far, err := client.GuestVNC(ctx, name)
			if err != nil {
				note("display of guest/%s: %s", name, errors.Join(err, near.Close()))
				return
			}
			joinStreams(ctx, near, far)
			note("viewer from %s disconnected", near.RemoteAddr())
		})
	}
}

// joinStreams copies both ways until either end closes, or ctx ends.
func joinStreams(ctx context.Context, near, far io.ReadWriteCloser) {
	ctx, cancel := context.WithCancel(ctx)
	var copies sync.WaitGroup
	copies.Go(func() { defer cancel(); _, _ = io.Copy(far, near) })
	copies.Go(func() { defer cancel(); _, _ = io.Copy(near, far) })
	<-ctx.Done()
	_, _ = near.Close(), far.Close()
	copies.Wait()
}
