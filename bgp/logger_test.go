package bgp

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	gobgplog "github.com/osrg/gobgp/v3/pkg/log"
)

// Why sessions ended is counted, and what GoBGP says of its own needless
// withdrawals is not for people.
func TestLogger(t *testing.T) {
	var out bytes.Buffer
	l := newLogger(slog.New(slog.NewTextHandler(&out, nil)))
	for _, reason := range []string{"read-failed", "hold-timer-expired", "read-failed"} {
		l.Info("Peer Down", gobgplog.Fields{"Key": "198.18.9.1", "Reason": reason})
	}
	l.Warn(unknownWithdrawal, gobgplog.Fields{"Key": "198.19.1.0/24"})
	l.Warn("prefix limit reached", gobgplog.Fields{"Key": "198.18.9.1"})
	if got := l.lost("198.18.9.1"); len(got) != 2 || got["read-failed"] != 2 || got["hold-timer-expired"] != 1 || l.reason("198.18.9.1") != "read-failed" {
		t.Errorf("lost %v, last because of %s", got, l.reason("198.18.9.1"))
	}
	if n := len(l.lost("198.18.9.2")); n != 0 {
		t.Errorf("of another neighbour %d", n)
	}
	if text := out.String(); strings.Contains(text, "withdraw") || !strings.Contains(text, "prefix limit") {
		t.Errorf("it says\n%s", text)
	}
}
