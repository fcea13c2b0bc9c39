package boot

import (
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/httpboot"
	"github.com/rackweft/rackweft/bootd/machine"
)

type metrics struct {
	refusals, unrecorded, seconds *prometheus.CounterVec
}

func newMetrics() *metrics {
	return &metrics{
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rackweft_boot_refusals_total", Help: "Booting machines that were refused or held, by what they requested."}, []string{"question"}),
		unrecorded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rackweft_boot_unrecorded_total", Help: "Decisions that were made but not recorded, because they repeat or are too frequent, by client."}, []string{"who"}),
		seconds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rackweft_boot_second_takers_total", Help: "Requests for what another client has received in the same BootAttempt, or with a secret of one that is over, by what was requested."}, []string{"what"}),
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.refusals, m.unrecorded, m.seconds}
}

// book records decisions, their subjects and reasons.
type book struct {
	peers    *peers
	recorder machine.Recorder
	ledger   *ledger
	metrics  *metrics
}

// query is a question and the client that asks it.
type query struct {
	question string
	machine  *api.Machine // nil when it is not known
	mac      api.MAC      // "" when it is not known
	peer     netip.Addr
}

// decide records an answer and its reason, and reports whether it did: the journal is bounded, and requests of
// strangers must not displace the records of a Machine.
func (b *book) decide(q query, answer, reason string) bool {
	return b.record(q, q.machine == nil || isDiscovered(q.machine), answer, reason)
}

// record is decide for a client that may be a stranger, independent of the Machine that it asks about: strangers
// share a quota, and do not use up the Machine's.
func (b *book) record(q query, stranger bool, answer, reason string) bool {
	x := api.Decision{MAC: q.mac, Question: q.question, Answer: answer, Reason: reason}
	if q.peer.IsValid() {
		x.Peer = q.peer.String()
	}
	if m := q.machine; m != nil {
		x.Machine = m.Metadata.Name
		if m.Status.Attempt.Open() {
			x.Attempt = m.Status.Attempt.ID
		}
	}
	who := "machine"
	if stranger {
		who = "stranger"
	}
	if !b.ledger.admit(x, stranger) {
		b.metrics.unrecorded.WithLabelValues(who).Inc()
		return false
	}
	b.recorder.Decision(x)
	return true
}

// refuse records why a caller of the API is refused, and returns the answer.
func (b *book) refuse(q query, status int, reason, told string) error {
	b.metrics.refusals.WithLabelValues(q.question).Inc()
	m := q.machine
	stranger := m == nil || b.peers.belongs(q.peer, m) != nil && !pins(m, q.peer)
	if b.record(q, stranger, fmt.Sprintf("refused (%d)", status), reason) && m != nil {
		b.recorder.Event(m, api.Warning, "BootRefused", fmt.Sprintf("%s asked for %s: %s", q.peer, q.question, reason))
	}
	return &api.Problem{Status: status, Title: http.StatusText(status), Detail: told}
}

const (
	// repeatAfter is when the same answer to a Machine is recorded again: a machine that is held asks every few
	// seconds, for days.
	repeatAfter = time.Minute
	// strangerAfter is when an unregistered MAC is recorded again.
	strangerAfter = 10 * time.Minute
	// maxSaid limits how many Machines are remembered, with 9 questions each.
	maxSaid = 1 << 16
)

// ledger limits how fast decisions are recorded. A stranger is a client without a registered Machine: strangers
// share a quota.
type ledger struct {
	mu        sync.Mutex
	said      map[asked]answer
	machines  map[string]*rate.Limiter
	witnessed map[string]*rate.Limiter
	strangers map[asked]time.Time // bounded by what crowd lets in within strangerAfter
	crowd     *rate.Limiter
	now       func() time.Time
}

type asked struct{ who, question string }

type answer struct {
	text string
	at   time.Time
}

func newLedger() *ledger {
	return &ledger{
		said: map[asked]answer{}, machines: map[string]*rate.Limiter{}, witnessed: map[string]*rate.Limiter{}, strangers: map[asked]time.Time{},
		crowd: rate.NewLimiter(1, 200), now: time.Now,
	}
}

func (l *ledger) admit(x api.Decision, stranger bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if stranger {
		return l.stranger(x)
	}
	now, key, text := l.now(), asked{x.Machine, x.Question}, x.Attempt+"\n"+x.Answer+"\n"+x.Reason
	if last, ok := l.said[key]; ok && last.text == text && now.Sub(last.at) < repeatAfter {
		return false
	}
	// A registered MAC can be forged too: each Machine has a quota of its own.
	limit := l.machines[x.Machine]
	if limit == nil {
		limit = rate.NewLimiter(rate.Every(2*time.Second), 60)
		l.machines[x.Machine] = limit
	}
	if !limit.AllowN(now, 1) {
		return false
	}
	if len(l.said) >= maxSaid {
		clear(l.said)
		clear(l.machines)
	}
	l.said[key] = answer{text, now}
	return true
}

// witness limits the records of clients that cannot be the Machine: 100 at once, then one a second, independent of
// all other records.
func (l *ledger) witness(machine string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	limit := l.witnessed[machine]
	if limit == nil {
		if len(l.witnessed) >= maxSaid {
			clear(l.witnessed)
		}
		limit = rate.NewLimiter(1, 100)
		l.witnessed[machine] = limit
	}
	return limit.AllowN(l.now(), 1)
}

func (l *ledger) stranger(x api.Decision) bool {
	now, key := l.now(), asked{string(x.MAC), x.Question}
	if key.who == "" {
		key.who = x.Peer
	}
	if at, ok := l.strangers[key]; ok && now.Sub(at) < strangerAfter {
		return false
	}
	if !l.crowd.AllowN(now, 1) {
		return false
	}
	for k, at := range l.strangers {
		if now.Sub(at) >= strangerAfter {
			delete(l.strangers, k)
		}
	}
	l.strangers[key] = now
	return true
}

// held records why a machine waits, and returns the answer: 503, retry.
func (b *book) held(q query, why error) error {
	b.metrics.refusals.WithLabelValues(q.question).Inc()
	b.decide(q, "held (503)", why.Error())
	return &httpboot.Hold{Reason: why.Error(), RetryAfter: holdFor}
}

// hold returns the answer that makes a machine wait and retry.
func (b *book) hold(question, reason string) error {
	b.metrics.refusals.WithLabelValues(question).Inc()
	return &httpboot.Hold{Reason: reason, RetryAfter: holdFor}
}

// holdFor is how long a held machine waits before it retries.
const holdFor = 5 * time.Second

// witness records each action of a client that cannot be the Machine: the number is limited, but repetitions are
// recorded.
func (b *book) witness(m *api.Machine, t api.Taker, reason, answer, text string) {
	b.metrics.seconds.WithLabelValues(t.What).Inc()
	if !b.ledger.witness(m.Metadata.Name) {
		b.metrics.unrecorded.WithLabelValues("taker").Inc()
		return
	}
	x := api.Decision{Machine: m.Metadata.Name, MAC: t.MAC, Peer: t.Address.String(), Question: t.What, Answer: answer, Reason: text}
	if m.Status.Attempt != nil {
		x.Attempt = m.Status.Attempt.ID
	}
	b.recorder.Decision(x)
	b.recorder.Event(m, api.Warning, reason, text)
}
