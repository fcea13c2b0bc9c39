// Package exit has the exit codes of the daemons. Their units restart them after
// each but Config, which would only fail the same again. Go's own code after a
// panic, and after the SIGABRT of systemd's watchdog, is 2: it must stay one that
// is restarted.
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

// fault is an error that is Config.
type fault struct{ error }

func (f fault) Unwrap() error { return f.error }

// Fault marks an error as one in the command line or the configuration. An error
// that may pass, such as a file that could not be read for lack of memory, is not
// marked.
func Fault(err error) error {
	passing := []error{unix.EIO, unix.EINTR, unix.EAGAIN, unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.ESTALE, unix.ETIMEDOUT}
	if err == nil || slices.ContainsFunc(passing, func(p error) bool { return errors.Is(err, p) }) {
		return err
	}
	return fault{err}
}

// Code is the exit code of what a program ended with.
func Code(err error) int {
	switch {
	case err == nil:
		return Done
	case errors.As(err, new(fault)):
		return Config
	}
	return Failed
}

// Faults has everything that cobra itself finds wrong with a command line be a
// Fault, for a command and all below it.
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
