// Package qga is a client of qemu-ga, the agent inside a Guest, with the
// commands that the host needs. Everything received from it is under the
// tenant's control: it is bounded and not trusted.
//
// The agent's channel serves one client at a time. Each exchange has a
// connection of its own, so that none waits for a command that runs.
package qga

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"time"
)

const (
	// Patience is how long the agent may be silent in an exchange.
	Patience = 5 * time.Second

	// MaxText is the longest text in an answer; the rest is dropped. It is 1
	// MiB and a few bytes in base64.
	MaxText = (1<<20/3 + 1) * 4

	// maxAnswer is the longest answer that is read: qemu-ga keeps 16 MiB each of
	// what a command writes to standard output and error, and gives it in base64.
	maxAnswer = 64 << 20
	// maxKept bounds the part of an answer that is kept.
	maxKept = 4 << 20

	// delimiter precedes an answer to guest-sync-delimited, and makes the agent
	// drop a command that it has read in part.
	delimiter = 0xff
)

var errTooMuch = errors.New("the guest agent's answer is too long")

// Error is a command that the agent refused. Desc is under the Guest's control.
type Error struct {
	Command string `json:"-"`
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *Error) Error() string {
	return fmt.Sprintf("the guest agent refuses %s: %s", e.Command, quoted(e.Desc))
}

// quoted makes a text from the Guest safe for a terminal.
func quoted(text string) string { return strconv.Quote(text[:min(len(text), 300)]) }

// Client is one Guest's agent. Its methods may be called by several goroutines.
type Client struct {
	path string
	turn chan struct{} // holds a token during an exchange
}

// New returns a client of the unix socket at which the agent's channel ends.
func New(path string) *Client { return &Client{path: path, turn: make(chan struct{}, 1)} }

// Execute runs a command and decodes its answer into result, which may be nil.
// A refused command returns an *Error.
func (c *Client) Execute(ctx context.Context, command string, arguments, result any) error {
	return c.exchange(ctx, func(s *session) error {
		if err := s.send(command, arguments); err != nil {
			return err
		}
		return s.answer(command, result)
	})
}

// Tell sends a command that has no answer when it succeeds, such as
// guest-shutdown, and waits a second for an error.
func (c *Client) Tell(ctx context.Context, command string, arguments any) error {
	return c.exchange(ctx, func(s *session) error {
		if err := s.send(command, arguments); err != nil {
			return err
		}
		s.from.patience = time.Second
		err := s.answer(command, nil)
		if refused := new(*Error); errors.As(err, refused) {
			return err
		}
		return nil
	})
}

// exchange runs fn once the agent listens and has answered a sync.
func (c *Client) exchange(ctx context.Context, fn func(*session) error) error {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return fmt.Errorf("the guest agent is busy: %w", context.Cause(ctx))
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.path)
	if err != nil {
		return fmt.Errorf("reach the guest agent: %w", err)
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := newSession(conn).run(fn); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return err
	}
	return nil
}

// session is one connection.
type session struct {
	conn net.Conn
	from *patient
	in   *bufio.Reader // of from
}

func newSession(conn net.Conn) *session {
	from := &patient{conn: conn, patience: Patience, left: maxAnswer}
	return &session{conn: conn, from: from, in: bufio.NewReader(from)}
}

func (s *session) run(fn func(*session) error) error {
	if err := s.sync(); err != nil {
		return fmt.Errorf("the guest agent does not answer: %w", err)
	}
	return fn(s)
}

// sync skips leftovers of an earlier client, up to the answer that has this
// client's random number.
func (s *session) sync() error {
	mark := rand.Int64N(1 << 52) // exact in a float64, which JSON parsers may use
	if _, err := s.conn.Write([]byte{delimiter}); err != nil {
		return err
	}
	if err := s.send("guest-sync-delimited", map[string]int64{"id": mark}); err != nil {
		return err
	}
	for {
		if err := s.skip(); err != nil {
			return err
		}
		var got json.Number
		if err := s.answer("guest-sync-delimited", &got); err != nil {
			return err
		}
		if got.String() == strconv.FormatInt(mark, 10) {
			return nil
		}
	}
}

// skip reads up to a delimiter.
func (s *session) skip() error {
	for {
		b, err := s.in.ReadByte()
		if err != nil || b == delimiter {
			return err
		}
	}
}

func (s *session) send(command string, arguments any) error {
	raw, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return fmt.Errorf("encode the arguments of %s: %w", command, err)
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(Patience)); err != nil {
		return err
	}
	_, err = s.conn.Write(append(raw, '\n'))
	return err
}

// answer reads one answer line.
func (s *session) answer(command string, result any) error {
	line, err := clipLine(s.in)
	if err != nil {
		return err
	}
	var m struct {
		Return json.RawMessage `json:"return"`
		Error  *Error          `json:"error"`
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return fmt.Errorf("the guest agent's answer to %s is invalid: %s", command, quoted(err.Error()))
	}
	if m.Error != nil {
		m.Error.Command = command
		return m.Error
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("the guest agent's answer to %s: %s", command, quoted(err.Error()))
	}
	return nil
}

// clipLine reads one line of JSON and truncates its texts to MaxText.
func clipLine(in io.ByteReader) ([]byte, error) {
	var line []byte
	for text, escaped, length := false, false, 0; ; {
		b, err := in.ReadByte()
		switch {
		case err != nil:
			return nil, err
		case b == '\n':
			return line, nil
		case len(line) == maxKept:
			return nil, errTooMuch
		case text:
			text = b != '"' || escaped
			escaped = b == '\\' && !escaped
			if length++; text && length > MaxText {
				continue
			}
		case b == '"':
			text, length = true, 0
		}
		line = append(line, b)
	}
}

// patient fails a read that is silent for too long, or a stream that is too
// long.
type patient struct {
	conn     net.Conn
	patience time.Duration
	left     int
}

func (p *patient) Read(b []byte) (int, error) {
	if p.left <= 0 {
		return 0, errTooMuch
	}
	if err := p.conn.SetReadDeadline(time.Now().Add(p.patience)); err != nil {
		return 0, err
	}
	n, err := p.conn.Read(b[:min(len(b), p.left)])
	p.left -= n
	return n, err
}
