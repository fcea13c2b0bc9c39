package health

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// TestJudge: the first look is believed, and then it takes as many in a row.
func TestJudge(t *testing.T) {
	for _, c := range []struct{ looks, told string }{
		{"+", "+"},
		{"-", "-"},
		{"++--+--", "+      "},
		{"+---", "+  -"},
		{"+---+", "+  - "},
		{"+---++", "+  - +"},
		{"-+-+-", "-    "},
		{"-++---++", "- +  - +"},
	} {
		j := judge{rise: 2, fall: 3}
		var told strings.Builder
		for _, l := range c.looks {
			switch {
			case !j.take(l == '+'):
				told.WriteByte(' ')
			case j.passes:
				told.WriteByte('+')
			default:
				told.WriteByte('-')
			}
		}
		if want := c.told + strings.Repeat(" ", len(c.looks)-len(c.told)); told.String() != want {
			t.Errorf("%s is told as %q, want %q", c.looks, told.String(), want)
		}
	}
}

type result struct {
	passes bool
	fault  error
}

// TestWatch follows a web server through its days.
func TestWatch(t *testing.T) {
	var status atomic.Int64
	status.Store(http.StatusNoContent)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" || r.URL.RawQuery != "full=1" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		if status.Load() == http.StatusFound {
			w.Header().Set("Location", "http://192.0.2.1/")
		}
		w.WriteHeader(int(status.Load()))
	}))
	defer server.Close()
	at := netip.MustParseAddrPort(server.Listener.Addr().String())
	check := api.ServiceCheck{Type: api.CheckHTTP, Port: int(at.Port()), Path: "/healthz?full=1", Rise: 2, Fall: 2,
		Interval: api.Duration(10 * time.Millisecond), Timeout: api.Duration(5 * time.Second)}
	ctx, cancel := context.WithCancel(t.Context())
	told, done := make(chan result), make(chan struct{})
	go func() {
		defer close(done)
		Watch(ctx, at.Addr(), check, func(passes bool, fault error) {
			select {
			case told <- result{passes, fault}:
			case <-ctx.Done():
			}
		})
	}()
	expect := func(passes bool, words string) {
		t.Helper()
		got := <-told
		if got.passes != passes || !passes && !strings.Contains(got.fault.Error(), words) || passes && got.fault != nil {
			t.Errorf("told %+v, want %v because of %q", got, passes, words)
		}
	}
	expect(true, "")
	status.Store(http.StatusServiceUnavailable)
	expect(false, "503")
	status.Store(http.StatusFound) // not followed
	expect(true, "")
	server.CloseClientConnections()
	server.Close()
	expect(false, "refused")
	cancel()
	<-done
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(l.Addr().String())
	check := api.ServiceCheck{Type: api.CheckTCP, Port: int(at.Port()), Timeout: api.Duration(5 * time.Second)}
	if err := look(t.Context(), at.Addr(), check); err != nil {
		t.Errorf("what listens does not pass: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := look(t.Context(), at.Addr(), check); err == nil {
		t.Error("what does not listen passes")
	}
	// Nothing answers here: the look ends by itself.
	check.Timeout = api.Duration(50 * time.Millisecond)
	if err := look(t.Context(), netip.MustParseAddr("192.0.2.1"), check); err == nil {
		t.Error("what does not answer passes")
	}
}
