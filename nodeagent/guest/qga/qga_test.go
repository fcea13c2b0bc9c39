package qga

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// fake is a guest agent's end of one connection.
type fake struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

// listen serves connections, one after the other, as the agent's channel does.
func listen(t testing.TB, serve func(*fake)) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "qga") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serve(&fake{t, conn, bufio.NewReader(conn)})
			_ = conn.Close()
		}
	})
	t.Cleanup(func() { _ = l.Close(); group.Wait(); _ = os.RemoveAll(dir) })
	return New(path)
}

type heard struct {
	Execute   string
	Arguments struct{ ID int64 }
}

// hear reads one command.
func (f *fake) hear() (m heard) {
	line, err := f.in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(bytes.TrimPrefix(line, []byte{delimiter}), &m)
	}
	if err != nil {
		m.Execute = "nothing: " + err.Error()
	}
	return m
}

func (f *fake) say(text string) { _, _ = io.WriteString(f.conn, text) } // the client may hang up

// greet answers guest-sync-delimited.
func (f *fake) greet() {
	m := f.hear()
	if m.Execute != "guest-sync-delimited" {
		f.t.Errorf("the client begins with %q", m.Execute)
	}
	f.say(fmt.Sprintf("\xff{\"return\": %d}\n", m.Arguments.ID))
}

func (f *fake) wait() { _, _ = io.Copy(io.Discard, f.in) }

func TestExchange(t *testing.T) {
	long := strings.Repeat("x", MaxText+1000)
	for name, c := range map[string]struct {
		serve func(*fake)
		want  string // of the answer's text, at most 20 bytes of it
		size  int
		fails string
	}{
		"what an earlier client left is skipped": {serve: func(f *fake) {
			f.say(`{"return": {"out": "of an`)
			m := f.hear()
			f.say("other\"}}\n{\"error\": {\"class\": \"a\", \"desc\": \"b\"}}\n\xff{\"return\": 1}\n")
			f.say(fmt.Sprintf("\xff{\"return\": %d}\n", m.Arguments.ID))
			f.hear()
			f.say("{\"return\": {\"out\": \"mine\"}}\n")
		}, want: "mine", size: 4},
		"long texts are cut": {serve: func(f *fake) {
			f.greet()
			f.hear()
			f.say(`{"return": {"more": "` + long + `", "out": "` + long + `"}}` + "\n")
		}, want: long[:20], size: MaxText},
		"escapes": {serve: func(f *fake) {
			f.greet()
			f.hear()
			f.say(`{"return": {"out": "a\"\\"}}` + "\n")
		}, want: `a"\`, size: 3},
		"a refusal is quoted": {serve: func(f *fake) {
			f.greet()
			f.hear()
			f.say(`{"error": {"class": "GenericError", "desc": "\u001b[2Jno"}}` + "\n")
		}, fails: `the guest agent refuses test: "\x1b[2Jno"`},
		"no JSON":         {serve: func(f *fake) { f.greet(); f.hear(); f.say("\x1b[2J\n") }, fails: "answer to test is invalid"},
		"another type":    {serve: func(f *fake) { f.greet(); f.hear(); f.say(`{"return": 3}` + "\n") }, fails: "cannot unmarshal"},
		"closed":          {serve: func(f *fake) { f.greet(); f.hear() }, fails: "EOF"},
		"never greets":    {serve: func(f *fake) { f.wait() }, fails: "does not answer"},
		"another's sync":  {serve: func(f *fake) { f.say("\xff{\"return\": 1}\n\xff{\"return\": 2}\n"); f.wait() }, fails: "does not answer"},
		"a sync of texts": {serve: func(f *fake) { f.hear(); f.say("\xff{\"return\": \"one\"}\n") }, fails: "does not answer"},
		"many texts without end": {serve: func(f *fake) {
			f.greet()
			f.hear()
			text := `"` + strings.Repeat("x", 1<<16) + `",`
			for range maxKept/(1<<16) + 2 {
				if _, err := io.WriteString(f.conn, text); err != nil {
					return
				}
			}
		}, fails: "is too long"},
		"one text without end": {serve: func(f *fake) {
			f.greet()
			f.hear()
			f.say(`"`)
			for block := bytes.Repeat([]byte("x"), 1<<20); ; {
				if _, err := f.conn.Write(block); err != nil {
					return
				}
			}
		}, fails: "is too long"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			if c.fails == "does not answer" {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, 200*time.Millisecond, errors.New("does not answer"))
				defer cancel()
			}
			var got struct{ Out string }
			err := listen(t, c.serve).Execute(ctx, "test", nil, &got)
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("the error is %v, it should tell of %q", err, c.fails)
				}
				return
			}
			if err != nil || len(got.Out) != c.size || got.Out[:min(20, len(got.Out))] != c.want {
				t.Errorf("got %d bytes, %.20q: %v", len(got.Out), got.Out, err)
			}
		})
	}
}

