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

// console joins the client's connection and the Machine's serial console until
// either end closes, or the Server stops.
func (s *Server) console(c *call) error {
	if err := c.upgradable("weftctl console " + c.name()); err != nil {
		return err
	}
	m, err := store.Get[api.Machine](c.r.Context(), s.conf.Store, c.name())
	if err != nil {
		return err
	}
	// Early, while a stop still waits for the request itself.
	s.hijacked.Add(1)
	defer s.hijacked.Done()
	ctx, cancel := s.lasting(c)
	defer cancel()
	far, err := s.conf.Console(ctx, m)
	if err != nil {
		return problem(http.StatusBadGateway, "open the console of %s: %s", m.Metadata.Name, err)
	}
	return c.joinTo(ctx, far)
}

// upgradable refuses a request that is none for an Upgrade, and says what makes one.
func (c *call) upgradable(command string) error {
	if c.r.ProtoMajor == 1 && strings.EqualFold(c.r.Header.Get("Upgrade"), api.ConsoleProtocol) {
		return nil
	}
	c.w.Header().Set("Upgrade", api.ConsoleProtocol)
	return problem(http.StatusUpgradeRequired, "a console is opened with an HTTP/1.1 Upgrade to %s; %q does that", api.ConsoleProtocol, command)
}

// joinTo upgrades the client's connection and joins it to far, which it closes.
func (c *call) joinTo(ctx context.Context, far io.ReadWriteCloser) error {
	near, buffered, err := c.rc.Hijack()
	if err != nil {
		return errors.Join(fmt.Errorf("take over the connection: %w", err), far.Close())
	}
	c.status, c.changed = http.StatusSwitchingProtocols, true
	err = near.SetDeadline(time.Time{})
	if err == nil {
		_, err = fmt.Fprintf(near, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", api.ConsoleProtocol)
	}
	if err != nil {
		return errors.Join(err, near.Close(), far.Close())
	}
	join(ctx, near, buffered.Reader, far)
	return nil
}

// join copies both ways, and ends when either way ends or ctx does.
func join(ctx context.Context, near net.Conn, nearIn io.Reader, far io.ReadWriteCloser) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { defer cancel(); _, _ = io.Copy(far, nearIn) })
	wg.Go(func() { defer cancel(); _, _ = io.Copy(near, far) })
	<-ctx.Done()
	_ = near.Close()
	_ = far.Close()
	wg.Wait()
}
