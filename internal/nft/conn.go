package nft

import (
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
)

// Table is a table's name within a network namespace.
type Table struct {
	Family Family
	Name   string
}

// Family is a table's family.
type Family = nftables.TableFamily

// The families in use.
const (
	INet   = nftables.TableFamilyINet
	NetDev = nftables.TableFamilyNetdev
)

func (t Table) kernel() *nftables.Table { return &nftables.Table{Name: t.Name, Family: t.Family} }

// Conn is a connection to the nftables of one network namespace.
type Conn struct{ c *nftables.Conn }

// Open connects to a network namespace.
func Open(ns netns.NsHandle) (*Conn, error) { return open(nftables.WithNetNSFd(int(ns))) }

// Here connects to the calling thread's network namespace.
func Here() (*Conn, error) { return open() }

func open(options ...nftables.ConnOption) (*Conn, error) {
	c, err := nftables.New(append(options, nftables.AsLasting())...)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &Conn{c}, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.c.CloseLasting() }

// HasChain reports whether the table exists and has the chain.
func (c *Conn) HasChain(t Table, name string) (bool, error) {
	chains, err := c.chains(t)
	return chains[name] != nil, err
}

// Sets returns the names of a table's sets, sorted; none when the table does
// not exist.
func (c *Conn) Sets(t Table) ([]string, error) {
	if there, err := c.hasTable(t); err != nil || !there {
		return nil, err
	}
	sets, err := c.sets(t)
	return slices.Sorted(maps.Keys(sets)), err
}

func (c *Conn) hasTable(t Table) (bool, error) {
	tables, err := c.c.ListTablesOfFamily(t.Family)
	if err != nil {
		return false, fmt.Errorf("list the nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(s *nftables.Table) bool { return s.Name == t.Name }), nil
}

// chains returns the table's chains by name.
func (c *Conn) chains(t Table) (map[string]*nftables.Chain, error) {
	all, err := c.c.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, fmt.Errorf("list the nftables chains: %w", err)
	}
	chains := map[string]*nftables.Chain{}
	for _, ch := range all {
		if ch.Table.Name == t.Name {
			chains[ch.Name] = ch
		}
	}
	return chains, nil
}

// sets returns the names of the table's sets. The table must exist.
func (c *Conn) sets(t Table) (map[string]bool, error) {
	all, err := c.c.GetSets(t.kernel())
	if err != nil {
		return nil, fmt.Errorf("list the nftables sets: %w", err)
	}
	names := map[string]bool{}
	for _, s := range all {
		if !s.Anonymous {
			names[s.Name] = true
		}
	}
	return names, nil
}

// counters returns the packet counts of the table's counters by name.
func (c *Conn) counters(t Table) (map[string]uint64, error) {
	objects, err := c.c.GetNamedObjects(t.kernel())
	if err != nil {
		return nil, fmt.Errorf("list the nftables counters: %w", err)
	}
	packets := map[string]uint64{}
	for _, object := range objects {
		named, ok := object.(*nftables.NamedObj)
		if !ok {
			continue
		}
		if counter, ok := named.Obj.(*expr.Counter); ok {
			packets[named.Name] = counter.Packets
		}
	}
	return packets, nil
}

func (c *Conn) flush(t Table) error {
	if err := c.c.Flush(); err != nil {
		return fmt.Errorf("change the nftables table %s: %w", t.Name, err)
	}
	return nil
}
