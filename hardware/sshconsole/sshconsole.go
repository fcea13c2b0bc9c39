// Package sshconsole opens a server's serial console over the SSH server of its BMC.
//
// With most vendors a login leads to the BMC's command line, where a command opens the console and some keys lead back. Who
// types at the console must not get there: it is the BMC's, and it is logged in. So these keys are not passed on, and the
// console ends when the command line shows up.
package sshconsole

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/internal/text"
)

const (
	promptLimit = 15 * time.Second       // for the command line to ask for a command
	promptQuiet = 200 * time.Millisecond // what looks like a prompt is one when nothing follows it for that long
	settle      = time.Second            // for the command line to refuse the console
	leaveTime   = time.Second            // for leaving the console before the connection is closed
	saidLimit   = 64 << 10               // of what is printed before the console is open
	quoteLimit  = 200                    // of what is repeated in errors
)

// Way is how the SSH server of a BMC leads to the serial console.
type Way struct {
	Port     int      // Default: 22
	Commands []string // typed one by one at the prompt of the BMC's command line; none: a login is the console
	Leave    []string // keys that lead from the console back to the command line; the first are sent at the end
	Instead  string   // of the last command, typed where the BMC does not take that; empty: nothing
	Free     []string // commands that end another client's console, of which the BMC takes one; none: it has no such command that is known
}

// Open logs in and opens the console; ctx bounds that only. Nothing is sent to a server whose host key is refused: see
// hardware.ShellConfig. A refused password is hardware.ErrUnauthorized, a console that another client has hardware.ErrInUse.
func Open(ctx context.Context, e hardware.Endpoint, w Way) (*hardware.Console, error) {
	s, key, err := enterShell(ctx, e, w, func(s *stream) error { return s.enter(ctx, w) })
	if err != nil {
		return nil, fmt.Errorf("open the serial console over SSH to %s: %w", e.Address, err)
	}
	return &hardware.Console{ReadWriteCloser: s, Kind: hardware.ConsoleSSH, HostKey: key.Fingerprint}, nil
}

// Free ends the client that has the console, with the commands of the Way.
func Free(ctx context.Context, e hardware.Endpoint, w Way) error {
	if err := hardware.Permitted(ctx, "SSH", strings.Join(w.Free, ", ")); err != nil {
		return err
	}
	s, _, err := enterShell(ctx, e, Way{Port: w.Port}, func(s *stream) error { return s.order(ctx, w.Free) })
	if err != nil {
		return fmt.Errorf("end another client's serial console over SSH to %s: %w", e.Address, err)
	}
	return s.Close()
}

// enterShell logs in, starts a shell and does what is to be done there before ctx is over.
func enterShell(ctx context.Context, e hardware.Endpoint, w Way, do func(*stream) error) (s *stream, key hardware.HostKey, err error) {
	u, err := url.Parse(e.Address)
	if err != nil {
		return nil, key, fmt.Errorf("BMC address: %w", err)
	}
	address := net.JoinHostPort(u.Hostname(), strconv.Itoa(cmp.Or(w.Port, 22)))
	dialer := &net.Dialer{Timeout: cmp.Or(e.ConnectTimeout, 10*time.Second)}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, key, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	paced := &flow{Conn: conn, taken: make(chan struct{}, 1)}
	client, err := login(paced, address, hardware.ShellConfig(e, func(k hardware.HostKey) { key = k }))
	if err != nil {
		_ = conn.Close() // x/crypto may have closed it
		return nil, key, fmt.Errorf("port %d: %w", cmp.Or(w.Port, 22), errors.Join(err, ctx.Err()))
	}
	s = &stream{client: client, flow: paced, keys: filter{leave: w.Leave}, done: make(chan struct{}), output: make(chan []byte)}
	err = s.start()
	if err == nil {
		err = do(s)
	}
	if err == nil && !stop() {
		err = ctx.Err() // the connection is closed
	}
	if err != nil {
		_ = s.Close() // it is of no use
		return nil, key, fmt.Errorf("port %d: %w", cmp.Or(w.Port, 22), err)
	}
	return s, key, nil
}

func login(conn net.Conn, address string, config *ssh.ClientConfig) (*ssh.Client, error) {
	if err := conn.SetDeadline(time.Now().Add(2 * config.Timeout)); err != nil {
		return nil, err
	}
	c, channels, requests, err := ssh.NewClientConn(conn, address, config)
	if err != nil && strings.Contains(err.Error(), "unable to authenticate") { // x/crypto has no type for it
		return nil, fmt.Errorf("%w: %w", hardware.ErrUnauthorized, err)
	}
	if err != nil {
		return nil, err
	}
	return ssh.NewClient(c, channels, requests), conn.SetDeadline(time.Time{})
}

