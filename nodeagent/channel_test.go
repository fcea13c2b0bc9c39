package nodeagent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/rackweft/rackweft/api"
)

// opening is a handler with one console, which echoes.
type opening struct {
	*recorder
	far chan net.Conn
}

func (o *opening) Open(_ context.Context, c api.Channel) (io.ReadWriteCloser, error) {
	if c.Guest != "web" {
		return nil, errors.New("there is no such guest")
	}
	near, far := net.Pipe()
	o.far <- far
	return near, nil
}

// The agent opens a channel with a request of its own, and closes it with either end.
func TestChannels(t *testing.T) {
	b := newFakeBootd(t)
	type request struct {
		id, refused string
		r           *http.Request
		w           http.ResponseWriter
		done        chan struct{}
	}
	requests := make(chan request)
	b.channel = func(w http.ResponseWriter, r *http.Request) {
		q := request{r.PathValue("id"), r.URL.Query().Get("refused"), r, w, make(chan struct{})}
		if q.refused == "" {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
		}
		requests <- q
		<-q.done
	}
	streams := make(chan *fakeStream, 1)
	b.stream = func(_ int, s *fakeStream) bool {
		select {
		case streams <- s:
		default:
		}
		return false
	}
	b.start(nil)
	h := newHost(t, b)
	o := &opening{recorder: newRecorder("guest"), far: make(chan net.Conn, 1)}
	_, stop := runAgent(t, h, o)
	defer stop()
	s := <-streams
	s.send(api.ServerFrame{Open: &api.Channel{ID: "c1", Kind: api.ChannelConsole, Guest: "web"}})
	q, far := <-requests, <-o.far
	if q.id != "c1" || q.refused != "" {
		t.Errorf("the request is %+v", q)
	}
	_, _ = io.WriteString(q.w, "ls")
	_ = http.NewResponseController(q.w).Flush()
	got := make([]byte, 2)
	if _, err := io.ReadFull(far, got); err != nil || string(got) != "ls" {
		t.Errorf("the guest hears %q, %v", got, err)
	}
	_, _ = io.WriteString(far, "ok")
	if _, err := io.ReadFull(q.r.Body, got); err != nil || string(got) != "ok" {
		t.Errorf("bootd hears %q, %v", got, err)
	}
	close(q.done) // bootd closes
	if _, err := far.Read(got); !errors.Is(err, io.EOF) {
		t.Errorf("the guest's end: %v", err)
	}

	s.send(api.ServerFrame{Open: &api.Channel{ID: "c2", Kind: api.ChannelConsole, Guest: "web"}})
	q, far = <-requests, <-o.far
	_ = far.Close() // the guest's end closes
	if _, err := q.r.Body.Read(got); !errors.Is(err, io.EOF) {
		t.Errorf("bootd's end: %v", err)
	}
	close(q.done)

	s.send(api.ServerFrame{Open: &api.Channel{ID: "c3", Kind: api.ChannelConsole, Guest: "db"}})
	q = <-requests
	if q.id != "c3" || q.refused != "there is no such guest" {
		t.Errorf("the refusal is %q of %s", q.refused, q.id)
	}
	close(q.done)

	s.send(api.ServerFrame{Open: &api.Channel{ID: "c4", Kind: api.ChannelConsole, Guest: "web"}})
	q, far = <-requests, <-o.far
	stop() // and so does the agent's end
	if _, err := far.Read(got); !errors.Is(err, io.EOF) {
		t.Errorf("the guest's end: %v", err)
	}
	close(q.done)
}
