package redfish

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/net/websocket"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/sshconsole"
)

// entryLimit bounds the command that a tree says to enter the console with.
const entryLimit = 128

// serialConsoles is the SerialConsole object of a ComputerSystem (1.13 and later) or of a Manager. They have little in common.
type serialConsoles struct {
	Enabled   *bool  `json:"ServiceEnabled"`
	Types     []text `json:"ConnectTypesSupported"` // of a Manager
	WebSocket struct {
		Enabled *bool `json:"ServiceEnabled"`
		URI     text  `json:"ConsoleURI"`
	} `json:"WebSocket"`
	SSH struct {
		Enabled *bool  `json:"ServiceEnabled"`
		Port    number `json:"Port"`
		Entry   text   `json:"ConsoleEntryCommand"`
	} `json:"SSH"`
}

func off(enabled *bool) bool { return enabled != nil && !*enabled }

func (c serialConsoles) path() string {
	if off(c.WebSocket.Enabled) {
		return ""
	}
	return pathOf(string(c.WebSocket.URI))
}

// shell reports whether a Manager's console or command line is reached by SSH.
func (c serialConsoles) shell() bool { return !off(c.Enabled) && slices.Contains(c.Types, "SSH") }

// serial is what the tree tells of a server's serial console.
type serial struct {
	system, manager, commands serialConsoles // commands is the Manager's CommandShell
}

// consoles tells the ways by what was read when the system was found.
func (b *BMC) consoles() (ways []hardware.ConsoleWay, err error) {
	r := b.driver
	if at := cmp.Or(r.serial.system.path(), r.serial.manager.path(), r.quirk.consolePath); at != "" {
		ways = append(ways, hardware.ConsoleWay{Kind: hardware.ConsoleWebSocket, Login: true, Open: func(ctx context.Context) (c *hardware.Console, err error) {
			// Not do: a console that is in use by another client is no reason to read the tree again.
			err = b.service.inTurn(ctx, "open the console", func() error {
				c, err = r.webSocket(ctx, at)
				return err
			})
			return c, err
		}})
	}
	if way, ok := r.serial.ssh(r.quirk.ssh); ok {
		shell := hardware.ConsoleWay{Kind: hardware.ConsoleSSH, Open: func(ctx context.Context) (*hardware.Console, error) {
			return sshconsole.Open(ctx, r.endpoint, way)
		}}
		if len(way.Free) > 0 {
			shell.Free = func(ctx context.Context) error { return sshconsole.Free(ctx, r.endpoint, way) }
		}
		ways = append(ways, shell)
	}
	if len(ways) == 0 {
		return nil, fmt.Errorf("%w: its tree tells of no console by WebSocket, and of none by SSH that %s is known to open", hardware.ErrUnsupported, r.quirk.name)
	}
	return ways, nil
}

// ssh is the way by SSH: the vendor's own, completed by what the tree tells.
func (s serial) ssh(vendor sshconsole.Way) (way sshconsole.Way, ok bool) {
	told := s.system.SSH
	if told.Port == 0 && told.Entry == "" {
		known := vendor.Port != 0 || len(vendor.Commands) > 0
		return vendor, known && !off(told.Enabled) && (s.manager.shell() || s.commands.shell())
	}
	way = vendor
	if told.Port > 0 && told.Port < 1<<16 {
		way.Port = int(told.Port)
	}
	if told.Entry != "" {
		way.Commands, way.Instead = nil, ""
		for step := range strings.SplitSeq(string(told.Entry), ";") {
			way.Commands = append(way.Commands, strings.TrimSpace(step))
		}
	}
	if len(way.Commands) > 0 && len(way.Leave) == 0 {
		way.Leave = []string{"\x1b(", "\x1bT", "\x1bt", "\x1c", "\x1d"} // those of vendors that are known
	}
	bad := len(told.Entry) > entryLimit || strings.ContainsFunc(string(told.Entry), unicode.IsControl)
	return way, !bad && !off(told.Enabled)
}

// webSocket opens the WebSocket console on a connection of its own, pinned like the others.
func (r *driver) webSocket(ctx context.Context, at string) (*hardware.Console, error) {
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
	stream, err := handshake(ctx, config, conn)
	if err != nil {
		return nil, err
	}
	return &hardware.Console{ReadWriteCloser: stream, Kind: hardware.ConsoleWebSocket}, nil
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
