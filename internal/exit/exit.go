// Package exit holds the exit codes of the daemons. Their units restart them
// after each code but Config, after which a restart would only fail again. Go's
// own code after a panic, and after the SIGABRT of systemd's watchdog, is 2: it
// must remain one that causes a restart.
package exit

import (
	"errors"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// The codes.
const (
	Done   = 0
	Failed = 1
	Config = 78 // a fault in the command line or the configuration; EX_CONFIG of sysexits.h
)

// fault is an error with the exit code Config.
type fault struct{ error }

func (f fault) Unwrap() error { return f.error }

// Fault marks an error in the command line or the configuration. Do not mark an
// error that may pass, such as a file that could not be read for lack of
// memory.
func Fault(err error) error {
	passing := []error{unix.EIO, unix.EINTR, unix.EAGAIN, unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.ESTALE, unix.ETIMEDOUT}
	if err == nil || slices.ContainsFunc(passing, func(p error) bool { return errors.Is(err, p) }) {
		return err
	}
	return fault{err}
}

// Code returns the exit code for the error that a program ended with.
func Code(err error) int {
	switch {
	case err == nil:
		return Done
	case errors.As(err, new(fault)):
		return Config
	}
	return Failed
}

// Faults makes every command-line error found by cobra a Fault, for a command
// and all its subcommands.
func Faults(c *cobra.Command) {
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return Fault(err) })
	args := c.Args
	if args == nil {
		args = cobra.ArbitraryArgs
		if !c.HasParent() {
			args = cobra.NoArgs
		}
	}
	c.Args = func(c *cobra.Command, given []string) error { return Fault(args(c, given)) }
	for _, below := range c.Commands() {
		Faults(below)
	}
}
