package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"

	"github.com/rackweft/rackweft/api"
)

// maxChannels is how many channels a host has open at once.
const maxChannels = 32

// channels holds the channels that bootd requested over one stream. They end with
// the stream.
type channels struct {
	agent *Agent
	base  string // bootd's URL
	slots chan struct{}
	group sync.WaitGroup
}

func newChannels(a *Agent, base string) *channels {
	return &channels{agent: a, base: base, slots: make(chan struct{}, maxChannels)}
}

func (s *channels) wait() { s.group.Wait() }

// open starts a channel that lasts until either end closes it, or ctx ends.
func (s *channels) open(ctx context.Context, c api.Channel) {
	select {
	case s.slots <- struct{}{}:
	default:
		s.agent.log.Warn("bootd requests too many channels", "kind", c.Kind, "guest", c.Guest)
		return
	}
	s.group.Go(func() {
		defer func() { <-s.slots }()
		if err := s.carry(ctx, c); err != nil && ctx.Err() == nil {
			s.agent.log.Warn("a channel has failed", "kind", c.Kind, "guest", c.Guest, "error", err)
		}
	})
}

// carry connects what the handler opens to a request to bootd.
func (s *channels) carry(ctx context.Context, c api.Channel) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client, err := s.agent.client(ctx, s.base)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	path := s.base + "/v1/hosts/" + url.PathEscape(s.agent.config.Machine) + "/channels/" + url.PathEscape(c.ID)
	end, err := s.end(ctx, c)
	if err != nil {
		return errors.Join(err, refuseChannel(ctx, client, path, err))
	}
	body, out := io.Pipe()
	closeAll := context.AfterFunc(ctx, func() { _, _ = end.Close(), body.Close() })
	defer closeAll()
	var sending sync.WaitGroup
	defer sending.Wait()
	defer func() { _, _ = end.Close(), body.Close() }()
	sending.Go(func() { // the last output is sent before bootd closes
		_, err := io.Copy(out, end)
		_ = out.CloseWithError(err)
	})
	resp, err := postChannel(ctx, client, path, body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(end, resp.Body)
	if ctx.Err() != nil {
		return nil // this end closed it
	}
	return err
}

func postChannel(ctx context.Context, client *http.Client, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16)) // the status suffices if the body is lost
	return nil, fmt.Errorf("bootd answers %d: %w", resp.StatusCode, problem(resp.StatusCode, raw))
}

// refuseChannel reports to bootd why there is no channel.
func refuseChannel(ctx context.Context, client *http.Client, path string, why error) error {
	resp, err := postChannel(ctx, client, path+"?refused="+url.QueryEscape(oneLine(why)), http.NoBody)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// end has the handler open this host's end of a channel.
func (s *channels) end(ctx context.Context, c api.Channel) (io.ReadWriteCloser, error) {
	if o := s.agent.workers.opener(); o != nil {
		return o.Open(ctx, c)
	}
	return nil, fmt.Errorf("nodeagent %s has no channels of kind %s", s.agent.version, c.Kind)
}
