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

// logger forwards GoBGP's log, and keeps why sessions ended, which GoBGP
// reports nowhere else.
type logger struct {
	log *slog.Logger

	mu      sync.Mutex
	reasons map[string]string         // by address of the neighbour
	losses  map[string]map[string]int // of sessions, by address and reason
	keyless map[string]string         // neighbours whose MD5 key the kernel refused, and why
}

func newLogger(log *slog.Logger) *logger {
	return &logger{log: log, reasons: map[string]string{}, losses: map[string]map[string]int{}, keyless: map[string]string{}}
}

// reason returns why the neighbour's last session ended, or "".
func (l *logger) reason(address string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reasons[address]
}

// lost counts the ends of the neighbour's sessions by reason. GoBGP's own count
// omits sessions that were up for long.
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

// Fatal implements GoBGP's Logger. GoBGP calls it for a policy that it refuses,
// and returns an error as well.
func (l *logger) Fatal(msg string, f gobgplog.Fields) { l.say(slog.LevelError, msg, f) }

// Error implements GoBGP's Logger.
func (l *logger) Error(msg string, f gobgplog.Fields) { l.say(slog.LevelError, msg, f) }

// unknownWithdrawal is logged by GoBGP for each withdrawal of a route that it
// does not have. GoBGP itself sends withdrawals to all neighbours, including
// those to which policy never let it advertise the route.
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

// withoutKey reports, once, why the kernel has no MD5 key for the neighbour.
// GoBGP continues without one, and would accept an unauthenticated connection.
func (l *logger) withoutKey(address string) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	why, failed := l.keyless[address]
	delete(l.keyless, address)
	return why, failed
}

// Info implements GoBGP's Logger. At this level only sessions that come up or
// go down are of interest.
func (l *logger) Info(msg string, f gobgplog.Fields) {
	if f["Key"] == gateAddress().String() {
		return // the gate's session, which is part of each start
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
