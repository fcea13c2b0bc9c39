package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Zone is an isolation domain: hosts, an ASN, route reflectors, and uplinks to
// its border leafs.
type Zone struct {
	Base
	Spec   ZoneSpec   `json:"spec" doc:"The desired state, written by people."`
	Status ZoneStatus `json:"status,omitzero" doc:"The observed state, written by rackweft."`
}

// zoneKind describes the kind.
func zoneKind() Kind {
	return Kind{Name: "Zone", Doc: "An isolation domain: hosts, an ASN, route reflectors, and uplinks to its border leafs.",
		Plural: "zones", Short: []string{"z"}, Writer: RoleAdmin,
		Columns: zoneColumns, New: func() Object { return new(Zone) }, is: is[*Zone], Part: bgpPart(),
		Conditions: func(o Object) *Conditions { return &o.(*Zone).Status.Conditions },
		References: func(o Object) []Reference { return o.(*Zone).references() }}
}

func zoneColumns() []Column {
	return []Column{
		of("ASN", func(z *Zone) string { return strconv.FormatUint(uint64(z.Spec.ASN), 10) }),
		of("PREFIXES", func(z *Zone) string { return join(z.Spec.Prefixes) }),
		of("REFLECTORS", reflecting),
		of("UPLINKS", func(z *Zone) string { return strconv.Itoa(len(z.Spec.Uplinks)) }),
		ReadyColumn(),
	}
}

// reflecting lists a Zone's reflectors, with the state of those in transition.
func reflecting(z *Zone) string {
	var list []string
	for _, r := range z.Status.Reflectors {
		if r.State != ReflectorServing {
			r.Machine += "(" + string(r.State) + ")"
		}
		list = append(list, r.Machine)
	}
	return strings.Join(list, ",")
}

func (z *Zone) references() (l references) {
	for i, name := range z.Spec.Reflectors.Machines {
		l.add("Machine", name, "spec", "reflectors", "machines", i)
	}
	for i, u := range z.Spec.Uplinks {
		l.add("Secret", u.Secret, "spec", "uplinks", i, "secret")
	}
	return l
}

// ZoneSpec is the desired Zone.
type ZoneSpec struct {
	ASN        uint32         `json:"asn" doc:"ASN of every host of the Zone; unique to it."`
	Reflectors Reflectors     `json:"reflectors,omitzero" doc:"Which hosts reflect routes."`
	Prefixes   []netip.Prefix `json:"prefixes,omitempty" doc:"Prefixes that may be originated in this Zone; they overlap no other Zone's. Default: none."`
	Uplinks    []Uplink       `json:"uplinks,omitempty" doc:"BGP peers outside the Zone."`
	// Loopbacks are within Prefixes.
	Loopbacks  []netip.Prefix `json:"loopbacks,omitempty" doc:"Prefixes, one of each family at most, out of which every host gets an address of its own on lo, which it advertises. Default: none."`
	Services   []Service      `json:"services,omitempty" doc:"Addresses that hosts of the Zone advertise while their check passes."`
	BGP        ZoneBGP        `json:"bgp,omitzero" doc:"How the Zone's speakers speak."`
	Encryption string         `json:"encryption,omitzero" enum:"none,wireguard" doc:"How hosts of the Zone encrypt what they carry for each other's Networks. Default: none."`
}

// The values of a Zone's encryption.
const (
	EncryptionNone      = "none"
	EncryptionWireGuard = "wireguard"
)

// Reflectors configures which hosts reflect routes.
type Reflectors struct {
	Count    int      `json:"count,omitzero" doc:"Number of reflectors, 1 to 8, chosen in different racks. Default: 2."`
	Machines []string `json:"machines,omitempty" doc:"Machines that reflect, at most 8. Default: chosen."`
	// ReplaceAfter is how long the stream of a chosen reflector may be down.
	ReplaceAfter Duration `json:"replaceAfter,omitzero" doc:"How long a chosen reflector may be disconnected from bootd before another replaces it, 1m to 24h. Default: 10m."`
}

// DefaultReplaceAfter is the default of Reflectors.ReplaceAfter.
const DefaultReplaceAfter = 10 * time.Minute

