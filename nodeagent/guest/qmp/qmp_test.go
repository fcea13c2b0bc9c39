package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}` + "\r\n"

// fake is QEMU's end of a connection, told what to do by the test.
type fake struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Scanner
}

// pair gives a client's end and a fake.
func pair(t *testing.T) (net.Conn, *fake) {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _ = ours.Close(); _ = theirs.Close() })
	return ours, &fake{t: t, conn: theirs, in: bufio.NewScanner(theirs)}
}

func (f *fake) say(text string) {
	if _, err := f.conn.Write([]byte(text)); err != nil {
		f.t.Errorf("the fake cannot write: %v", err)
	}
}

// hear returns the id of the next command and checks its name.
func (f *fake) hear(command string) uint64 {
	if !f.in.Scan() {
		f.t.Errorf("no command came, %s was awaited: %v", command, f.in.Err())
		return 0
	}
	var m struct {
		Execute string
		ID      uint64
	}
	if err := json.Unmarshal(f.in.Bytes(), &m); err != nil || m.Execute != command {
		f.t.Errorf("heard %s (%v), awaited %s", f.in.Bytes(), err, command)
	}
	return m.ID
}

func (f *fake) welcome() {
	f.say(greeting)
	f.say(fmt.Sprintf(`{"return": {}, "id": %d}`+"\r\n", f.hear("qmp_capabilities")))
}

// short is a context that fails a test instead of hanging it.
func short(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestRealQEMU(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmp.sock")
	cmd := exec.CommandContext(t.Context(), "qemu-system-x86_64", "-M", "none", "-display", "none", "-nodefaults",
		"-no-user-config", "-S", "-uuid", "9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d", "-qmp", "unix:"+path+",server=on,wait=off")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	ctx := short(t)
	var events []string
	var client *Client
	for client == nil {
		var err error
		client, err = Dial(ctx, path, func(e Event) { events = append(events, e.Name) })
		if err != nil {
			select {
			case <-ctx.Done():
				t.Fatal(err)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	defer client.Close()
	var schema json.RawMessage
	if err := client.Execute(ctx, "query-qmp-schema", nil, &schema); err != nil || len(schema) < 100_000 {
		t.Errorf("the schema has %d bytes: %v", len(schema), err)
	}
	var id struct{ UUID string }
	if err := client.Execute(ctx, "query-uuid", nil, &id); err != nil || id.UUID != "9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d" {
		t.Errorf("query-uuid answers %q: %v", id.UUID, err)
	}
	var refused *Error
	if err := client.Execute(ctx, "no-such-command", nil, nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
		t.Errorf("an unknown command gives %v", err)
	}
	// Many at once, each with its own answer.
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			var status struct{ Status string }
			if err := client.Execute(ctx, "query-status", nil, &status); err != nil || status.Status != "prelaunch" {
				t.Errorf("query-status answers %q: %v", status.Status, err)
			}
		})
	}
	group.Wait()

	// A monitor serves one client: the second gets no greeting until the first has gone.
	impatient, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if _, err := Dial(impatient, path, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second client gets %v", err)
	}
	client.Close()
	if err := client.Execute(ctx, "query-status", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	events = nil
	again, err := Dial(ctx, path, func(e Event) { events = append(events, e.Name) })
	if err != nil {
		t.Fatalf("connect again: %v", err)
	}
	if err := again.Execute(ctx, "quit", nil, nil); err != nil {
		t.Errorf("quit: %v", err)
	}
	<-again.Done()
	if !strings.Contains(strings.Join(events, " "), "SHUTDOWN") {
		t.Errorf("the events are %q", events)
	}
	if err := <-ended; err != nil {
		t.Errorf("QEMU ended with %v", err)
	}
}

func TestFrames(t *testing.T) {
	event := func(name string) string {
		return `{"timestamp": {"seconds": 1795242035, "microseconds": 368101}, "event": "` + name + `", "data": {"guest": true}}` + "\n"
	}
	huge := `{"return": "` + strings.Repeat("x", 300_000) + `", "id": %d}` + "\n"
	for name, c := range map[string]struct {
		talk   func(*fake)
		events string
		length int
		fails  string
	}{
		"events before the greeting": {talk: func(f *fake) {
			f.say(event("EARLY"))
			f.welcome()
			f.say(event("BETWEEN") + fmt.Sprintf(`{"return": "abc", "id": %d}`, f.hear("test")) + event("LATE"))
		}, events: "EARLY BETWEEN LATE", length: 3},
		"one byte at a time": {talk: func(f *fake) {
			f.welcome()
			for _, b := range []byte(event("SPLIT") + fmt.Sprintf(`{"return": "abc", "id": %d}`+"\n", f.hear("test"))) {
				f.say(string(b))
			}
		}, events: "SPLIT", length: 3},
		"huge": {talk: func(f *fake) {
			f.welcome()
			f.say(fmt.Sprintf(huge, f.hear("test")))
		}, length: 300_000},
		"answers of others": {talk: func(f *fake) {
			f.welcome()
			id := f.hear("test")
			f.say(fmt.Sprintf(`{"return": "z", "id": 999}{"return": "z"}{"error": {"class": "x", "desc": "y"}}{"return": "abc", "id": %d}{"return": "z", "id": %[1]d}`, id))
		}, length: 3},
		"no JSON": {talk: func(f *fake) {
			f.welcome()
			f.hear("test")
			f.say("Segmentation fault\n")
		}, fails: "invalid character"},
		"closed before the answer": {talk: func(f *fake) {
			f.welcome()
			f.hear("test")
			_ = f.conn.Close()
		}, fails: "monitor is closed"},
		"an answer without end": {talk: func(f *fake) {
			f.welcome()
			f.hear("test")
			f.say(`{"return": "`)
			for range maxMessage/(1<<16) + 2 {
				if _, err := f.conn.Write([]byte(strings.Repeat("x", 1<<16))); err != nil {
					return
				}
			}
		}, fails: "a message of more than"},
		"an answer of another type": {talk: func(f *fake) {
			f.welcome()
			f.say(fmt.Sprintf(`{"return": {"a": 1}, "id": %d}`, f.hear("test")))
		}, fails: "decode the answer"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, f := pair(t)
			var group sync.WaitGroup
			defer group.Wait()
			group.Go(func() { c := c.talk; c(f); _ = f.conn.Close() })
			ctx := short(t)
			var events []string
			client, err := New(ctx, conn, func(e Event) { events = append(events, e.Name) })
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			var got string
			err = client.Execute(ctx, "test", nil, &got)
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("the error is %v, it should tell of %q", err, c.fails)
				}
				return
			}
			if err != nil || len(got) != c.length {
				t.Errorf("got %d bytes: %v", len(got), err)
			}
			<-client.Done()
			if told := strings.Join(events, " "); told != c.events {
				t.Errorf("the events are %q, not %q", told, c.events)
			}
		})
	}
}

