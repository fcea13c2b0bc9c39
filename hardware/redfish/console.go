package redfish

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"golang.org/x/net/websocket"

	"github.com/rackweft/rackweft/hardware"
)

// serialConsoles is the SerialConsole object of a ComputerSystem (1.13 and later) or a Manager.
type serialConsoles struct {
	WebSocket struct {
		Enabled *bool `json:"ServiceEnabled"`
		URI     text  `json:"ConsoleURI"`
	} `json:"WebSocket"`
}

func (c serialConsoles) path() string {
	if c.WebSocket.Enabled != nil && !*c.WebSocket.Enabled {
		return ""
	}
	return pathOf(string(c.WebSocket.URI))
}

// console opens the WebSocket console on a connection of its own, pinned like the others.
func (r *driver) console(ctx context.Context) (io.ReadWriteCloser, error) {
	at, err := r.consolePath(ctx)
	if err != nil {
		return nil, err
	}
	if at == "" {
		return nil, fmt.Errorf("%w: no console over its web server (%s); use its SSH or IPMI console", hardware.ErrUnsupported, r.quirk.name)
	}
	base, err := url.Parse(r.base)
	if err != nil {
		return nil, err
	}
	config, err := websocket.NewConfig("wss://"+base.Host+at, r.base)
	if err != nil {
		return nil, fmt.Errorf("console at %q: %w", at, err)
	}
	config.Header = http.Header{}
	r.transport.authorize(config.Header)
	dialer := &tls.Dialer{Config: r.transport.pin.tls()}
	conn, err := dialer.DialContext(ctx, "tcp", base.Host)
	if err != nil {
		return nil, r.transport.failed(err)
	}
	return handshake(ctx, config, conn)
}

func (r *driver) consolePath(ctx context.Context) (string, error) {
	sys, _, err := r.system(ctx)
	if err != nil {
		return "", err
	}
	if at := sys.SerialConsole.path(); at != "" {
		return at, nil
	}
	m, err := r.manager(ctx, sys)
	if err != nil {
		return "", err
	}
	if at := m.SerialConsole.path(); at != "" {
		return at, nil
	}
	return r.quirk.consolePath, nil
}

// handshake upgrades the connection, which it closes on failure or when ctx is over first.
func handshake(ctx context.Context, config *websocket.Config, conn net.Conn) (io.ReadWriteCloser, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	socket, err := websocket.NewClient(config, conn)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		stop()
		_ = conn.Close()
		return nil, fmt.Errorf("console at %s: %w: it may be in use by another client", config.Location.Path, err)
	}
	socket.PayloadType = websocket.BinaryFrame
	return socket, nil
}
