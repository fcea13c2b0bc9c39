package api

import "net/netip"

// Zone is an isolation domain: hosts, an ASN, route reflectors, and uplinks to
// its border leafs.
type Zone struct {
	Base
	Spec   ZoneSpec   `json:"spec"`
	Status ZoneStatus `json:"status,omitzero"`
}

// ZoneSpec is the desired Zone.
type ZoneSpec struct {
	ASN        uint32         `json:"asn"`
	Reflectors Reflectors     `json:"reflectors,omitzero"`
	Prefixes   []netip.Prefix `json:"prefixes,omitempty" doc:"What may be originated in this Zone."`
	Uplinks    []Uplink       `json:"uplinks,omitempty"`
}

// Reflectors says which hosts reflect routes.
type Reflectors struct {
	Count    int      `json:"count,omitzero" doc:"Chosen in different racks; 2 unless set."`
	Machines []string `json:"machines,omitempty" doc:"Named instead of chosen."`
}

// Uplink is a BGP peer outside the Zone: its VRF on a border leaf.
type Uplink struct {
	Address netip.Addr     `json:"address"`
	ASN     uint32         `json:"asn"`
	Import  []PrefixFilter `json:"import,omitempty" doc:"What is taken from it; nothing unless listed."`
	Export  []PrefixFilter `json:"export,omitempty" doc:"What is told to it; the Zone's prefixes unless listed."`
	Secret  string         `json:"secret,omitzero" doc:"A Secret with the MD5 key under password."`
}

// PrefixFilter matches a prefix exactly, or down to a length.
type PrefixFilter struct {
	Prefix netip.Prefix `json:"prefix"`
	LE     int          `json:"le,omitzero" doc:"Longest length that matches; exact unless set."`
}

// ZoneStatus is what rackweft observed and chose.
type ZoneStatus struct {
	Reflectors []string   `json:"reflectors,omitempty"`
	Conditions Conditions `json:"conditions,omitempty"`
}

// SetDefaults implements Object.
func (z *Zone) SetDefaults() {
	z.defaultType("Zone")
	if z.Spec.Reflectors.Count == 0 {
		z.Spec.Reflectors.Count = 2
	}
}

// Validate implements Object.
func (z *Zone) Validate() FieldErrors {
	e := z.common("Zone")
	if z.Spec.ASN == 0 || z.Spec.ASN == 23456 || z.Spec.ASN == 65535 || z.Spec.ASN == 4294967295 {
		e.add(at("spec", "asn"), "%d is reserved (RFC 7607, 6793, 7300): use a private ASN, 64512-65534 or 4200000000-4294967294", z.Spec.ASN)
	}
	e.between(at("spec", "reflectors", "count"), z.Spec.Reflectors.Count, 1, 8)
	for i, m := range z.Spec.Reflectors.Machines {
		e.name(at("spec", "reflectors", "machines", i), m)
	}
	e.prefixes(at("spec", "prefixes"), z.Spec.Prefixes)
	for i, u := range z.Spec.Uplinks {
		here := at("spec", "uplinks", i)
		if !u.Address.IsValid() {
			e.add(append(here, "address"), "an address is required")
		}
		if u.ASN == 0 || u.ASN == z.Spec.ASN {
			e.add(append(here, "asn"), "an uplink is external: its ASN differs from the Zone's %d", z.Spec.ASN)
		}
		e.optionalName(append(here, "secret"), u.Secret)
		validateFilters(&e, append(here, "import"), u.Import)
		validateFilters(&e, append(here, "export"), u.Export)
	}
	return e
}

func validateFilters(e *FieldErrors, where []any, filters []PrefixFilter) {
	for i, f := range filters {
		here := append(append([]any{}, where...), i)
		if !f.Prefix.IsValid() || f.Prefix != f.Prefix.Masked() {
			e.add(append(here, "prefix"), "%s is no masked prefix", f.Prefix)
			continue
		}
		if f.LE != 0 {
			e.between(append(here, "le"), f.LE, f.Prefix.Bits(), f.Prefix.Addr().BitLen())
		}
	}
}
