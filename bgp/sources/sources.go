// Package sources owns the sets of addresses that a guest may send from beside
// its own: those of the prefixes that it announces to its host.
//
// Whoever filters the guests' taps makes the sets and asks for them in rules;
// the speaker inside the Network's namespace fills them. So what a guest
// announces is let through, and is shut out again, also while no agent runs.
package sources

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
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

// span is the addresses from first up to, and without, end: what the kernel
// makes of a prefix.
type span struct{ first, end string }

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
			if _, ok := there[name]; !ok && len(spans(prefixes, v4)) > 0 {
				missing = append(missing, tap)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(there)) {
		v4 := strings.HasSuffix(name, suffix4)
		tap := strings.TrimSuffix(strings.TrimSuffix(name, suffix4), suffix6)
		if err := set(c, Set(table, tap, v4), want[tap], v4, keep); err != nil {
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

// set changes one set as a whole, in one transaction: no packet meets half of it.
func set(c *nftables.Conn, s *nftables.Set, prefixes []netip.Prefix, v4, keep bool) error {
	elements, err := c.GetSetElements(s)
	if err != nil {
		return fmt.Errorf("list the nftables set %s: %w", s.Name, err)
	}
	have, want := seen(elements), spans(prefixes, v4)
	if keep {
		want = merge(append(want, have...))
	}
	if slices.Equal(have, want) {
		return nil
	}
	c.FlushSet(s)
	for some := range slices.Chunk(toElements(want), 1000) { // of the 64 KiB that a message has room for
		if err := c.SetAddElements(s, some); err != nil {
			return fmt.Errorf("fill the nftables set %s: %w", s.Name, err)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("fill the nftables set %s: %w", s.Name, err)
	}
	return nil
}

// spans are those of the prefixes of one family, as merge leaves them.
func spans(prefixes []netip.Prefix, v4 bool) []span {
	var list []span
	for _, p := range prefixes {
		if p.IsValid() && p.Addr().Is4() == v4 {
			list = append(list, span{string(p.Masked().Addr().AsSlice()), string(after(p))})
		}
	}
	return merge(list)
}

// after is the first address behind a prefix. Behind the last there is none,
// but nobody is let through from there: it is multicast or reserved.
func after(p netip.Prefix) []byte {
	b := p.Masked().Addr().AsSlice()
	if p.Bits() == 0 {
		return bytes.Repeat([]byte{0xff}, len(b))
	}
	for i, add := (p.Bits()-1)/8, byte(1)<<(7-(p.Bits()-1)%8); i >= 0; i-- {
		b[i] += add
		if b[i] >= add {
			return b
		}
		add = 1
	}
	return bytes.Repeat([]byte{0xff}, len(b))
}

// merge sorts, and joins what overlaps or touches: the kernel takes no span
// that overlaps with another.
func merge(list []span) []span {
	slices.SortFunc(list, func(a, b span) int { return strings.Compare(a.first, b.first) })
	var out []span
	for _, s := range list {
		if last := len(out) - 1; last >= 0 && s.first <= out[last].end {
			out[last].end = max(out[last].end, s.end)
			continue
		}
		out = append(out, s)
	}
	return out
}

func toElements(list []span) []nftables.SetElement {
	var out []nftables.SetElement
	for _, s := range list {
		out = append(out, nftables.SetElement{Key: []byte(s.first)}, nftables.SetElement{Key: []byte(s.end), IntervalEnd: true})
	}
	return out
}

// seen are the spans of a set that the kernel lists in any order.
func seen(elements []nftables.SetElement) []span {
	elements = slices.Clone(elements)
	slices.SortFunc(elements, func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) })
	var out []span
	open := false
	for _, e := range elements {
		switch {
		case !e.IntervalEnd:
			out, open = append(out, span{first: string(e.Key)}), true
		case open:
			out[len(out)-1].end, open = string(e.Key), false
		}
	}
	return out
}
