package guest

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

// Config is a Guest's Ignition config as compiled by bootd. The caller closes
// it.
type Config struct {
	io.ReadCloser
	Type string // Content-Type
}

// access is what one start of a Guest may fetch its config with. The token is
// only in the pointer that the Guest's Ignition reads.
type access struct {
	Token string `json:"token"`
	// Fetched is when the config was first served completely since the Guest
	// booted.
	Fetched time.Time `json:"fetched,omitzero"`
}

// newAccess returns nil for a Guest that fetches no config.
func newAccess(part *api.GuestPart) *access {
	if part.Config.URL == "" {
		return nil
	}
	return &access{Token: rand.Text()}
}

const (
	bearer     = "Bearer "
	configPath = "/ignition"
	// accessGrace is how long a token stays valid after the config was fetched,
	// so that programs that run in the Guest later cannot use it.
	accessGrace = 10 * time.Minute
	// configWait bounds a request to bootd.
	configWait = time.Minute
	// configsAtOnce bounds the concurrent requests to bootd, such as when a
	// host starts all its Guests.
	configsAtOnce = 8
	// configEvents is the shortest time between two events about one Guest's
	// config.
	configEvents = time.Minute
)

// configs counts and limits the requests for configs.
type configs struct {
	slots    chan struct{}
	requests *prometheus.CounterVec
}

func newConfigs() configs {
	return configs{slots: make(chan struct{}, configsAtOnce),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rackweft_guest_config_requests_total",
			Help: "Requests of Guests for their config, by result: served, refused, unavailable, broken."}, []string{"result"})}
}

// grant is the permission of a Guest's current run to fetch its config.
// ServeConfig checks it.
type grant struct {
	*identity
	record *ledger
	vm     *instance
	wake   wait.Signal // wakes the Guest, which records the fetch on disk

	mu      sync.Mutex
	access  *access   // nil while no run is known
	emitted time.Time // time of the last event about the config
}

// settle synchronises the access in the record with what ServeConfig has
// served. There is none while no run is known.
func (g *grant) settle() {
	now := g.agree()
	if now == nil || g.record.Access == nil || now.Fetched.Equal(g.record.Access.Fetched) {
		return
	}
	if err := g.record.change(func(r *record) { r.Access = now }); err != nil {
		g.log.Warn("cannot record that its config was fetched", "error", err)
	}
}

// agree sets access to that of the run and returns a copy of it.
func (g *grant) agree() *access {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.record.known() || g.vm.running == nil {
		g.access = nil
		return nil
	}
	written := access{} // a run without a config to fetch
	if g.record.Access != nil {
		written = *g.record.Access
	}
	if g.access == nil || g.access.Token != written.Token {
		g.access = &written
	}
	now := *g.access
	return &now
}

// renew allows another fetch when the Guest reboots in the same QEMU: a system
// that lives in memory runs Ignition at each boot.
func (g *grant) renew() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.access != nil {
		g.access.Fetched = time.Time{}
	}
}

// fetched records that the config was served completely.
func (g *grant) fetched(token string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.access != nil && g.access.Token == token && g.access.Fetched.IsZero() {
		g.access.Fetched = time.Now().UTC()
		g.wake.Set()
	}
}

// ServeConfig serves the config to the Guest with this uid, "" when the source
// address is not a Guest's. Ignition retries after a 503 and gives up after a
// 403.
func (h *Handler) ServeConfig(w http.ResponseWriter, r *http.Request, uid string) {
	w.Header().Set("Cache-Control", "no-store")
	if r.URL.Path != configPath {
		http.Error(w, "the only path is "+configPath, http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "the only method is GET", http.StatusMethodNotAllowed)
		return
	}
	if uid == "" {
		h.o.Log.Warn("refused a config: the source address is not a Guest's", "from", r.RemoteAddr)
		h.refuse(w, "no Guest of this Network on this host has your address")
		return
	}
	h.mu.Lock()
	g := h.guests[uid]
	h.mu.Unlock()
	if g == nil {
		h.unavailable(w)
		return
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), bearer)
	known, refused := g.grant.admit(token)
	switch {
	case !known:
		h.unavailable(w)
	case refused != "":
		g.grant.event("ConfigRefused", "refused its config to "+r.RemoteAddr+": "+refused)
		h.refuse(w, refused)
	default:
		h.sendConfig(w, r, g, token)
	}
}

// admit reports whether a run of the Guest is known, and why a token is
// refused.
func (g *grant) admit(token string) (known bool, refused string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch a := g.access; {
	case a == nil:
		return false, ""
	case a.Token == "":
		return true, "this Guest was started without a config"
	case subtle.ConstantTimeCompare([]byte(a.Token), []byte(token)) != 1:
		return true, "the token is not that of this Guest's last start"
	case !a.Fetched.IsZero() && time.Since(a.Fetched) > accessGrace:
		return true, fmt.Sprintf("the config was fetched more than %s ago: restart the Guest to fetch it again", accessGrace)
	}
	return true, ""
}

func (h *Handler) refuse(w http.ResponseWriter, why string) {
	h.configs.requests.WithLabelValues("refused").Inc()
	http.Error(w, why, http.StatusForbidden)
}

// unavailable makes the Guest retry. The reason is not shown to tenants.
func (h *Handler) unavailable(w http.ResponseWriter) {
	h.configs.requests.WithLabelValues("unavailable").Inc()
	w.Header().Set("Retry-After", "5")
	http.Error(w, "the config is not available at the moment: try again", http.StatusServiceUnavailable)
}

// sendConfig forwards bootd's answer.
func (h *Handler) sendConfig(w http.ResponseWriter, r *http.Request, g *guest, token string) {
	ctx, cancel := context.WithTimeout(r.Context(), configWait)
	defer cancel()
	select {
	case h.configs.slots <- struct{}{}:
		defer func() { <-h.configs.slots }()
	case <-ctx.Done():
		h.unavailable(w)
		return
	}
	config, err := h.o.Config(ctx, g.name)
	if err != nil {
		if r.Context().Err() == nil {
			g.grant.event("ConfigUnavailable", "waiting for its config: "+err.Error())
		}
		h.unavailable(w)
		return
	}
	defer func() { _ = config.Close() }()
	w.Header().Set("Content-Type", config.Type)
	if _, err := io.Copy(w, config); err != nil {
		h.configs.requests.WithLabelValues("broken").Inc()
		g.log.Warn("the config was not served completely", "error", err)
		panic(http.ErrAbortHandler) // closes the connection, so that the Guest sees a truncated body
	}
	h.configs.requests.WithLabelValues("served").Inc()
	g.grant.fetched(token)
}

// event emits an event about the Guest's config, rate-limited because a Guest
// can cause it.
func (g *grant) event(reason, message string) {
	g.mu.Lock()
	soon := time.Since(g.emitted) < configEvents
	if !soon {
		g.emitted = time.Now()
	}
	g.mu.Unlock()
	if !soon {
		g.identity.event(api.Warning, reason, message)
	}
}
