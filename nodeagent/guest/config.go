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

// Config is a Guest's Ignition config as bootd has compiled it. Whoever gets it
// closes it.
type Config struct {
	io.ReadCloser
	Type string // Content-Type
}

// access is what one start of a Guest fetches its config with. The token is in
// the pointer that its Ignition reads, and nowhere else.
type access struct {
	Token string `json:"token"`
	// Fetched is when the config was first served whole since the Guest's boot.
	Fetched time.Time `json:"fetched,omitzero"`
}

// newAccess is nil for a Guest that fetches no config.
func newAccess(part *api.GuestPart) *access {
	if part.Config.URL == "" {
		return nil
	}
	return &access{Token: rand.Text()}
}

const (
	bearer     = "Bearer "
	configPath = "/ignition"
	// accessGrace is how long a token is good after the config was fetched:
	// whoever runs in the Guest later is not to have it.
	accessGrace = 10 * time.Minute
	// configWait is what bootd may take.
	configWait = time.Minute
	// configsAtOnce bounds what is asked of bootd when a host boots its Guests.
	configsAtOnce = 8
	// configEvents is how often an event may tell of one Guest's config.
	configEvents = time.Minute
)

// configs is what serves them.
type configs struct {
	slots    chan struct{}
	requests *prometheus.CounterVec
}

func newConfigs() configs {
	return configs{slots: make(chan struct{}, configsAtOnce),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rackweft_guest_config_requests_total",
			Help: "Requests of Guests for their config, by result: served, refused, unavailable, broken."}, []string{"result"})}
}

// grant is a Guest's leave to fetch its config, which ServeConfig asks for: it is
// that of its run, while one is known.
type grant struct {
	*identity
	record *ledger
	vm     *instance
	wake   wait.Signal // of the Guest, which writes down what was fetched

	mu     sync.Mutex
	access *access   // nil while no run is known
	told   time.Time // when an event last told of the config
}

// settle brings together what the record says of the Guest's access and
// what ServeConfig has seen. Without a run that is known there is none.
func (g *grant) settle() {
	now := g.agree()
	if now == nil || g.record.Access == nil || now.Fetched.Equal(g.record.Access.Fetched) {
		return
	}
	if err := g.record.change(func(r *record) { r.Access = now }); err != nil {
		g.log.Warn("that its config was fetched is not on disk", "error", err)
	}
}

// agree makes access that of the run and answers a copy.
func (g *grant) agree() *access {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.record.known() || g.vm.running == nil {
		g.access = nil
		return nil
	}
	written := access{} // a run that has nothing to fetch
	if g.record.Access != nil {
		written = *g.record.Access
	}
	if g.access == nil || g.access.Token != written.Token {
		g.access = &written
	}
	now := *g.access
	return &now
}

// renew is for a Guest that boots again in the same QEMU: one that has its
// system in memory runs its Ignition each time.
func (g *grant) renew() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.access != nil {
		g.access.Fetched = time.Time{}
	}
}

// fetched notes that the config was served whole.
func (g *grant) fetched(token string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.access != nil && g.access.Token == token && g.access.Fetched.IsZero() {
		g.access.Fetched = time.Now().UTC()
		g.wake.Set()
	}
}

// ServeConfig answers a Guest, by its uid, that fetches its config; "" stands for
// a source that is no Guest's. Ignition tries again after a 503, and gives up
// after a 403.
func (h *Handler) ServeConfig(w http.ResponseWriter, r *http.Request, uid string) {
	w.Header().Set("Cache-Control", "no-store")
	if r.URL.Path != configPath {
		http.Error(w, "there is only "+configPath, http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "there is only GET", http.StatusMethodNotAllowed)
		return
	}
	if uid == "" {
		h.o.Log.Warn("a config is refused to an address that is no Guest's here", "from", r.RemoteAddr)
		h.refuse(w, "no Guest of this Network here has your address")
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
		g.grant.tell("ConfigRefused", "its config is refused to "+r.RemoteAddr+": "+refused)
		h.refuse(w, refused)
	default:
		h.sendConfig(w, r, g, token)
	}
}

// admit says whether a run of the Guest is known, and why a token does not do.
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
		return true, fmt.Sprintf("the config was fetched more than %s ago: restart the Guest to have it fetched again", accessGrace)
	}
	return true, ""
}

func (h *Handler) refuse(w http.ResponseWriter, why string) {
	h.configs.requests.WithLabelValues("refused").Inc()
	http.Error(w, why, http.StatusForbidden)
}

// unavailable has the Guest ask again. Why is not for a tenant to know.
func (h *Handler) unavailable(w http.ResponseWriter) {
	h.configs.requests.WithLabelValues("unavailable").Inc()
	w.Header().Set("Retry-After", "5")
	http.Error(w, "the config is not to be had at the moment: ask again", http.StatusServiceUnavailable)
}

// sendConfig passes bootd's answer on.
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
			g.grant.tell("ConfigUnavailable", "it waits for its config: "+err.Error())
		}
		h.unavailable(w)
		return
	}
	defer func() { _ = config.Close() }()
	w.Header().Set("Content-Type", config.Type)
	if _, err := io.Copy(w, config); err != nil {
		h.configs.requests.WithLabelValues("broken").Inc()
		g.log.Warn("the config was not served whole", "error", err)
		panic(http.ErrAbortHandler) // so that the Guest does not take it for whole
	}
	h.configs.requests.WithLabelValues("served").Inc()
	g.grant.fetched(token)
}

// tell tells of the Guest's config, not too often: a Guest can cause it.
func (g *grant) tell(reason, message string) {
	g.mu.Lock()
	soon := time.Since(g.told) < configEvents
	if !soon {
		g.told = time.Now()
	}
	g.mu.Unlock()
	if !soon {
		g.event(api.Warning, reason, message)
	}
}
