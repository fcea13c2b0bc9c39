package bmc

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/websocket"

	"github.com/rackweft/rackweft/internal/wait"
)

// ConsoleAccess is how the serial port of a system is reached.
type ConsoleAccess string

const (
	ByWebSocket       ConsoleAccess = "" // of the HTTPS service
	BySSH             ConsoleAccess = "ssh"
	ByWebSocketAndSSH ConsoleAccess = "both"
	NoConsole         ConsoleAccess = "none"
)

// ConsolePlace is where the resource tree describes the serial port.
type ConsolePlace string

const (
	InSystem  ConsolePlace = ""        // in the ComputerSystem's SerialConsole
	InManager ConsolePlace = "manager" // in the Manager's, without a port and a command, as HPE and Supermicro do
	Nowhere   ConsolePlace = "nowhere"
)

// Console says how a system's serial port is reached.
type Console struct {
	Access ConsoleAccess
	Style  SSHStyle // Default: OpenBMC
	Place  ConsolePlace
}

// SSH reports whether the serial port is reached by SSH.
func (c Console) SSH() bool { return c.Access == BySSH || c.Access == ByWebSocketAndSSH }

func (c Console) webSocket() bool { return c.Access == ByWebSocket || c.Access == ByWebSocketAndSSH }

// console gives one client at a time the serial console of the machine.
type console struct {
	Console
	machine Machine
	number  int // of the system, from 1

	mu     sync.Mutex
	client *client // nil: no one has it
}

// client is the one that has the console.
type client struct {
	end  func()
	gone chan struct{} // closed when it has left
}

// uri is the path of its WebSocket, as OpenBMC's.
func (c *console) uri() string { return "/console" + strconv.Itoa(c.number-1) }

// resource is the system's SerialConsole (HostSerialConsole of the
// ComputerSystem schema), or nil.
func (c *console) resource() resource {
	if c.Place != InSystem || c.Access == NoConsole {
		return nil
	}
	described := resource{"MaxConcurrentSessions": 1}
	if c.webSocket() {
		described["WebSocket"] = resource{"ServiceEnabled": true, "Interactive": true, "ConsoleURI": c.uri()}
	}
	if c.SSH() {
		style := c.Style.dialect()
		ssh := resource{"ServiceEnabled": true, "Port": c.Style.port(c.number), "HotKeySequenceDisplay": style.display}
		if style.entry != "" {
			ssh["ConsoleEntryCommand"], ssh["SharedWithManagerCLI"] = style.entry, true
		}
		described["SSH"] = ssh
	}
	return described
}

// claim takes the console for one client, whose end ends it.
func (c *console) claim(end func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		return false
	}
	c.client = &client{end: end, gone: make(chan struct{})}
	return true
}

func (c *console) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.client.gone)
	c.client = nil
}

// free ends the client that has the console, if one has, and waits until it has left.
func (c *console) free(ctx context.Context) {
	c.mu.Lock()
	holder := c.client
	c.mu.Unlock()
	if holder == nil {
		return
	}
	holder.end()
	select {
	case <-holder.gone:
	case <-ctx.Done():
	}
}

// serve serves the serial console over a WebSocket. It outlives power cycles:
// while the server is off it waits.
func (c *console) serve(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if !c.claim(cancel) {
		fail(w, http.StatusServiceUnavailable, message{ID: "Base.1.16.ServiceTemporarilyUnavailable", Severity: "Critical",
			Text:       "The serial console is in use, and serves one session at a time.",
			Resolution: "Close the other session and try again."})
		return
	}
	defer c.release()
	// A Server without a Handshake requires no Origin: this endpoint is not for
	// browsers.
	websocket.Server{Handler: c.attachSocket}.ServeHTTP(w, r.WithContext(ctx))
}

func (c *console) attachSocket(socket *websocket.Conn) {
	socket.PayloadType = websocket.BinaryFrame
	ctx, cancel := context.WithCancel(socket.Request().Context())
	defer cancel()

	keys := make(chan []byte)
	reader := make(chan struct{})
	go func() { // ends when the socket does; attachSocket waits for it
		defer close(reader)
		defer cancel()
		for {
			var typed []byte
			if err := websocket.Message.Receive(socket, &typed); err != nil {
				return
			}
			select {
			case keys <- typed:
			case <-ctx.Done():
				return
			}
		}
	}()
	c.attach(ctx, terminal{output: socket, keys: keys, stop: func() { _ = socket.SetWriteDeadline(time.Now()) }})
	_ = socket.Close() // ends the reader
	<-reader
}

// terminal is the client's end of the console.
type terminal struct {
	output io.Writer
	keys   <-chan []byte
	stop   func() // ends a write of output that blocks
}

// attach connects the terminal to the console until ctx ends. It polls often, because output before it connects is lost.
func (c *console) attach(ctx context.Context, t terminal) {
	for ctx.Err() == nil {
		c.relay(ctx, t)
		_ = wait.For(ctx, 20*time.Millisecond)
	}
}

// relay copies between the terminal and the console until the server goes off or ctx ends.
func (c *console) relay(ctx context.Context, t terminal) {
	serial, err := c.machine.DialConsole(ctx)
	if err != nil {
		return // off: the caller retries
	}
	output := make(chan struct{})
	go func() {
		defer close(output)
		_, _ = io.Copy(t.output, serial) // ends when either side does
	}()
	defer func() {
		_ = serial.Close()
		<-output
	}()
	for {
		select {
		case <-ctx.Done():
			t.stop() // a client that reads nothing must not block the relay
			return
		case <-output:
			return
		case typed := <-t.keys:
			if _, err := serial.Write(typed); err != nil {
				return
			}
		}
	}
}
