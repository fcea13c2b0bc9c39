package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// Get reads content that bootd has for this host at a path, such as
// /v1/blobs/sha256:…, from the first of its URLs that serves it. The caller closes
// it.
func (a *Agent) Get(ctx context.Context, path string) (*Content, error) {
	joined := false
	if err := a.do(ctx, func() { joined = a.id != nil }); err != nil {
		return nil, err
	}
	if !joined {
		return nil, errors.New("the host has not joined yet: it cannot read from bootd")
	}
	var faults []error
	for _, base := range a.endpoints(ctx) {
		body, err := a.getFrom(ctx, base, path)
		if err == nil {
			return body, nil
		}
		faults = append(faults, fmt.Errorf("%s: %w", base, err))
	}
	return nil, errors.Join(faults...)
}

func (a *Agent) getFrom(ctx context.Context, base, path string) (*Content, error) {
	client, err := a.client(ctx, base)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		client.CloseIdleConnections()
		return nil, err
	}
	body := ownBody{resp.Body, client}
	if resp.StatusCode != http.StatusOK {
		raw, _ := io.ReadAll(io.LimitReader(body, 1<<16)) // the status suffices if the body is lost
		_ = body.Close()
		return nil, fmt.Errorf("bootd answers %d: %w", resp.StatusCode, problem(resp.StatusCode, raw))
	}
	return &Content{body, resp.Header.Get("Content-Type")}, nil
}

// Content is content served by bootd.
type Content struct {
	io.ReadCloser
	Type string // Content-Type
}

// ownBody is a body whose Close also closes its connection.
type ownBody struct {
	io.ReadCloser
	client *http.Client
}

func (b ownBody) Close() error {
	defer b.client.CloseIdleConnections()
	return b.ReadCloser.Close()
}
