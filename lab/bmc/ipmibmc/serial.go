package ipmibmc

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/hal"

	"github.com/rackweft/rackweft/internal/wait"
)

const (
	redial   = 250 * time.Millisecond // while the machine is off
	heldBack = 64 << 10               // that the client has not taken yet: then the serial port is not read
)

// serial is the machine's serial port, for one client at a time.
type serial struct {
	config Config

	mu    sync.Mutex
	taken bool
}

// Open gives the serial port. It outlives power cycles.
func (s *serial) Open(context.Context) (hal.ConsoleConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken {
		return nil, errors.New("the serial port is in use")
	}
	s.taken = true
	c := &cable{serial: s, room: wait.NewSignal()}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.work.Go(func() { c.run(ctx) })
	return c, nil
}

// cable is the serial port as one client has it. Close it.
type cable struct {
	serial *serial
	cancel context.CancelFunc
	work   sync.WaitGroup
	room   wait.Signal // some of received was taken

	mu       sync.Mutex
	port     net.Conn // nil: the machine is off
	received []byte
}

// run keeps the port open while the machine is on.
func (c *cable) run(ctx context.Context) {
	for ctx.Err() == nil {
		if port, err := c.serial.config.Machine.DialConsole(ctx); err == nil {
			c.read(ctx, port)
		}
		_ = wait.For(ctx, redial) // ctx is looked at above
	}
}

func (c *cable) read(ctx context.Context, port net.Conn) {
	defer context.AfterFunc(ctx, func() { _ = port.Close() })()
	defer func() { _ = port.Close() }()
	c.plug(port)
	defer c.plug(nil)
	buffer := make([]byte, 4096)
	for {
		n, err := port.Read(buffer)
		if err != nil || c.keep(ctx, buffer[:n]) != nil {
			return
		}
	}
}

func (c *cable) plug(port net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.port = port
}

// keep keeps what was received until it is taken.
func (c *cable) keep(ctx context.Context, received []byte) error {
	for {
		c.mu.Lock()
		if len(c.received) < heldBack {
			c.received = append(c.received, received...)
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		if err := c.room.Wait(ctx, time.Second); err != nil {
			return err
		}
	}
}

// ReadAvailable gives what was received; it does not wait for more.
func (c *cable) ReadAvailable(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := copy(p, c.received)
	c.received = c.received[n:]
	if n > 0 {
		c.room.Set()
	}
	return n, nil
}

// Write types at a machine that is on.
func (c *cable) Write(p []byte) (int, error) {
	c.mu.Lock()
	port := c.port
	c.mu.Unlock()
	if port == nil {
		return len(p), nil
	}
	n, err := port.Write(p)
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) { // it has gone off
		return len(p), nil
	}
	return n, err
}

func (c *cable) SendBreak(context.Context) error { return hal.ErrNotSupported }

// Close gives the serial port back.
func (c *cable) Close() error {
	c.cancel()
	c.work.Wait()
	c.serial.mu.Lock()
	defer c.serial.mu.Unlock()
	c.serial.taken = false
	return nil
}
