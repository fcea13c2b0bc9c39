package api

import (
	"net/netip"
	"strconv"
	"time"
)

// Subnet is a physical network that DHCP serves.
type Subnet struct {
	Base
	Spec   SubnetSpec   `json:"spec" doc:"The desired state, written by people."`
	Status SubnetStatus `json:"status,omitzero" doc:"The observed state, written by rackweft."`
}

// subnetKind describes the kind.
func subnetKind() Kind {
	return Kind{Name: "Subnet", Doc: "A physical network: for booting, for the hosts' own traffic, or for BMCs.",
		Plural: "subnets", Short: []string{"sn"}, Writer: RoleAdmin,
		Columns: subnetColumns, New: func() Object { return new(Subnet) }, is: is[*Subnet],
		Conditions: func(o Object) *Conditions { return &o.(*Subnet).Status.Conditions },
		References: func(o Object) []Reference { return o.(*Subnet).references() }}
}

func subnetColumns() []Column {
	return []Column{
		of("PURPOSE", func(s *Subnet) string { return string(s.Spec.Purpose) }),
		of("ZONE", func(s *Subnet) string { return s.Spec.Zone }),
		of("PREFIXES", func(s *Subnet) string { return join(s.Spec.Prefixes) }),
		of("RANGE", func(s *Subnet) string { return written(s.Spec.Range) }),
		of("GATEWAY", func(s *Subnet) string { return address(s.Spec.Gateway) }),
		wide(of("INTERFACE", func(s *Subnet) string { return s.Spec.Interface })),
		wide(of("MODE", func(s *Subnet) string { return string(s.Spec.Mode) })),
		wide(of("MTU", func(s *Subnet) string { return strconv.Itoa(s.Spec.MTU) })),
	}
}

func (s *Subnet) references() (l references) {
	l.add("Zone", s.Spec.Zone, "spec", "zone")
	return l
}

// SubnetPurpose is the purpose of a Subnet.
type SubnetPurpose string

// Purposes of a Subnet.
const (
	Provisioning SubnetPurpose = "provisioning"
	Production   SubnetPurpose = "production"
	Management   SubnetPurpose = "management"
)

// SubnetMode is how bootd answers DHCP on a Subnet.
type SubnetMode string

// The DHCP modes.
const (
	Authoritative SubnetMode = "authoritative" // bootd assigns addresses
	Proxy         SubnetMode = "proxy"         // another server does; bootd adds the boot answer
)

// SubnetSpec is the desired Subnet.
type SubnetSpec struct {
	Purpose   SubnetPurpose  `json:"purpose" enum:"provisioning,production,management" doc:"What the Subnet is for: booting, the hosts' own traffic, or BMCs."`
	Zone      string         `json:"zone,omitzero" doc:"Zone of a production Subnet, required there. Default: none."`
	Interface string         `json:"interface,omitzero" doc:"bootd's interface on the Subnet. Default: none, requests come through relays."`
	Prefixes  []netip.Prefix `json:"prefixes" doc:"Prefixes of the Subnet; at least one."`
	Range     AddrRange      `json:"range,omitzero" doc:"Addresses given to any client, as first-last inside one prefix. Default: none."`
	Gateway   netip.Addr     `json:"gateway,omitzero" doc:"Router of the Subnet, inside one of its prefixes. Default: none."`
	DNS       []netip.Addr   `json:"dns,omitempty" doc:"Servers handed out by DHCP. Default: the Site's."`
	NTP       []netip.Addr   `json:"ntp,omitempty" doc:"Servers handed out by DHCP. Default: the Site's."`
	MTU       int            `json:"mtu,omitzero" doc:"MTU in bytes, 576 to 9216. Default: 1500."`
	Mode      SubnetMode     `json:"mode,omitzero" enum:"authoritative,proxy" doc:"authoritative: bootd gives addresses. proxy: another DHCP server does, and bootd adds the boot answer. Default: authoritative on a provisioning Subnet."`
	Relays    []netip.Addr   `json:"relays,omitempty" doc:"Relays (giaddr) that are answered; what they say in option 82 counts for trust level address when the packet comes from one of these addresses. Default: any relay inside the prefixes, whose option 82 proves nothing."`
	LeaseTime Duration       `json:"leaseTime,omitzero" doc:"Lease time of registered Machines, 1m to 168h; unregistered clients get at most 10m. Default: 1h."`
}

// SubnetStatus is observed by rackweft.
type SubnetStatus struct {
	Conditions Conditions `json:"conditions,omitempty" doc:"Observed facts, one of each type."`
}

// SetDefaults implements Object.
func (s *Subnet) SetDefaults() {
	s.defaultType("Subnet")
	if s.Spec.MTU == 0 {
		s.Spec.MTU = 1500
	}
	if s.Spec.Purpose == Provisioning && s.Spec.Mode == "" {
		s.Spec.Mode = Authoritative
	}
	if s.Spec.LeaseTime == 0 {
		s.Spec.LeaseTime = Duration(time.Hour)
	}
}

// Validate implements Object.
func (s *Subnet) Validate() FieldErrors {
	e := s.common("Subnet")
	e.oneOf(at("spec", "purpose"), string(s.Spec.Purpose), "provisioning", "production", "management")
	if s.Spec.Mode != "" {
		e.oneOf(at("spec", "mode"), string(s.Spec.Mode), "authoritative", "proxy")
	}
	if s.Spec.Purpose == Production && s.Spec.Zone == "" {
		e.add(at("spec", "zone"), "a production Subnet belongs to one Zone: name it")
	}
	if s.Spec.Purpose != Production && s.Spec.Zone != "" {
		e.add(at("spec", "zone"), "only a production Subnet belongs to a Zone; this one is %s", s.Spec.Purpose)
	}
	e.optionalName(at("spec", "zone"), s.Spec.Zone)
	if s.Spec.Interface != "" {
		e.interfaceName(at("spec", "interface"), s.Spec.Interface)
	}
	if len(s.Spec.Prefixes) == 0 {
		e.add(at("spec", "prefixes"), "at least one prefix is required")
	}
	e.prefixes(at("spec", "prefixes"), s.Spec.Prefixes)
	e.between(at("spec", "mtu"), s.Spec.MTU, 576, 9216)
	if g := s.Spec.Gateway; g.IsValid() && !contains(s.Spec.Prefixes, g) {
		e.add(at("spec", "gateway"), "%s is in none of the Subnet's prefixes", g)
	}
	s.validateRange(&e)
	if l := time.Duration(s.Spec.LeaseTime); l < time.Minute || l > 7*24*time.Hour {
		e.add(at("spec", "leaseTime"), "%s is not between 1m and 168h", l)
	}
	return e
}

func (s *Subnet) validateRange(e *FieldErrors) {
	r := s.Spec.Range
	if r.IsZero() {
		return
	}
	for _, p := range s.Spec.Prefixes {
		if p.Contains(r.First) && p.Contains(r.Last) {
			return
		}
	}
	e.add(at("spec", "range"), "%s-%s is not inside one of the Subnet's prefixes", r.First, r.Last)
}

// Prefix returns the Subnet's prefix that contains a.
func (s *Subnet) Prefix(a netip.Addr) (netip.Prefix, bool) {
	for _, p := range s.Spec.Prefixes {
		if p.Contains(a) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
