package command

import (
	"errors"
	"os/exec"
	"testing"
)

func TestOutput(t *testing.T) {
	out, err := Output(exec.Command("sh", "-c", "echo Error: Peer netns reference is invalid. >&2; echo data"))
	if err != nil || string(out) != "data\n" {
		t.Errorf("with a warning: %q, %v", out, err)
	}
	out, err = Output(exec.Command("sh", "-c", "echo data; echo what is; echo 'wrong ' >&2; echo here >&2; exit 3"))
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 3 || err.Error() != "exit status 3: wrong here" || string(out) != "data\nwhat is\n" {
		t.Errorf("a failure: %q, %v", out, err)
	}
	if _, err := Output(exec.Command("/nonexistent")); err == nil {
		t.Error("a program that is not there ran")
	}
}