// ZoneBGP configures the Zone's speakers.
type ZoneBGP struct {
	GracefulRestart Duration `json:"gracefulRestart,omitzero" doc:"How long routes are kept while a speaker restarts (RFC 4724), 1s to 4095s. A change drops every session. Default: 2m."`
	LongLived       Duration `json:"longLived,omitzero" doc:"How much longer routes are kept as stale (RFC 9494). A change drops every session. Default: not at all."`
	StaleHold       Duration `json:"staleHold,omitzero" doc:"How long a host that has lost every reflector keeps its routes; -1s is for ever. Default: 10m."`
	HoldTime        Duration `json:"holdTime,omitzero" doc:"Hold time of sessions between hosts, 3s to 65535s. Default: 90s."`
	Paths           string   `json:"paths,omitzero" enum:"all,best" doc:"What reflectors advertise to hosts: all paths to a prefix (RFC 7911), over which hosts share packets, or the best one, which costs less in large Zones. A change drops every session. Default: all."`
	EVPN            bool     `json:"evpn,omitzero" doc:"Hosts speak EVPN too (RFC 7432, 8365): reflectors pass on VTEPs' routes, and rackweft does not use them. A change drops every session. Default: false."`
	// BMP are stations to which the reflectors report every route (RFC 7854).
	BMP []netip.AddrPort `json:"bmp,omitempty" doc:"BMP stations (RFC 7854) that the reflectors report every route to, as address:port. Default: none."`
}

// The values of a Zone's paths.
const (
	PathsAll  = "all"
	PathsBest = "best"
)

// Uplink is a BGP peer outside the Zone: its VRF on a border leaf.
type Uplink struct {
	Address     netip.Addr     `json:"address" doc:"Unicast address that every reflector can reach."`
	ASN         uint32         `json:"asn" doc:"ASN of the uplink; not the Zone's."`
	Import      []PrefixFilter `json:"import,omitempty" doc:"Prefixes accepted from it. Default: none."`
	Export      []PrefixFilter `json:"export,omitempty" doc:"Prefixes advertised to it. Default: the Zone's prefixes."`
	KeepNextHop bool           `json:"keepNextHop,omitzero" doc:"Advertises hosts as next hops in place of reflectors, for an uplink on the hosts' own segment. Default: false."`
	PrivateASNs []uint32       `json:"privateASNs,omitempty" doc:"Private ASNs, other than its own, that the AS path of its routes may contain. Default: none."`
	HoldTime    Duration       `json:"holdTime,omitzero" doc:"BGP hold time, 3s to 65535s. Default: 9s."`
	MaxPrefixes int            `json:"maxPrefixes,omitzero" minimum:"0" doc:"Prefixes of one family beyond which the session ends. Default: 10000."`
	Hops        int            `json:"hops,omitzero" minimum:"0" maximum:"255" doc:"Hops to it; 1 is the same segment, protected by GTSM (RFC 5082). Default: 1."`
	Secret      string         `json:"secret,omitzero" doc:"Secret with the MD5 key under password. Default: no key."`
	EVPN        bool           `json:"evpn,omitzero" doc:"It is a VTEP by its address and receives the Zone's EVPN routes; needs bgp.evpn. A change drops its sessions. Default: false."`
}

// PrefixFilter matches a prefix exactly, or down to a length.
type PrefixFilter struct {
	Prefix netip.Prefix `json:"prefix" doc:"Prefix to match."`
	LE     int          `json:"le,omitzero" doc:"Longest prefix length that matches. Default: that of prefix, an exact match."`
}

// ZoneStatus is observed and chosen by rackweft.
type ZoneStatus struct {
	Reflectors []ReflectorStatus `json:"reflectors,omitempty" doc:"Hosts that reflect the Zone's routes."`
	Loopbacks  []LoopbackStatus  `json:"loopbacks,omitempty" doc:"Addresses chosen out of spec.loopbacks."`
	Conditions Conditions        `json:"conditions,omitempty" doc:"Observed facts, one of each type."`
}

// ReflectorStatus is one host that reflects the Zone's routes. All of them are
// peers of every host, whatever their state: a new one serves before an old one
// goes.
type ReflectorStatus struct {
	Machine string         `json:"machine" doc:"Name of the Machine."`
	UID     string         `json:"uid" doc:"The Machine's."`
	State   ReflectorState `json:"state" enum:"Starting,Joining,Serving,Leaving,Withdrawn" doc:"Starting: its speaker is not a reflector yet. Joining: hosts and uplinks connect. Leaving: goes as soon as another serves. Withdrawn: has no session with uplinks any more."`
	Since   time.Time      `json:"since" doc:"When it came into this state."`
	Reason  string         `json:"reason,omitzero" doc:"Why it is Leaving or Withdrawn."`
}

// LoopbackStatus holds the addresses chosen from spec.loopbacks for one host.
// It keeps them as long as it is in the Zone.
type LoopbackStatus struct {
	Machine   string       `json:"machine" doc:"Name of the Machine."`
	UID       string       `json:"uid" doc:"The Machine's."`
	Addresses []netip.Addr `json:"addresses" doc:"Addresses chosen, at most one of each family."`
}

// ReflectorState is the state of a reflector.
type ReflectorState string

