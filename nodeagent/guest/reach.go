package guest

import (
	"context"
	"fmt"
	"io"

	"github.com/rackweft/rackweft/api"
)

// Open implements nodeagent.Opener: a Guest's console, its display, and commands
// inside it.
func (h *Handler) Open(ctx context.Context, c api.Channel) (io.ReadWriteCloser, error) {
	h.mu.Lock()
	g := h.guests[c.UID]
	h.mu.Unlock()
	if g == nil {
		return nil, fmt.Errorf("the host has no Guest %s", c.Guest)
	}
	switch c.Kind {
	case api.ChannelConsole:
		return g.console.open(ctx)
	case api.ChannelVNC:
		return g.console.openDisplay(ctx)
	case api.ChannelExec:
		return g.agent.open(ctx)
	case api.ChannelExport:
		return g.exporter.open(ctx)
	}
	return nil, fmt.Errorf("this nodeagent opens no channel of kind %q", c.Kind)
}