func TestNoGreeting(t *testing.T) {
	conn, f := pair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := New(ctx, conn, nil); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "does not greet") {
		t.Errorf("without a greeting: %v", err)
	}
	_ = f.conn.Close()
	conn, f = pair(t)
	_ = f.conn.Close()
	if _, err := New(short(t), conn, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("closed at once: %v", err)
	}
}

// A command that is given up does not spoil the next one.
func TestLateAnswer(t *testing.T) {
	conn, f := pair(t)
	var group sync.WaitGroup
	defer group.Wait()
	given := make(chan struct{})
	group.Go(func() {
		f.welcome()
		slow := f.hear("slow")
		<-given
		quick := f.hear("quick")
		f.say(fmt.Sprintf(`{"return": "slow", "id": %d}`+"\n"+`{"return": "quick", "id": %d}`+"\n", slow, quick))
	})
	ctx := short(t)
	client, err := New(ctx, conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	impatient, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := client.Execute(impatient, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the slow one: %v", err)
	}
	close(given)
	var got string
	if err := client.Execute(ctx, "quick", nil, &got); err != nil || got != "quick" {
		t.Errorf("the quick one gets %q: %v", got, err)
	}
}

// A QEMU that reads nothing does not hold a command for longer than its context.
func TestStuckWrite(t *testing.T) {
	conn, f := pair(t)
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(f.welcome)
	client, err := New(short(t), conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if err := client.Execute(ctx, "test", nil, nil); err == nil {
		t.Error("a command was written that nobody read")
	}
}

func FuzzClient(f *testing.F) {
	f.Add([]byte(greeting + `{"return": {}, "id": 1}{"event": "RESET", "data": {}, "timestamp": {"seconds": 1}}{"return": 1, "id": 2}`))
	f.Add([]byte(`{"event": "X"}` + greeting + `{"error": {"class": "a", "desc": "b"}, "id": 1}`))
	f.Add([]byte(greeting + greeting + `{"return": {}, "id": -1}`))
	f.Add([]byte(`[[[[`))
	f.Add([]byte(`{"QMP": null, "id": 18446744073709551616}`))
	f.Fuzz(func(t *testing.T, said []byte) {
		ours, theirs := net.Pipe()
		var group sync.WaitGroup
		defer group.Wait()
		group.Go(func() { // takes all commands
			for buffer := make([]byte, 512); ; {
				if _, err := theirs.Read(buffer); err != nil {
					return
				}
			}
		})
		group.Go(func() {
			_, _ = theirs.Write(said) // the client may hang up
			_ = theirs.Close()
		})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		client, err := New(ctx, ours, nil)
		if err != nil {
			return
		}
		var got any
		_ = client.Execute(ctx, "test", nil, &got)
		client.Close()
	})
}
