package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/rackweft/rackweft/api"
)

const (
	shownLines   = 40       // that a person is shown at first
	backlog      = 256      // pieces that a person may be behind
	backlogBytes = 64 << 10 // the same in bytes: six seconds of a fast serial port
	behindBytes  = 16 << 20 // that all persons together may be behind
)

var errSlow = errors.New("the console sends more than the terminal takes")

// person is one who is attached to a console.
type person struct {
	keeper *Keeper
	port   *port
	tried  bool // the console was being opened for this person; guarded by keeper.mu, as is in
	in     bool // the console was open
	behind int  // bytes in output; guarded by keeper.mu

	output   chan []byte
	admitted chan struct{} // closed when the console is open
	over     chan struct{} // closed at the end
	once     sync.Once
	why      error  // of the end, nil when the person left; before over is closed
	rest     []byte // of the reader alone
}

// Attach joins a person to a Machine's console, which is opened if it is not open. Its last lines come first. Others who
// are attached see the same, and may type, too. ctx bounds the opening only.
func (k *Keeper) Attach(ctx context.Context, m *api.Machine) (io.ReadWriteCloser, error) {
	if m.Spec.BMC == nil {
		return nil, fmt.Errorf("machine %s has no BMC in its spec", m.Metadata.Name)
	}
	one := k.enlist(m)
	select {
	case <-one.admitted:
		return one, nil
	case <-one.over:
		return nil, one.why
	case <-ctx.Done():
		_ = one.Close()
		return nil, ctx.Err()
	case <-k.ctx.Done():
		_ = one.Close()
		return nil, errors.New("bootd is being stopped")
	}
}

func (k *Keeper) enlist(m *api.Machine) *person {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.port(m)
	one := &person{keeper: k, port: p, output: make(chan []byte, backlog), admitted: make(chan struct{}), over: make(chan struct{})}
	for _, line := range p.text(shownLines) {
		one.rest = append(one.rest, line.Text+"\r\n"...)
	}
	p.persons[one] = struct{}{}
	if p.stream != nil {
		one.admit()
	}
	p.wake.Set()
	k.adjust(p)
	return one
}

// admit tells Attach that the console is open. The caller holds keeper.mu.
func (one *person) admit() {
	if !one.in {
		one.in = true
		close(one.admitted)
	}
}

// send passes on what the console sent; who is too slow is dropped. The caller holds keeper.mu.
func (one *person) send(sent []byte) {
	if one.behind+len(sent) <= backlogBytes && one.keeper.behind+len(sent) <= behindBytes {
		select {
		case one.output <- bytes.Clone(sent):
			one.took(-len(sent))
			return
		default:
		}
	}
	one.drop(errSlow)
	for { // what was not taken is not kept either
		select {
		case <-one.output:
		default:
			return
		}
	}
}

// took notes that the person is n bytes less behind. The caller holds keeper.mu.
func (one *person) took(n int) {
	one.behind -= n
	one.keeper.behind -= n
}

// drop ends it. The caller holds keeper.mu.
func (one *person) drop(why error) {
	one.once.Do(func() {
		one.why = why
		close(one.over)
		one.took(one.behind)
		delete(one.port.persons, one)
		one.keeper.adjust(one.port)
	})
}

// Read implements io.Reader.
func (one *person) Read(p []byte) (int, error) {
	if len(one.rest) == 0 {
		select {
		case one.rest = <-one.output:
			one.keeper.mu.Lock()
			one.took(min(len(one.rest), one.behind)) // nothing of one who was dropped
			one.keeper.mu.Unlock()
		case <-one.over:
			if one.why == nil {
				return 0, io.EOF
			}
			return 0, one.why
		case <-one.keeper.ctx.Done():
			return 0, io.EOF
		}
	}
	n := copy(p, one.rest)
	one.rest = one.rest[n:]
	return n, nil
}

// Write implements io.Writer. What is typed while the console is not open is lost.
func (one *person) Write(p []byte) (int, error) {
	select {
	case <-one.over:
		return 0, io.ErrClosedPipe
	default:
	}
	one.keeper.mu.Lock()
	stream := one.port.stream
	one.keeper.mu.Unlock()
	if stream == nil {
		return len(p), nil
	}
	if n, err := stream.Write(p); err != nil && n < len(p) {
		return len(p), nil // it has ended, which its reader tells
	}
	return len(p), nil
}

// Close implements io.Closer.
func (one *person) Close() error {
	one.keeper.mu.Lock()
	defer one.keeper.mu.Unlock()
	one.drop(nil)
	return nil
}
