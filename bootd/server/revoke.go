package server

import (
	"context"
	"errors"
	"sync"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/hostspec"
	"github.com/rackweft/rackweft/bootd/store"
)

// lasting holds the hosts' long calls: blobs and channels. A revocation of the host's certificate ends them, too,
// and not only fails the next call.
type lasting struct {
	mu    sync.Mutex
	calls map[string]map[*call]struct{} // by the host's name
}

func newLasting() *lasting { return &lasting{calls: map[string]map[*call]struct{}{}} }

func (l *lasting) enter(c *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := c.who.host.Name
	if l.calls[name] == nil {
		l.calls[name] = map[*call]struct{}{}
	}
	l.calls[name][c] = struct{}{}
}

// leave must be called before the handler returns: after that its connection must not be used.
func (l *lasting) leave(c *call) {
	if c.who.host == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	name := c.who.host.Name
	delete(l.calls[name], c)
	if len(l.calls[name]) == 0 {
		delete(l.calls, name)
	}
}

// revoke cuts the calls of a host whose certificate its Machine, nil once deleted, now refuses.
func (l *lasting) revoke(name string, m *api.Machine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.calls[name] {
		if hostspec.Refused(m, *c.who.host) != "" {
			c.cut()
		}
	}
}

// followHosts ends the calls of hosts whose certificates are revoked, until ctx ends.
func (s *Server) followHosts(ctx context.Context) error {
	machines, err := api.LookupKind("machine")
	if err != nil {
		return err
	}
	err = s.conf.Cache.Subscribe(ctx, func(c store.Change) {
		m, _ := c.New.(*api.Machine)
		s.streams.lasts.revoke(c.Name, m)
	}, machines)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
