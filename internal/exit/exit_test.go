package exit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func TestCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("it failed"), 1},
		{Fault(errors.New("unknown field")), 78},
		{fmt.Errorf("start: %w", Fault(fs.ErrNotExist)), 78},
		{Fault(nil), 0},
		{Fault(&os.PathError{Op: "read", Path: "bootd.yaml", Err: unix.EIO}), 1}, // may pass
		{Fault(&os.PathError{Op: "open", Path: "bootd.yaml", Err: unix.ENOENT}), 78},
	} {
		if got := Code(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
}

// Whatever cobra refuses is a fault in the command line, on every level.
func TestFaults(t *testing.T) {
	command := func() *cobra.Command {
		run := func(*cobra.Command, []string) error { return errors.New("it failed") }
		root := &cobra.Command{Use: "d", RunE: run, SilenceErrors: true, SilenceUsage: true}
		below := &cobra.Command{Use: "group"}
		below.AddCommand(&cobra.Command{Use: "one PATH", Args: cobra.ExactArgs(1), RunE: run})
		root.AddCommand(below)
		Faults(root)
		return root
	}
	for _, c := range []struct {
		args []string
		want int
	}{
		{nil, 1}, {[]string{"bogus"}, 78}, {[]string{"--bogus"}, 78},
		{[]string{"group", "one"}, 78}, {[]string{"group", "one", "a"}, 1}, {[]string{"group", "one", "--bogus"}, 78}, {[]string{"--help"}, 0},
	} {
		root := command()
		root.SetArgs(c.args)
		if got := Code(root.Execute()); got != c.want {
			t.Errorf("%q: %d, want %d", c.args, got, c.want)
		}
	}
}
