package systemd

import (
	"io"
	"log/slog"
	"os"
)

// NewLogger returns a logger that writes to w. It omits timestamps when the
// journal reads the lines (JOURNAL_STREAM, systemd.exec(5)).
func NewLogger(w io.Writer, level slog.Level) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if os.Getenv("JOURNAL_STREAM") != "" {
		options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(w, options))
}
