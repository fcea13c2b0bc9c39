package nft

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// span is the range of addresses from first to end, exclusive: the kernel's
// form of a prefix.
type span struct{ first, end string }

// SetPrefixes makes an interval set hold the prefixes of its family, in one
// transaction: no packet sees half of it. With keep, current elements stay.
func (c *Conn) SetPrefixes(t Table, s Set, prefixes []netip.Prefix, keep bool) error {
	set := s.kernel(t.kernel())
	elements, err := c.elements(set)
	if err != nil {
		return err
	}
	have, want := seenSpans(elements), spans(s.own(prefixes))
	if keep {
		want = merge(append(want, have...))
	}
	if slices.Equal(have, want) {
		return nil
	}
	c.c.FlushSet(set)
	for some := range slices.Chunk(toElements(want), 1000) { // a message has room for 64 KiB
		if err := c.c.SetAddElements(set, some); err != nil {
			return fmt.Errorf("fill the nftables set %s: %w", s.Name, err)
		}
	}
	if err := c.c.Flush(); err != nil {
		return fmt.Errorf("fill the nftables set %s: %w", s.Name, err)
	}
	return nil
}

// Takes reports whether any of the prefixes is of the set's family.
func (s Set) Takes(prefixes []netip.Prefix) bool { return len(s.own(prefixes)) > 0 }

// own returns the prefixes of the set's family.
func (s Set) own(prefixes []netip.Prefix) []netip.Prefix {
	v4 := s.Key[0] == IPv4Address
	return slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool { return !p.IsValid() || p.Addr().Is4() != v4 })
}

// spans returns the prefixes as merged ranges.
func spans(prefixes []netip.Prefix) []span {
	var list []span
	for _, p := range prefixes {
		list = append(list, span{string(p.Masked().Addr().AsSlice()), string(after(p))})
	}
	return merge(list)
}

// after returns the first address after a prefix. There is none after the last
// one, which does no harm: those addresses are multicast or reserved.
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

// merge sorts spans and joins those that overlap or touch, because the kernel
// refuses overlapping ones.
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

// seenSpans returns the spans of a set from the kernel's list, which is
// unordered.
func seenSpans(elements []nftables.SetElement) []span {
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
