package network

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/rackweft/rackweft/api"
)

// Port is the UDP port of every VTEP: flannel's (and Linux's) default.
const Port = 8472

const backendVXLAN = "vxlan"

// attrs is the value of a lease in flannel's format (lease.LeaseAttrs in
// pkg/lease/lease.go). PublicIP must be an IPv4 address: a value that flanneld
// cannot decode makes it drop all of its peers, as a key does (watchSubnets in pkg/subnet/etcd/registry.go
// returns a result without events, which is taken for an empty snapshot). A host with an IPv6 underlay has
// 0.0.0.0 there.
type attrs struct {
	PublicIP    netip.Addr
	PublicIPv6  *netip.Addr
	BackendType string `json:",omitempty"`
	BackendData *vxlan `json:",omitempty"`
	BackendV6   *vxlan `json:"BackendV6Data,omitempty"`
}

// vxlan is vxlanLeaseAttrs in pkg/backend/vxlan/vxlan.go.
type vxlan struct {
	VNI     uint32
	VtepMAC api.MAC
}

// config is what flanneld reads first (subnet.Config in pkg/subnet/config.go).
type config struct {
	Network   netip.Prefix
	SubnetLen int
	Backend   backend
}

type backend struct {
	Type string
	VNI  uint32
	Port int
}

// ownerRecord names the Network of a layout. Every write of a Controller changes it, so that two of them cannot
// allocate at once.
type ownerRecord struct {
	UID    string          `json:"uid"`
	VNI    uint32          `json:"vni"`
	Config json.RawMessage `json:"config"` // as last written by rackweft
}

// hostRecord names the host of a lease. A lease without one belongs to a stock flanneld, or was reserved by a
// person: it is never changed.
type hostRecord struct {
	Network string `json:"network"` // uid
	Machine string `json:"machine"` // name
	UID     string `json:"uid"`     // the Machine's
	// Lease6 is the IPv6 lease. It is stored only here: flanneld, which is an IPv4 member, has none.
	Lease6 netip.Prefix `json:"lease6,omitzero"`
	// Guest is set on an extra lease that follows a moved Guest, by its name.
	Guest string `json:"guest,omitzero"`
	// Buried is the revision of the order to the host to remove the Network; the lease is released when the host
	// has confirmed it.
	Buried int64 `json:"buried,omitzero"`
}

func encode(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic("network: encode " + fmt.Sprintf("%T: %s", v, err)) // plain structs of this package
	}
	return raw
}

// leaseValue is the value under subnets/ for a host.
func leaseValue(vni uint32, vtep netip.Addr, mac api.MAC) []byte {
	a := attrs{PublicIP: vtep, BackendType: backendVXLAN, BackendData: &vxlan{VNI: vni, VtepMAC: mac}}
	if vtep.Is6() {
		a.PublicIP, a.PublicIPv6, a.BackendV6 = netip.IPv4Unspecified(), &vtep, a.BackendData
	}
	return encode(a)
}

// parseLease reads a lease's value; false when it is not a VXLAN lease of that VNI.
func parseLease(raw []byte, vni uint32) (vtep netip.Addr, mac api.MAC, ok bool) {
	var a attrs
	if json.Unmarshal(raw, &a) != nil || a.BackendType != backendVXLAN {
		return netip.Addr{}, "", false
	}
	vtep, data := a.PublicIP, a.BackendData
	if a.PublicIPv6 != nil && (!vtep.IsValid() || vtep.IsUnspecified()) {
		vtep, data = *a.PublicIPv6, a.BackendV6
	}
	switch {
	case data == nil || data.VNI != vni || data.VtepMAC == "":
	case !vtep.IsValid() || vtep.IsUnspecified() || vtep.IsMulticast() || vtep.IsLoopback():
	case data.VtepMAC.HardwareAddr()[0]&1 != 0: // a group address
	default:
		return vtep.Unmap(), data.VtepMAC, true
	}
	return netip.Addr{}, "", false
}

// flannelConfig is the configuration of a Network. Flannel knows one IPv4 CIDR: it honours leases from others,
// but chooses none there.
func flannelConfig(n *api.Network, vni uint32) []byte {
	v4 := ipv4(n.Spec.CIDRs)
	if len(v4) == 0 {
		return nil
	}
	return encode(config{Network: v4[0], SubnetLen: n.Spec.HostPrefix, Backend: backend{Type: backendVXLAN, VNI: vni, Port: Port}})
}

// sameConfig reports whether two configurations mean the same to flannel.
func sameConfig(a, b []byte) bool {
	read := func(raw []byte) (config, bool) {
		c := config{Backend: backend{Port: Port}}
		err := json.Unmarshal(raw, &c)
		return c, err == nil
	}
	x, okX := read(a)
	y, okY := read(b)
	return okX && okY && x == y
}

// VTEPMAC is the MAC of a host's VTEP in a Network: locally administered, and the same as long as the Machine and
// the VNI exist.
func VTEPMAC(uid string, vni uint32) api.MAC {
	sum := sha256.Sum256(binary.BigEndian.AppendUint32([]byte("vtep "+uid+" "), vni))
	return api.MAC(fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", sum[0], sum[1], sum[2], sum[3], sum[4]))
}

func ipv4(cidrs []netip.Prefix) []netip.Prefix {
	var v4 []netip.Prefix
	for _, c := range cidrs {
		if c.Addr().Is4() {
			v4 = append(v4, c)
		}
	}
	return v4
}
