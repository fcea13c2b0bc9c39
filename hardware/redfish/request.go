package redfish

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

func (r *driver) sendOnce(ctx context.Context, method, at, etag string, body any) (reply, error) {
	r.transport.ctx = ctx
	if r.transport.token == "" {
		return reply{}, errClosed
	}
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return reply{}, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, r.base+at, bytes.NewReader(data))
	if err != nil {
		return reply{}, fmt.Errorf("%s %q: %w", method, at, err)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("X-Auth-Token", r.transport.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if etag != "" {
		req.Header.Set("If-Match", etag)
	}
	response, err := r.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	answer := reply{status: response.StatusCode, header: response.Header}
	if answer.body, err = readAll(response); err != nil {
		return reply{}, err
	}
	if answer.status >= http.StatusBadRequest {
		return answer, r.transport.refusal
	}
	return answer, nil
}

func readAll(response *http.Response) ([]byte, error) {
	data, err := io.ReadAll(response.Body)
	if closeErr := response.Body.Close(); err == nil {
		err = closeErr
	}
	return data, err
}

// get reads a resource and gives its ETag.
func (r *driver) get(ctx context.Context, at string, into any) (etag string, err error) {
	if !strings.HasPrefix(at, "/") {
		return "", fmt.Errorf("BMC refers to a resource at %q, which is no path", at)
	}
	answer, err := r.send(ctx, http.MethodGet, at, "", nil)
	if err != nil {
		return "", err
	}
	if err := decode(answer.body, into); err != nil {
		return "", fmt.Errorf("GET %s: BMC answers what is no JSON: %w", at, err)
	}
	if etag = answer.header.Get("ETag"); etag != "" {
		return etag, nil
	}
	var inside struct {
		ETag text `json:"@odata.etag"`
	}
	_ = decode(answer.body, &inside) // it parsed a moment ago
	return string(inside.ETag), nil
}

// members reads a collection, all its pages.
func (r *driver) members(ctx context.Context, at string) ([]string, error) {
	var paths []string
	for pages := 0; at != ""; pages++ {
		if pages == 64 {
			return nil, fmt.Errorf("collection %s has no end", at)
		}
		var page struct {
			Members links `json:"Members"`
			Next    text  `json:"Members@odata.nextLink"`
		}
		if _, err := r.get(ctx, at, &page); err != nil {
			return nil, err
		}
		for _, member := range page.Members {
			paths = append(paths, string(member.ID))
		}
		at = string(page.Next)
	}
	return paths, nil
}

// ignoreRefusal drops an answer that says no, but neither a lost login nor a dead network.
func ignoreRefusal(err error) error {
	var no *refusal
	if errors.As(err, &no) && no.status != http.StatusUnauthorized {
		return nil
	}
	return err
}
