package api

import (
	"crypto/ecdh"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// MAC is a 48-bit Ethernet address in its canonical form: six lower-case
// octets joined by colons. It decodes from any common spelling.
type MAC string

// ParseMAC accepts colons, dashes and dots between the octets, in any case.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return "", fmt.Errorf("invalid MAC address %s: want six octets, such as 52:54:00:01:07:00", quote(s))
	}
	return MAC(hw.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(b []byte) error {
	v, err := ParseMAC(string(b))
	if err != nil {
		return err
	}
	*m = v
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m), nil }

// HardwareAddr returns the address as bytes; nil when m is empty or not canonical.
func (m MAC) HardwareAddr() net.HardwareAddr {
	hw, err := net.ParseMAC(string(m))
	if err != nil {
		return nil
	}
	return hw
}

// Duration is a Go duration that reads and writes as text, such as 1h30m.
type Duration time.Duration

// maxDuration is longer than any text from MarshalText.
const maxDuration = 32

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	if len(b) > maxDuration {
		return fmt.Errorf("invalid duration %s: it has %d characters, at most %d are read", quote(b), len(b), maxDuration)
	}
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("invalid duration %s: want 30s, 15m or 1h30m", quote(b))
	}
	*d = Duration(v)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Or returns d, or the fallback when d is zero.
func (d Duration) Or(fallback time.Duration) time.Duration {
	if d == 0 {
		return fallback
	}
	return time.Duration(d)
}

// Quantity is a Kubernetes quantity, such as 4Gi or 500m.
type Quantity struct{ q resource.Quantity }

// Bounds of a quantity's text. resource.ParseQuantity computes ten to the power
// of any exponent, so both are checked before the call.
const (
	maxQuantity         = 20
	maxQuantityExponent = 30
)

// ParseQuantity parses a Kubernetes quantity. Its value, rounded up, fits an
// int64, and the result of String can be parsed again.
func ParseQuantity(s string) (Quantity, error) {
	if len(s) > maxQuantity {
		return Quantity{}, fmt.Errorf("invalid quantity %s: it has %d characters, at most %d are read", quote(s), len(s), maxQuantity)
	}
	if i := strings.IndexAny(s, "eE"); i >= 0 && s[i+1:] != "" && s[i+1:] != "i" { // else the suffixes E and Ei
		n, err := strconv.Atoi(s[i+1:])
		if err != nil || n < -maxQuantityExponent || n > maxQuantityExponent {
			return Quantity{}, fmt.Errorf("invalid quantity %q: want an exponent between -%d and %[2]d", s, maxQuantityExponent)
		}
	}
	q, err := resource.ParseQuantity(s)
	if err != nil {
		return Quantity{}, fmt.Errorf("invalid quantity %q: want 4Gi, 500M or 250m", s)
	}
	most := resource.NewQuantity(math.MaxInt64, resource.DecimalSI)
	least := resource.NewQuantity(-math.MaxInt64, resource.DecimalSI)
	if q.Cmp(*most) >= 0 || q.Cmp(*least) <= 0 { // what is larger, ParseQuantity or Value would cut down
		return Quantity{}, fmt.Errorf("invalid quantity %q: it does not fit 64 bits", s)
	}
	if text := q.String(); len(text) > maxQuantity {
		return Quantity{}, fmt.Errorf("invalid quantity %q: want fewer digits", s)
	}
	return Quantity{q}, nil
}

// Bytes returns a number of bytes as a Quantity.
func Bytes(n int64) Quantity { return Quantity{*resource.NewQuantity(n, resource.BinarySI)} }