// The states of a reflector.
const (
	ReflectorStarting ReflectorState = "Starting" // chosen; its speaker has not become a reflector yet, and uplinks have no session with it
	ReflectorJoining  ReflectorState = "Joining"  // it reflects; the other hosts and the uplinks are connecting
	ReflectorServing  ReflectorState = "Serving"
	ReflectorLeaving  ReflectorState = "Leaving" // removed as soon as another serves in its place
	// A ReflectorWithdrawn no longer has sessions with uplinks. It still
	// forwards their traffic until they have converged.
	ReflectorWithdrawn ReflectorState = "Withdrawn"
)

// Goes reports whether a reflector in this state is about to be removed.
func (s ReflectorState) Goes() bool { return s == ReflectorLeaving || s == ReflectorWithdrawn }

// HasUplinks reports whether a reflector in this state has sessions with the
// Zone's uplinks.
func (s ReflectorState) HasUplinks() bool {
	return s != ReflectorStarting && s != ReflectorWithdrawn
}

// SetDefaults implements Object.
func (z *Zone) SetDefaults() {
	z.defaultType("Zone")
	if z.Spec.Reflectors.Count == 0 {
		z.Spec.Reflectors.Count = 2
	}
	if z.Spec.Encryption == "" {
		z.Spec.Encryption = EncryptionNone
	}
	for i := range z.Spec.Services {
		z.Spec.Services[i].setDefaults()
	}
}

// Validate implements Object.
func (z *Zone) Validate() FieldErrors {
	e := z.common("Zone")
	if reservedASN(z.Spec.ASN) {
		e.add(at("spec", "asn"), "%d is reserved (RFC 7607, 6793, 7300): use a private ASN, 64512-65534 or 4200000000-4294967294", z.Spec.ASN)
	}
	z.validateReflectors(&e)
	z.validatePrefixes(&e)
	for i := range z.Spec.Uplinks {
		z.validateUplink(&e, i)
	}
	z.validateLoopbacks(&e)
	z.validateServices(&e)
	e.oneOf(at("spec", "encryption"), z.Spec.Encryption, EncryptionNone, EncryptionWireGuard)
	b := z.Spec.BGP
	if b.Paths != "" {
		e.oneOf(at("spec", "bgp", "paths"), b.Paths, PathsAll, PathsBest)
	}
	e.seconds(at("spec", "bgp", "gracefulRestart"), b.GracefulRestart, 1, 4095)
	e.seconds(at("spec", "bgp", "longLived"), b.LongLived, 1, 1<<24-1)
	e.seconds(at("spec", "bgp", "holdTime"), b.HoldTime, 3, 65535)
	for i, station := range b.BMP {
		if !station.IsValid() || station.Port() == 0 {
			e.add(at("spec", "bgp", "bmp", i), "an address and a port are required, such as 198.18.8.5:11019")
		}
	}
	return e
}

// reservedASN reports whether an ASN is reserved.
func reservedASN(asn uint32) bool {
	return asn == 0 || asn == 23456 || asn == 65535 || asn == 4294967295
}

func (z *Zone) validateReflectors(e *FieldErrors) {
	const most = 8
	r := z.Spec.Reflectors
	e.between(at("spec", "reflectors", "count"), r.Count, 1, most)
	if len(r.Machines) > most {
		e.add(at("spec", "reflectors", "machines"), "%d are named, at most %d are allowed: every host peers with each of them", len(r.Machines), most)
	}
	for i, m := range r.Machines {
		e.name(at("spec", "reflectors", "machines", i), m)
		if j := slices.Index(r.Machines, m); j < i {
			e.add(at("spec", "reflectors", "machines", i), "%s is already entry %d", m, j)
		}
	}
	if d := r.ReplaceAfter.Or(DefaultReplaceAfter); d < time.Minute || d > 24*time.Hour {
		e.add(at("spec", "reflectors", "replaceAfter"), "%s is not between 1m and 24h", d)
	}
}

func (z *Zone) validatePrefixes(e *FieldErrors) {
	e.prefixes(at("spec", "prefixes"), z.Spec.Prefixes)
	for i, p := range z.Spec.Prefixes {
		if m, bad := martian(p); bad {
			e.add(at("spec", "prefixes", i), "invalid prefix %s: it contains addresses of %s, which are not unicast", p, m)
		}
	}
}

// martian returns the part of a prefix that can never be routed to a host (RFC
// 6890). The defaults overlap all of it.
func martian(p netip.Prefix) (netip.Prefix, bool) {
	if !p.IsValid() {
		return netip.Prefix{}, false
	}
	for _, text := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/96", "::ffff:0:0/96", "fe80::/10", "ff00::/8"} {
		if m := netip.MustParsePrefix(text); m.Overlaps(p) {
			return m, true
		}
	}
	return netip.Prefix{}, false
}

