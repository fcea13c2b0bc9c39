// Package sources owns the sets of addresses that a guest may send from beside
// its own: those of the prefixes that it announces to its host.
//
// Whoever filters the guests' taps makes the sets and asks for them in rules;
// the speaker inside the Network's namespace fills them. So what a guest
// announces is let through, and is shut out again, also while no agent runs.
package sources

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"

	"github.com/rackweft/rackweft/internal/nft"
)

// Table is the nftables table, of family netdev, that the sets are in.
const Table = "rackweft"

// What a set is called behind the name of its tap.
const (
	suffix4 = "-sources4"
	suffix6 = "-sources6"
)

// Set is a tap's of one family, in a table of that name.
func Set(table *nftables.Table, tap string, v4 bool) *nftables.Set {
	if v4 {
		return &nftables.Set{Table: table, Name: tap + suffix4, KeyType: nftables.TypeIPAddr, Interval: true}
	}
	return &nftables.Set{Table: table, Name: tap + suffix6, KeyType: nftables.TypeIP6Addr, Interval: true}
}

// IsSet tells the names of sets of this package's from others.
func IsSet(name string) bool {
	return strings.HasSuffix(name, suffix4) || strings.HasSuffix(name, suffix6)
}

// Sync makes the sets of each tap in the calling thread's network namespace
// hold its prefixes, and those of all other taps hold none. With keep, what
// they hold stays. A tap whose sets are not there, because nobody filters it
// yet, is named in the error; the others are as they should be.
func Sync(want map[string][]netip.Prefix, keep bool) (err error) {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer func() { err = errors.Join(err, c.CloseLasting()) }()
	table := &nftables.Table{Name: Table, Family: nftables.TableFamilyNetdev}
	there, err := list(c, table)
	if err != nil {
		return err
	}
	var missing []string
	for tap, prefixes := range want {
		for _, v4 := range []bool{true, false} {
			name := Set(table, tap, v4).Name
			if _, ok := there[name]; !ok && len(nft.Spans(prefixes, v4)) > 0 {
				missing = append(missing, tap)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(there)) {
		v4 := strings.HasSuffix(name, suffix4)
		tap := strings.TrimSuffix(strings.TrimSuffix(name, suffix4), suffix6)
		if err := nft.SetPrefixes(c, Set(table, tap, v4), want[tap], v4, keep); err != nil {
			return err
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return fmt.Errorf("let through what guests announce: %s is not filtered yet", strings.Join(slices.Compact(missing), ", "))
	}
	return nil
}

// list names the sets that are there. Without the table there are none.
func list(c *nftables.Conn, table *nftables.Table) (map[string]bool, error) {
	tables, err := c.ListTablesOfFamily(table.Family)
	if err != nil {
		return nil, fmt.Errorf("list the nftables tables: %w", err)
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == table.Name }) {
		return nil, nil
	}
	sets, err := c.GetSets(table)
	if err != nil {
		return nil, fmt.Errorf("list the nftables sets: %w", err)
	}
	names := map[string]bool{}
	for _, s := range sets {
		if IsSet(s.Name) {
			names[s.Name] = true
		}
	}
	return names, nil
}
