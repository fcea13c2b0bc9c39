package server

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
)

// TestProfiles takes profiles over the socket, and gets none over TCP, whoever asks.
func TestProfiles(t *testing.T) {
	r := newRig(t)
	for path, words := range map[string]string{
		"/debug/pprof/":                    "goroutine",
		"/debug/pprof/goroutine?debug=1":   "server.(*Server).Run",
		"/debug/pprof/profile?seconds=1":   "",
		"/debug/pprof/trace?seconds=0.05":  "",
		"/debug/pprof/heap":                "",
		"/debug/pprof/symbol?0x1000000000": "num_symbols",
	} {
		status, _, body := r.do("GET", path, "")
		if status != http.StatusOK || !strings.Contains(body, words) || body == "" {
			t.Errorf("%s over the socket: %d, %d bytes without %q", path, status, len(body), words)
		}
		for name, c := range map[string]*api.Client{"admin": r.person("anna", "admin"), "nobody": r.bearer("")} {
			if _, err := c.Do(t.Context(), http.MethodGet, path, nil); !api.IsStatus(err, http.StatusNotFound) {
				t.Errorf("%s over TCP, asked by %s: %v", path, name, err)
			}
		}
	}
	_, _, profile := r.do("GET", "/debug/pprof/heap", "")
	z, err := gzip.NewReader(bytes.NewReader([]byte(profile)))
	must(t, err)
	if raw, err := io.ReadAll(z); err != nil || !bytes.Contains(raw, []byte("rackweft/bootd")) {
		t.Errorf("the heap profile names no function of bootd's: %v", err)
	}
	if status, _, _ := r.do("POST", "/debug/pprof/profile", ""); status != http.StatusMethodNotAllowed && status != http.StatusNotFound {
		t.Errorf("POST: %d", status)
	}
	if status, _, _ := r.do("GET", "/v1/machines", ""); status != http.StatusOK {
		t.Errorf("the API over the socket: %d", status)
	}
}
