package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// HostSpec is all that a host should be: compiled from objects, never stored.
// It is made of parts, each with its digest, so that a watch sends only those
// that changed.
type HostSpec struct {
	Base
	// Epoch is raised by a restore: revisions of different epochs cannot be compared.
	Epoch      int64           `json:"epoch"`
	Revision   int64           `json:"revision" doc:"Store revision that it was compiled at."`
	Parts      map[string]Part `json:"parts"`
	Tombstones []Tombstone     `json:"tombstones,omitempty"`
}

// Part is one part of a HostSpec as it goes over the wire. Its name says what
// it holds: base, network/NAME, guest/NAME or bgp.
type Part = json.RawMessage

// Names of parts.
const (
	PartBase = "base"
	PartBGP  = "bgp"
)

// NetworkPartName is the name of a Network's part.
func NetworkPartName(network string) string { return "network/" + network }

// GuestPartName is the name of a Guest's part.
func GuestPartName(guest string) string { return "guest/" + guest }

// Tombstone is the only word that removes a Network or a Guest's disks: what
// merely vanishes from a HostSpec keeps running.
type Tombstone struct {
	Part string `json:"part"`
	UID  string `json:"uid"`
}

// BasePart is what every host has.
type BasePart struct {
	UID      string            `json:"uid" doc:"The Machine's."`
	Zone     string            `json:"zone,omitzero"`
	Labels   map[string]string `json:"labels,omitempty"`
	Underlay Underlay          `json:"underlay,omitzero"`
	NTP      []netip.Addr      `json:"ntp,omitempty"`
	API      []string          `json:"api,omitempty" doc:"URLs of bootd, in the order in which to try them."`
}

// Underlay is where tenant traffic is carried.
type Underlay struct {
	Interface string       `json:"interface,omitzero"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	MTU       int          `json:"mtu,omitzero"`
}

// NetworkPart is a Network as one host needs it.
type NetworkPart struct {
	UID        string         `json:"uid"`
	VNI        uint32         `json:"vni"`
	MTU        int            `json:"mtu"`
	CIDRs      []netip.Prefix `json:"cidrs,omitempty"`
	Lease      netip.Prefix   `json:"lease"`
	MAC        MAC            `json:"mac" doc:"Of this host's VTEP."`
	Peers      []NetworkPeer  `json:"peers,omitempty"`
	Egress     string         `json:"egress,omitzero"`
	Advertise  bool           `json:"advertise,omitzero"`
	AllowCIDRs []netip.Prefix `json:"allowCIDRs,omitempty"`
}

// NetworkPeer is another host of the same Network.
type NetworkPeer struct {
	Host  string       `json:"host"`
	Lease netip.Prefix `json:"lease"`
	VTEP  netip.Addr   `json:"vtep"`
	MAC   MAC          `json:"mac"`
}

// GuestPart is a Guest as its host needs it.
type GuestPart struct {
	UID     string      `json:"uid"`
	Network string      `json:"network"`
	Address netip.Addr  `json:"address"`
	MAC     MAC         `json:"mac"`
	CPUs    int         `json:"cpus"`
	Memory  Quantity    `json:"memory"`
	Image   string      `json:"image" doc:"Digest of the disk blob."`
	Disks   []Disk      `json:"disks,omitempty"`
	Config  GuestConfig `json:"config,omitzero"`
	State   string      `json:"state"`
}

// GuestConfig says where the host fetches the Guest's config.
type GuestConfig struct {
	URL   string `json:"url"`
	Token string `json:"token"`
}

// BGPPart is what the host's speaker is.
type BGPPart struct {
	ASN       uint32         `json:"asn"`
	RouterID  netip.Addr     `json:"routerID"`
	Role      string         `json:"role" enum:"client,reflector"`
	ClusterID netip.Addr     `json:"clusterID,omitzero"`
	Neighbors []BGPNeighbor  `json:"neighbors,omitempty"`
	Originate []netip.Prefix `json:"originate,omitempty"`
	Accept    []BGPAccept    `json:"accept,omitempty" doc:"What this reflector takes, by client."`
}

// BGPNeighbor is one session.
type BGPNeighbor struct {
	Name     string         `json:"name"`
	Address  netip.Addr     `json:"address"`
	ASN      uint32         `json:"asn"`
	Role     string         `json:"role" enum:"reflector,client,uplink"`
	Passive  bool           `json:"passive,omitzero"`
	Password string         `json:"password,omitzero" doc:"TCP MD5 key (RFC 2385)."`
	Import   []PrefixFilter `json:"import,omitempty"`
	Export   []PrefixFilter `json:"export,omitempty"`
}

// BGPAccept bounds what one client may originate.
type BGPAccept struct {
	Client   string         `json:"client"`
	Prefixes []netip.Prefix `json:"prefixes"`
	NextHops []netip.Addr   `json:"nextHops"`
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

// DecodePart decodes a part into a pointer to the type that its name stands
// for. Unknown fields are kept out without an error: a host must live with a
// newer bootd.
func DecodePart(name string, part Part) (any, error) {
	var v any
	switch kind, rest, _ := strings.Cut(name, "/"); {
	case name == PartBase:
		v = new(BasePart)
	case name == PartBGP:
		v = new(BGPPart)
	case kind == "network" && ValidateName(rest) == nil:
		v = new(NetworkPart)
	case kind == "guest" && ValidateName(rest) == nil:
		v = new(GuestPart)
	default:
		return nil, fmt.Errorf("no HostSpec part is called %q", name)
	}
	if err := json.Unmarshal(part, v); err != nil {
		return nil, fmt.Errorf("decode HostSpec part %s: %w", name, err)
	}
	return v, nil
}

// EncodePart encodes a part; equal values give equal bytes.
func EncodePart(v any) (Part, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode HostSpec part: %w", err)
	}
	return b, nil
}

// PartDigest is the digest by which bootd and host compare parts.
func PartDigest(p Part) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:])
}
