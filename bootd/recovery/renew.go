// Package recovery owns the completion of a restore: it prepares a backup's objects for a new start, holds
// everything until it is known what each host runs, and then updates the store to what the hosts have, so that
// nothing is overwritten by provisioning, nothing runs twice and nothing is allocated twice.
package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
)

// recounts is the key prefix of the hosts' reports, by Machine.
const recounts = "recount/"

// Renew prepares a store that was loaded from a backup for a new epoch: operations in progress end, observed
// states become unknown, and revisions of the old history become invalid.
func Renew(ctx context.Context, s *store.Store, epoch int64, backup, now time.Time) error {
	if err := forgetRecounts(ctx, s); err != nil {
		return err
	}
	if err := renewMachines(ctx, s, backup, now); err != nil {
		return err
	}
	if err := renewGuests(ctx, s); err != nil {
		return err
	}
	if err := network.Renew(ctx, s); err != nil {
		return err
	}
	return renewSite(ctx, s, epoch, backup, now)
}

func forgetRecounts(ctx context.Context, s *store.Store) error {
	old, err := s.Raw.List(ctx, recounts)
	if err != nil {
		return err
	}
	for name := range old {
		if err := s.Raw.Delete(ctx, recounts+name); err != nil {
			return err
		}
	}
	return nil
}

func renewMachines(ctx context.Context, s *store.Store, backup, now time.Time) error {
	list, _, err := store.List[api.Machine](ctx, s)
	if err != nil {
		return err
	}
	for _, m := range list {
		if machine.IsDiscovered(m) {
			continue
		}
		_, err := store.Mutate(ctx, s, m.Metadata.Name, func(m *api.Machine) error {
			machine.Renew(m, backup, now)
			m.Status.Conditions.Set(now, api.CondAccounted, api.False, api.AccountedWaiting, "its host has not reported since the restore")
			return nil
		})
		if err != nil {
			return fmt.Errorf("renew Machine %s: %w", m.Metadata.Name, err)
		}
	}
	return nil
}

func renewGuests(ctx context.Context, s *store.Store) error {
	list, _, err := store.List[api.Guest](ctx, s)
	if err != nil {
		return err
	}
	for _, g := range list {
		_, err := store.Mutate(ctx, s, g.Metadata.Name, func(g *api.Guest) error {
			if !slices.ContainsFunc(g.Status.Left, func(p api.GuestPlace) bool { return p.Since != 0 }) {
				return store.ErrUnchanged
			}
			for i := range g.Status.Left {
				g.Status.Left[i].Since = 0 // a revision of the old history
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("renew Guest %s: %w", g.Metadata.Name, err)
		}
	}
	return nil
}

func renewSite(ctx context.Context, s *store.Store, epoch int64, backup, now time.Time) error {
	fresh := new(api.Site)
	fresh.Metadata.Name = api.SiteName
	fresh.SetDefaults()
	if err := s.Create(ctx, fresh); err != nil && !errors.Is(err, store.ErrExists) {
		return fmt.Errorf("create the Site: %w", err)
	}
	_, err := store.Mutate(ctx, s, api.SiteName, func(site *api.Site) error {
		site.Status.Epoch = epoch
		site.Status.Recovery = &api.Recovery{Restored: now.UTC().Truncate(time.Second), Backup: backup.UTC().Truncate(time.Second), Held: true}
		return nil
	})
	if err != nil {
		return fmt.Errorf("renew the Site: %w", err)
	}
	return nil
}
