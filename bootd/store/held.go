package store

import (
	"slices"
	"strconv"
	"time"

	"github.com/rackweft/rackweft/api"
)

// HeldRecheck is how often whoever is held back after a restore looks again.
const HeldRecheck = 2 * time.Second

// Recovery is what is left to find out after a restore; nil for nothing.
func Recovery(c *Cache) *api.Recovery {
	s, ok := Cached[api.Site](c, api.SiteName)
	if !ok {
		return nil
	}
	return s.Status.Recovery
}

// Held reports whether the Site was restored and it is not known yet what its
// hosts run: nothing may be powered, placed or allocated.
func Held(c *Cache) bool {
	r := Recovery(c)
	return r != nil && r.Held
}

// Claimed reports whether a host has come, after a restore, that says it is this
// Machine's and was joined as another of the name: it may run, and no one has
// accepted it or written it off.
func Claimed(c *Cache, m *api.Machine) bool {
	r := Recovery(c)
	return r != nil && slices.ContainsFunc(r.Hosts, func(h api.RecoveryHost) bool {
		return h.Name == m.Metadata.Name && h.Key != "" && h.UID != m.Metadata.UID
	})
}

// UnknownGuests are Guests that run on hosts and that a restored Site knows by
// their places and addresses only, which are theirs.
func UnknownGuests(c *Cache) []*api.Guest {
	r := Recovery(c)
	if r == nil {
		return nil
	}
	var list []*api.Guest
	for _, p := range r.Unknown {
		if now, ok := Cached[api.Guest](c, p.Name); p.Kind == "Guest" && (!ok || now.Metadata.UID != p.UID) {
			list = append(list, p.Guest())
		}
	}
	return list
}

// RevisionOf is the store's revision at which an object was last written; 0 for
// one that came from no store.
func RevisionOf(o api.Object) int64 {
	n, err := strconv.ParseInt(o.Meta().ResourceVersion, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
