package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// Get reads what bootd has for this host at a path, such as /v1/blobs/sha256:…:
// from the first of its URLs that gives it. The caller closes it.
func (a *Agent) Get(ctx context.Context, path string) (*Content, error) {
	joined := false
	if err := a.do(ctx, func() { joined = a.id != nil }); err != nil {
		return nil, err
	}
	if !joined {
		return nil, errors.New("the host has not joined yet: bootd gives it nothing")
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
		raw, _ := io.ReadAll(io.LimitReader(body, 1<<16)) // the status is news enough
		_ = body.Close()
		return nil, fmt.Errorf("bootd answers %d: %w", resp.StatusCode, problem(resp.StatusCode, raw))
	}
	return &Content{body, resp.Header.Get("Content-Type")}, nil
}

// Content is what bootd gives.
type Content struct {
	io.ReadCloser
	Type string // Content-Type
}

// ownBody ends its connection with it.
type ownBody struct {
	io.ReadCloser
	client *http.Client
}

func (b ownBody) Close() error {
	defer b.client.CloseIdleConnections()
	return b.ReadCloser.Close()
}
