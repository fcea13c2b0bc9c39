package ipmi

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// runLimit is how long one command may take: a login of seven packets and the command, some of them lost.
const runLimit = 45 * time.Second

// tool runs ipmitool against one BMC.
type tool struct {
	program            string
	host, port         string
	username, password string
	suite              int
	privilege          string
}

// command is ipmitool with a session for what the words say. Packets are repeated after 4, 5 and 6 seconds, so that a slow
// BMC is not asked twice. When ctx is over the whole process group is killed.
func (t *tool) command(ctx context.Context, words ...string) *exec.Cmd {
	args := []string{"-I", "lanplus", "-H", t.host, "-p", t.port, "-U", t.username, "-E", "-C", strconv.Itoa(t.suite),
		"-L", strings.ToUpper(t.privilege), "-N", "4", "-R", "3"}
	cmd := exec.CommandContext(ctx, t.program, append(args, words...)...)
	cmd.Env = []string{"IPMI_PASSWORD=" + t.password, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run gives what ipmitool prints. It is verbose, because only then does it say why it failed.
func (t *tool) run(ctx context.Context, words ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, runLimit, errNoAnswer)
	defer cancel()
	cmd := t.command(ctx, append([]string{"-v"}, words...)...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	if exit := new(exec.ExitError); ctx.Err() == nil && errors.As(err, &exit) {
		return out.String(), t.failure(complaints.String())
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return out.String(), err
}

var errNoAnswer = fmt.Errorf("%w in %s", hardware.ErrUnreachable, runLimit)

// request is one IPMI command.
type request struct {
	name    string
	netfn   byte
	command byte
	data    []byte
}

func (r request) words() []string {
	words := []string{"raw", hexByte(r.netfn), hexByte(r.command)}
	for _, b := range r.data {
		words = append(words, hexByte(b))
	}
	return words
}

func hexByte(b byte) string { return fmt.Sprintf("%#02x", b) }

// send asks and gives the data of the answer, or a *refusal. A busy BMC has done nothing, and is asked again.
func (s *Service) send(ctx context.Context, r request) ([]byte, error) {
	for try := 1; ; try++ {
		out, err := s.tool.run(ctx, r.words()...)
		if err == nil {
			return parseHex(out)
		}
		var no *refusal
		if !errors.As(err, &no) || !no.busy() || try == 4 {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
		if err := s.pause(ctx, 5*time.Second); err != nil {
			return nil, fmt.Errorf("%s: %w: %w", r.name, no, err)
		}
	}
}

// order is a request that changes something.
func (s *Service) order(ctx context.Context, r request) error {
	if err := hardware.Permitted(ctx, "IPMI", r.name); err != nil {
		return err
	}
	_, err := s.send(ctx, r)
	return err
}

// parseHex reads the bytes of an answer, which ipmitool prints as two hexadecimal digits each.
func parseHex(out string) ([]byte, error) {
	var data []byte
	for _, field := range strings.Fields(out) {
		b, err := hex.DecodeString(field)
		if err != nil || len(b) != 1 {
			return nil, fmt.Errorf("ipmitool printed %q where a byte was expected", clip(out))
		}
		data = append(data, b[0])
	}
	return data, nil
}