func (z *Zone) validateUplink(e *FieldErrors, i int) {
	u := z.Spec.Uplinks[i]
	here := func(parts ...any) []any { return append(at("spec", "uplinks", i), parts...) }
	switch {
	case !u.Address.IsValid():
		e.add(here("address"), "an address is required")
	case !u.Address.IsGlobalUnicast() || u.Address.Is4In6() || u.Address.Zone() != "":
		e.add(here("address"), "invalid address %s: want a unicast address of the uplink, on its link to the Zone", u.Address)
	}
	for j, other := range z.Spec.Uplinks[:i] {
		if other.Address == u.Address {
			e.add(here("address"), "%s is already that of entry %d", u.Address, j)
		}
	}
	if reservedASN(u.ASN) || u.ASN == z.Spec.ASN {
		e.add(here("asn"), "an uplink is external: its ASN differs from the Zone's %d, and is not reserved", z.Spec.ASN)
	}
	for j, asn := range u.PrivateASNs {
		if !(asn >= 64512 && asn <= 65534 || asn >= 4200000000 && asn <= 4294967294) || asn == z.Spec.ASN {
			e.add(here("privateASNs", j), "invalid ASN %d: want a private ASN of another network (RFC 6996); others need not be listed", asn)
		}
	}
	if u.EVPN && !z.Spec.BGP.EVPN {
		e.add(here("evpn"), "the Zone's hosts do not speak EVPN: set spec.bgp.evpn too, which drops every session of the Zone once")
	}
	e.seconds(here("holdTime"), u.HoldTime, 3, 65535)
	e.optionalName(here("secret"), u.Secret)
	validateFilters(e, here("import"), u.Import)
	validateFilters(e, here("export"), u.Export)
	// These would void the Zone's isolation: importing its own prefixes, and
	// exporting those of others.
	for j, f := range u.Import {
		if own, ok := covering(z.Spec.Prefixes, f.Prefix); ok {
			e.add(here("import", j, "prefix"), "%s lies in %s of spec.prefixes: a Zone does not accept its own prefixes from outside", f.Prefix, own)
		}
	}
	for j, f := range u.Export {
		if _, ok := covering(z.Spec.Prefixes, f.Prefix); !ok && f.Prefix.IsValid() {
			e.add(here("export", j, "prefix"), "%s lies in none of spec.prefixes: nothing else is advertised to an uplink", f.Prefix)
		}
	}
}

// covering returns the prefix of a list that contains another.
func covering(list []netip.Prefix, p netip.Prefix) (netip.Prefix, bool) {
	for _, q := range list {
		if p.IsValid() && q.Bits() <= p.Bits() && q.Contains(p.Addr()) {
			return q, true
		}
	}
	return netip.Prefix{}, false
}

// seconds validates a duration that BGP counts in whole seconds; zero means
// unset.
func (e *FieldErrors) seconds(where []any, d Duration, low, high int) {
	if d == 0 {
		return
	}
	if t := time.Duration(d); t%time.Second != 0 || t < time.Duration(low)*time.Second || t > time.Duration(high)*time.Second {
		e.add(where, "%s is not a number of whole seconds between %ds and %ds", t, low, high)
	}
}

// DefaultExport is advertised to an uplink without an export list: the Zone's
// prefixes as aggregates.
func (z *Zone) DefaultExport() []PrefixFilter {
	list := make([]PrefixFilter, len(z.Spec.Prefixes))
	for i, p := range z.Spec.Prefixes {
		list[i] = PrefixFilter{Prefix: p}
	}
	return list
}

// Community returns the large community (RFC 8092) of every route of the Zone.
// No other Zone has it, because each has its own ASN.
func (z *Zone) Community() string { return fmt.Sprintf("%d:1:1", z.Spec.ASN) }

// Matches reports whether a prefix passes the filter.
func (f PrefixFilter) Matches(p netip.Prefix) bool {
	if f.LE == 0 {
		return f.Prefix == p
	}
	return f.Prefix.Bits() <= p.Bits() && p.Bits() <= f.LE && f.Prefix.Contains(p.Addr())
}

func validateFilters(e *FieldErrors, where []any, filters []PrefixFilter) {
	for i, f := range filters {
		here := append(append([]any{}, where...), i)
		if !f.Prefix.IsValid() || f.Prefix != f.Prefix.Masked() {
			e.add(append(here, "prefix"), "invalid prefix %s: want one without host bits", f.Prefix)
			continue
		}
		if f.LE != 0 {
			e.between(append(here, "le"), f.LE, f.Prefix.Bits(), f.Prefix.Addr().BitLen())
		}
	}
}
