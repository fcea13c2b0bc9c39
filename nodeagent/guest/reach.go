package guest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/qmp"
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
		return g.openConsole(ctx)
	case api.ChannelVNC:
		return g.openDisplay(ctx)
	case api.ChannelExec:
		return g.openExec(ctx)
	case api.ChannelExport:
		return g.openExport(ctx)
	}
	return nil, fmt.Errorf("this nodeagent opens no channel of kind %q", c.Kind)
}

func (g *guest) openConsole(ctx context.Context) (io.ReadWriteCloser, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(g.run, "console.sock"))
	if err != nil {
		return nil, fmt.Errorf("guest %s has no console now: it does not run", g.name)
	}
	return conn, nil
}

// monitorCommand runs one command for whoever reaches a Guest from outside of
// its goroutine.
func (g *guest) monitorCommand(ctx context.Context, name string, arguments, result any) error {
	return g.withMonitor(ctx, func(ctx context.Context, m *qmp.Client) error { return m.Execute(ctx, name, arguments, result) })
}

func (g *guest) withMonitor(ctx context.Context, fn func(context.Context, *qmp.Client) error) error {
	g.mu.Lock()
	monitor := g.monitor
	g.mu.Unlock()
	if monitor == nil || monitor.Err() != nil {
		return fmt.Errorf("guest %s does not run", g.name)
	}
	ctx, cancel := context.WithTimeout(ctx, g.h.timing.answer)
	defer cancel()
	return fn(ctx, monitor)
}

// openDisplay has QEMU serve RFB on one end of a pair of sockets: it listens
// nowhere.
func (g *guest) openDisplay(ctx context.Context) (io.ReadWriteCloser, error) {
	near, far, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("sockets for the display: %w", err)
	}
	defer func() { _ = far.Close() }() // QEMU has its own
	err = g.withMonitor(ctx, func(ctx context.Context, m *qmp.Client) error { return g.giveDisplay(ctx, m, far) })
	if err != nil {
		return nil, errors.Join(err, near.Close())
	}
	return near, nil
}

func (g *guest) giveDisplay(ctx context.Context, m *qmp.Client, far *os.File) error {
	var displays []struct{}
	if err := m.Execute(ctx, "query-vnc-servers", nil, &displays); err != nil {
		return err
	}
	if len(displays) == 0 { // add_client would succeed, and nothing would come of it
		return fmt.Errorf("guest %s has no display: set machine: q35 and display: vga, then weftctl guest restart %[1]s", g.name)
	}
	name := "vnc-" + rand.Text()
	if err := m.GiveFile(ctx, name, far); err != nil {
		return err
	}
	// skipauth: who comes this way has shown who they are.
	err := m.Execute(ctx, "add_client", map[string]any{"protocol": "vnc", "fdname": name, "skipauth": true}, nil)
	if err != nil {
		return errors.Join(err, m.Execute(ctx, "closefd", map[string]string{"fdname": name}, nil))
	}
	return nil
}

// socketPair makes two ends of one connection.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "display"), os.NewFile(uintptr(fds[1]), "display")
	defer func() { _ = ours.Close() }() // near is another one of it
	near, err := net.FileConn(ours)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return near, theirs, nil
}
