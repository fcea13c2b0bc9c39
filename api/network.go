package api

import "net/netip"

// Network is a tenant's overlay: one VXLAN VNI, CIDRs cut into one lease per
// host, flannel's scheme.
type Network struct {
	Base
	Spec   NetworkSpec   `json:"spec"`
	Status NetworkStatus `json:"status,omitzero"`
}

// NetworkSpec is the desired Network.
type NetworkSpec struct {
	Zone       string         `json:"zone"`
	CIDRs      []netip.Prefix `json:"cidrs"`
	HostPrefix int            `json:"hostPrefix,omitzero" doc:"Length of each host's IPv4 lease; 24 unless set."`
	VNI        uint32         `json:"vni,omitzero" doc:"Pins the VNI that rackweft would choose."`
	Egress     string         `json:"egress,omitzero" enum:"none,masquerade" doc:"How guests reach out of the Network; none unless set."`
	Advertise  bool           `json:"advertise,omitzero" doc:"Route each host's lease into the Zone by BGP."`
	Allow      []string       `json:"allow,omitempty" doc:"Networks that may talk to this one."`
}

// NetworkStatus is what rackweft observed and chose.
type NetworkStatus struct {
	VNI        uint32     `json:"vni,omitzero"`
	Leases     int        `json:"leases,omitzero"`
	Conditions Conditions `json:"conditions,omitempty"`
}

// SetDefaults implements Object.
func (n *Network) SetDefaults() {
	n.defaultType("Network")
	if n.Spec.HostPrefix == 0 {
		n.Spec.HostPrefix = 24
	}
	if n.Spec.Egress == "" {
		n.Spec.Egress = "none"
	}
}

// Validate implements Object.
func (n *Network) Validate() FieldErrors {
	e := n.common("Network")
	e.name(at("spec", "zone"), n.Spec.Zone)
	if len(n.Spec.CIDRs) == 0 {
		e.add(at("spec", "cidrs"), "at least one CIDR is required")
	}
	e.prefixes(at("spec", "cidrs"), n.Spec.CIDRs)
	for i, c := range n.Spec.CIDRs {
		if c.Addr().Is4() && (n.Spec.HostPrefix <= c.Bits() || n.Spec.HostPrefix > 30) {
			e.add(at("spec", "hostPrefix"), "/%d does not cut %s (cidrs entry %d) into host leases: choose a length between /%d and /30", n.Spec.HostPrefix, c, i, c.Bits()+1)
		}
	}
	if n.Spec.VNI != 0 {
		e.between(at("spec", "vni"), int(n.Spec.VNI), 1, 1<<24-1)
	}
	e.oneOf(at("spec", "egress"), n.Spec.Egress, "none", "masquerade")
	for i, a := range n.Spec.Allow {
		e.name(at("spec", "allow", i), a)
	}
	return e
}
