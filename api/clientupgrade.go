package api

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// The Upgrade tokens; raw bytes follow.
const (
	ConsoleProtocol = "rackweft-console"
	VNCProtocol     = "rackweft-vnc" // RFB (RFC 6143)
)

// Console opens a Machine's serial console through its BMC. Raw bytes flow
// both ways until either end closes.
func (c *Client) Console(ctx context.Context, machine string) (io.ReadWriteCloser, error) {
	return c.upgrade(ctx, ConsoleProtocol, "/v1/machines/"+url.PathEscape(machine)+"/console")
}

// ConsoleLog returns the last lines of a Machine's serial console.
func (c *Client) ConsoleLog(ctx context.Context, machine string) (*ConsoleLog, error) {
	out := new(ConsoleLog)
	if err := c.call(ctx, http.MethodGet, "/v1/machines/"+url.PathEscape(machine)+"/console/log", nil, out); err != nil {
		return nil, err
	}
	return out, nil
}

// GuestConsole opens a Guest's serial console through its host, as Console does.
// A console has one user at a time.
func (c *Client) GuestConsole(ctx context.Context, guest string) (io.ReadWriteCloser, error) {
	return c.upgrade(ctx, ConsoleProtocol, "/v1/guests/"+url.PathEscape(guest)+"/console")
}

// GuestVNC opens a Guest's display, with a ticket of its own: RFB flows both
// ways until either end closes.
func (c *Client) GuestVNC(ctx context.Context, guest string) (io.ReadWriteCloser, error) {
	t, err := c.GuestVNCTicket(ctx, guest)
	if err != nil {
		return nil, err
	}
	return c.upgrade(ctx, VNCProtocol, t.Path)
}

func (c *Client) upgrade(ctx context.Context, protocol, path string) (io.ReadWriteCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.upgrader().Do(req)
	if err != nil {
		return nil, fmt.Errorf("reach bootd: %w", err)
	}
	rw, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		defer func() { _ = resp.Body.Close() }()
		return nil, readProblem(resp)
	}
	return rw, nil
}

// upgrader returns a client that speaks HTTP/1.1 only: HTTP/2 has no Upgrade.
func (c *Client) upgrader() *http.Client {
	t := c.http.Transport.(*http.Transport).Clone()
	t.ForceAttemptHTTP2 = false
	t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	if t.TLSClientConfig != nil {
		t.TLSClientConfig.NextProtos = []string{"http/1.1"}
	}
	return &http.Client{Transport: t}
}
