package store

import (
	"slices"
	"strconv"
	"time"

	"github.com/rackweft/rackweft/api"
)

// HeldRecheck is how often controllers that are held after a restore check again.
const HeldRecheck = 2 * time.Second

// Recovery is the state of an unfinished restore; nil for none.
func Recovery(c *Cache) *api.Recovery {
	s, ok := Cached[api.Site](c, api.SiteName)
	if !ok {
		return nil
	}
	return s.Status.Recovery
}

// Held reports whether the Site was restored and it is not yet known what its hosts run: nothing may be powered,
// placed or allocated.
func Held(c *Cache) bool {
	r := Recovery(c)
	return r != nil && r.Held
}

// Claimed reports whether, after a restore, a host claims to be this Machine's but joined as another Machine of
// that name: it may be running, and was neither accepted nor written off.
func Claimed(c *Cache, m *api.Machine) bool {
	r := Recovery(c)
	return r != nil && slices.ContainsFunc(r.Hosts, func(h api.RecoveryHost) bool {
		return h.Name == m.Metadata.Name && h.Key != "" && h.UID != m.Metadata.UID
	})
}

// UnknownGuests are Guests that run on hosts and of which a restored Site knows only the places and addresses,
// which are reserved.
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

// RevisionOf is the store revision at which an object was last written; 0 for one that is not from the store.
func RevisionOf(o api.Object) int64 {
	n, err := strconv.ParseInt(o.Meta().ResourceVersion, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
