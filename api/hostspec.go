package api

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// HostSpec is the complete desired state of a host: compiled from objects,
// never stored. It consists of parts, each with its digest, so that a watch
// sends only those that changed.
type HostSpec struct {
	Base
	// Epoch is raised by a restore: revisions of different epochs cannot be compared.
	Epoch      int64           `json:"epoch" doc:"Raised by a restore: revisions of different epochs cannot be compared."`
	Revision   int64           `json:"revision" doc:"Store revision that it was compiled at."`
	Parts      map[string]Part `json:"parts" doc:"Parts by name: base, bgp, network/NAME, guest/NAME."`
	Tombstones []Tombstone     `json:"tombstones,omitempty" doc:"What the host is to remove."`
}

// hostSpecKind describes the kind.
func hostSpecKind() Kind {
	return Kind{Name: "HostSpec", Doc: "The complete desired state of a host, compiled from the other objects.",
		Plural: "hostspecs", Short: []string{"hs"}, Computed: true,
		Columns: hostSpecColumns, New: func() Object { return new(HostSpec) }, is: is[*HostSpec]}
}

func hostSpecColumns() []Column {
	return []Column{
		of("EPOCH", func(h *HostSpec) string { return strconv.FormatInt(h.Epoch, 10) }),
		of("REVISION", func(h *HostSpec) string { return strconv.FormatInt(h.Revision, 10) }),
		of("PARTS", func(h *HostSpec) string { return strings.Join(slices.Sorted(maps.Keys(h.Parts)), ",") }),
		of("TOMBSTONES", func(h *HostSpec) string { return strconv.Itoa(len(h.Tombstones)) }),
	}
}

// Protocol numbers (rtnetlink(7), rtm_protocol) by which hosts mark their own
// routes: those of Networks, and those learned by BGP.
const (
	RouteProtocol    = 216
	BGPRouteProtocol = 217
)

// Tombstone is the only order to remove a Network or a Guest's disks: what
// merely vanishes from a HostSpec keeps running.
type Tombstone struct {
	Part string `json:"part" doc:"Name of the part."`
	UID  string `json:"uid" doc:"UID of the object that is gone."`
}

// PartBase is the name of the base part.
const PartBase = "base"

// basePart describes the parts that are called base.
func basePart() PartKind {
	return PartKind{Name: PartBase, New: func() any { return new(BasePart) }}
}

// BasePart is the part that every host has.
type BasePart struct {
	UID      string            `json:"uid" doc:"The Machine's."`
	Zone     string            `json:"zone,omitzero"`
	Labels   map[string]string `json:"labels,omitempty"`
	Underlay Underlay          `json:"underlay,omitzero"`
	NTP      []netip.Addr      `json:"ntp,omitempty"`
	API      []string          `json:"api,omitempty" doc:"URLs of bootd, in the order in which to try them."`
}

// Underlay is the interface that carries tenant traffic.
type Underlay struct {
	Interface string       `json:"interface,omitzero"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	MTU       int          `json:"mtu,omitzero"`
	// Closed are the prefixes of every Subnet of the Site: no tenant may reach
	// them.
	Closed []netip.Prefix `json:"closed,omitempty"`
	// Transit are the IPv4 prefixes that the host forwards to through this
	// interface for other hosts: a reflector that advertises its Zone's
	// aggregates to uplinks receives their traffic.
	Transit []netip.Prefix `json:"transit,omitempty"`
	// Encryption is set if the hosts of the Zone encrypt traffic between them.
	Encryption *Encryption `json:"encryption,omitempty"`
}

// WireGuardPort is the UDP port of every host of an encrypted Zone.
const WireGuardPort = 51820

// Encryption is a Zone's WireGuard mesh as compiled for one host. A host that
// has it neither sends nor accepts VXLAN in clear.
type Encryption struct {
	Port  int              `json:"port" doc:"UDP port of every host."`
	Peers []EncryptionPeer `json:"peers,omitempty"`
}

// EncryptionPeer is another host of the Zone.
type EncryptionPeer struct {
	Host      string       `json:"host"`
	PublicKey string       `json:"publicKey" doc:"Base64, as wg(8) prints it."`
	Addresses []netip.Addr `json:"addresses" doc:"Of its underlay: where it is reached, and what it may send from."`
}

// SetDefaults implements Object.
func (h *HostSpec) SetDefaults() { h.defaultType("HostSpec") }

// Validate implements Object.
func (h *HostSpec) Validate() FieldErrors {
	e := h.common("HostSpec")
	for name, part := range h.Parts {
		if _, err := DecodePart(name, part); err != nil {
			e.add(at("parts", name), "%s", err)
		}
	}
	return e
}
