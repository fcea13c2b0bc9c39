package hardware

import (
	"context"
	"io"
)

// ConsoleKind is how a server's serial console is reached.
type ConsoleKind string

// The kinds of consoles.
const (
	ConsoleWebSocket ConsoleKind = "websocket" // of the BMC's web server
	ConsoleSSH       ConsoleKind = "ssh"
	ConsoleSOL       ConsoleKind = "sol" // IPMI's serial over LAN
)

// ConsoleWay is one way to a server's serial console.
type ConsoleWay struct {
	Kind ConsoleKind
	// Login: the console ends with the BMC's login, which must be kept while it is open.
	Login bool
	// Open opens the console; ctx bounds the opening only. It fails with ErrInUse where another client has it.
	Open func(ctx context.Context) (*Console, error)
	// Free ends the client that has the console, whoever that is; nil where the BMC has no way to do that alone.
	Free func(ctx context.Context) error
}

// Console is an open serial console. It has one reader at a time; Write and Close may be called at the same time. Reading ends
// with io.EOF where the BMC has ended it, and with ErrLost where the connection is gone and the BMC may not know.
type Console struct {
	io.ReadWriteCloser
	Kind    ConsoleKind
	HostKey string // that the BMC's SSH server presented, as Endpoint.HostKey; empty for the other kinds
	Freed   bool   // another client's console was ended for it
}
