package overlay

import (
	"errors"
	"fmt"

	"github.com/rackweft/rackweft/internal/nft"
)

// work is one pass over one Network.
type work struct {
	host, tenant place
	network      network
	ports        []guestPort
	complete     bool   // ports lists all
	dir          string // of the tenants' namespaces

	unknown func(vni uint32) (bool, error)
	listed  bool
	entries int
	seen    bool // traffic and stats are set
	traffic Traffic
	drops   Drops
	stats   []PortStats
	changes int
	first   string // of the changes
	// wrongChecksums: see checksumsAreWrong.
	wrongChecksums bool
}

// change describes one change for the log.
type change string

func (c change) String() string { return string(c) }

// did counts changes.
func did[T fmt.Stringer](w *work, changes []T) {
	if w.changes == 0 && len(changes) > 0 {
		w.first = changes[0].String()
	}
	w.changes += len(changes)
}

func (w *work) steps(s stage) []func() error {
	if s == joined {
		return []func() error{w.passages}
	}
	return []func() error{w.firstSysctls, w.links, w.offload, w.sysctls, w.filter, w.guestPorts, w.reach}
}

func (w *work) firstSysctls() error { return w.setSysctls(w.tenant, firstSysctls(w.network)) }

func (w *work) sysctls() error { return w.setSysctls(w.tenant, wantSysctls(w.network)) }

func (w *work) setSysctls(at place, want []sysctl) error {
	set, err := setSysctls(at.ns, want)
	did(w, set)
	return err
}

func (w *work) filter() error {
	done, err := nft.Apply(w.tenant.ns, filterTable(), tenantRules(w.network))
	did(w, done.Changes)
	did(w, done.Removals)
	return err
}

func (w *work) links() error {
	seen, err := listLinks(w.tenant.Handle)
	if err != nil {
		return err
	}
	if err := w.oldPassages(seen); err != nil {
		return err
	}
	ops, err := diffLinks(wantLinks(w.network), seen)
	if err != nil {
		return err
	}
	did(w, ops)
	return applyLinks(w.host.Handle, w.tenant.Handle, w.tenant.ns, ops)
}

// reach sets egress, then the peers' entries. Egress is first, because a direct route
// replaces one by VXLAN and has to be removed before that is set; a fault of egress
// does not affect the peers.
func (w *work) reach() error { return errors.Join(w.egress(), w.peers()) }

func (w *work) peers() error {
	vxlan, err := w.tenant.LinkByName(vxlanName(w.network.vni))
	if err != nil {
		return fmt.Errorf("find %s: %w", vxlanName(w.network.vni), err)
	}
	index := vxlan.Attrs().Index
	c, err := dialRTNL(w.tenant.ns)
	if err != nil {
		return err
	}
	defer c.close()
	seen, err := c.listEntries(index, len(w.network.peers))
	if err != nil {
		return err
	}
	want := wantEntries(w.network.peers)
	ops := diffEntries(want, seen)
	did(w, ops)
	w.entries, w.listed = want.count(), true
	return c.applyEntries(index, ops)
}
