// Package command runs other programs and returns their output.
package command

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// Output runs a command and returns its standard output. Standard error is not
// data, because ip(8) prints warnings there and succeeds. It becomes part of
// the error, on one line, when the command fails.
func Output(cmd *exec.Cmd) ([]byte, error) {
	out, err := cmd.Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) && len(exit.Stderr) > 0 {
		err = fmt.Errorf("%w: %s", err, strings.Join(strings.Fields(string(exit.Stderr)), " "))
	}
	return out, err
}
