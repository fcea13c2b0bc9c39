// Package index holds two indexes in memory: values by key, and values by
// overlapping prefixes. The cost of a lookup or a change does not depend on the
// number of values. Neither is safe for concurrent use.
package index

import (
	"maps"
	"net/netip"
)

// Keyed finds values by key. The zero value is empty.
type Keyed[K, V comparable] struct{ sets map[K]map[V]struct{} }

// Add is idempotent.
func (x *Keyed[K, V]) Add(k K, v V) {
	if x.sets == nil {
		x.sets = map[K]map[V]struct{}{}
	}
	if x.sets[k] == nil {
		x.sets[k] = map[V]struct{}{}
	}
	x.sets[k][v] = struct{}{}
}

// Remove does nothing when the value is not there.
func (x *Keyed[K, V]) Remove(k K, v V) {
	delete(x.sets[k], v)
	if len(x.sets[k]) == 0 {
		delete(x.sets, k)
	}
}

// Collect adds the values of a key to a set.
func (x *Keyed[K, V]) Collect(k K, into map[V]struct{}) { maps.Copy(into, x.sets[k]) }

// Empty reports whether there is no value.
func (x *Keyed[K, V]) Empty() bool { return len(x.sets) == 0 }

// Prefixes finds values by prefixes that overlap. The zero value is empty.
type Prefixes[V comparable] struct{ v4, v6 node[V] }

// node is one bit of an address. Values are stored where their prefix ends.
type node[V comparable] struct {
	children [2]*node[V]
	values   map[V]int // how often the value was added
}

func (x *Prefixes[V]) root(a netip.Addr) *node[V] {
	if a.Is4() {
		return &x.v4
	}
	return &x.v6
}

// Add adds a value at a prefix. A value that was added twice stays until it was
// removed twice.
func (x *Prefixes[V]) Add(p netip.Prefix, v V) {
	if !p.IsValid() {
		return
	}
	n := x.root(p.Addr())
	raw := p.Addr().AsSlice()
	for i := range p.Bits() {
		b := bit(raw, i)
		if n.children[b] == nil {
			n.children[b] = new(node[V])
		}
		n = n.children[b]
	}
	if n.values == nil {
		n.values = map[V]int{}
	}
	n.values[v]++
}

// Remove does nothing when the value is not there.
func (x *Prefixes[V]) Remove(p netip.Prefix, v V) {
	if p.IsValid() {
		x.root(p.Addr()).remove(p.Addr().AsSlice(), 0, p.Bits(), v)
	}
}

func (n *node[V]) remove(raw []byte, depth, bits int, v V) {
	if depth == bits {
		if n.values[v] > 1 {
			n.values[v]--
		} else {
			delete(n.values, v)
		}
		return
	}
	b := bit(raw, depth)
	child := n.children[b]
	if child == nil {
		return
	}
	child.remove(raw, depth+1, bits, v)
	if len(child.values) == 0 && child.children == [2]*node[V]{} {
		n.children[b] = nil
	}
}

// Collect adds to a set the values of all prefixes that overlap p.
func (x *Prefixes[V]) Collect(p netip.Prefix, into map[V]struct{}) {
	if !p.IsValid() {
		return
	}
	n := x.root(p.Addr())
	raw := p.Addr().AsSlice()
	for i := range p.Bits() {
		for v := range n.values {
			into[v] = struct{}{}
		}
		if n = n.children[bit(raw, i)]; n == nil {
			return
		}
	}
	n.below(into)
}

func (n *node[V]) below(into map[V]struct{}) {
	for v := range n.values {
		into[v] = struct{}{}
	}
	for _, child := range n.children {
		if child != nil {
			child.below(into)
		}
	}
}

func bit(raw []byte, i int) int { return int(raw[i/8]>>(7-i%8)) & 1 }
