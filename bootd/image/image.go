// Package image decides whether Images are ready: every file that an Image
// names must exist as a blob with the Image's digest. Files with an http(s)
// source are fetched; others are uploaded by weftctl: bootd opens no path that
// an Image names.
package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/store"
)

// Controller keeps the Ready condition of Images up to date with the blobs.
type Controller struct {
	control.Env
	Blobs *blob.Store
	// Sources restricts where files may be fetched from.
	Sources Sources
	// Withhold is how long after the start of a fetch a failure is not shown:
	// its time would reveal whether a port is open. Default: 30 s.
	Withhold time.Duration

	client  *http.Client
	mu      sync.Mutex
	fetches map[fetchKey]failure // recent failures, so that a source is not requested all the time
}

type fetchKey struct {
	source string
	want   blob.Digest
}

type failure struct {
	err   error
	shown time.Time // err is not shown before
	until time.Time // it is not tried again before
	fails int
}

// Control returns the controller to run.
func (c *Controller) Control() *control.Controller[*api.Image] {
	c.forget()
	return &control.Controller[*api.Image]{
		Env: c.Env, Kinds: []string{"Image"}, Workers: 2, Step: c.step,
		Due: func(ch store.Change) []string { return []string{ch.Name} },
		Sources: []control.Source{func(ctx context.Context, due func(...string)) error {
			return c.Blobs.Follow(ctx, func(d blob.Digest) { due(c.naming(d)...) })
		}},
	}
}

// naming returns the Images that name a blob.
func (c *Controller) naming(d blob.Digest) (images []string) {
	for _, img := range store.CachedList[api.Image](c.Cache) {
		for _, f := range img.Spec.Files {
			if string(f.SHA256) == d.Hex() {
				images = append(images, img.Metadata.Name)
			}
		}
	}
	return images
}

func (c *Controller) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.client = c.Sources.client()
	c.fetches = map[fetchKey]failure{}
}

const (
	// recheck is how often an Image that lacks a file is checked: users wait
	// for the end of their upload.
	recheck = 5 * time.Second
	// recheckReady is how often a complete Image is checked: blobs can be
	// deleted.
	recheckReady = 5 * time.Minute
)

func (c *Controller) step(ctx context.Context, img *api.Image) (time.Duration, error) {
	files, err := c.collect(ctx, img)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	wait, found := recheckReady, control.Finding{Status: api.True, Reason: "Complete", Message: fmt.Sprintf("%d files are held", len(files))}
	if err != nil {
		wait, found = recheck, control.Finding{Status: api.False, Reason: reasonOf(err), Message: strings.ReplaceAll(err.Error(), "\n", "; ")}
	}
	if found.Reason == reasonFetching {
		found.Event = api.Normal
	}
	return wait, control.Report(ctx, c.Env, img, found, func(fresh *api.Image) bool {
		if maps.Equal(fresh.Status.Files, files) {
			return false
		}
		fresh.Status.Files = files
		return true
	})
}

// reasonFetching is the reason of Ready while a fetch has neither succeeded nor failed.
const reasonFetching = "Fetching"

func reasonOf(err error) string {
	switch {
	case errors.Is(err, blob.ErrNoSpace):
		return "NoSpace"
	case errors.Is(err, errFetch):
		return "FetchFailed"
	case errors.Is(err, errFetching):
		return reasonFetching
	case errors.Is(err, blob.ErrDamaged):
		return "Damaged"
	}
	return "FileMissing"
}

// collect checks or fetches every file and returns its size.
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
		if errors.Is(err, blob.ErrDamaged) {
			return 0, err
		}
		return 0, fmt.Errorf("blob sha256:%s is not held: upload it with \"weftctl image import\" or \"weftctl apply\"", f.SHA256)
	}
	return c.fetch(ctx, fetchKey{f.Source, digest})
}
