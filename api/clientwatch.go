package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/rackweft/rackweft/internal/wait"
)

// WatchType is what happened to the object of a WatchEvent.
type WatchType string

// The types of WatchEvent.
const (
	Added    WatchType = "ADDED"
	Modified WatchType = "MODIFIED"
	Deleted  WatchType = "DELETED"
	// Synced follows the last of the objects that existed when the watch began.
	Synced WatchType = "BOOKMARK"
	// Expired ends a watch whose revision was compacted away.
	Expired WatchType = "ERROR"
)

// WatchFrame is one line of a watch.
type WatchFrame struct {
	Type            WatchType       `json:"type"`
	ResourceVersion string          `json:"resourceVersion,omitzero"`
	Object          json.RawMessage `json:"object,omitempty"`
	Problem         *Problem        `json:"problem,omitempty"`
}

// WatchEvent is one change. Object is nil for a Synced.
type WatchEvent struct {
	Type            WatchType
	Object          Object
	ResourceVersion string
}

// Watch calls fn with every existing object of the kind, then a Synced, then
// every change, until ctx ends or fn returns an error, which is returned. It
// reconnects by itself and continues at the last revision. If that has been
// compacted away it lists again: fn then sees existing objects as Added again,
// deleted ones as Deleted, and another Synced.
func (c *Client) Watch(ctx context.Context, k Kind, fn func(WatchEvent) error) error {
	w := &watch{client: c, kind: k, fn: fn, seen: map[string]Object{}}
	for pause := time.Duration(0); ; {
		err := w.run(ctx)
		var stop stopError
		switch {
		case errors.As(err, &stop):
			return stop.error
		case ctx.Err() != nil:
			return ctx.Err()
		case IsStatus(err, http.StatusGone):
			w.revision = ""
		case isFinal(err):
			return err
		}
		pause = min(max(2*pause, 100*time.Millisecond), 5*time.Second)
		if w.progress {
			pause, w.progress = 100*time.Millisecond, false
		}
		if err := wait.For(ctx, pause); err != nil {
			return err
		}
	}
}

// isFinal reports whether a retry cannot help.
func isFinal(err error) bool {
	var p *Problem
	return errors.As(err, &p) && p.Status/100 == 4 && p.Status != http.StatusTooManyRequests && p.Status != http.StatusRequestTimeout
}

// stopError carries an error of the caller's function through the retry loop.
type stopError struct{ error }

type watch struct {
	client   *Client
	kind     Kind
	fn       func(WatchEvent) error
	revision string            // to continue from; "" lists again
	seen     map[string]Object // by name, as last passed to fn
	listed   map[string]bool   // names in the current list; nil outside one
	progress bool              // something was received since the last reconnect
}

func (w *watch) run(ctx context.Context) error {
	q := url.Values{"watch": {"true"}}
	w.listed = map[string]bool{}
	if w.revision != "" {
		q.Set("resourceVersion", w.revision)
		w.listed = nil
	}
	resp, err := w.client.Do(ctx, http.MethodGet, "/v1/"+w.kind.Plural+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return lines(resp.Body, func(raw []byte) error {
		w.progress = true
		var f WatchFrame
		if err := json.Unmarshal(raw, &f); err != nil {
			return fmt.Errorf("decode a watch frame: %w", err)
		}
		return w.frame(f)
	})
}

func (w *watch) frame(f WatchFrame) error {
	if f.Type == Expired {
		if f.Problem == nil {
			return &Problem{Title: "Gone", Status: http.StatusGone}
		}
		return f.Problem
	}
	if f.Type == Synced {
		return w.synced(f)
	}
	o := w.kind.New()
	if err := json.Unmarshal(f.Object, o); err != nil {
		return fmt.Errorf("decode a %s: %w", w.kind.Name, err)
	}
	name := o.Meta().Name
	if w.listed != nil {
		w.listed[name] = true
	} else {
		w.revision = f.ResourceVersion
	}
	if f.Type == Deleted {
		delete(w.seen, name)
	} else {
		w.seen[name] = o
	}
	return w.deliver(WatchEvent{Type: f.Type, Object: o, ResourceVersion: f.ResourceVersion})
}

// synced ends a list: objects known before that were not listed are deleted.
func (w *watch) synced(f WatchFrame) error {
	if w.listed == nil {
		w.revision = f.ResourceVersion
		return nil
	}
	for name, o := range w.seen {
		if w.listed[name] {
			continue
		}
		delete(w.seen, name)
		if err := w.deliver(WatchEvent{Type: Deleted, Object: o, ResourceVersion: f.ResourceVersion}); err != nil {
			return err
		}
	}
	w.listed, w.revision = nil, f.ResourceVersion
	return w.deliver(WatchEvent{Type: Synced, ResourceVersion: f.ResourceVersion})
}

func (w *watch) deliver(e WatchEvent) error {
	if err := w.fn(e); err != nil {
		return stopError{err}
	}
	return nil
}

// lines calls fn with each line of at most 16 MiB.
func lines(r io.Reader, fn func([]byte) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), 16<<20)
	for s.Scan() {
		if len(s.Bytes()) == 0 {
			continue
		}
		if err := fn(s.Bytes()); err != nil {
			return err
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("read the stream: %w", err)
	}
	return nil
}
