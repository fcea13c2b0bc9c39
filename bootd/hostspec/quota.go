package hostspec

import (
	"encoding/json"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/rackweft/rackweft/api"
)

// quota limits the work that one host can cause in bootd, over all of its streams. A host that sends frames faster
// is read more slowly; further events are dropped, and its status is stored later.
type quota struct {
	frames  *rate.Limiter
	events  *rate.Limiter
	stored  *rate.Limiter // bytes of its Machine's status
	streams *rate.Limiter // that it opens: each causes two records

	mu      sync.Mutex
	dropped int
}

func newQuota() *quota {
	return &quota{frames: rate.NewLimiter(5, 50), events: rate.NewLimiter(rate.Every(2*time.Second), 30),
		stored: rate.NewLimiter(storedRate, storedBurst), streams: rate.NewLimiter(rate.Every(5*time.Second), 20)}
}

// Each status that is stored is a revision of the whole Machine, which etcd keeps
// until it is compacted.
const (
	storedRate     = 32 << 10 // bytes a second
	storedBurst    = 2 << 20
	storedOverhead = 4 << 10 // the rest of a Machine
)

// mayStore charges a status to the bytes that the host may have stored now.
func (q *quota) mayStore(status *api.HostStatus) bool {
	raw, err := json.Marshal(status)
	return err == nil && q.stored.AllowN(time.Now(), len(raw)+storedOverhead)
}

// holdBack records whether the last report was held back, and reports whether that changed.
func (s *stream) holdBack(held bool) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	news = held && !s.heldBack
	s.heldBack = held
	return news
}

// refuse records whether the last report was too large to be stored, and reports whether that changed.
func (s *stream) refuse(refused bool) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	news = refused && !s.refused
	s.refused = refused
	return news
}
