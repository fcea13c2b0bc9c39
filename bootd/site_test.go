package bootd

import (
	"errors"
	"strings"
	"testing"
)

// TestJudge tells what is missing or foreign, whatever else is.
func TestJudge(t *testing.T) {
	stored := &identity{Site: "s1", CA: "ca1", SealKey: "k1"}
	keys := func(ids ...string) []string { return ids }
	for _, c := range []struct {
		name   string
		have   parts
		stored *identity
		fresh  bool
		part   string // "" when they belong together
	}{
		{"first start", parts{}, nil, true, ""},
		{"first start with a key of one's own", parts{sealKeys: keys("k1")}, nil, true, ""},
		{"a first start that was interrupted", parts{ca: "ca1", sealKeys: keys("k1")}, nil, true, ""},
		{"all of one Site", parts{"ca1", keys("k1"), stored}, stored, false, ""},
		{"without a copy", parts{"ca1", keys("k1"), nil}, stored, false, ""},
		{"a new seal key before the old one", parts{"ca1", keys("k2", "k1"), stored}, stored, false, ""},
		{"a store of an old version", parts{"ca1", keys("k1"), nil}, nil, false, ""},
		{"the CA was given up", parts{"", keys("k1"), stored}, &identity{Site: "s1", SealKey: "k1"}, false, ""},
		{"the seal key was given up", parts{"ca1", nil, stored}, &identity{Site: "s1", CA: "ca1"}, false, ""},
		{"the store was given up", parts{"ca1", keys("k1"), &identity{}}, nil, true, ""},

		{"no CA", parts{"", keys("k1"), stored}, stored, false, partCA},
		{"no CA, no copy", parts{"", keys("k1"), nil}, stored, false, partCA},
		{"no CA, a store of an old version", parts{"", keys("k1"), nil}, nil, false, partCA},
		{"another CA", parts{"ca2", keys("k1"), stored}, stored, false, partCA},
		{"no seal key", parts{"ca1", nil, stored}, stored, false, partSealKey},
		{"no seal key, a store of an old version", parts{"ca1", nil, nil}, nil, false, partSealKey},
		{"another seal key", parts{"ca1", keys("k2"), stored}, stored, false, partSealKey},
		{"an empty store", parts{"ca1", keys("k1"), stored}, nil, true, partStore},
		{"another Site's store", parts{"ca1", keys("k1"), stored}, &identity{"s2", "ca2", "k2"}, false, partStore},
		{"another Site's store, no copy", parts{"ca1", keys("k1"), nil}, &identity{"s2", "ca2", "k2"}, false, partStore},
		{"another Site's store, the same keys", parts{"ca1", keys("k1"), stored}, &identity{"s2", "ca1", "k1"}, false, partStore},
		{"a second bootd with nothing of its own", parts{}, stored, false, partCA},
		{"a second bootd with keys of its own", parts{"ca2", keys("k2"), nil}, stored, false, partStore},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.have.judge(c.stored, c.fresh, place{dir: "/state"})
			var site *SiteError
			switch {
			case c.part == "" && err != nil:
				t.Errorf("it is refused: %v", err)
			case c.part == "":
			case !errors.As(err, &site) || site.Part != c.part:
				t.Errorf("it is %v, want a fault of the %s", err, c.part)
			case !strings.Contains(err.Error(), "bootd recreate "+c.part) || !strings.Contains(err.Error(), "bootd restore FILE"):
				t.Errorf("it does not say what to do: %v", err)
			}
		})
	}
}