// UnmarshalText implements encoding.TextUnmarshaler.
func (q *Quantity) UnmarshalText(b []byte) error {
	v, err := ParseQuantity(string(b))
	if err != nil {
		return err
	}
	*q = v
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (q Quantity) MarshalText() ([]byte, error) { return []byte(q.String()), nil }

// String writes the quantity as Kubernetes does.
func (q Quantity) String() string { return q.q.String() }

// Value returns the quantity rounded up to a whole number (bytes, for memory).
func (q Quantity) Value() int64 {
	v := q.q.Value()
	if v > 0 && q.q.Sign() < 0 {
		return 0 // it rounds up by adding one to what is left of a fraction: -1e-10 would be 1
	}
	return v
}

// IsZero reports whether the quantity is zero.
func (q Quantity) IsZero() bool { return q.q.IsZero() }

// SHA256 is a SHA-256 digest as 64 lower-case hexadecimal digits.
type SHA256 string

// UnmarshalText accepts the digits with or without a "sha256:" before them.
func (s *SHA256) UnmarshalText(b []byte) error {
	text := strings.ToLower(strings.TrimPrefix(string(b), "sha256:"))
	if raw, err := hex.DecodeString(text); err != nil || len(raw) != 32 {
		return fmt.Errorf("invalid SHA-256 digest %s: want 64 hexadecimal digits", quote(b))
	}
	*s = SHA256(text)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (s SHA256) MarshalText() ([]byte, error) { return []byte(s), nil }

// Fingerprint is the SHA-256 digest of a certificate in its canonical form:
// sha256: and 64 lower-case hexadecimal digits.
type Fingerprint string

// UnmarshalText accepts the digits in any case, and colons between them, as
// openssl(1) prints them.
func (f *Fingerprint) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*f = ""
		return nil
	}
	digits, ok := strings.CutPrefix(string(b), "sha256:")
	raw, err := hex.DecodeString(strings.ReplaceAll(digits, ":", ""))
	if !ok || err != nil || len(raw) != 32 {
		return fmt.Errorf("invalid fingerprint %s: want sha256: and 64 hexadecimal digits", quote(b))
	}
	*f = Fingerprint("sha256:" + hex.EncodeToString(raw))
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f), nil }

// HostKey is the SHA-256 digest of an SSH host key in its canonical form, which
// ssh-keygen -l prints: SHA256: and 43 base64 digits without padding.
type HostKey string

// UnmarshalText accepts the canonical form alone.
func (k *HostKey) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*k = ""
		return nil
	}
	digits, ok := strings.CutPrefix(string(b), "SHA256:")
	raw, err := base64.RawStdEncoding.Strict().DecodeString(digits)
	if !ok || err != nil || len(raw) != 32 || strings.ContainsAny(digits, "\r\n") {
		return fmt.Errorf("invalid SSH host key %s: want SHA256: and 43 base64 digits, as ssh-keygen -l prints it", quote(b))
	}
	*k = HostKey(b)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (k HostKey) MarshalText() ([]byte, error) { return []byte(k), nil }

// ValidateWireGuardKey checks a public key as printed by wg(8). Each key has
// one valid spelling: base64 without a stray bit, and of the integers that mean
// the same point for X25519 (RFC 7748 section 5) the one below 2^255-19.
func ValidateWireGuardKey(key string) error {
	raw, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(raw) != 32 || base64.StdEncoding.EncodeToString(raw) != key {
		return errors.New("invalid WireGuard key: want 32 bytes in base64, as wg(8) prints them")
	}
	reduced := raw[31] < 0x7f || raw[0] < 0xed
	for _, b := range raw[1:31] {
		reduced = reduced || b != 0xff
	}
	if raw[31] > 0x7f || !reduced {
		return errors.New("invalid WireGuard key: its number is not below 2^255-19")
	}
	public, err := ecdh.X25519().NewPublicKey(raw)
	if err != nil {
		return fmt.Errorf("invalid WireGuard key: %w", err)
	}
	any32, err := ecdh.X25519().NewPrivateKey(append([]byte{8}, make([]byte, 31)...))
	if err != nil {
		return fmt.Errorf("check a WireGuard key: %w", err)
	}
	if _, err := any32.ECDH(public); err != nil { // a point of low order: everyone would share one secret with it
		return errors.New("invalid WireGuard key: it is of low order")
	}
	return nil
}

// ParseAddr parses an IP address with a single spelling: no zone, and no IPv4
// address inside an IPv6 one (::ffff:198.18.0.7), which would compare as
// different.
func ParseAddr(s string) (netip.Addr, error) {
	if len(s) > maxAddr {
		return netip.Addr{}, fmt.Errorf("invalid address %s: want one such as 198.18.0.7 or 2001:db8::7", quote(s))
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("invalid address %q: want one such as 198.18.0.7 or 2001:db8::7", s)
	}
	if plain := a.Unmap().WithZone(""); plain != a {
		return netip.Addr{}, fmt.Errorf("invalid address %q: want %s", s, plain)
	}
	return a, nil
}