// A command without an answer is obeyed or refused.
func TestTell(t *testing.T) {
	for name, c := range map[string]struct {
		answer  string
		refused bool
	}{"obeyed": {"", false}, "refused": {`{"error": {"class": "a", "desc": "no"}}` + "\n", true}} {
		told := make(chan string, 1)
		client := listen(t, func(f *fake) {
			f.greet()
			told <- f.hear().Execute
			f.say(c.answer)
			f.wait()
		})
		err := client.Tell(t.Context(), "guest-shutdown", map[string]string{"mode": "powerdown"})
		if refused := new(*Error); errors.As(err, refused) != c.refused || err != nil && !c.refused {
			t.Errorf("%s: %v", name, err)
		}
		if got := <-told; got != "guest-shutdown" {
			t.Errorf("%s: it was told %s", name, got)
		}
	}
}

// Clients take turns, and nobody waits for longer than its context.
func TestTurns(t *testing.T) {
	client := listen(t, func(f *fake) {
		f.greet()
		f.hear()
		f.say("{\"return\": {}}\n")
	})
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if err := client.Execute(t.Context(), "test", nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	client.turn <- struct{}{}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := client.Execute(ctx, "test", nil, nil); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "busy") {
		t.Errorf("while another has its turn: %v", err)
	}
}

func FuzzClient(f *testing.F) {
	f.Add([]byte("\xff{\"return\": 1}\n{\"return\": {}}\n"))
	f.Add([]byte("{\"error\": {\"class\": \"a\", \"desc\": \"\\u001b\"}}\n\xff{}\n"))
	f.Add([]byte("\xff\xff\n\"\\\"\n\xff[[[[\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		ours, theirs := net.Pipe()
		var group sync.WaitGroup
		defer group.Wait()
		group.Go(func() { _, _ = io.Copy(io.Discard, theirs) })
		group.Go(func() { _, _ = theirs.Write(said); _ = theirs.Close() })
		defer func() { _ = ours.Close() }()
		var got any
		_ = newSession(ours).run(func(s *session) error { return s.answer("test", &got) })
	})
}

// What is kept of a line is JSON if the line was, and no text of it is too long.
func FuzzClipLine(f *testing.F) {
	f.Add([]byte(`{"return": {"out-data": "aGFsbG8=", "exited": true}}`), 5)
	f.Add([]byte(`["\"", "\\", "\u0000"]`), 1)
	f.Fuzz(func(t *testing.T, line []byte, times int) {
		line = append(bytes.ReplaceAll(line, []byte("LONG"), bytes.Repeat([]byte("y"), MaxText+min(max(times, 0), 100))), '\n')
		kept, err := clipLine(bytes.NewReader(line))
		first, _, _ := bytes.Cut(line, []byte("\n"))
		if err != nil {
			if len(first) < maxKept {
				t.Fatalf("%.100q: %v", line, err)
			}
			return
		}
		if len(first) <= MaxText && !bytes.Equal(kept, first) {
			t.Fatalf("%.100q is kept as %.100q", first, kept)
		}
		if len(first) > MaxText && json.Valid(first) && !bytes.Contains(first, []byte(`\`)) && !json.Valid(kept) {
			t.Fatalf("%.100q is no JSON any more: %.100q", first, kept)
		}
	})
}
