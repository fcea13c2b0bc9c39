package api

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Secret is a value that is sealed at rest and never printed.
type Secret struct {
	Base
	Spec   SecretSpec   `json:"spec" doc:"The desired state, written by people."`
	Status SecretStatus `json:"status,omitzero" doc:"The observed state, written by rackweft."`
}

// secretKind describes the kind.
func secretKind() Kind {
	return Kind{Name: "Secret", Doc: "Values that are kept sealed, and what may use them.",
		Plural: "secrets", Writer: RoleAdmin,
		Columns: secretColumns, New: func() Object { return new(Secret) }, is: is[*Secret]}
}

func secretColumns() []Column {
	return []Column{of("KEYS", func(s *Secret) string { return strings.Join(slices.Sorted(maps.Keys(s.Status.Digests)), ",") })}
}

// SessionPassword is the key in a Secret's data with the MD5 key of BGP
// sessions, and MaxSessionPassword its maximum length (the kernel's
// TCP_MD5SIG_MAXKEYLEN).
const (
	SessionPassword    = "password"
	MaxSessionPassword = 80
)

// SecretSpec is the content of a Secret, and the list of its permitted uses.
type SecretSpec struct {
	Data map[string]string `json:"data,omitempty" doc:"Values by key, write-only, at most 512 KiB in all; a read returns names and digests in status. Default: a write with uses and without data keeps what is stored."`
	Uses *SecretUses       `json:"uses,omitempty" doc:"What may use it. Default: BMCs, uplinks and Networks that an admin has written; no Layer and no Guest."`
}

// SecretUses lists what may use a Secret; everything else is denied.
type SecretUses struct {
	Layers   []string `json:"layers,omitempty" doc:"Layers whose templates may put it into the config of a Machine. Default: none."`
	Guests   []string `json:"guests,omitempty" doc:"Guests that may be given it, by their Layers, user data or shares. Default: none."`
	BMC      []string `json:"bmc,omitempty" doc:"Hosts of spec.bmc.address of Machines that it may be sent to: addresses, prefixes or names. Default: none."`
	Uplinks  []string `json:"uplinks,omitempty" doc:"Zones whose uplinks may have it as their key. Default: none."`
	Networks []string `json:"networks,omitempty" doc:"Networks whose peering may have it as its key. Default: none."`
	// Operators permits operators, not only admins, to write the objects that
	// use the Secret.
	Operators bool `json:"operators,omitzero" doc:"Operators may know it: they may write what is given it, and reach Guests that have it. Needed where a list has \"*\", which is any. Default: false."`
}

// AnyUse in a list of SecretUses is any object of that kind.
const AnyUse = "*"

// SecretStatus describes the content without revealing it.
type SecretStatus struct {
	// Digests are keyed with a key of this Site, so that values can be compared
	// but a weak one cannot be guessed.
	Digests map[string]string `json:"digests,omitempty" doc:"Keyed digest of each value: tells equal values from different ones without giving them away."`
}

// SetDefaults implements Object.
func (s *Secret) SetDefaults() { s.defaultType("Secret") }

// Validate implements Object.
func (s *Secret) Validate() FieldErrors {
	e := s.common("Secret")
	size := 0
	for k, v := range s.Spec.Data {
		if k == "" || len(k) > 253 {
			e.add(at("spec", "data"), "key %s must have 1 to 253 characters", quote(k))
		}
		size += len(v)
	}
	if size > 1<<19 {
		e.add(at("spec", "data"), "values of %d bytes in total are more than 512 KiB", size)
	}
	if s.Spec.Uses != nil {
		s.Spec.Uses.validate(&e)
	}
	return e
}

func (u *SecretUses) validate(e *FieldErrors) {
	for _, list := range []struct {
		field string
		names []string
	}{{"layers", u.Layers}, {"guests", u.Guests}, {"uplinks", u.Uplinks}, {"networks", u.Networks}} {
		for i, name := range list.names {
			here := at("spec", "uses", list.field, i)
			switch {
			case name == AnyUse && !u.Operators:
				e.add(here, "%q permits every object that an operator writes: name each, or set spec.uses.operators to permit operators", name)
			case name != AnyUse:
				e.name(here, name)
			}
			if slices.Index(list.names, name) < i {
				e.add(here, "%q is listed twice", name)
			}
		}
	}
	for i, host := range u.BMC {
		if _, err := parseBMCHost(host); err != nil {
			e.add(at("spec", "uses", "bmc", i), "%s", err)
		}
	}
}