// stream is the console, or before that the command line.
type stream struct {
	client *ssh.Client
	flow   *flow
	input  io.WriteCloser
	output chan []byte   // closed when the server ends it
	done   chan struct{} // closed when we do
	pump   sync.WaitGroup
	close  sync.Once

	rest   []byte // read and not handed out yet: of the reader alone
	end    []byte // of what was handed out: of the reader alone
	left   bool   // the command line is back: of the reader alone
	prompt []byte // of the command line; empty when it cannot be told from what servers print

	mu   sync.Mutex // guards keys
	keys filter
}

// start starts a shell on a terminal, without which some BMCs show nothing.
func (s *stream) start() error {
	session, err := s.client.NewSession()
	if err != nil {
		return err
	}
	input, err := session.StdinPipe()
	if err != nil {
		return err
	}
	output, err := session.StdoutPipe()
	if err != nil {
		return err
	}
	if err := session.RequestPty("vt100", 25, 80, ssh.TerminalModes{}); err != nil {
		return fmt.Errorf("ask for a terminal: %w", err)
	}
	if err := session.Shell(); err != nil {
		return fmt.Errorf("start a shell: %w", err)
	}
	s.input = input
	s.pump.Go(func() { s.forward(output) })
	return nil
}

// forward passes on what the server sends, so that it can be waited for with a time limit.
func (s *stream) forward(output io.Reader) {
	defer close(s.output)
	buffer := make([]byte, 4093) // no divisor of what servers send at once: that all is taken shows when it is not filled
	for {
		n, err := output.Read(buffer)
		if n < len(buffer) {
			s.flow.allTaken()
		}
		if n > 0 {
			select {
			case s.output <- bytes.Clone(buffer[:n]):
			case <-s.done:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// enter types the commands that open the console, each when it is asked for.
func (s *stream) enter(ctx context.Context, w Way) (err error) {
	if len(w.Commands) == 0 {
		return nil
	}
	last := len(w.Commands) - 1
	for _, command := range w.Commands[:last] {
		if _, err = s.command(ctx, command); err != nil {
			return err
		}
	}
	err = s.openBy(ctx, w.Commands[last])
	if w.Instead == "" || !errors.Is(err, errNotTaken) || errors.Is(err, hardware.ErrInUse) {
		return err
	}
	if other := s.openBy(ctx, w.Instead); other != nil {
		return fmt.Errorf("%w; then %w", err, other)
	}
	return nil
}

// errNotTaken: the command line is back instead of the console.
var errNotTaken = errors.New("it is not opened")

// openBy types the command after which the console comes, or the command line again.
func (s *stream) openBy(ctx context.Context, command string) error {
	prompt, err := s.command(ctx, command)
	if err != nil {
		return err
	}
	isBack := func(said []byte) bool { return promptIsBack(said, prompt) }
	said, err := s.listen(ctx, settle, isBack)
	if err != nil {
		return err
	}
	if isBack(said) {
		s.rest = lastLine(said) // the prompt for what is typed next
		return refusedWith(command, said)
	}
	s.rest = said
	if len(bytes.TrimSpace(prompt)) > 1 { // a shell of the server may ask with one character, too
		s.prompt = prompt
	}
	return nil
}

// order types commands, each when the command line asks for it, and waits until it asks again. What it answers is of no
// interest: whether the console is free shows when it is opened.
func (s *stream) order(ctx context.Context, commands []string) error {
	for _, command := range commands {
		prompt, err := s.command(ctx, command)
		if err != nil {
			return err
		}
		isBack := func(said []byte) bool { return promptIsBack(said, prompt) }
		said, err := s.listen(ctx, promptLimit, isBack)
		if err != nil {
			return err
		}
		if !isBack(said) {
			return fmt.Errorf("%q does not end within %s: the BMC says %s", command, promptLimit, quote(said))
		}
		s.rest = lastLine(said)
	}
	return nil
}

// command types a command when the command line asks for one, and returns its prompt.
func (s *stream) command(ctx context.Context, command string) (prompt []byte, err error) {
	said, err := s.listen(ctx, promptLimit, asksForCommand)
	if err != nil {
		return nil, err
	}
	if prompt = lastLine(said); !isPrompt(prompt) {
		return nil, fmt.Errorf("no prompt for %q came within %s, but %s", command, promptLimit, quote(said))
	}
	if _, err := io.WriteString(s.input, command+"\r"); err != nil {
		return nil, fmt.Errorf("type %q: %w", command, err)
	}
	return prompt, nil
}

// refusedWith is what a command line says instead of opening the console.
func refusedWith(command string, said []byte) error {
	err := fmt.Errorf("%w: to %q the BMC says %s", errNotTaken, command, quote(said))
	for _, words := range []string{"in use", "already", "busy"} {
		if bytes.Contains(bytes.ToLower(said), []byte(words)) {
			return fmt.Errorf("%w: %w", hardware.ErrInUse, err)
		}
	}
	return err
}

// listen gathers what the server sends until it is enough and quiet, or the time is over.
func (s *stream) listen(ctx context.Context, limit time.Duration, enough func([]byte) bool) (said []byte, err error) {
	over := time.After(limit)
	said, s.rest = s.rest, nil
	for {
		var quiet <-chan time.Time
		if enough(said) {
			quiet = time.After(promptQuiet)
		}
		select {
		case more, ok := <-s.output:
			if !ok {
				return said, fmt.Errorf("the BMC has ended it: %s", quote(said))
			}
			if said = append(said, more...); len(said) > saidLimit {
				return said, fmt.Errorf("more than %d KiB came before the console was open", saidLimit>>10)
			}
		case <-quiet:
			return said, nil
		case <-over:
			return said, nil
		case <-ctx.Done():
			return said, ctx.Err()
		}
	}
}

func asksForCommand(said []byte) bool { return isPrompt(lastLine(said)) }

// isPrompt reports whether a line without its end looks like a command line's prompt.
func isPrompt(line []byte) bool {
	line = bytes.TrimRight(line, " ")
	return len(line) > 0 && bytes.IndexByte([]byte(">$#%"), line[len(line)-1]) >= 0
}

// lastLine is the text after the last end of line.
func lastLine(said []byte) []byte { return said[bytes.LastIndexAny(said, "\r\n")+1:] }

// promptIsBack reports whether the prompt is at the beginning of a line.
func promptIsBack(said, prompt []byte) bool {
	return bytes.Contains(said, append([]byte{'\n'}, prompt...)) || bytes.Contains(said, append([]byte{'\r'}, prompt...))
}

// quote repeats what a BMC has said, or that it said nothing.
func quote(said []byte) string {
	words := strings.Join(strings.Fields(string(said)), " ")
	if words == "" {
		return "nothing"
	}
	if len(words) > quoteLimit {
		words = words[len(words)-quoteLimit:] // the end tells more than the banner
	}
	return strconv.Quote(text.Clip(words, quoteLimit))
}

// Read implements io.Reader. It is io.EOF when the console has ended, hardware.ErrLost when the connection was lost, and an
// error when the command line is back.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if s.left {
		return 0, errors.New("the BMC has left the console: its command line is back")
	}
	for len(s.rest) == 0 {
		more, ok := <-s.output
		if !ok && s.flow.lost.Load() {
			return 0, hardware.ErrLost
		}
		if !ok {
			return 0, io.EOF
		}
		s.rest = more
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	if len(s.prompt) > 0 {
		s.end = append(s.end, p[:n]...)
		s.left = promptIsBack(s.end, s.prompt)
		s.end = bytes.Clone(s.end[max(0, len(s.end)-len(s.prompt)):])
	}
	return n, nil
}

// Write implements io.Writer. Keys that would leave the console are dropped.
func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if passed := s.keys.pass(p); len(passed) > 0 {
		if _, err := s.input.Write(passed); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// Close leaves the console and logs out. Some BMCs keep a console for a while that was not left.
func (s *stream) Close() error {
	s.close.Do(func() {
		if s.input != nil && len(s.keys.leave) > 0 {
			cut := time.AfterFunc(leaveTime, func() { _ = s.client.Close() })
			_, _ = io.WriteString(s.input, s.keys.leave[0])
			cut.Stop()
		}
		close(s.done)
		_ = s.client.Close() // the server may have closed it
		s.pump.Wait()
	})
	return nil
}

// filter drops the keys that lead out of the console.
type filter struct {
	leave []string
	sent  []byte // the last keys
}

// pass returns the keys that may be sent: of a sequence that leaves the console, the last key is dropped.
func (f *filter) pass(keys []byte) (passed []byte) {
	longest := 0
	for _, sequence := range f.leave {
		longest = max(longest, len(sequence))
	}
	for _, key := range keys {
		if f.leaves(key) {
			continue
		}
		passed = append(passed, key)
		f.sent = append(f.sent, key)
		f.sent = f.sent[max(0, len(f.sent)-longest):]
	}
	return passed
}

func (f *filter) leaves(key byte) bool {
	typed := append(bytes.Clone(f.sent), key)
	for _, sequence := range f.leave {
		if bytes.HasSuffix(typed, []byte(sequence)) {
			return true
		}
	}
	return false
}
