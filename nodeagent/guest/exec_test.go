package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// waitAgent waits until a Guest's agent listens.
func (h *host) waitAgent(name, uid string) {
	h.t.Helper()
	h.wait("its guest agent listens", func() bool {
		x, err := h.open(api.ChannelExec, name, uid)
		if err != nil {
			return false
		}
		_ = x.Close()
		return true
	})
}

func (h *host) open(kind, name, uid string) (io.ReadWriteCloser, error) {
	ctx, cancel := context.WithCancel(context.Background())
	h.t.Cleanup(cancel)
	return h.handler.Open(ctx, api.Channel{Kind: kind, Guest: name, UID: uid})
}

// exec runs a command as bootd does.
func (h *host) exec(name, uid string, e api.GuestExec) api.GuestExecAnswer {
	h.t.Helper()
	var answer api.GuestExecAnswer
	x, err := h.open(api.ChannelExec, name, uid)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = x.Close() }()
	if err := json.NewEncoder(x).Encode(e); err != nil {
		h.t.Fatal(err)
	}
	if err := json.NewDecoder(x).Decode(&answer); err != nil {
		h.t.Fatal(err)
	}
	return answer
}

func shell(script string) api.GuestExec {
	return api.GuestExec{Command: []string{"/bin/sh", "-c", script}}
}

// Commands inside a Guest, by the real qemu-ga.
func TestExec(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	t.Parallel()
	h := newHost(t)
	g := withAgent(h)
	h.run()
	h.want(part("web", uid1, g))
	h.waitAgent("web", uid1)
	run := func(e api.GuestExec) api.GuestExecResult {
		t.Helper()
		a := h.exec("web", uid1, e)
		if a.Result == nil {
			t.Fatalf("%q gives %s", e.Command, a.Fault)
		}
		return *a.Result
	}
	fault := func(e api.GuestExec) string {
		t.Helper()
		a := h.exec("web", uid1, e)
		if a.Result != nil {
			t.Fatalf("%q gives %+v", e.Command, a.Result)
		}
		return a.Fault
	}

	if r := run(shell("echo out; echo err >&2; exit 7")); r.ExitCode != 7 || string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" || r.Signal != 0 {
		t.Errorf("a command gives %+v", r)
	}
	in := bytes.Repeat([]byte("\x00\xff\n\"\\"), 2000)
	if r := run(api.GuestExec{Command: []string{"/bin/cat"}, Stdin: in}); r.ExitCode != 0 || !bytes.Equal(r.Stdout, in) || r.StdoutTruncated {
		t.Errorf("%d bytes come back as %d: %d", len(in), len(r.Stdout), r.ExitCode)
	}
	e := shell(`echo "$A-$0-$1"`)
	e.Command, e.Env = append(e.Command, "zero", "it's"), []string{"A=b c"}
	if r := run(e); string(r.Stdout) != "b c-zero-it's\n" {
		t.Errorf("arguments and environment arrive as %q", r.Stdout)
	}
	if r := run(shell("kill -9 $$")); r.Signal != 9 {
		t.Errorf("a killed command gives %+v", r)
	}
	// More than is kept, and said so; the other output is whole.
	flood := shell("echo ok >&2; x=0123456789abcdef; i=0; while [ $i -lt 8 ]; do x=$x$x; i=$((i+1)); done; i=0; while [ $i -lt 300 ]; do echo $x; i=$((i+1)); done")
	if r := run(flood); len(r.Stdout) != api.MaxExecOutput || !r.StdoutTruncated || string(r.Stderr) != "ok\n" || r.StderrTruncated {
		t.Errorf("a flood gives %d bytes, truncated %t, beside %q", len(r.Stdout), r.StdoutTruncated, r.Stderr)
	}
	if said := fault(api.GuestExec{Command: []string{"/no/such"}}); !strings.Contains(said, "refuses guest-exec") {
		t.Errorf("a program that is missing: %s", said)
	}
	if said := fault(api.GuestExec{}); !strings.Contains(said, "name a program") {
		t.Errorf("no command: %s", said)
	}
	slow := shell("sleep 1000")
	slow.Timeout = api.Duration(300 * time.Millisecond)
	if said := fault(slow); !strings.Contains(said, "did not end within 300ms: it continues inside the Guest as process ") {
		t.Errorf("a slow command: %s", said)
	}

	// One who leaves holds up nobody; nor does a shutdown wait for a command.
	x, err := h.open(api.ChannelExec, "web", uid1)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(x).Encode(shell("sleep 1000")); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = x.Close() }()
	y, err := h.open(api.ChannelExec, "web", uid1)
	if err != nil {
		t.Fatal(err)
	}
	if err := y.Close(); err != nil {
		t.Error(err)
	}
	if r := run(shell("echo still")); string(r.Stdout) != "still\n" {
		t.Errorf("beside a command that runs: %+v", r)
	}
	g.State = "Stopped"
	h.want(part("web", uid1, g))
	var answer api.GuestExecAnswer
	if err := json.NewDecoder(x).Decode(&answer); err != nil || !strings.Contains(answer.Fault, "is lost") {
		t.Errorf("a command whose Guest ends: %+v, %v", answer, err)
	}
	h.wait("it is stopped", h.is("guest/web", api.PartApplied, "Stopped"))
	if !strings.Contains(h.console(uid1), "@shutdown ") {
		t.Error("its agent did not shut it down")
	}
	if _, err := h.open(api.ChannelExec, "web", uid1); err == nil || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("a stopped Guest: %v", err)
	}
}

// A Guest that has no agent is told from one that does not run.
func TestNoAgent(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.run()
	h.want(part("web", uid1, bare(h)))
	h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	if _, err := h.open(api.ChannelExec, "web", uid1); err == nil || !strings.Contains(err.Error(), "install qemu-guest-agent") {
		t.Errorf("a Guest without an agent: %v", err)
	}
	if _, err := h.open("telepathy", "web", uid1); err == nil || !strings.Contains(err.Error(), `no channel of kind "telepathy"`) {
		t.Errorf("an unknown kind: %v", err)
	}
	if _, err := h.open(api.ChannelExec, "web", uid2); err == nil || !strings.Contains(err.Error(), "has no Guest") {
		t.Errorf("a Guest that is not here: %v", err)
	}
}