// parseBMCHost parses an entry of SecretUses.BMC; for a name the prefix is
// invalid.
func parseBMCHost(host string) (netip.Prefix, error) {
	if strings.Contains(host, "/") {
		p, err := ParsePrefix(host)
		if err == nil && p != p.Masked() {
			err = fmt.Errorf("%s has host bits set: want %s", p, p.Masked())
		}
		return p, err
	}
	if a, err := ParseAddr(host); err == nil {
		return HostPrefix(a), nil
	}
	if strings.ContainsAny(host, ":%") || len(host) > 253 || host != strings.ToLower(host) {
		return netip.Prefix{}, fmt.Errorf("invalid host %s: want an address, a prefix or a name in lower case", quote(host))
	}
	for label := range strings.SplitSeq(host, ".") {
		if !isLabel(label) {
			return netip.Prefix{}, fmt.Errorf("invalid host %s: want an address, a prefix or a name in lower case", quote(host))
		}
	}
	return netip.Prefix{}, nil
}

// SecretUse is one use of a Secret.
type SecretUse struct{ list, name string }

// UseLayer is a Layer in the config of a Machine.
func UseLayer(layer string) SecretUse { return SecretUse{"layers", layer} }

// UseGuest is a Guest's config or share.
func UseGuest(guest string) SecretUse { return SecretUse{"guests", guest} }

// UseBMC is a BMC, by spec.bmc.address of its Machine.
func UseBMC(address string) SecretUse { return SecretUse{"bmc", address} }

// UseUplink is an uplink of a Zone.
func UseUplink(zone string) SecretUse { return SecretUse{"uplinks", zone} }

// UseNetwork is the peering of a Network.
func UseNetwork(network string) SecretUse { return SecretUse{"networks", network} }

func (u SecretUse) String() string {
	switch u.list {
	case "layers":
		return "Layer " + u.name
	case "guests":
		return "Guest " + u.name
	case "uplinks":
		return "an uplink of Zone " + u.name
	case "networks":
		return "the peering of Network " + u.name
	}
	return "BMC " + u.name
}

// NotPermittedError means that a Secret may not be used for something.
type NotPermittedError struct {
	Secret string
	Use    SecretUse
}

func (e *NotPermittedError) Error() string {
	entry := e.Use.name
	if e.Use.list == "bmc" {
		entry = bmcHost(entry)
	}
	return fmt.Sprintf("Secret %s is not for %s: an admin adds %s to spec.uses.%s of the Secret", e.Secret, e.Use, quote(entry), e.Use.list)
}

// Permits decides whether a Secret may be used; everything that opens or
// references one calls it. The error is a *NotPermittedError.
func (s *Secret) Permits(use SecretUse) error {
	if s.Spec.Uses.permit(use) {
		return nil
	}
	return &NotPermittedError{s.Metadata.Name, use}
}

func (u *SecretUses) permit(use SecretUse) bool {
	if u == nil {
		return use.list == "bmc" || use.list == "uplinks" || use.list == "networks"
	}
	switch use.list {
	case "layers":
		return named(u.Layers, use.name)
	case "guests":
		return named(u.Guests, use.name)
	case "uplinks":
		return named(u.Uplinks, use.name)
	case "networks":
		return named(u.Networks, use.name)
	case "bmc":
		host := bmcHost(use.name)
		addr, err := netip.ParseAddr(host)
		return host != "" && slices.ContainsFunc(u.BMC, func(entry string) bool {
			p, bad := parseBMCHost(entry)
			return bad == nil && (err == nil && p.Contains(addr.Unmap().WithZone("")) || err != nil && entry == host)
		})
	}
	return false
}

func named(list []string, name string) bool {
	return slices.Contains(list, name) || slices.Contains(list, AnyUse)
}

// bmcHost returns the host of a BMC's address, "" when it has none.
func bmcHost(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return strings.ToLower(u.Hostname())
}
