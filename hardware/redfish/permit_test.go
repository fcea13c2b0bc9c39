package redfish

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/internal/wait"
)

// TestPermit: a command is asked for just before it is sent; a read is not, and
// neither is a logout.
func TestPermit(t *testing.T) {
	var asked, arrived []string
	refused := errors.New("the lead is lost")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived = append(arrived, r.Method)
		w.WriteHeader(http.StatusNoContent)
	}))
	defer server.Close()
	ctx := hardware.WithPermit(t.Context(), func() error { asked = append(asked, "permit"); return refused })
	tr := newTransport(hardware.Endpoint{Address: server.URL}, slog.New(slog.DiscardHandler), wait.For)
	tr.ctx = ctx
	for _, method := range []string{http.MethodGet, http.MethodDelete, http.MethodPost, http.MethodPatch, http.MethodPut} {
		req, err := http.NewRequestWithContext(ctx, method, server.URL+"/redfish/v1/Systems/1", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if resp != nil {
			_ = resp.Body.Close()
		}
		if command := method != http.MethodGet && method != http.MethodDelete; command != errors.Is(err, refused) {
			t.Errorf("%s: %v", method, err)
		}
	}
	if len(asked) != 3 || strings.Join(arrived, " ") != "GET DELETE" {
		t.Errorf("asked %d times, the BMC heard %q", len(asked), arrived)
	}
}
