package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/rackweft/rackweft/bootd/blob"
)

const (
	// headerTime bounds the wait for a response, stallTime that for the next
	// stride bytes, and fetchTime the whole fetch.
	headerTime = 30 * time.Second
	stallTime  = time.Minute
	stride     = 1 << 20
	fetchTime  = 4 * time.Hour
	// maxFile bounds a file, in bytes.
	maxFile = 64 << 30
	// maxFailures is how many failures are remembered before old ones are dropped.
	maxFailures = 1024
)

var (
	// errFetch means that a source did not return the file. The response is not
	// shown to users: they must not read what only bootd can reach.
	errFetch = errors.New("fetch")
	// errFetching means that the result is not known yet.
	errFetching = errors.New("is being fetched")
)

// fetch downloads a file, unless that has failed recently.
func (c *Controller) fetch(ctx context.Context, key fetchKey) (int64, error) {
	c.mu.Lock()
	last, failed := c.fetches[key]
	c.mu.Unlock()
	if failed && time.Now().Before(last.until) {
		return 0, last.show(key)
	}
	start := time.Now()
	size, err := c.download(ctx, key)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		delete(c.fetches, key)
		return size, nil
	}
	next := failure{err: err, fails: last.fails + 1, shown: start.Add(c.withhold()), until: time.Now().Add(min(15*time.Second<<min(last.fails, 6), 10*time.Minute))}
	if errors.Is(err, blob.ErrNoSpace) {
		next.shown = start // the failure is of this machine, not of the source
	}
	if len(c.fetches) >= maxFailures {
		maps.DeleteFunc(c.fetches, func(_ fetchKey, f failure) bool { return time.Now().After(f.until) })
	}
	c.fetches[key] = next
	return 0, next.show(key)
}

func (c *Controller) withhold() time.Duration {
	if c.Withhold > 0 {
		return c.Withhold
	}
	return headerTime
}

// show returns a failure as users may see it.
func (f failure) show(key fetchKey) error {
	where := shown(key.source)
	switch {
	case errors.Is(f.err, blob.ErrNoSpace):
		return fmt.Errorf("%w %s: %w", errFetch, where, f.err)
	case time.Now().Before(f.shown) && f.fails == 1:
		return fmt.Errorf("%s %w", where, errFetching)
	}
	return fmt.Errorf("%w %s: nothing with the digest %s came from there; bootd's log says why", errFetch, where, key.want)
}

func (c *Controller) download(ctx context.Context, key fetchKey) (int64, error) {
	ctx, stop := context.WithTimeout(ctx, fetchTime)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(headerTime, func() { cancel(errors.New("the server is silent or slow")) })
	defer quiet.Stop()
	size, err := c.get(ctx, key, func() { quiet.Reset(stallTime) })
	if err != nil {
		c.Log.Warn("a file of an Image was not fetched", "source", shown(key.source), "want", key.want, "error", plain(ctx, err))
	}
	return size, err
}

// get requests the file and stores it if it has the digest.
func (c *Controller) get(ctx context.Context, key fetchKey, alive func()) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, key.source, nil)
	if err != nil {
		return 0, errors.New("invalid URL")
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("the server answers %s", resp.Status)
	}
	_, size, err := c.Blobs.Put(ctx, &progress{r: resp.Body, left: maxFile, alive: alive}, key.want)
	return size, err
}

// shown returns a source as users may see it: the query may contain a password.
func shown(source string) string {
	where, _, hides := strings.Cut(source, "?")
	if hides {
		where += "?…"
	}
	return where
}

// plain removes the URL, which may contain a password, from an error, and adds
// why the request was cancelled.
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

// progress reports every stride of received bytes, and fails when there are too
// many.
type progress struct {
	r     io.Reader
	left  int64
	since int64
	alive func()
}

func (p *progress) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if p.left -= int64(n); p.left < 0 {
		return n, fmt.Errorf("it has more than %d GiB", maxFile>>30)
	}
	if p.since += int64(n); p.since >= stride {
		p.since = 0
		p.alive()
	}
	return n, err
}
