package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
)

const (
	// maxObject limits the body of an object; the store's own limit is lower.
	maxObject = 4 << 20
	// maxBoot limits the bodies of callers that are not identified yet.
	maxBoot = 64 << 10
)

// call is one request while it is handled.
type call struct {
	w   http.ResponseWriter
	r   *http.Request
	rc  *http.ResponseController
	who caller

	status int // of the answer
	// changed says that the audit must record this call, with diff.
	changed bool
	diff    []api.Change

	// deadlines guards the connection's deadlines; once cut they no longer change.
	deadlines sync.Mutex
	isCut     bool
}

func (c *call) name() string { return c.r.PathValue("name") }

// flag reads a boolean of the query; an invalid one is an error, because a mistyped dryRun must not write.
func (c *call) flag(name string) (bool, error) {
	text := c.r.URL.Query().Get(name)
	if text == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(text)
	if err != nil {
		return false, problem(http.StatusBadRequest, "invalid ?%s=%s: want true or false", name, text)
	}
	return v, nil
}

// body reads at most limit bytes.
func (c *call) body(limit int64) ([]byte, error) {
	raw, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, limit))
	if err != nil {
		return nil, fmt.Errorf("read the body: %w", err)
	}
	return raw, nil
}

// json answers with a value.
func (c *call) json(status int, v any) error {
	raw, err := api.Encode(v)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.write(status, append(raw, '\n'))
	return nil
}

// list answers with a List. It is written item by item: in one piece, a thousand Machines would be in memory three times.
func (c *call) list(l api.List) error {
	items := l.Items
	l.Items = []json.RawMessage{}
	frame, err := api.Encode(l)
	if err != nil {
		return err
	}
	end := []byte("]}") // items is the last field
	head, ok := bytes.CutSuffix(frame, end)
	if !ok {
		return fmt.Errorf("encode a list: it ends with %q, want %q", frame[len(frame)-len(end):], end)
	}
	length := len(head) + len(end) + 1 + max(len(items)-1, 0)
	for _, item := range items {
		length += len(item)
	}
	c.status = http.StatusOK
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("Content-Length", strconv.Itoa(length))
	c.w.WriteHeader(c.status)
	_, _ = c.w.Write(head) // a client that has disconnected is not an error
	for i, item := range items {
		if i > 0 {
			_, _ = c.w.Write([]byte{','})
		}
		_, _ = c.w.Write(item)
	}
	_, _ = c.w.Write(append(end, '\n'))
	return nil
}

// write answers with bytes. A client that has disconnected is not an error.
func (c *call) write(status int, raw []byte) {
	c.status = status
	c.w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	c.w.WriteHeader(status)
	_, _ = c.w.Write(raw)
}

// empty answers with a status alone.
func (c *call) empty(status int) error {
	c.status = status
	c.w.WriteHeader(status)
	return nil
}

// extend gives the client more time to send or to receive.
func (c *call) extend(d time.Duration) {
	c.setDeadline(time.Now().Add(d))
}

func (c *call) setDeadline(end time.Time) {
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	if c.isCut {
		return
	}
	_ = c.rc.SetReadDeadline(end)
	_ = c.rc.SetWriteDeadline(end)
}

// cut permanently ends the call's reads and writes.
func (c *call) cut() {
	c.setDeadline(time.Now())
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	c.isCut = true
}

// streams are the long-lived calls: watches, consoles and host streams.
type streams struct {
	ctx      context.Context // ends at a stop
	stop     context.CancelFunc
	hijacked sync.WaitGroup
	lasts    *lasting
}

// lasting makes the call one without a time limit, until the client disconnects or the Server stops.
func (t *streams) lasting(c *call) (context.Context, context.CancelFunc) {
	c.setDeadline(time.Time{})
	ctx, cancel := context.WithCancel(c.r.Context())
	release := context.AfterFunc(t.ctx, cancel)
	return ctx, func() { release(); cancel() }
}

// encoded is a line that several streams may send.
type encoded []byte

// line is a value as one line of JSON.
func line(v any) ([]byte, error) {
	raw, err := api.Encode(v)
	return append(raw, '\n'), err
}

// lines starts an answer of newline-delimited JSON and returns the function that sends one line immediately.
func (c *call) lines() func(v any) error {
	c.w.Header().Set("Content-Type", "application/x-ndjson")
	c.status = http.StatusOK
	c.w.WriteHeader(http.StatusOK)
	_ = c.rc.Flush()
	return func(v any) error {
		raw, ok := v.(encoded)
		if !ok {
			var err error
			if raw, err = line(v); err != nil {
				return err
			}
		}
		_ = c.rc.SetWriteDeadline(time.Now().Add(bodyTime))
		if _, err := c.w.Write(raw); err != nil {
			return fmt.Errorf("write to %s: %w", c.who.from, err)
		}
		return c.rc.Flush()
	}
}
