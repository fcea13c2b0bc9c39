package server

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// bookmarkEvery is how often an idle watch sends a sign of life.
const bookmarkEvery = 30 * time.Second

// watch streams changes of a kind: after the revision that the client names, or after all existing objects.
func (h *objects) watch(c *call, k api.Kind) error {
	from, err := revisionOf(c.r.URL.Query().Get("resourceVersion"))
	if err != nil {
		return err
	}
	ctx, cancel := h.streams.lasting(c)
	defer cancel()
	var standing []api.Object
	if from == 0 {
		if standing, from, err = h.all(ctx, k); err != nil {
			return err
		}
	}
	w := &watcher{objects: h, send: c.lines(), revision: from}
	for _, o := range standing {
		if err := w.send(h.frame(api.Added, o, o.Meta().ResourceVersion)); err != nil {
			return err
		}
	}
	if standing != nil || c.r.URL.Query().Get("resourceVersion") == "" {
		if err := w.bookmark(); err != nil {
			return err
		}
	}
	return w.follow(ctx, k)
}

func revisionOf(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 {
		return 0, problem(http.StatusBadRequest, "invalid ?resourceVersion=%s: want one that bootd has returned", text)
	}
	return n, nil
}

type watcher struct {
	objects  *objects
	send     func(any) error
	revision int64 // everything up to it was sent
}

type change struct {
	event store.Event
	err   error
}

// follow sends changes until ctx ends, the client disconnects or etcd no longer has them.
func (w *watcher) follow(ctx context.Context, k api.Kind) error {
	ctx, cancel := context.WithCancel(ctx)
	changes := make(chan change)
	go func() {
		defer close(changes)
		for e, err := range w.objects.cache.Watch(ctx, k, w.revision) {
			select {
			case changes <- change{e, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() {
		cancel()
		for range changes { // until the goroutine has ended
		}
	}()
	tick := time.NewTicker(bookmarkEvery)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			err = w.bookmark()
		case x, ok := <-changes:
			switch {
			case !ok || ctx.Err() != nil:
				return nil
			case x.err != nil:
				return w.end(x.err)
			}
			w.revision = x.event.Revision
			if x.event.Type == api.Synced {
				continue // the next bookmark includes it
			}
			err = w.event(x.event)
		}
		if err != nil {
			return err
		}
	}
}

func (w *watcher) event(e store.Event) error {
	line, err := e.Encoded(func() ([]byte, error) {
		return line(w.objects.frame(e.Type, e.Object, strconv.FormatInt(e.Revision, 10)))
	})
	if err != nil {
		return err
	}
	return w.send(encoded(line))
}

// frame returns an object as a read returns it.
func (h *objects) frame(t api.WatchType, o api.Object, version string) any {
	return shown{t, version, h.fill(o)}
}

// shown is an api.WatchFrame whose object is not encoded yet.
type shown struct {
	Type            api.WatchType `json:"type"`
	ResourceVersion string        `json:"resourceVersion,omitempty"`
	Object          api.Object    `json:"object,omitempty"`
}

func (w *watcher) bookmark() error {
	return w.send(api.WatchFrame{Type: api.Synced, ResourceVersion: strconv.FormatInt(w.revision, 10)})
}

// end tells the client why the watch cannot continue.
func (w *watcher) end(err error) error {
	p := problemOf(err)
	if errors.Is(err, store.ErrCompacted) {
		p.Detail = "the changes since that resourceVersion are no longer kept: list again"
	}
	return w.send(api.WatchFrame{Type: api.Expired, Problem: p})
}