// maxAddr is longer than any address, prefix or address with a port.
const maxAddr = 64

// ParsePrefix parses a prefix by the rules of ParseAddr. Host bits may be set.
func ParsePrefix(s string) (netip.Prefix, error) {
	if len(s) > maxAddr {
		return netip.Prefix{}, fmt.Errorf("invalid prefix %s: want one such as 198.18.0.0/24", quote(s))
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("invalid prefix %q: want one such as 198.18.0.0/24", s)
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("invalid prefix %q: want an IPv4 prefix as such", s)
	}
	return p, nil
}

// ParseAddrPort parses an address with a port by the rules of ParseAddr.
func ParseAddrPort(s string) (netip.AddrPort, error) {
	if len(s) > maxAddr {
		return netip.AddrPort{}, fmt.Errorf("invalid address with a port %s: want one such as 198.18.8.5:11019", quote(s))
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("invalid address with a port %q: want one such as 198.18.8.5:11019", s)
	}
	if plain := a.Addr().Unmap().WithZone(""); plain != a.Addr() {
		return netip.AddrPort{}, fmt.Errorf("invalid address with a port %q: want %s", s, netip.AddrPortFrom(plain, a.Port()))
	}
	return a, nil
}

// AddrRange is an inclusive range of addresses, written first-last.
type AddrRange struct{ First, Last netip.Addr }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *AddrRange) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*r = AddrRange{}
		return nil
	}
	first, last, ok := strings.Cut(string(b), "-")
	f, err1 := ParseAddr(strings.TrimSpace(first))
	l, err2 := ParseAddr(strings.TrimSpace(last))
	if !ok || err1 != nil || err2 != nil {
		return fmt.Errorf("invalid address range %s: want 198.18.0.100-198.18.0.199", quote(b))
	}
	if f.BitLen() != l.BitLen() || l.Less(f) {
		return fmt.Errorf("invalid address range %s: it ends before it begins", quote(b))
	}
	*r = AddrRange{f, l}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (r AddrRange) MarshalText() ([]byte, error) {
	if r.IsZero() {
		return nil, nil
	}
	return []byte(r.First.String() + "-" + r.Last.String()), nil
}

// IsZero reports whether no range is set.
func (r AddrRange) IsZero() bool { return !r.First.IsValid() }

// Contains reports whether a lies in the range.
func (r AddrRange) Contains(a netip.Addr) bool {
	return r.First.IsValid() && !a.Less(r.First) && !r.Last.Less(a)
}

// VNIRange is an inclusive range of VXLAN network identifiers, written low-high.
type VNIRange struct{ Low, High uint32 }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *VNIRange) UnmarshalText(b []byte) error {
	first, last, ok := strings.Cut(string(b), "-")
	low, err1 := strconv.ParseUint(first, 10, 24)
	high, err2 := strconv.ParseUint(last, 10, 24)
	if !ok || err1 != nil || err2 != nil || low < 1 || high < low {
		return fmt.Errorf("invalid VNI range %s: want low-high within 1-16777215", quote(b))
	}
	*r = VNIRange{uint32(low), uint32(high)}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (r VNIRange) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%d-%d", r.Low, r.High), nil }

// IsZero reports whether no range is set.
func (r VNIRange) IsZero() bool { return r == VNIRange{} }

// Skew describes a clock's offset: a host's clock minus bootd's.
func Skew(d time.Duration) string {
	word := "ahead"
	if d < 0 {
		d, word = -d, "behind"
	}
	switch {
	case d < 2*time.Second: // a request takes its time, too
		return "is right"
	case d < 48*time.Hour:
		return fmt.Sprintf("is %s %s", d.Round(time.Second), word)
	}
	return fmt.Sprintf("is %d days %s", d/(24*time.Hour), word)
}

// quote quotes a text for a message, and truncates a long one.
func quote[T string | []byte](text T) string {
	const most = 64
	if len(text) > most {
		return strconv.Quote(string(text[:most])) + "…"
	}
	return strconv.Quote(string(text))
}
