package bgp

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bgp/fib"
)

// Defaults of the part, as package api documents them.
const (
	defaultPort            = 179
	defaultGracefulRestart = 2 * time.Minute
	defaultStaleHold       = 10 * time.Minute
	defaultHoldTime        = 90 * time.Second
	uplinkHoldTime         = 9 * time.Second
	defaultMaxPrefixes     = 10000
	clientMaxPrefixes      = 512
	reflectorMaxPaths      = 10 * defaultMaxPrefixes // it advertises each prefix several times
	defaultMetric          = 4096
	maxRestartTime         = 4095 * time.Second // 12 bits, RFC 4724, section 3
	maxLongLived           = 1 << 24 * time.Second
	maxPassword            = 80 // TCP_MD5SIG_MAXKEYLEN of linux/tcp.h
	defaultGuestPrefixes   = api.DefaultPeerPrefixes
)

// parsePart parses a part and sets its defaults. An error names each fault;
// such a part is not applied.
func parsePart(raw []byte) (api.BGPPart, error) {
	var p api.BGPPart
	if err := json.Unmarshal(raw, &p); err != nil {
		return p, fmt.Errorf("decode the bgp part: %w", err)
	}
	setDefaults(&p)
	if err := validate(p); err != nil {
		return p, fmt.Errorf("bgp part of Zone %s: %w", p.Zone, err)
	}
	return p, nil
}

func setDefaults(p *api.BGPPart) {
	fill(&p.Port, defaultPort)
	fill(&p.Table, unix.RT_TABLE_MAIN)
	fill(&p.Metric, defaultMetric)
	fill(&p.GracefulRestart, api.Duration(defaultGracefulRestart))
	fill(&p.StaleHold, api.Duration(defaultStaleHold))
	if !p.ClusterID.IsValid() {
		p.ClusterID = p.RouterID
	}
	for i := range p.Inside {
		fill(&p.Inside[i].MaxPrefixes, defaultGuestPrefixes)
	}
	accepted := map[string]int{}
	for _, a := range p.Accept {
		accepted[a.Client] += len(a.Prefixes) + a.MaxWithin
	}
	for i := range p.Neighbors {
		n := &p.Neighbors[i]
		if n.Role == api.BGPUplink {
			fill(&n.HoldTime, api.Duration(uplinkHoldTime))
		}
		fill(&n.HoldTime, api.Duration(defaultHoldTime))
		fill(&n.KeepAlive, n.HoldTime/3)
		switch n.Role {
		case api.BGPClient:
			fill(&n.MaxPrefixes, clientLimit(accepted[n.Name]))
		case api.BGPGuest:
			fill(&n.MaxPrefixes, defaultGuestPrefixes)
		}
		if n.Role == api.BGPReflector && p.AllPaths {
			fill(&n.MaxPrefixes, reflectorMaxPaths)
		}
		fill(&n.MaxPrefixes, defaultMaxPrefixes)
		fill(&n.Hops, 1)
		if len(n.Families) == 0 {
			n.Families = []string{api.FamilyIPv4, api.FamilyIPv6}
			if p.EVPN && n.Role != api.BGPUplink {
				n.Families = append(n.Families, api.FamilyEVPN)
			}
		}
	}
}

// clientLimit leaves room for routes that a client announces without
// permission. It starts at a value that few hosts reach and grows in powers of
// two, because a change of it is expensive (see server.updatePeer).
func clientLimit(accepted int) int {
	limit := clientMaxPrefixes
	for limit < 2*accepted+10 {
		limit *= 2
	}
	return limit
}

// evpnLimit is how many EVPN routes n may advertise: a VTEP has one for each
// MAC address behind it.
func evpnLimit(n api.BGPNeighbor) int {
	switch n.Role {
	case api.BGPUplink:
		return n.MaxPrefixes
	case api.BGPReflector:
		return max(n.MaxPrefixes, reflectorMaxPaths)
	}
	return max(n.MaxPrefixes, defaultMaxPrefixes)
}

