package nodeagent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
)

// follow keeps a stream to bootd open until ctx is done. It uses the first URL that
// answers, and tries all of them again when the stream breaks.
func (a *Agent) follow(ctx context.Context) {
	pause := backoff{min: a.timing.minBackoff, max: a.timing.maxBackoff}
	a.setLink(ctx, Link{State: LinkConnecting})
	for ctx.Err() == nil {
		var faults []error
		for _, base := range a.endpoints(ctx) {
			began := time.Now()
			err := a.session(ctx, base)
			if ctx.Err() != nil {
				return
			}
			err = fmt.Errorf("%s: %w", base, err)
			a.log.Warn("no stream to bootd", "error", err)
			faults = append(faults, err)
			a.setLink(ctx, Link{State: LinkConnecting, Error: oneLine(errors.Join(faults...))})
			if time.Since(began) > a.timing.silence { // the stream worked: retry the first URL, soon
				pause.reset()
				break
			}
		}
		pause.wait(ctx)
	}
}

func oneLine(err error) string {
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

// endpoints returns bootd's URLs: those of the HostSpec, then those of the join,
// then those of the configuration file.
func (a *Agent) endpoints(ctx context.Context) []string {
	var list []string
	_ = a.do(ctx, func() {
		if e, ok := a.spec.index.Parts[api.PartBase]; ok {
			var base api.BasePart
			if json.Unmarshal(e.value, &base) == nil {
				list = append(list, base.API...)
			}
		}
		list = append(list, a.id.API...)
	})
	var out []string
	for _, u := range append(list, a.config.API...) {
		u = strings.TrimSuffix(u, "/")
		if _, err := apiHost(u); err == nil && !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	return out
}

// client trusts the CA of the configuration and that of the join, and presents the
// host's certificate.
func (a *Agent) client(ctx context.Context, base string) (*http.Client, error) {
	c, err := a.Credentials(ctx)
	if err != nil {
		return nil, err
	}
	return newClient(base, c.Roots, &c.Certificate, a.timing.dial)
}

// session runs one stream, from its request to its end; the error says why it ended.
func (a *Agent) session(ctx context.Context, base string) error {
	client, err := a.client(ctx, base)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	channels := newChannels(a, base)
	defer channels.wait()
	usage := newUsageWatch()
	recounts := make(chan []api.Recount, 1)
	var measuring sync.WaitGroup
	defer measuring.Wait()
	silence := time.AfterFunc(a.timing.silence, func() {
		cancel(fmt.Errorf("nothing received from bootd for %s", a.timing.silence))
	})
	defer silence.Stop()

	body, pipe := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/hosts/"+a.config.Machine+"/stream", body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")

	measuring.Go(func() {
		usage.run(ctx, a.usage, func(err error) { a.log.Warn("usage is not reported", "error", err) })
	})
	written := make(chan struct{})
	go func() {
		defer close(written)
		err := a.writeFrames(ctx, pipe, usage.reports, recounts)
		cancel(err)
		_ = pipe.CloseWithError(err)
	}()
	defer func() {
		cancel(errors.New("the stream has ended"))
		_ = body.Close() // unblocks the writer
		<-written
	}()

	err = a.receive(ctx, client, req, asked{channels, usage, recounts}, silence)
	if cause := context.Cause(ctx); cause != nil {
		return cause // more specific than context.Canceled
	}
	return err
}

// receive sends the request and reads bootd's frames until the stream ends.
func (a *Agent) receive(ctx context.Context, client *http.Client, req *http.Request, asked asked, silence *time.Timer) error {
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		raw, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16)) // the status suffices if the body is lost
		return fmt.Errorf("bootd answers %d: %w", resp.StatusCode, problem(resp.StatusCode, raw))
	}
	if err := a.connected(ctx, asked.channels.base, resp.Header.Get("Date")); err != nil {
		return err
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxFrame)
	for lines.Scan() {
		silence.Reset(a.timing.silence)
		if err := a.frame(ctx, lines.Bytes(), asked); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the stream: %w", err)
	}
	return errors.New("bootd closed the stream")
}

// asked holds what bootd requests over one stream. It ends with the stream.
type asked struct {
	channels *channels
	usage    *usageWatch
	recounts chan<- []api.Recount
}

// frame handles one line. Unknown fields are ignored: bootd may be newer.
func (a *Agent) frame(ctx context.Context, line []byte, asked asked) error {
	line = bytes.TrimSpace(line)
	if len(line) == 0 {
		return nil
	}
	var f api.ServerFrame
	if err := json.Unmarshal(line, &f); err != nil {
		return fmt.Errorf("decode a frame of bootd (%.80q): %w", line, err)
	}
	if f.Open != nil {
		asked.channels.open(ctx, *f.Open)
		return nil
	}
	if f.Usage != nil {
		asked.usage.ask(*f.Usage)
		return nil
	}
	if f.Recount != nil {
		return a.answerRecount(ctx, f.Recount.ID, asked.recounts)
	}
	var fault error
	if err := a.do(ctx, func() { fault = a.handle(f) }); err != nil {
		return err
	}
	return fault
}

// writeFrames sends the hello, then pings, statuses and events as they come.
func (a *Agent) writeFrames(ctx context.Context, w io.Writer, usage <-chan *api.HostUsage, recounts <-chan []api.Recount) error {
	out := json.NewEncoder(w)
	var hello api.Hello
	if err := a.do(ctx, func() { hello = a.hello() }); err != nil {
		return err
	}
	if err := out.Encode(api.HostFrame{Hello: &hello}); err != nil {
		return fmt.Errorf("send the hello: %w", err)
	}
	ping := time.NewTicker(a.timing.ping)
	defer ping.Stop()
	a.status.changed.Set() // each stream begins with a status
	a.bgp.changed.Set()
	var recount []api.Recount // frames still to send
	for {
		if len(recount) > 0 {
			if err := out.Encode(api.HostFrame{Recount: &recount[0]}); err != nil {
				return fmt.Errorf("send a frame: %w", err)
			}
			recount = recount[1:]
			continue
		}
		var f api.HostFrame
		select {
		case recount = <-recounts:
		case <-a.status.changed:
			f.Status = a.status.get()
		case <-a.bgp.changed:
			f.BGP = a.bgp.get()
		case f.Usage = <-usage:
		case e := <-a.events:
			f.Event = &e
		case <-ping.C:
			if err := a.do(ctx, func() { f.Renew = a.renewal() }); err != nil {
				return err
			}
			if f.Renew == "" {
				f.Ping = &api.Ping{Time: time.Now().UTC()}
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if f == (api.HostFrame{}) {
			continue
		}
		if err := out.Encode(f); err != nil {
			return fmt.Errorf("send a frame: %w", err)
		}
	}
}
