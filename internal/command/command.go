// Package command runs other programs for what they answer.
package command

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// Output runs a command and returns its standard output. Standard error is not
// data: ip(8) warns there and succeeds. It is part of the error of a command that
// fails, on one line.
func Output(cmd *exec.Cmd) ([]byte, error) {
	out, err := cmd.Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) && len(exit.Stderr) > 0 {
		err = fmt.Errorf("%w: %s", err, strings.Join(strings.Fields(string(exit.Stderr)), " "))
	}
	return out, err
}
