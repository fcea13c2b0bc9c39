package bmc

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/websocket"

	"github.com/rackweft/rackweft/internal/wait"
)

// console gives one client at a time the serial console of the machine.
type console struct {
	machine Machine
	uri     string // of its WebSocket

	mu   sync.Mutex
	busy bool
}

// serve serves the serial console over a WebSocket. It outlives power cycles:
// while the server is off it waits.
func (s *console) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	busy := s.busy
	s.busy = true
	s.mu.Unlock()
	if busy {
		fail(w, http.StatusServiceUnavailable, message{ID: "Base.1.16.ServiceTemporarilyUnavailable", Severity: "Critical",
			Text:       "The serial console is in use, and serves one session at a time.",
			Resolution: "Close the other session and try again."})
		return
	}
	defer func() {
		s.mu.Lock()
		s.busy = false
		s.mu.Unlock()
	}()
	// A Server without a Handshake requires no Origin: this endpoint is not for
	// browsers.
	websocket.Server{Handler: s.attach}.ServeHTTP(w, r)
}

func (s *console) attach(socket *websocket.Conn) {
	socket.PayloadType = websocket.BinaryFrame
	ctx, cancel := context.WithCancel(socket.Request().Context())
	defer cancel()

	keys := make(chan []byte)
	reader := make(chan struct{})
	go func() { // ends when the socket does; attach waits for it
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
	for ctx.Err() == nil {
		s.relay(ctx, socket, keys)
		_ = wait.For(ctx, 250*time.Millisecond)
	}
	_ = socket.Close() // ends the reader
	<-reader
}

// relay copies between the socket and the console until the server goes off or ctx ends.
func (s *console) relay(ctx context.Context, socket *websocket.Conn, keys <-chan []byte) {
	serial, err := s.machine.DialConsole(ctx)
	if err != nil {
		return // off: the caller retries
	}
	output := make(chan struct{})
	go func() {
		defer close(output)
		_, _ = io.Copy(socket, serial) // ends when either side does
	}()
	defer func() {
		_ = serial.Close()
		<-output
	}()
	for {
		select {
		case <-ctx.Done():
			_ = socket.SetWriteDeadline(time.Now()) // a client that reads nothing must not block the relay
			return
		case <-output:
			return
		case typed := <-keys:
			if _, err := serial.Write(typed); err != nil {
				return
			}
		}
	}
}
