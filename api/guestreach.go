package api

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// GuestExec is a command to run inside a Guest, by its guest agent: POST
// /v1/guests/NAME/exec.
type GuestExec struct {
	Command []string `json:"command" doc:"The program and its arguments. No shell is in between."`
	Env     []string `json:"env,omitempty" doc:"NAME=VALUE, all that the command sees. Default: the agent's own."`
	Stdin   []byte   `json:"stdin,omitempty" doc:"What it reads; at most 1 MiB."`
	Timeout Duration `json:"timeout,omitzero" doc:"How long its end is waited for, up to 1h; the command keeps running after that. Default: 1m."`
}

// Limits of a GuestExec.
const (
	MaxExecCommand = 64 << 10 // bytes of Command and Env
	MaxExecStdin   = 1 << 20
	MaxExecOutput  = 1 << 20 // of each of standard output and error; the rest is dropped
	MaxExecTimeout = time.Hour
)

// ExecTimeout is the default timeout of a GuestExec.
const ExecTimeout = time.Minute

// Check validates the command.
func (e GuestExec) Check() error {
	size := 0
	for _, word := range append(e.Command[:len(e.Command):len(e.Command)], e.Env...) {
		if strings.ContainsRune(word, 0) {
			return fmt.Errorf("invalid argument %q: it contains a NUL byte", word)
		}
		size += len(word) + 1
	}
	switch {
	case len(e.Command) == 0 || e.Command[0] == "":
		return errors.New("the command is empty: name a program")
	case size > MaxExecCommand:
		return fmt.Errorf("the command has %d bytes, at most %d are allowed: pass a script as stdin", size, MaxExecCommand)
	case len(e.Stdin) > MaxExecStdin:
		return fmt.Errorf("stdin has %d bytes, at most %d are allowed", len(e.Stdin), MaxExecStdin)
	case e.Timeout < 0 || e.Timeout > Duration(MaxExecTimeout):
		return fmt.Errorf("invalid timeout %s: want at most %s", time.Duration(e.Timeout), MaxExecTimeout)
	}
	return nil
}

// GuestExecResult is the result of a command.
type GuestExecResult struct {
	ExitCode        int    `json:"exitCode"`
	Signal          int    `json:"signal,omitzero" doc:"That ended it, where the Guest has signals."`
	Stdout          []byte `json:"stdout,omitempty"`
	Stderr          []byte `json:"stderr,omitempty"`
	StdoutTruncated bool   `json:"stdoutTruncated,omitzero" doc:"It wrote more than the 1 MiB that are here."`
	StderrTruncated bool   `json:"stderrTruncated,omitzero"`
}

// GuestExecAnswer is a host's answer: a result, or an error.
type GuestExecAnswer struct {
	Result *GuestExecResult `json:"result,omitempty"`
	Fault  string           `json:"fault,omitzero"`
}

// VNCTicket gives access to a Guest's display once: GET
// /v1/guests/NAME/vnc?ticket=TICKET, as a WebSocket or by an Upgrade.
type VNCTicket struct {
	Ticket  string    `json:"ticket"`
	Expires time.Time `json:"expires"`
	Path    string    `json:"path" doc:"The request that it is good for."`
}
