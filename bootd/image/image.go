// Package image owns the readiness of Images: every file that an Image names is
// held as a blob and has the digest that the Image says. Files with an http(s)
// source are fetched; the others are uploaded by weftctl.
package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
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

	loop *reconcile.Loop
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	c.loop = reconcile.New(c.reconcile, c.Log)
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

// recheck is how often an Image that lacks a file is looked at again.
const recheck = 5 * time.Second

func (c *Controller) reconcile(ctx context.Context, name string) (time.Duration, error) {
	img, ok := store.Cached[api.Image](c.Cache, name)
	if !ok {
		return 0, nil
	}
	files, err := c.collect(ctx, img)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	status, reason, message := api.True, "Complete", fmt.Sprintf("%d files are held", len(files))
	if err != nil {
		status, reason, message = api.False, reasonOf(err), err.Error()
	}
	fresh, werr := store.Mutate(ctx, c.Store, name, func(fresh *api.Image) error {
		if fresh.Metadata.UID != img.Metadata.UID || fresh.Metadata.Generation != img.Metadata.Generation {
			return store.ErrUnchanged
		}
		changed := fresh.Status.Conditions.Set(time.Now(), Ready, status, reason, message)
		if !changed && maps.Equal(fresh.Status.Files, files) {
			return store.ErrUnchanged
		}
		fresh.Status.Files = files
		return nil
	})
	if werr != nil {
		return 0, fmt.Errorf("write the status of Image %s: %w", name, werr)
	}
	if old := img.Status.Conditions.Get(Ready); old == nil || old.Status != status {
		typ := api.Normal
		if status != api.True {
			typ = api.Warning
		}
		c.Event(fresh, typ, reason, message)
	}
	if err != nil {
		return recheck, nil
	}
	return 0, nil
}

func reasonOf(err error) string {
	var mismatch *blob.MismatchError
	switch {
	case errors.As(err, &mismatch):
		return "DigestMismatch"
	case errors.Is(err, blob.ErrNoSpace):
		return "NoSpace"
	}
	return "FileMissing"
}

// collect makes sure of every file and says how large each is.
func (c *Controller) collect(ctx context.Context, img *api.Image) (map[string]api.ImageFileStatus, error) {
	files := map[string]api.ImageFileStatus{}
	for _, name := range slices.Sorted(maps.Keys(img.Spec.Files)) {
		f := img.Spec.Files[name]
		size, err := c.file(ctx, f)
		if err != nil {
			return files, fmt.Errorf("file %s: %w", name, err)
		}
		files[name] = api.ImageFileStatus{SHA256: f.SHA256, Size: size}
	}
	return files, nil
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
	return c.fetch(ctx, f.Source, digest)
}

func (c *Controller) fetch(ctx context.Context, source string, want blob.Digest) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, source, nil)
	if err != nil {
		return 0, fmt.Errorf("fetch %s: %w", source, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("fetch: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("fetch %s: the server answered %s", source, resp.Status)
	}
	_, size, err := c.Blobs.Put(ctx, resp.Body, want)
	if err != nil {
		return 0, fmt.Errorf("fetch %s: %w", source, err)
	}
	return size, nil
}
