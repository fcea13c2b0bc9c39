package nft

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Set is a set that rules look keys up in.
type Set struct {
	Name     string
	Key      []Type // several types are concatenated
	Interval bool
	// Elements holds the set's elements by key. When it is nil, Apply only
	// creates the set and leaves its elements alone.
	Elements map[string]bool
	// Keep reports which elements stay although they are not listed. Default:
	// none.
	Keep func(key []byte) bool
	// Element names an element in a Change.
	Element string
}

// Type is the type of a key, as nft(8) calls it.
type Type string

// The types in use.
const (
	IPv4Address   Type = "ipv4_addr"
	IPv6Address   Type = "ipv6_addr"
	Mark          Type = "mark"
	InterfaceName Type = "ifname"
)

func (t Type) kernel() nftables.SetDatatype {
	switch t {
	case IPv4Address:
		return nftables.TypeIPAddr
	case IPv6Address:
		return nftables.TypeIP6Addr
	case Mark:
		return nftables.TypeMark
	case InterfaceName:
		return nftables.TypeIFName
	}
	return nftables.TypeInvalid
}

func (s Set) kernel(table *nftables.Table) *nftables.Set {
	out := &nftables.Set{Table: table, Name: s.Name, Interval: s.Interval, Concatenation: len(s.Key) > 1, KeyType: s.Key[0].kernel()}
	if out.Concatenation {
		var types []nftables.SetDatatype
		for _, t := range s.Key {
			types = append(types, t.kernel())
		}
		out.KeyType = nftables.MustConcatSetType(types...)
	}
	return out
}

// InterfaceKey returns the key for an interface's name.
func InterfaceKey(name string) []byte {
	return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)
}

// Elements lists the keys of a set; none when the set does not exist.
func (c *Conn) Elements(t Table, s Set) ([][]byte, error) {
	sets, err := c.Sets(t)
	if err != nil || !slices.Contains(sets, s.Name) {
		return nil, err
	}
	elements, err := c.elements(s.kernel(t.kernel()))
	if err != nil {
		return nil, err
	}
	var keys [][]byte
	for _, e := range elements {
		keys = append(keys, e.Key)
	}
	return keys, nil
}

func (c *Conn) elements(s *nftables.Set) ([]nftables.SetElement, error) {
	elements, err := c.c.GetSetElements(s)
	if err != nil {
		return nil, fmt.Errorf("list the nftables set %s: %w", s.Name, err)
	}
	return elements, nil
}

// Add adds an element to a set, which is created if it does not exist.
func (c *Conn) Add(t Table, s Set, key []byte) error {
	if err := c.c.AddSet(s.kernel(t.kernel()), []nftables.SetElement{{Key: key}}); err != nil {
		return err
	}
	return c.flush(t)
}

// Delete removes an element from a set.
func (c *Conn) Delete(t Table, s Set, key []byte) error {
	if err := c.c.SetDeleteElements(s.kernel(t.kernel()), []nftables.SetElement{{Key: key}}); err != nil {
		return err
	}
	return c.flush(t)
}

// diff returns the elements to add and to delete.
func (s Set) diff(seen []nftables.SetElement) (add, del []nftables.SetElement) {
	there := map[string]bool{}
	for _, e := range seen {
		there[string(e.Key)] = true
		if !s.Elements[string(e.Key)] && (s.Keep == nil || !s.Keep(e.Key)) {
			del = append(del, nftables.SetElement{Key: e.Key})
		}
	}
	for key := range s.Elements {
		if !there[key] {
			add = append(add, nftables.SetElement{Key: []byte(key)})
		}
	}
	slices.SortFunc(add, func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) })
	return add, del
}

// change adds and deletes elements.
func (c *Conn) change(t Table, s Set, add, del []nftables.SetElement) error {
	set := s.kernel(t.kernel())
	return errors.Join(c.inChunks(t, set, add, c.c.SetAddElements), c.inChunks(t, set, del, c.c.SetDeleteElements))
}

// inChunks keeps each message within an attribute's limit of 64 KiB, and each
// transaction within the socket's buffer.
func (c *Conn) inChunks(t Table, set *nftables.Set, elements []nftables.SetElement, do func(*nftables.Set, []nftables.SetElement) error) error {
	for part := range slices.Chunk(elements, 1000) {
		if err := do(set, part); err != nil {
			return fmt.Errorf("change the nftables set %s: %w", set.Name, err)
		}
		if err := c.flush(t); err != nil {
			return err
		}
	}
	return nil
}
