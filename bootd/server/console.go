package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// openConsole connects the client to the Machine's serial console until either end closes, or the Server stops.
func (h *machines) openConsole(c *call) error {
	if err := c.upgradable(api.ConsoleProtocol, "weftctl console "+c.name()); err != nil {
		return err
	}
	m, err := store.Get[api.Machine](c.r.Context(), h.store, c.name())
	if err != nil {
		return err
	}
	if err := h.objects.reaches(c, m); err != nil {
		return err
	}
	// Early, while a stop of the Server still waits for this request.
	h.streams.hijacked.Add(1)
	defer h.streams.hijacked.Done()
	ctx, cancel := h.streams.lasting(c)
	defer cancel()
	far, err := h.console(ctx, m)
	if err != nil {
		return problem(http.StatusBadGateway, "open the console of %s: %s", m.Metadata.Name, err)
	}
	near, err := c.upgrade(api.ConsoleProtocol)
	if err != nil {
		return errors.Join(err, far.Close())
	}
	join(ctx, near, far)
	return nil
}

// logLines is more than is kept of a console.
const logLines = 1000

// consoleLog shows what was received of the Machine's serial console.
func (h *machines) consoleLog(c *call) error {
	m, err := store.Get[api.Machine](c.r.Context(), h.store, c.name())
	if err != nil {
		return err
	}
	if err := h.objects.reaches(c, m); err != nil {
		return err
	}
	return c.json(http.StatusOK, api.ConsoleLog{Console: m.Status.BMC.Console, Lines: append([]api.ConsoleLine{}, h.lines(m, logLines)...)})
}

// upgradable refuses a request without an Upgrade, and says how to make one.
func (c *call) upgradable(protocol, command string) error {
	if c.r.ProtoMajor == 1 && strings.EqualFold(c.r.Header.Get("Upgrade"), protocol) {
		return nil
	}
	c.w.Header().Set("Upgrade", protocol)
	return problem(http.StatusUpgradeRequired, "this needs an HTTP/1.1 Upgrade to %s, as %q makes", protocol, command)
}

// upgrade takes over the client's connection.
func (c *call) upgrade(protocol string) (io.ReadWriteCloser, error) {
	conn, buffered, err := c.rc.Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	c.status, c.changed = http.StatusSwitchingProtocols, true
	err = conn.SetDeadline(time.Time{})
	if err == nil {
		_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &upgraded{conn, buffered.Reader}, nil
}

// upgraded is a connection of which some bytes have already been read.
type upgraded struct {
	net.Conn
	in io.Reader
}

func (u *upgraded) Read(p []byte) (int, error) { return u.in.Read(p) }

// join copies both ways, and ends when either way ends or ctx does.
func join(ctx context.Context, near, far io.ReadWriteCloser) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { defer cancel(); _, _ = io.Copy(far, near) })
	wg.Go(func() { defer cancel(); _, _ = io.Copy(near, far) })
	<-ctx.Done()
	_ = near.Close()
	_ = far.Close()
	wg.Wait()
}
