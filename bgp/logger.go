package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	gobgplog "github.com/osrg/gobgp/v3/pkg/log"
)

// logger passes on what GoBGP has to say, and keeps why sessions ended: it is
// told nowhere else.
type logger struct {
	log *slog.Logger

	mu      sync.Mutex
	reasons map[string]string         // by address of the neighbour
	losses  map[string]map[string]int // of sessions, by address and reason
	keyless map[string]string         // neighbours whose MD5 key the kernel did not take, and why
}

func newLogger(log *slog.Logger) *logger {
	return &logger{log: log, reasons: map[string]string{}, losses: map[string]map[string]int{}, keyless: map[string]string{}}
}

// reason is why the neighbour's last session ended, or "".
func (l *logger) reason(address string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reasons[address]
}

// lost is how often the neighbour's sessions have ended, by reason. GoBGP's own
// count leaves out those that stood for long.
func (l *logger) lost(address string) map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.losses[address])
}

func (l *logger) say(level slog.Level, msg string, fields gobgplog.Fields) {
	var args []any
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		args = append(args, k, fmt.Sprint(fields[k]))
	}
	l.log.Log(context.Background(), level, "bgp: "+msg, args...)
}

// Panic implements GoBGP's Logger.
func (l *logger) Panic(msg string, f gobgplog.Fields) {
	l.say(slog.LevelError, msg, f)
	panic("gobgp: " + msg)
}

// Fatal implements GoBGP's Logger. GoBGP uses it for a policy that it does not
// take, and answers an error, too.
func (l *logger) Fatal(msg string, f gobgplog.Fields) { l.say(slog.LevelError, msg, f) }

// Error implements GoBGP's Logger.
func (l *logger) Error(msg string, f gobgplog.Fields) { l.say(slog.LevelError, msg, f) }

// unknownWithdrawal is what GoBGP says of every withdrawal of what it has not.
// It withdraws from everybody itself, also what policy kept from them.
const unknownWithdrawal = "No matching path for withdraw found, may be path was not installed into table"

// Warn implements GoBGP's Logger.
func (l *logger) Warn(msg string, f gobgplog.Fields) {
	switch msg {
	case unknownWithdrawal:
		return
	case "failed to set md5":
		l.mu.Lock()
		l.keyless[fmt.Sprint(f["Key"])] = fmt.Sprint(f["Err"])
		l.mu.Unlock()
	}
	l.say(slog.LevelWarn, msg, f)
}

// withoutKey answers, once, why the kernel has no MD5 key for the neighbour.
// GoBGP goes on without one, and would take a connection that has none.
func (l *logger) withoutKey(address string) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	why, failed := l.keyless[address]
	delete(l.keyless, address)
	return why, failed
}

// Info implements GoBGP's Logger. Of what GoBGP says at this level, only
// sessions that come and go are for people.
func (l *logger) Info(msg string, f gobgplog.Fields) {
	if f["Key"] == gateAddress().String() {
		return // it comes and goes with each start
	}
	switch msg {
	case "Peer Down":
		l.noteLoss(fmt.Sprint(f["Key"]), fmt.Sprint(f["Reason"]))
	case "Peer Up", "peer graceful restart":
	default:
		return
	}
	l.say(slog.LevelInfo, msg, f)
}

func (l *logger) noteLoss(address, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reasons[address] = reason
	if l.losses[address] == nil {
		l.losses[address] = map[string]int{}
	}
	l.losses[address][reason]++
}

// Debug implements GoBGP's Logger.
func (l *logger) Debug(string, gobgplog.Fields) {}

// SetLevel implements GoBGP's Logger.
func (l *logger) SetLevel(gobgplog.LogLevel) {}

// GetLevel implements GoBGP's Logger.
func (l *logger) GetLevel() gobgplog.LogLevel { return gobgplog.InfoLevel }
