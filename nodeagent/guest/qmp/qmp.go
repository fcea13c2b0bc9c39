// Package qmp is a client of QEMU's machine protocol: one connection to one
// monitor, commands matched to their answers by id, events in between.
//
// A monitor serves one client at a time: a second client can connect but is
// greeted only when the first has gone, so a caller of Dial sets a deadline.
package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxMessage is the longest message that is read. The longest known, the answer
// to query-qmp-schema, has 200 KB; a QEMU taken over by its guest may send
// anything.
const maxMessage = 8 << 20

// greetingPatience is how long to wait for a greeting without a deadline.
const greetingPatience = 5 * time.Second

// ErrClosed means that the connection has ended: QEMU has ended or closed it,
// or Close was called.
var ErrClosed = errors.New("QEMU's monitor is closed")

// Error is a command that QEMU refused.
type Error struct {
	Command string `json:"-"`
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *Error) Error() string { return fmt.Sprintf("QMP %s: %s (%s)", e.Command, e.Desc, e.Class) }

// Event is an event from QEMU.
type Event struct {
	Name string
	Data json.RawMessage // nil when the event has none
	Time time.Time       // QEMU's clock
}

// Client is one connection. Its methods may be called by several goroutines.
type Client struct {
	conn  net.Conn
	event func(Event)
	done  chan struct{} // closed when the reader has ended
	write sync.Mutex    // held while one command is written

	mu      sync.Mutex
	pending map[uint64]chan message
	last    uint64 // id of the last command
	err     error  // why the reader ended
}

// message is any message from QEMU.
type message struct {
	Greeting  json.RawMessage `json:"QMP"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
	ID     *uint64         `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
}

// Dial connects to the monitor at a unix socket's path. See New.
func Dial(ctx context.Context, path string, event func(Event)) (*Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("reach QEMU's monitor: %w", err)
	}
	return New(ctx, conn, event)
}

// New negotiates on conn, which it owns from then on. It waits for the greeting
// until ctx is done, or five seconds when ctx has no deadline. The reader calls
// event, which may be nil, in the order of the events; it must not block.
func New(ctx context.Context, conn net.Conn, event func(Event)) (*Client, error) {
	if event == nil {
		event = func(Event) {}
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, greetingPatience)
		defer cancel()
	}
	c := &Client{conn: conn, event: event, done: make(chan struct{}), pending: map[uint64]chan message{}}
	greeted := make(chan struct{})
	go c.read(greeted)
	err := c.negotiate(ctx, greeted)
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Client) negotiate(ctx context.Context, greeted <-chan struct{}) error {
	select {
	case <-greeted:
	case <-c.done:
		return fmt.Errorf("QEMU's monitor does not greet: %w", c.Err())
	case <-ctx.Done():
		return fmt.Errorf("QEMU's monitor does not greet; another client may hold it: %w", context.Cause(ctx))
	}
	return c.Execute(ctx, "qmp_capabilities", nil, nil)
}

// Execute runs a command and decodes its answer into result. arguments and
// result may be nil. A refused command returns an *Error. When ctx ends first,
// a late answer is dropped.
func (c *Client) Execute(ctx context.Context, command string, arguments, result any) error {
	return c.execute(ctx, nil, command, arguments, result)
}

// GiveFile passes an open file to QEMU, which keeps it under that name until a
// command uses it or closefd closes it.
func (c *Client) GiveFile(ctx context.Context, name string, file *os.File) error {
	return c.execute(ctx, file, "getfd", map[string]string{"fdname": name}, nil)
}

// ExecuteWith is Execute for a command that takes an open file.
func (c *Client) ExecuteWith(ctx context.Context, file *os.File, command string, arguments, result any) error {
	return c.execute(ctx, file, command, arguments, result)
}

func (c *Client) execute(ctx context.Context, file *os.File, command string, arguments, result any) error {
	answer := make(chan message, 1)
	id, err := c.register(answer)
	if err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	defer c.forget(id)
	if err := c.send(ctx, file, id, command, arguments); err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	select {
	case m := <-answer:
		return m.decode(command, result)
	case <-ctx.Done():
		return fmt.Errorf("QMP %s: no answer: %w", command, context.Cause(ctx))
	case <-c.done:
	}
	select { // the last message may have been the answer
	case m := <-answer:
		return m.decode(command, result)
	default:
		return fmt.Errorf("QMP %s: %w", command, c.Err())
	}
}

func (m message) decode(command string, result any) error {
	if m.Error != nil {
		m.Error.Command = command
		return m.Error
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("QMP %s: decode the answer: %w", command, err)
	}
	return nil
}

func (c *Client) register(answer chan message) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	c.last++
	c.pending[c.last] = answer
	return c.last, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// send writes one command, and passes file, if not nil, with its first byte. A
// command that was written in part would corrupt the next one, so it ends the
// connection.
func (c *Client) send(ctx context.Context, file *os.File, id uint64, command string, arguments any) error {
	raw, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, arguments, id})
	if err != nil {
		return fmt.Errorf("encode the arguments: %w", err)
	}
	c.write.Lock()
	defer c.write.Unlock()
	deadline, _ := ctx.Deadline() // the zero time means no deadline
	if err := c.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.writeWith(file, append(raw, '\n')); err != nil {
		_ = c.conn.Close()
		return err
	}
	return nil
}

func (c *Client) writeWith(file *os.File, raw []byte) error {
	if file == nil {
		_, err := c.conn.Write(raw)
		return err
	}
	conn, ok := c.conn.(*net.UnixConn)
	if !ok {
		return errors.New("files can be passed over unix sockets only")
	}
	n, _, err := conn.WriteMsgUnix(raw, unix.UnixRights(int(file.Fd())), nil)
	if err == nil && n < len(raw) {
		_, err = conn.Write(raw[n:])
	}
	return err
}

// read reads messages until the connection ends.
func (c *Client) read(greeted chan struct{}) {
	defer close(c.done)
	in := &budget{from: c.conn}
	decoder := json.NewDecoder(in)
	for seen := false; ; {
		in.left = maxMessage
		var m message
		if err := decoder.Decode(&m); err != nil {
			c.end(err)
			return
		}
		switch {
		case m.Event != "":
			at := time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)
			c.event(Event{Name: m.Event, Data: m.Data, Time: at})
		case m.Greeting != nil && !seen:
			seen = true
			close(greeted)
		case m.ID != nil:
			c.answer(m)
		}
	}
}

func (c *Client) answer(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if waiting, ok := c.pending[*m.ID]; ok {
		waiting <- m // never blocks: room for one, and one answer per id
		delete(c.pending, *m.ID)
	}
}

func (c *Client) end(err error) {
	_ = c.conn.Close()
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		err = ErrClosed
	} else {
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
}

// Done is closed when the connection has ended and the last event was
// delivered.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is the error that ended the connection, an ErrClosed; nil before that.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and waits for its reader. It must not be called
// from the event callback.
func (c *Client) Close() {
	_ = c.conn.Close()
	<-c.done
}

// budget fails when one message exceeds the remaining bytes.
type budget struct {
	from io.Reader
	left int
}

func (b *budget) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("a message of more than %d bytes", maxMessage)
	}
	n, err := b.from.Read(p)
	b.left -= n
	return n, err
}
