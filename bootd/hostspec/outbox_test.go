package hostspec

import (
	"context"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

func TestOutbox(t *testing.T) {
	o := newOutbox()
	for i := range opens.room() {
		if !o.put(opens, api.ServerFrame{Gone: string(rune('a' + i))}) {
			t.Fatalf("there is no room for %d", i)
		}
	}
	if o.put(opens, api.ServerFrame{}) {
		t.Error("a full lane takes more")
	}
	if !o.put(usages, api.ServerFrame{Gone: "last"}) {
		t.Error("one lane takes another's room")
	}
	var sent []string
	for range opens.room() + 1 {
		select {
		case <-o.ready:
		default:
			t.Fatal("frames wait, and it is not said")
		}
		if err := o.sendOne(func(f api.ServerFrame) error { sent = append(sent, f.Gone); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if sent[0] != "a" || sent[len(sent)-1] != "last" {
		t.Errorf("sent in the order %q", sent)
	}
	if _, more := o.take(); more || len(o.ready) > 0 {
		t.Error("something waits that was sent")
	}
}

func TestOutboxWaits(t *testing.T) {
	o := newOutbox()
	for range replies.room() {
		o.put(replies, api.ServerFrame{})
	}
	done := make(chan error, 1)
	go func() { done <- o.wait(t.Context(), replies, api.ServerFrame{}) }()
	o.take()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if o.wait(ctx, replies, api.ServerFrame{}) == nil {
		t.Error("a full lane takes more")
	}
}
