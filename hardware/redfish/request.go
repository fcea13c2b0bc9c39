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

	"github.com/rackweft/rackweft/hardware"
)

// send is one request with the login. A session that the BMC has forgotten (idle, or it restarted) is opened
// again, once.
func (s *Service) send(ctx context.Context, method, at, etag string, body any) (reply, error) {
	answer, err := s.sendOnce(ctx, method, at, etag, body)
	var no *refusal
	if !errors.As(err, &no) || no.status != http.StatusUnauthorized || !s.transport.entered() {
		s.proven = s.proven || err == nil && s.transport.entered()
		return answer, err
	}
	if s.alive(ctx) {
		no.alive = true // meant for this request: another session would be refused as well
		return answer, no
	}
	if s.transport.basic != "" {
		s.transport.forget()
		return reply{}, s.unauthorized(no)
	}
	s.log.Info("BMC has ended the session, logging in again")
	s.transport.forget()
	if err := s.login(ctx); err != nil {
		return reply{}, fmt.Errorf("log in again: %w", err)
	}
	answer, err = s.sendOnce(ctx, method, at, etag, body)
	if errors.As(err, &no) {
		no.alive = true
	}
	return answer, err
}

// alive says whether the BMC still lets us in.
func (s *Service) alive(ctx context.Context) bool {
	at := s.transport.session
	if s.transport.basic != "" && s.proven {
		at = string(s.root.Systems.ID)
	}
	if at == "" {
		return false
	}
	_, err := s.sendOnce(ctx, http.MethodGet, at, "", nil)
	var no *refusal
	return err == nil || errors.As(err, &no) && no.status != http.StatusUnauthorized && no.status != http.StatusNotFound
}

// sendOnce is one request with what lets us in, or without before the login.
func (s *Service) sendOnce(ctx context.Context, method, at, etag string, body any) (reply, error) {
	s.transport.ctx = ctx
	if s.refused && !s.transport.entered() {
		return reply{}, errClosed
	}
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return reply{}, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, s.base+at, bytes.NewReader(data))
	if err != nil {
		return reply{}, fmt.Errorf("%s %q: %w", method, at, err)
	}
	req.Header.Set("Accept", "application/json")
	s.transport.authorize(req.Header)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if etag != "" {
		req.Header.Set("If-Match", etag)
	}
	response, err := s.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	answer := reply{status: response.StatusCode, header: response.Header}
	if answer.body, err = readAll(response); err != nil {
		return reply{}, err
	}
	if answer.status >= http.StatusBadRequest {
		return answer, s.transport.refusal
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
func (s *Service) get(ctx context.Context, at string, into any) (etag string, err error) {
	if !strings.HasPrefix(at, "/") {
		return "", fmt.Errorf("BMC refers to a resource at %q, which is no path", at)
	}
	answer, err := s.send(ctx, http.MethodGet, at, "", nil)
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

// members reads a collection, all its pages, and gives the paths of what is in it.
func (s *Service) members(ctx context.Context, at string) (paths []string, err error) {
	all, err := s.pages(ctx, at)
	for _, raw := range all {
		var member link
		_ = decode(raw, &member) // it parsed as a part of the collection
		paths = append(paths, string(member.ID))
	}
	return paths, err
}

// ignoreRefusal drops an answer that says no, but neither a lost login nor a dead network.
func ignoreRefusal(err error) error {
	var no *refusal
	if errors.As(err, &no) && !errors.Is(err, hardware.ErrUnauthorized) && !errors.Is(err, hardware.ErrPasswordChange) {
		return nil
	}
	return err
}
