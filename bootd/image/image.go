// Package image owns the readiness of Images: every file that an Image names is
// held as a blob and has the digest that the Image says. Files with an http(s)
// source are fetched; the others are uploaded by weftctl.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/reconcile"
	"github.com/rackweft/rackweft/bootd/store"
)

// Ready is the condition that all files are held.
const Ready = "Ready"

// Controller keeps the Ready condition of Images true to the blobs.
type Controller struct {
	Store *store.Store
	Cache *store.Cache
	Blobs *blob.Store
	Event func(o api.Object, typ api.EventType, reason, message string)
	Log   *slog.Logger

	loop    *reconcile.Loop
	mu      sync.Mutex
	fetches map[fetchKey]failure // that went wrong, so that a source is not asked all the time
}

type fetchKey struct {
	source string
	want   blob.Digest
}

type failure struct {
	err   error
	until time.Time // it is not tried again before
	fails int
}

// Run works until ctx ends. It runs on the elected bootd only.
func (c *Controller) Run(ctx context.Context) error {
	c.loop = reconcile.New(c.reconcile, c.Log)
	c.forget()
	images, err := api.LookupKind("Image")
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return c.Cache.Subscribe(ctx, func(ch store.Change) { c.loop.Add(ch.Name) }, images)
	})
	g.Go(func() error { c.loop.Run(ctx, 2); return ctx.Err() })
	return g.Wait()
}

func (c *Controller) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fetches = map[fetchKey]failure{}
}

const (
	// recheck is how often an Image that lacks a file is looked at again: people
	// wait for the end of their upload.
	recheck = 5 * time.Second
	// recheckReady is how often one that is complete is looked at again: blobs
	// can be deleted.
	recheckReady = 5 * time.Minute
)

func (c *Controller) reconcile(ctx context.Context, name string) (time.Duration, error) {
	img, ok := store.Cached[api.Image](c.Cache, name)
	if !ok {
		return 0, nil
	}
	files, err := c.collect(ctx, img)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	wait, status, reason, message := recheckReady, api.True, "Complete", fmt.Sprintf("%d files are held", len(files))
	if err != nil {
		wait, status, reason, message = recheck, api.False, reasonOf(err), strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	news := false
	fresh, err := store.Mutate(ctx, c.Store, name, func(fresh *api.Image) error {
		news = false
		if fresh.Metadata.UID != img.Metadata.UID || fresh.Metadata.Generation != img.Metadata.Generation {
			return store.ErrUnchanged // its change makes it due again
		}
		old := fresh.Status.Conditions.Get(Ready)
		news = old == nil || old.Status != status || old.Reason != reason
		changed := fresh.Status.Conditions.Set(time.Now(), Ready, status, reason, message)
		if !changed && maps.Equal(fresh.Status.Files, files) {
			return store.ErrUnchanged
		}
		fresh.Status.Files = files
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("write the status of Image %s: %w", name, err)
	}
	if news {
		typ := api.Normal
		if status != api.True {
			typ = api.Warning
		}
		c.Event(fresh, typ, reason, message)
	}
	return wait, nil
}

// errFetch says that a source could not be read.
var errFetch = errors.New("fetch")

func reasonOf(err error) string {
	var mismatch *blob.MismatchError
	switch {
	case errors.As(err, &mismatch):
		return "DigestMismatch"
	case errors.Is(err, blob.ErrNoSpace):
		return "NoSpace"
	case errors.Is(err, errFetch):
		return "FetchFailed"
	}
	return "FileMissing"
}

// collect makes sure of every file and says how large each is.
func (c *Controller) collect(ctx context.Context, img *api.Image) (map[string]api.ImageFileStatus, error) {
	files := map[string]api.ImageFileStatus{}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(img.Spec.Files)) {
		f := img.Spec.Files[name]
		size, err := c.file(ctx, f)
		if err != nil {
			errs = append(errs, fmt.Errorf("file %s: %w", name, err))
			continue
		}
		files[name] = api.ImageFileStatus{SHA256: f.SHA256, Size: size}
	}
	return files, errors.Join(errs...)
}

func (c *Controller) file(ctx context.Context, f api.ImageFile) (int64, error) {
	digest, err := blob.ParseDigest("sha256:" + string(f.SHA256))
	if err != nil {
		return 0, err
	}
	info, err := c.Blobs.Stat(digest)
	if err == nil {
		return info.Size, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if !strings.HasPrefix(f.Source, "http://") && !strings.HasPrefix(f.Source, "https://") {
		return 0, fmt.Errorf("blob sha256:%s is not held: upload it with \"weftctl image import\" or \"weftctl apply\"", f.SHA256)
	}
	return c.fetch(ctx, fetchKey{f.Source, digest})
}

// fetch downloads a file, unless that went wrong a moment ago.
func (c *Controller) fetch(ctx context.Context, key fetchKey) (int64, error) {
	c.mu.Lock()
	last, failed := c.fetches[key]
	c.mu.Unlock()
	if failed && time.Now().Before(last.until) {
		return 0, last.err
	}
	size, err := c.download(ctx, key)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		delete(c.fetches, key)
		return size, nil
	}
	c.fetches[key] = failure{err: err, fails: last.fails + 1, until: time.Now().Add(min(15*time.Second<<min(last.fails, 6), 10*time.Minute))}
	return 0, err
}

const (
	// headerTime is how long a source may think, stallTime how long it may send
	// nothing.
	headerTime = 30 * time.Second
	stallTime  = time.Minute
)

func (c *Controller) download(ctx context.Context, key fetchKey) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(headerTime, func() { cancel(errors.New("the server is silent")) })
	defer quiet.Stop()
	where := shown(key.source)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, key.source, nil)
	if err != nil {
		return 0, fmt.Errorf("%w %s: it is no URL", errFetch, where)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("%w %s: %w", errFetch, where, plain(ctx, err))
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%w %s: the server answers %s", errFetch, where, resp.Status)
	}
	_, size, err := c.Blobs.Put(ctx, &progress{r: resp.Body, alive: func() { quiet.Reset(stallTime) }}, key.want)
	if err != nil {
		return 0, fmt.Errorf("%w %s: %w", errFetch, where, plain(ctx, err))
	}
	return size, nil
}

// shown is a source as people may read it: what stands behind a ? may be a
// password.
func shown(source string) string {
	where, _, hides := strings.Cut(source, "?")
	if hides {
		where += "?…"
	}
	return where
}

// plain takes the URL, which may hold a password, out of an error, and puts in
// why the request was broken off.
func plain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// progress tells of every byte that comes.
type progress struct {
	r     io.Reader
	alive func()
}

func (p *progress) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if n > 0 {
		p.alive()
	}
	return n, err
}
