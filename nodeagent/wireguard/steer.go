package wireguard

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/kernel"
)

const (
	carried  = 8472 // UDP port of what is encrypted: package overlay's VXLAN
	protocol = 216  // marks rackweft's rules and routes, as package overlay's
	table    = 8472
	priority = 216 // before the tables of ordinary routes, after the local one

	// lastMetric is of the route that counts when there is no other.
	lastMetric = 1 << 31
	// deviceMetric is what IPv6 makes of 0.
	deviceMetric = 1024
)

// families are those of the underlay's addresses. With none pinned, they are
// those of the peers.
func families(u api.Underlay) map[int]bool {
	out := map[int]bool{}
	addrs := u.Addresses
	if len(addrs) == 0 {
		for _, p := range u.Encryption.Peers {
			addrs = append(addrs, p.Addresses...)
		}
	}
	for _, a := range addrs {
		if a.Is4() {
			out[unix.AF_INET] = true
		} else {
			out[unix.AF_INET6] = true
		}
	}
	return out
}

// steer leads what is to be encrypted into the device with that index, or
// nowhere when it is 0. The ends of the way are made before its beginning.
func (p *pass) steer(index int, families map[int]bool) error {
	var faults []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		if !families[family] {
			continue
		}
		leaked, err := p.routes(family, index)
		if err = errors.Join(err, p.rules(family, leaked)); err != nil {
			faults = append(faults, fmt.Errorf("route VXLAN into %s: %w", Name, err))
		}
	}
	return errors.Join(faults...)
}

func (p *pass) listRoutes(family int) ([]netlink.Route, error) {
	return kernel.List(func() ([]netlink.Route, error) {
		return p.handle.RouteListFiltered(family, &netlink.Route{Table: table, Protocol: protocol}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	})
}

// everywhere is the destination of a default route.
func everywhere(family int) *net.IPNet {
	if family == unix.AF_INET {
		return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

// routes makes those of the table. leaked says that it had no last route: then
// packets may have found their way in the next table, and IPv6 remembers it.
func (p *pass) routes(family, index int) (leaked bool, err error) {
	want := []netlink.Route{{Family: family, Table: table, Protocol: protocol, Dst: everywhere(family), Type: unix.RTN_UNREACHABLE, Priority: lastMetric}}
	if index != 0 {
		want = append(want, netlink.Route{Family: family, Table: table, Protocol: protocol, Dst: everywhere(family), Type: unix.RTN_UNICAST,
			Priority: deviceMetric, LinkIndex: index, Scope: netlink.SCOPE_LINK})
	}
	seen, err := p.listRoutes(family)
	if err != nil {
		return false, err
	}
	for _, w := range want {
		if i := indexRoute(seen, w); i >= 0 {
			seen = slices.Delete(seen, i, i+1)
			continue
		}
		leaked = leaked || w.Type == unix.RTN_UNREACHABLE
		p.did("add route %s", w)
		if err := p.handle.RouteReplace(&w); err != nil {
			return leaked, err
		}
	}
	for _, s := range seen {
		p.did("remove route %s", s)
		if err := p.handle.RouteDel(&s); err != nil && !errors.Is(err, unix.ESRCH) {
			return leaked, err
		}
	}
	return leaked, nil
}

func indexRoute(seen []netlink.Route, w netlink.Route) int {
	for i, s := range seen {
		device := s.LinkIndex == w.LinkIndex || w.Type == unix.RTN_UNREACHABLE // IPv6 shows loopback there
		ones := 0
		if s.Dst != nil {
			ones, _ = s.Dst.Mask.Size()
		}
		if s.Type == w.Type && s.Priority == w.Priority && device && ones == 0 && len(s.Gw) == 0 && len(s.MultiPath) == 0 {
			return i
		}
	}
	return -1
}

func (p *pass) listRules(family int) ([]netlink.Rule, error) {
	return kernel.List(func() ([]netlink.Rule, error) { return p.handle.RuleList(family) })
}

// wantRules are those of a family. The one for what comes from the port is for
// packets out of the device: IPv4 asks whether answers would go where they came
// from (rp_filter), for which it turns the ports around.
func wantRules(family int) []*netlink.Rule {
	to, from := newRule(family), newRule(family)
	to.Dport = netlink.NewRulePortRange(carried, carried)
	from.Sport = netlink.NewRulePortRange(carried, carried)
	if family == unix.AF_INET6 {
		return []*netlink.Rule{to}
	}
	return []*netlink.Rule{to, from}
}

func newRule(family int) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Table, r.Priority, r.Protocol, r.IPProto = family, table, priority, protocol, unix.IPPROTO_UDP
	return r
}

// rules makes those of a family; afresh, also those that are there: that makes
// the kernel forget the ways that packets took.
func (p *pass) rules(family int, afresh bool) error {
	seen, err := p.listRules(family)
	if err != nil {
		return err
	}
	missing := wantRules(family)
	for _, s := range seen {
		if s.Protocol != protocol || s.Table != table {
			continue
		}
		if i := slices.IndexFunc(missing, func(w *netlink.Rule) bool { return alike(s, w) }); i >= 0 && !afresh {
			missing = slices.Delete(missing, i, i+1)
			continue
		}
		if err := p.removeRule(family, s); err != nil {
			return err
		}
	}
	for _, w := range missing {
		p.did("add a rule for UDP port %d", carried)
		if err := p.handle.RuleAdd(w); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}

func alike(r netlink.Rule, w *netlink.Rule) bool {
	return r.Priority == w.Priority && r.IPProto == w.IPProto && samePorts(r.Dport, w.Dport) && samePorts(r.Sport, w.Sport) &&
		r.Src == nil && r.Dst == nil && r.IifName == "" && r.OifName == "" && r.Mark == 0 && !r.Invert
}

func samePorts(a, b *netlink.RulePortRange) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

func (p *pass) removeRule(family int, r netlink.Rule) error {
	p.did("remove %s", r)
	r.Family = family
	if err := p.handle.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the rule of table %d: %w", table, err)
	}
	return nil
}

// steerNot gives packets back to the ordinary routes.
func (p *pass) steerNot() error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := p.listRules(family)
		if family == unix.AF_INET6 && errors.Is(err, unix.EOPNOTSUPP) {
			return nil // a kernel without IPv6
		}
		if err != nil {
			return fmt.Errorf("list the routing rules: %w", err)
		}
		for _, r := range rules {
			if r.Protocol != protocol || r.Table != table {
				continue
			}
			if err := p.removeRule(family, r); err != nil {
				return err
			}
		}
		routes, err := p.listRoutes(family)
		if err != nil {
			return fmt.Errorf("list the routes of table %d: %w", table, err)
		}
		for _, r := range routes {
			p.did("remove route %s", r)
			if err := p.handle.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove a route of table %d: %w", table, err)
			}
		}
	}
	return nil
}