func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func validate(p api.BGPPart) error {
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(p.ASN != 0, "the ASN is missing")
	check(p.RouterID.Is4(), "invalid routerID %s: want an IPv4 address", p.RouterID)
	check(p.ClusterID.Is4(), "invalid clusterID %s: want an IPv4 address", p.ClusterID)
	check(slices.Contains([]string{api.BGPClient, api.BGPReflector, api.BGPNetwork}, p.Role), "invalid role %q: want client, reflector or network", p.Role)
	check((p.Role == api.BGPNetwork) == (p.Network != ""), "invalid role %q with Network %q", p.Role, p.Network)
	_, err := bgp.ParseLargeCommunity(p.Community)
	check(err == nil, "invalid community %q: want a large community such as 64601:1:7", p.Community)
	check(!p.EVPN || p.Role != api.BGPNetwork, "a speaker inside a Network does not speak EVPN")
	check(p.Community != reflectedMark(p), "invalid community %s: it marks reflected paths: use another one", p.Community)
	check(p.Port > 0 && p.Port < 1<<16, "invalid port %d", p.Port)
	check(p.Table > 0 && int64(p.Table) < 1<<32 && p.Table != unix.RT_TABLE_LOCAL, "invalid table %d", p.Table)
	check(p.Metric > 0 && int64(p.Metric) < 1<<32, "invalid metric %d", p.Metric)
	check(inSeconds(p.GracefulRestart, time.Second, maxRestartTime), "invalid gracefulRestart %s: want whole seconds up to %s", time.Duration(p.GracefulRestart), maxRestartTime)
	check(inSeconds(p.LongLived, 0, maxLongLived), "invalid longLived %s: want whole seconds up to %s", time.Duration(p.LongLived), maxLongLived)
	for _, a := range slices.Concat(p.Listen, p.NextHops, ownAddresses(p)) {
		check(a.IsValid() && a.Zone() == "" && !a.Is4In6(), "invalid address %s", a)
	}
	for _, x := range slices.Concat(p.Originate, p.Aggregates, p.ZoneNextHops) {
		check(validPrefix(x), "invalid prefix %s: want a masked prefix", x)
	}
	for _, n := range p.Inside {
		check(n.UID != "" && n.UID == filepath.Base(n.UID) && n.UID != "." && n.UID != "..", "invalid uid %q of a Network", n.UID)
		check(n.MaxPrefixes > 0, "invalid maxPrefixes %d of Network %s", n.MaxPrefixes, n.UID)
		for _, x := range n.Prefixes {
			check(validPrefix(x) && x.Addr().Is4() && x.Bits() > 0, "invalid prefix %s for guests of Network %s: want a masked IPv4 prefix", x, n.UID)
		}
	}
	own := map[netip.Addr]bool{}
	for _, a := range ownAddresses(p) {
		check(!own[a] && !slices.Contains(p.Originate, api.HostPrefix(a)), "%s is originated twice", a)
		own[a] = true
	}
	for _, s := range p.Services {
		c := s.Check
		check(c == nil || (c.Type == api.CheckTCP || c.Type == api.CheckHTTP) && c.Port > 0 && c.Port < 1<<16 && c.Interval > 0 && c.Timeout > 0 && c.Rise > 0 && c.Fall > 0,
			"invalid check of service %q: want all fields: %+v", s.Name, c)
	}
	names, addresses := map[string]bool{}, map[netip.Addr]bool{}
	for _, n := range p.Neighbors {
		if err := validateNeighbor(p, n); err != nil {
			faults = append(faults, fmt.Errorf("neighbor %q: %w", n.Name, err))
		}
		check(!names[n.Name], "two neighbors are called %q", n.Name)
		check(!addresses[n.Address], "two neighbors have the address %s", n.Address)
		names[n.Name], addresses[n.Address] = true, true
	}
	clients := map[string]bool{}
	for _, a := range p.Accept {
		check(!clients[a.Client], "accept names %q twice", a.Client)
		clients[a.Client] = true
		for _, x := range slices.Concat(a.Prefixes, a.Within) {
			check(validPrefix(x), "accept of %q: invalid prefix %s: want a masked prefix", a.Client, x)
		}
		for _, x := range a.NextHops {
			check(x.IsValid() && x.Zone() == "", "accept of %q: invalid address %s", a.Client, x)
		}
	}
	return errors.Join(faults...)
}

// ownAddresses returns the addresses that belong on lo.
func ownAddresses(p api.BGPPart) []netip.Addr {
	list := slices.Clone(p.Loopbacks)
	for _, s := range p.Services {
		list = append(list, s.Addresses...)
	}
	return list
}

