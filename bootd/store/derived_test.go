package store

import (
	"slices"
	"testing"

	"github.com/rackweft/rackweft/api"
)

// TestDerived: a value is made once for each revision, and again for another cache.
func TestDerived(t *testing.T) {
	s := open(t, Config{})
	create(t, s, machine("a"))
	c := runCache(t, s)
	type names []string
	made := 0
	list := func(c *Cache) names {
		return Derived(c, func(c *Cache) names {
			made++
			var all names
			for _, m := range CachedList[api.Machine](c) {
				all = append(all, m.Metadata.Name)
			}
			return all
		})
	}
	for range 3 {
		if got := list(c); !slices.Equal(got, names{"a"}) {
			t.Errorf("derived %v", got)
		}
	}
	if made != 1 {
		t.Errorf("it was made %d times at one revision", made)
	}
	if got := list(c.With(machine("b"))); !slices.Equal(got, names{"a", "b"}) {
		t.Errorf("of another cache it derived %v", got)
	}
	added := machine("c")
	create(t, s, added)
	if err := c.WaitRevision(t.Context(), RevisionOf(added)); err != nil {
		t.Fatal(err)
	}
	if got := list(c); !slices.Equal(got, names{"a", "c"}) {
		t.Errorf("after a change it derived %v", got)
	}
}
