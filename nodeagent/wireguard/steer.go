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
	carried  = 8472 // UDP port of the encrypted traffic: VXLAN of package overlay
	protocol = 216  // marks rackweft's rules and routes, as package overlay's
	table    = 8472
	priority = 216 // before the tables of ordinary routes, after the local one

	// lastMetric is the metric of the route that applies if there is no other.
	lastMetric = 1 << 31
	// deviceMetric is the value that IPv6 uses for 0.
	deviceMetric = 1024
)

// families returns the families of the underlay's addresses, or of the peers if the
// underlay has none pinned.
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

// steer routes the traffic to be encrypted into the device with that index, or
// nowhere if it is 0. It sets the routes before the rules that lead to them.
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

// routes sets the routes of the table. leaked means that it had no last route:
// packets may then have taken a route of the next table, which IPv6 caches.
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

// wantRules returns the rules of a family. The rule for source port is for packets
// from the device: IPv4 checks whether answers would take the way back (rp_filter),
// and swaps the ports for that.
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

// rules sets the rules of a family; with afresh it also replaces present ones, which
// makes the kernel drop its cached routes.
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

// steerNot removes the rules and routes: packets take the ordinary routes again.
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
