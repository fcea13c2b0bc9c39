package systemd

import (
	"bytes"
	"log/slog"
	"testing"
)

func TestNewLogger(t *testing.T) {
	for _, c := range []struct {
		name, journal string
		time          bool
	}{{"to a terminal", "", true}, {"to the journal", "8:12345", false}} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("JOURNAL_STREAM", c.journal)
			var out bytes.Buffer
			log := NewLogger(&out, slog.LevelWarn)
			log.Info("no")
			log.Warn("yes", slog.Group("lease", "time", "noon"))
			if got := bytes.HasPrefix(out.Bytes(), []byte("time=")); got != c.time {
				t.Errorf("it wrote %q; want the time in front: %t", out.Bytes(), c.time)
			}
			if want := []byte("level=WARN msg=yes lease.time=noon\n"); !bytes.HasSuffix(out.Bytes(), want) || bytes.Contains(out.Bytes(), []byte("no\n")) {
				t.Errorf("it wrote %q, want %q in the end", out.Bytes(), want)
			}
		})
	}
}
