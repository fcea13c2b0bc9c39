package guest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/nodeagent/guest/qga"
)

// maxExecRequest exceeds the JSON of any valid GuestExec.
const maxExecRequest = 4 << 20

// open returns a channel that carries one command and its result.
func (a *guestAgent) open(ctx context.Context) (io.ReadWriteCloser, error) {
	if err := a.listens(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	near, far := net.Pipe()
	x := &execution{Conn: near, cancel: cancel, done: make(chan struct{})}
	go func() { // Close waits for it
		defer close(x.done)
		defer func() { _ = far.Close() }()
		if err := a.serve(ctx, far); err != nil {
			a.log.Warn("the channel of a command failed", "error", err)
		}
	}()
	return x, nil
}

// execution is the near end of an exec channel.
type execution struct {
	net.Conn
	cancel context.CancelFunc
	done   chan struct{}
}

// Close stops waiting for the command, which continues inside the Guest.
func (x *execution) Close() error {
	x.cancel()
	err := x.Conn.Close()
	<-x.done
	return err
}

// serve reads one GuestExec, runs it and writes the result.
func (a *guestAgent) serve(ctx context.Context, conn net.Conn) error {
	var e api.GuestExec
	if err := json.NewDecoder(io.LimitReader(conn, maxExecRequest)).Decode(&e); err != nil {
		if ctx.Err() != nil {
			return nil // closed before a command was sent
		}
		return fmt.Errorf("read the command: %w", err)
	}
	var answer api.GuestExecAnswer
	result, err := a.exec(ctx, e)
	if ctx.Err() != nil {
		return nil // the client has gone
	}
	if answer.Result = result; err != nil {
		answer.Fault = err.Error()
	}
	return json.NewEncoder(conn).Encode(answer)
}

// execStatus is qemu-ga's GuestExecStatus.
type execStatus struct {
	Exited       bool   `json:"exited"`
	ExitCode     int    `json:"exitcode"`
	Signal       int    `json:"signal"`
	Out          string `json:"out-data"`
	Err          string `json:"err-data"`
	OutTruncated bool   `json:"out-truncated"`
	ErrTruncated bool   `json:"err-truncated"`
}

// exec runs a command inside the Guest and waits for it to end.
func (a *guestAgent) exec(ctx context.Context, e api.GuestExec) (*api.GuestExecResult, error) {
	if err := e.Check(); err != nil {
		return nil, err
	}
	timeout := e.Timeout.Or(api.ExecTimeout)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	arguments := map[string]any{"path": e.Command[0], "arg": e.Command[1:], "capture-output": true}
	if len(e.Env) > 0 {
		arguments["env"] = e.Env
	}
	if len(e.Stdin) > 0 {
		arguments["input-data"] = base64.StdEncoding.EncodeToString(e.Stdin)
	}
	var started struct {
		PID int64 `json:"pid"`
	}
	if err := a.client.Execute(ctx, "guest-exec", arguments, &started); err != nil {
		return nil, err
	}
	for delay := 20 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		if wait.For(ctx, delay) != nil {
			return nil, fmt.Errorf("the command did not end within %s: it continues inside the Guest as process %d", timeout, started.PID)
		}
		var s execStatus
		err := a.client.Execute(ctx, "guest-exec-status", map[string]int64{"pid": started.PID}, &s)
		switch {
		case ctx.Err() != nil: // reported above
		case errors.Is(err, os.ErrDeadlineExceeded): // the Guest is busy or boots
		case errors.As(err, new(*qga.Error)):
			return nil, fmt.Errorf("the command is lost because its Guest or its agent was restarted: %w", err)
		case err != nil:
			return nil, fmt.Errorf("the command is lost: %w", err)
		case s.Exited:
			return s.result()
		}
	}
}

func (s execStatus) result() (*api.GuestExecResult, error) {
	r := &api.GuestExecResult{ExitCode: s.ExitCode, Signal: s.Signal, StdoutTruncated: s.OutTruncated, StderrTruncated: s.ErrTruncated}
	var errOut, errErr error
	r.Stdout, errOut = output(s.Out, &r.StdoutTruncated)
	r.Stderr, errErr = output(s.Err, &r.StderrTruncated)
	if err := errors.Join(errOut, errErr); err != nil {
		return nil, fmt.Errorf("the guest agent returned invalid output: want base64: %w", err)
	}
	return r, nil
}

// output decodes what a command wrote, up to the size limit.
func output(encoded string, truncated *bool) ([]byte, error) {
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if len(raw) > api.MaxExecOutput {
		raw, *truncated = raw[:api.MaxExecOutput], true
	}
	return raw, err
}
