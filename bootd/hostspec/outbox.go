package hostspec

import (
	"context"
	"sync"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

// lane is one kind of waiting frames, with the maximum number.
type lane int

// The lanes: replies to a host's frames, audits of other hosts for a reflector, channels that it must open, and
// requests for its usage.
const (
	replies lane = iota
	audits
	opens
	usages
)

func (l lane) room() int { return [...]int{replies: 8, audits: 512, opens: 16, usages: 1}[l] }

// outbox holds the frames to be sent to one host, in order of arrival.
type outbox struct {
	ready wait.Signal // frames wait
	freed wait.Signal // one was taken; for the one goroutine that waits for space

	mu      sync.Mutex
	waiting []outgoing
	count   map[lane]int
}

type outgoing struct {
	lane  lane
	frame api.ServerFrame
}

func newOutbox() *outbox {
	return &outbox{ready: wait.NewSignal(), freed: wait.NewSignal(), count: map[lane]int{}}
}

// put adds a frame, unless its lane is full.
func (o *outbox) put(l lane, f api.ServerFrame) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.count[l] >= l.room() {
		return false
	}
	o.count[l]++
	o.waiting = append(o.waiting, outgoing{l, f})
	o.ready.Set()
	return true
}

// wait adds a frame when its lane has space. Only one goroutine may call it.
func (o *outbox) wait(ctx context.Context, l lane, f api.ServerFrame) error {
	for !o.put(l, f) {
		select {
		case <-o.freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// sendOne sends the frame that has waited longest, if any.
func (o *outbox) sendOne(send func(api.ServerFrame) error) error {
	f, ok := o.take()
	if !ok {
		return nil
	}
	return send(f)
}

func (o *outbox) take() (api.ServerFrame, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.waiting) == 0 {
		return api.ServerFrame{}, false
	}
	first := o.waiting[0]
	o.waiting = o.waiting[1:]
	o.count[first.lane]--
	if len(o.waiting) > 0 {
		o.ready.Set()
	}
	o.freed.Set()
	return first.frame, true
}
