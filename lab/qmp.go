package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// qmp is a connection to a QEMU's machine protocol: one command at a time, events to a callback.
type qmp struct {
	conn    net.Conn
	onEvent func(name string, data map[string]any)
	reply   chan qmpMessage
	done    chan struct{} // closed when the reader has ended
	one     sync.Mutex    // held for a command and its reply
}

type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	Data     map[string]any  `json:"data"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

var errQMPClosed = errors.New("QEMU has closed its monitor")

// newQMP negotiates on conn, which it owns from then on. onEvent is called from the reader, in order.
func newQMP(ctx context.Context, conn net.Conn, onEvent func(string, map[string]any)) (*qmp, error) {
	q := &qmp{conn: conn, onEvent: onEvent, reply: make(chan qmpMessage, 1), done: make(chan struct{})}
	go q.read()
	if _, err := q.await(ctx); err != nil { // the greeting
		q.close()
		return nil, fmt.Errorf("QMP greeting: %w", err)
	}
	if err := q.run(ctx, "qmp_capabilities", nil); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

func (q *qmp) read() {
	defer close(q.done)
	scan(q.conn, func(m qmpMessage) {
		if m.Event != "" {
			q.onEvent(m.Event, m.Data)
			return
		}
		select {
		case q.reply <- m:
		default: // an answer to a command that was given up
		}
	})
}

// scan decodes messages, one per line, until the first invalid one.
func scan(r io.Reader, got func(qmpMessage)) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var m qmpMessage
		if json.Unmarshal(lines.Bytes(), &m) != nil {
			return
		}
		got(m)
	}
}

func (q *qmp) await(ctx context.Context) (qmpMessage, error) {
	select {
	case m := <-q.reply:
		return m, nil
	case <-q.done:
		return qmpMessage{}, errQMPClosed
	case <-ctx.Done():
		return qmpMessage{}, ctx.Err()
	}
}

// run executes a command and waits for its answer.
func (q *qmp) run(ctx context.Context, name string, arguments map[string]any) error {
	q.one.Lock()
	defer q.one.Unlock()
	select { // drop the answer to a command that was given up
	case <-q.reply:
	default:
	}
	request := map[string]any{"execute": name}
	if arguments != nil {
		request["arguments"] = arguments
	}
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if _, err := q.conn.Write(append(body, '\n')); err != nil {
		return fmt.Errorf("QMP %s: %w", name, err)
	}
	answer, err := q.await(ctx)
	if err != nil {
		return fmt.Errorf("QMP %s: %w", name, err)
	}
	if answer.Error != nil {
		return fmt.Errorf("QMP %s: %s: %s", name, answer.Error.Class, answer.Error.Desc)
	}
	return nil
}

// close ends the connection and waits for the reader, and with it for the last event.
func (q *qmp) close() {
	_ = q.conn.Close()
	<-q.done
}
