package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/guest"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
)

// Status is the state of the Site after a restore.
func (k *Keeper) Status() api.RecoveryStatus {
	var s api.RecoveryStatus
	site, ok := store.Cached[api.Site](k.Cache, api.SiteName)
	if !ok || site.Status.Recovery == nil {
		return s
	}
	s.Recovery, s.Epoch = site.Status.Recovery, site.Status.Epoch
	for _, m := range store.CachedList[api.Machine](k.Cache) {
		if machine.IsDiscovered(m) {
			continue
		}
		row := api.RecoveryMachine{Name: m.Metadata.Name, Reason: api.AccountedWaiting, Message: "it was registered after the restore, and its host has not reported"}
		if c := m.Status.Conditions.Get(api.CondAccounted); c != nil {
			row.Done, row.Reason, row.Message = c.Status == api.True, c.Reason, c.Message
		}
		s.Machines = append(s.Machines, row)
	}
	return s
}

// ErrNothing says that a person's request has no object.
var ErrNothing = errors.New("nothing to do")

func nothing(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrNothing, fmt.Sprintf(format, args...))
}

// Accept records a person's confirmation of a host's identity. Its Machine must exist, from its manifest: it
// adopts the host's uid and key, and is not provisioned again.
func (k *Keeper) Accept(ctx context.Context, name string) error {
	r := store.Recovery(k.Cache)
	if r == nil {
		return nothing("this bootd waits for no host: no restore is in progress")
	}
	i := slices.IndexFunc(r.Hosts, func(h api.RecoveryHost) bool { return h.Name == name })
	if i < 0 {
		return nothing("no host %s with a key from after the backup has connected", name)
	}
	h := r.Hosts[i]
	if h.Key == "" {
		return nothing("host %s has not connected: only other hosts name it", name)
	}
	kind := api.KindOf(new(api.Machine))
	current, err := store.Get[api.Machine](ctx, k.Store, name)
	if errors.Is(err, store.ErrNotFound) {
		return nothing("Machine %s does not exist: apply its manifest first, then accept its host. It is not provisioned again", name)
	}
	if err != nil {
		return err
	}
	if current.Status.Attempt.Open() {
		return nothing("Machine %s is being provisioned: its host will have another key", name)
	}
	err = k.Store.Reidentify(ctx, kind, name, h.UID, func(o api.Object) { machine.Accept(o.(*api.Machine), h.Key, time.Now()) })
	if err != nil {
		return fmt.Errorf("accept host %s: %w", name, err)
	}
	return k.record(ctx, func(r *api.Recovery) bool { return drop(r, name) })
}

// WriteOff records a person's confirmation that nothing of a host is left, or that it may be provisioned again:
// its key is revoked.
func (k *Keeper) WriteOff(ctx context.Context, name string) error {
	r := store.Recovery(k.Cache)
	if r == nil {
		return nothing("this bootd waits for no host: no restore is in progress")
	}
	_, known := store.Cached[api.Machine](k.Cache, name)
	named := slices.ContainsFunc(r.Hosts, func(h api.RecoveryHost) bool { return h.Name == name })
	if !known && !named {
		return nothing("no Machine and no host is called %s", name)
	}
	if named {
		if err := k.record(ctx, func(r *api.Recovery) bool { return drop(r, name) }); err != nil {
			return err
		}
	}
	if !known || !r.Held {
		return nil
	}
	return k.account(ctx, name, func(*api.Machine) (api.ConditionStatus, string, string) {
		return api.True, api.AccountedGone, "a person has written its host off"
	})
}

func drop(r *api.Recovery, name string) bool {
	before := len(r.Hosts)
	r.Hosts = slices.DeleteFunc(r.Hosts, func(h api.RecoveryHost) bool { return h.Name == name })
	return len(r.Hosts) != before
}

// Finish ends the recovery. Reservations for Networks and Guests that were not applied again are dropped only
// with forget.
func (k *Keeper) Finish(ctx context.Context, forget bool) error {
	r := store.Recovery(k.Cache)
	if r == nil {
		return nothing("there is nothing to finish")
	}
	if waiting, _ := k.waiting(); r.Held {
		return nothing("%d Machines and hosts are not accounted for: %s", len(waiting), few(waiting))
	}
	if n := len(r.Unknown) + len(r.Hosts); n > 0 && !forget {
		return nothing("%d Networks, Guests and hosts are known only to hosts: apply their manifests, or drop them with --forget, after which what they have may be allocated to others", n)
	}
	if err := forgetRecounts(ctx, k.Store); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	_, err := store.Mutate(ctx, k.Store, api.SiteName, func(s *api.Site) error {
		if s.Status.Recovery == nil {
			return store.ErrUnchanged
		}
		s.Status.Recovery = nil
		return nil
	})
	if err != nil {
		return fmt.Errorf("finish the recovery: %w", err)
	}
	return nil
}

func few(names []string) string {
	const most = 5
	if more := len(names) - most; more > 0 {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(names, ", ")
}

// Known sets a new object's uid and related fields to those that hosts have for its kind and name; "" when they
// have none.
func (k *Keeper) Known(o api.Object) (uid string) {
	r := store.Recovery(k.Cache)
	if r == nil {
		return ""
	}
	kind, name := api.KindOf(o).Name, o.Meta().Name
	i := slices.IndexFunc(r.Unknown, func(p api.RecoveryPart) bool { return p.Kind == kind && p.Name == name })
	if i < 0 {
		return ""
	}
	p := r.Unknown[i]
	switch o := o.(type) {
	case *api.Network:
		o.Status.VNI = p.VNI
	case *api.Guest:
		if o.Spec.Network != p.Network {
			return "" // another Guest, on another Network: the old one's addresses stay reserved
		}
		o.Status.Host, o.Status.HostUID, o.Status.Addresses, o.Status.MAC = p.Host, p.HostUID, p.Addresses, guest.MAC(p.UID)
	}
	return p.UID
}
