package nft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
)

// Ruleset is the wanted content of a table.
type Ruleset struct {
	Sets     []Set
	Counters []string // used by rules
	Chains   []Chain
	// Keep reports which sets, counters and chains stay although they are not
	// listed. Default: none, and the table is removed with the last of them.
	Keep func(name string) bool
}

// Change describes one change, for the log.
type Change string

// String returns the description.
func (c Change) String() string { return string(c) }

// Result is what Apply has changed.
type Result struct {
	Changes  []Change // what was added or set
	Removals []Change // what was removed: the table, chains, elements of sets
	// Counters are the packet counts of the table's counters before the change.
	Counters map[string]uint64
}

// Apply brings a table of a network namespace to its wanted content.
func Apply(ns netns.NsHandle, t Table, want Ruleset) (r Result, err error) {
	c, err := Open(ns)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	seen, err := c.look(t)
	if err != nil {
		return r, err
	}
	p := &pass{conn: c, of: t, table: t.kernel(), want: want, seen: seen}
	err = p.run()
	p.result.Counters = seen.counters
	return p.result, err
}

// seen is the kernel's current content of a table.
type seen struct {
	there    bool
	chains   map[string]*nftables.Chain
	sets     map[string]bool
	counters map[string]uint64
}

func (c *Conn) look(t Table) (s seen, err error) {
	if s.there, err = c.hasTable(t); err != nil || !s.there {
		return s, err
	}
	if s.chains, err = c.chains(t); err != nil {
		return s, err
	}
	if s.sets, err = c.sets(t); err != nil {
		return s, err
	}
	s.counters, err = c.counters(t)
	return s, err
}

// pass is one run of Apply.
type pass struct {
	conn   *Conn
	of     Table
	table  *nftables.Table
	want   Ruleset
	seen   seen
	result Result
}

func (p *pass) run() error {
	if p.leavesNothing() {
		return p.removeTable()
	}
	if !p.seen.there {
		p.conn.c.AddTable(p.table)
		p.changed("add nftables table")
	}
	for _, s := range p.want.Sets {
		if err := p.set(s); err != nil {
			return err
		}
	}
	for _, name := range p.want.Counters {
		if _, there := p.seen.counters[name]; !there {
			p.conn.c.AddObj(p.counter(name))
		}
	}
	for _, c := range p.want.Chains {
		if err := p.chain(c); err != nil {
			return err
		}
	}
	p.removeStrays()
	return p.conn.flush(p.of)
}

func (p *pass) changed(what string) { p.result.Changes = append(p.result.Changes, Change(what)) }
func (p *pass) removed(what string) { p.result.Removals = append(p.result.Removals, Change(what)) }

// leavesNothing reports whether nothing is wanted and nothing is kept.
func (p *pass) leavesNothing() bool {
	if len(p.want.Sets)+len(p.want.Counters)+len(p.want.Chains) > 0 {
		return false
	}
	for name := range p.seen.chains {
		if p.keeps(name) {
			return false
		}
	}
	for name := range p.seen.sets {
		if p.keeps(name) {
			return false
		}
	}
	return true
}

func (p *pass) keeps(name string) bool { return p.want.Keep != nil && p.want.Keep(name) }

func (p *pass) removeTable() error {
	if !p.seen.there {
		return nil
	}
	p.conn.c.DelTable(p.table)
	p.removed("remove nftables table")
	return p.conn.flush(p.of)
}

// set creates a set and updates its elements at once, before the rules that
// refer to them.
func (p *pass) set(s Set) error {
	kernel := s.kernel(p.table)
	there := p.seen.sets[s.Name]
	if !there {
		if err := p.conn.c.AddSet(kernel, nil); err != nil {
			return fmt.Errorf("add the nftables set %s: %w", s.Name, err)
		}
		p.changed("add nftables set " + s.Name)
	}
	if s.Elements == nil {
		return nil
	}
	if err := p.conn.flush(p.of); err != nil {
		return err
	}
	var have []nftables.SetElement
	if there {
		var err error
		if have, err = p.conn.elements(kernel); err != nil {
			return err
		}
	}
	add, del := s.diff(have)
	p.result.Changes = append(p.result.Changes, slices.Repeat([]Change{Change("add " + s.Element)}, len(add))...)
	p.result.Removals = append(p.result.Removals, slices.Repeat([]Change{Change("remove " + s.Element)}, len(del))...)
	return p.conn.change(p.of, s, add, del)
}

// chain updates one chain at the next flush.
func (p *pass) chain(want Chain) error {
	ch := p.seen.chains[want.Name]
	if ch != nil && !want.alike(ch) {
		p.deleteChain(ch)
		ch = nil
	}
	if ch != nil {
		rules, err := p.conn.c.GetRules(p.table, ch)
		if err != nil {
			return fmt.Errorf("list the nftables rules of %s: %w", want.Name, err)
		}
		if slices.EqualFunc(want.Rules, rules, Rule.alike) {
			return nil
		}
		p.conn.c.FlushChain(ch)
	} else {
		ch = p.conn.c.AddChain(want.kernel(p.table))
	}
	p.changed("set nftables chain " + want.Name)
	for _, r := range want.Rules {
		p.conn.c.AddRule(r.kernel(p.table, ch))
	}
	return nil
}

func (p *pass) deleteChain(ch *nftables.Chain) {
	p.conn.c.FlushChain(ch)
	p.conn.c.DelChain(ch)
}

// removeStrays removes what is neither wanted nor kept. Chains go first,
// because their rules refer to the sets and counters.
func (p *pass) removeStrays() {
	for name, ch := range p.seen.chains {
		if !p.keeps(name) && !slices.ContainsFunc(p.want.Chains, func(c Chain) bool { return c.Name == name }) {
			p.deleteChain(ch)
			p.removed("remove nftables chain " + name)
		}
	}
	for name := range p.seen.sets {
		if !p.keeps(name) && !slices.ContainsFunc(p.want.Sets, func(s Set) bool { return s.Name == name }) {
			p.conn.c.DelSet(&nftables.Set{Table: p.table, Name: name})
		}
	}
	for name := range p.seen.counters {
		if !p.keeps(name) && !slices.Contains(p.want.Counters, name) {
			p.conn.c.DeleteObject(p.counter(name))
		}
	}
}

func (p *pass) counter(name string) *nftables.NamedObj {
	return &nftables.NamedObj{Table: p.table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}}
}
