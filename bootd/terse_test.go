package bootd

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/bootd/store"
)

func TestTerse(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(terse{slog.NewTextHandler(&out, nil)}).With("component", "x").WithGroup("g")
	full := fmt.Errorf("write: %w", store.ErrNoSpace)
	log.Warn("repeated", "error", full)
	log.Warn("repeated", "error", fmt.Errorf("write: %w", store.ErrReadOnly))
	log.Error("shown-1", "error", full)
	log.Warn("shown-2", "error", errors.New("another"))
	log.Warn("shown-3", "what", "else")
	if got := out.String(); strings.Contains(got, "repeated") || strings.Count(got, "shown-") != 3 || strings.Count(got, "component=x") != 3 {
		t.Errorf("the log:\n%s", got)
	}
}
