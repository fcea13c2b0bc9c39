package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Allowed is the condition that every Network in spec.allow is admitted.
const Allowed = "Allowed"

// Allow lists the Networks that are admitted into one, and why the others that it names are not.
func Allow(c *store.Cache, n *api.Network) (in []api.NetworkAllow, out []string) {
	taken := slices.Clone(n.Spec.CIDRs)
	for _, name := range n.Spec.Allow {
		other, ok := store.Cached[api.Network](c, name)
		if why := notAllowed(n, other, ok, taken); why != "" {
			out = append(out, name+" "+why)
			continue
		}
		taken = append(taken, other.Spec.CIDRs...)
		in = append(in, api.NetworkAllow{Network: name, UID: other.Metadata.UID, VNI: other.Status.VNI, CIDRs: other.Spec.CIDRs})
	}
	return in, out
}

// notAllowed says why a Network is not admitted into n; taken are the CIDRs of n and of those already admitted.
// Admission refuses most such Networks; any that got past it must not mix tenants.
func notAllowed(n, other *api.Network, exists bool, taken []netip.Prefix) string {
	switch {
	case !exists:
		return "does not exist"
	case other.Metadata.DeletionTimestamp != nil:
		return "is being deleted"
	case other.Metadata.Name == n.Metadata.Name:
		return "is this Network itself"
	case other.Spec.Zone != n.Spec.Zone:
		return "is in Zone " + other.Spec.Zone
	case other.Status.VNI == 0:
		return "has no VNI yet"
	case Overlap(taken, other.Spec.CIDRs):
		return "has CIDRs that overlap this one's or another's"
	}
	return ""
}

// SameToAllow reports whether two versions of a Network are equal for those that allow it. Either may be nil.
func SameToAllow(old, now *api.Network) bool {
	if old == nil || now == nil {
		return old == now
	}
	a, b := old.Metadata, now.Metadata
	return a.UID == b.UID && a.Generation == b.Generation && (a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) && old.Status.VNI == now.Status.VNI
}

// reportAllowed updates the condition of a Network, and reports whether it changed.
func (c *Controller) reportAllowed(n *api.Network) bool {
	if len(n.Spec.Allow) == 0 {
		had := n.Status.Conditions.Get(Allowed) != nil
		n.Status.Conditions.Remove(Allowed)
		return had
	}
	in, out := Allow(c.Cache, n)
	if len(out) > 0 {
		return n.Status.Conditions.Set(time.Now(), Allowed, api.False, "LeftOut", "of spec.allow, "+strings.Join(out, "; ")+": guests of these are not admitted")
	}
	return n.Status.Conditions.Set(time.Now(), Allowed, api.True, "LetIn", fmt.Sprintf("guests of %d Networks may open connections to this one's", len(in)))
}
