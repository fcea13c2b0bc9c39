package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

func TestGuestExec(t *testing.T) {
	b := newBootd(t)
	var asked api.GuestExec
	answer := api.GuestExecResult{Stdout: []byte("out\n"), Stderr: []byte("err\n")}
	b.exec = func(e api.GuestExec) api.GuestExecResult { asked = e; return answer }

	b.run(t, "", "guest", "exec", "web", "--", "ls", "-l", "--color").want(t, 0, "out\n", "err\n")
	if got := fmt.Sprint(asked.Command, len(asked.Stdin), asked.Env, time.Duration(asked.Timeout)); got != "[ls -l --color] 0 [] 1m0s" {
		t.Errorf("asked for %s", got)
	}
	b.run(t, "script", "guest", "exec", "--stdin", "web", "--env", "A=b c", "--timeout", "5m", "--", "sh").want(t, 0, "out\n")
	if got := fmt.Sprintf("%q %s %q %s", asked.Command, asked.Stdin, asked.Env, time.Duration(asked.Timeout)); got != `["sh"] script ["A=b c"] 5m0s` {
		t.Errorf("asked for %s", got)
	}
	for _, c := range []struct {
		exit, signal, code int
	}{{7, 0, 7}, {0, 9, 137}, {0xC0000005, 0, 5}, {512, 0, 1}, {-1, 0, 255}} {
		answer = api.GuestExecResult{ExitCode: c.exit, Signal: c.signal}
		if r := b.run(t, "", "guest", "exec", "web", "--", "x"); r.code != c.code || r.out+r.err != "" {
			t.Errorf("exit code %d, signal %d: %+v", c.exit, c.signal, r)
		}
	}
	answer = api.GuestExecResult{StdoutTruncated: true}
	b.run(t, "", "guest", "exec", "web", "--", "x").want(t, 0, "", "its standard output was longer than this")
	b.run(t, "", "guest", "exec", "web").want(t, 2, "", "want NAME -- COMMAND")
	b.run(t, "", "guest", "exec", "web", "ls").want(t, 2, "", "want NAME -- COMMAND")
	b.run(t, "", "guest", "exec", "--timeout", "2h", "web", "--", "x").want(t, 2, "", "want at most 1h0m0s")
	b.run(t, strings.Repeat("x", api.MaxExecStdin+1), "guest", "exec", "--stdin", "web", "--", "x").want(t, 2, "", "stdin has")
	b.refuse["POST /v1/guests/web/exec"] = &api.Problem{Status: 502, Title: "Bad Gateway", Detail: "host r1: no guest agent runs in Guest web"}
	b.run(t, "", "guest", "exec", "web", "--", "x").want(t, 1, "", "exec in guest/web: ", "no guest agent runs")
}

// Each viewer that comes to the port is joined to the display.
func TestGuestVNC(t *testing.T) {
	b := newBootd(t)
	b.console = func(rw *bufio.ReadWriter) {
		_, _ = rw.WriteString("RFB 003.008\n")
		_ = rw.Flush()
		line, _ := rw.ReadString('\n')
		_, _ = rw.WriteString(line)
		_ = rw.Flush()
	}
	b.run(t, "", "guest", "vnc", "web", "--ticket").want(t, 0, "/v1/guests/web/vnc?ticket=T1\n", "put wss://")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, in := io.Pipe()
	var said bytes.Buffer
	ended := make(chan int, 1)
	go func() {
		ended <- Run(ctx, Process{Args: []string{"guest", "vnc", "web"}, Env: func(k string) string {
			return map[string]string{"RACKWEFT_SERVER": "unix://" + b.socket}[k]
		}, In: strings.NewReader(""), Out: in, Err: &said})
		_ = in.Close()
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	address, ok := strings.CutPrefix(strings.TrimSpace(line), "vnc://127.0.0.1:")
	if err != nil || !ok {
		t.Fatalf("it prints %q: %v", line, err)
	}
	for range 2 {
		conn, err := net.Dial("tcp", "127.0.0.1:"+address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "RFB 003.007\n")
		got, err := io.ReadAll(conn)
		if err != nil || string(got) != "RFB 003.008\nRFB 003.007\n" {
			t.Errorf("a viewer sees %q: %v", got, err)
		}
		_ = conn.Close()
	}
	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d: %s", code, said.String())
	}
	if !strings.Contains(said.String(), "viewer from 127.0.0.1:") {
		t.Errorf("it says %q", said.String())
	}
	b.refuse["POST /v1/guests/web/vnc"] = &api.Problem{Status: 409, Title: "Conflict", Detail: "Guest web has no display"}
	b.run(t, "", "guest", "vnc", "web").want(t, 1, "", "display of guest/web: ", "has no display")
}