func validateNeighbor(p api.BGPPart, n api.BGPNeighbor) error {
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(n.Name != "", "it has no name")
	check(n.Address.IsValid() && n.Address.Zone() == "" && !n.Address.Is4In6() && !n.Address.IsUnspecified(), "invalid address %s of a neighbor", n.Address)
	check(!n.Source.IsValid() || n.Source.BitLen() == n.Address.BitLen(), "source %s is not of the family of %s", n.Source, n.Address)
	inside := n.Role == api.BGPGuest || n.Role == api.BGPHost
	check(inside == (p.Role == api.BGPNetwork), "a %s has no %s for a neighbor", p.Role, n.Role)
	switch n.Role {
	case api.BGPGuest:
		check(n.ASN != 0 && n.ASN != p.ASN, "invalid ASN %d of a guest: want one that is not the Zone's", n.ASN)
		check(n.Passive, "a guest connects, it is not connected to")
		check(n.Tap != "", "a guest has a tap")
	case api.BGPHost:
		check(n.ASN == p.ASN, "a host has the Zone's ASN %d, not %d", p.ASN, n.ASN)
	case api.BGPReflector:
		check(n.ASN == p.ASN, "a reflector has the Zone's ASN %d, not %d", p.ASN, n.ASN)
	case api.BGPClient:
		check(n.ASN == p.ASN, "a client has the Zone's ASN %d, not %d", p.ASN, n.ASN)
		check(p.Role == api.BGPReflector, "only a reflector has clients")
	case api.BGPUplink:
		check(n.ASN != 0 && n.ASN != p.ASN, "an uplink has an ASN of its own, not %d", n.ASN)
		check(p.Role == api.BGPReflector, "only a reflector has uplinks")
	default:
		check(false, "invalid role %q: want reflector, client, uplink, guest or host", n.Role)
	}
	check(len(n.Password) <= maxPassword, "the password is longer than %d bytes", maxPassword)
	check(inSeconds(n.HoldTime, 3*time.Second, 65535*time.Second), "invalid holdTime %s: want whole seconds, at least 3s", time.Duration(n.HoldTime))
	check(inSeconds(n.KeepAlive, time.Second, time.Duration(n.HoldTime)), "invalid keepAlive %s: want whole seconds up to holdTime", time.Duration(n.KeepAlive))
	check(n.MaxPrefixes > 0 && int64(n.MaxPrefixes) < 1<<31, "invalid maxPrefixes %d", n.MaxPrefixes)
	check(n.Hops > 0 && n.Hops < 256, "invalid hops %d: want 1 to 255", n.Hops)
	for _, f := range n.Families {
		check(slices.Contains([]string{api.FamilyIPv4, api.FamilyIPv6, api.FamilyEVPN}, f), "invalid family %q: want ipv4, ipv6 or evpn", f)
		check(f != api.FamilyEVPN || p.EVPN, "invalid family evpn: the part has no evpn")
	}
	for _, x := range n.NextHops {
		check(validPrefix(x), "invalid next hops %s: want a masked prefix", x)
	}
	for _, f := range slices.Concat(n.Import, n.Export) {
		check(validPrefix(f.Prefix) && (f.LE == 0 || f.LE >= f.Prefix.Bits() && f.LE <= f.Prefix.Addr().BitLen()), "invalid filter %s le %d", f.Prefix, f.LE)
	}
	return errors.Join(faults...)
}

func validPrefix(p netip.Prefix) bool {
	return p.IsValid() && p == p.Masked() && !p.Addr().Is4In6()
}

func inSeconds(d api.Duration, low, high time.Duration) bool {
	v := time.Duration(d)
	return v >= low && v <= high && v%time.Second == 0
}

// needsRestart reports whether GoBGP can make the change from a to b only when
// it starts.
func needsRestart(a, b api.BGPPart) bool {
	return a.ASN != b.ASN || a.RouterID != b.RouterID || a.Port != b.Port || !slices.Equal(a.Listen, b.Listen) ||
		a.Table != b.Table || a.Metric != b.Metric || a.EVPN != b.EVPN
}

// fibOptions makes routes inside a Network on-link: leases of hosts, and guests
// that moved to them, have no address on the link.
func fibOptions(p api.BGPPart) fib.Options {
	return fib.Options{Table: p.Table, Metric: p.Metric, OnLink: p.Role == api.BGPNetwork}
}

// FIBOptions are the options for a speaker's routes in the kernel. When the
// part cannot be parsed they are the defaults.
func FIBOptions(raw []byte) (fib.Options, error) {
	part, err := parsePart(raw)
	if err != nil {
		return fib.Options{Table: unix.RT_TABLE_MAIN, Metric: defaultMetric}, err
	}
	return fibOptions(part), nil
}
