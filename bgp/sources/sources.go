// Package sources manages the sets of addresses that a guest may send from in
// addition to its own: those of the prefixes that it announces to its host.
//
// The owner of the taps' filters creates the sets and refers to them in rules;
// the speaker inside the Network's namespace fills them. So traffic from
// announced prefixes passes, and stops passing after a withdrawal, also while
// no agent runs.
package sources

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/internal/nft"
)

// Table is the nftables table that the sets are in.
func Table() nft.Table { return nft.Table{Family: nft.NetDev, Name: "rackweft"} }

// Suffixes of a set's name after the name of its tap.
const (
	suffix4 = "-sources4"
	suffix6 = "-sources6"
)

// Set returns the set of a tap and a family.
func Set(tap string, v4 bool) nft.Set {
	if v4 {
		return nft.Set{Name: tap + suffix4, Key: []nft.Type{nft.IPv4Address}, Interval: true}
	}
	return nft.Set{Name: tap + suffix6, Key: []nft.Type{nft.IPv6Address}, Interval: true}
}

// tapOf returns the tap of a set, false for a set of another package.
func tapOf(name string) (tap string, ok bool) {
	if tap, ok = strings.CutSuffix(name, suffix4); !ok {
		tap, ok = strings.CutSuffix(name, suffix6)
	}
	return tap, ok
}

// Sync fills the sets of each tap in the calling thread's network namespace
// with its prefixes, and empties the sets of all other taps. With keep, current
// elements stay. The error names each tap without sets, which means that its
// filter does not exist yet; the other sets are updated nevertheless.
func Sync(want map[string][]netip.Prefix, keep bool) (err error) {
	c, err := nft.Here()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	there, err := c.Sets(Table())
	if err != nil {
		return err
	}
	var missing []string
	for tap, prefixes := range want {
		for _, v4 := range []bool{true, false} {
			if s := Set(tap, v4); !slices.Contains(there, s.Name) && s.Takes(prefixes) {
				missing = append(missing, tap)
			}
		}
	}
	for _, name := range there {
		tap, ok := tapOf(name)
		if !ok {
			continue
		}
		if err := c.SetPrefixes(Table(), Set(tap, strings.HasSuffix(name, suffix4)), want[tap], keep); err != nil {
			return err
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return fmt.Errorf("let through what guests announce: %s is not filtered yet", strings.Join(slices.Compact(missing), ", "))
	}
	return nil
}
