package api

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
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
		return "", fmt.Errorf("%q is no MAC address: write six octets, such as 52:54:00:01:07:00", s)
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

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is no duration: write it as 30s, 15m or 1h30m", b)
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

// ParseQuantity reads a Kubernetes quantity.
func ParseQuantity(s string) (Quantity, error) {
	q, err := resource.ParseQuantity(s)
	if err != nil {
		return Quantity{}, fmt.Errorf("%q is no quantity: write it as 4Gi, 500M or 250m", s)
	}
	return Quantity{q}, nil
}

// Bytes is a number of bytes.
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

// Value is the quantity rounded up to a whole number (bytes, for memory).
func (q Quantity) Value() int64 { return q.q.Value() }

// IsZero reports whether the quantity is zero.
func (q Quantity) IsZero() bool { return q.q.IsZero() }

// SHA256 is a SHA-256 digest as 64 lower-case hexadecimal digits.
type SHA256 string

// UnmarshalText accepts the digits with or without a "sha256:" before them.
func (s *SHA256) UnmarshalText(b []byte) error {
	text := strings.ToLower(strings.TrimPrefix(string(b), "sha256:"))
	if raw, err := hex.DecodeString(text); err != nil || len(raw) != 32 {
		return fmt.Errorf("%q is no SHA-256 digest: write 64 hexadecimal digits", b)
	}
	*s = SHA256(text)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (s SHA256) MarshalText() ([]byte, error) { return []byte(s), nil }

// AddrRange is an inclusive range of addresses, written first-last.
type AddrRange struct{ First, Last netip.Addr }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *AddrRange) UnmarshalText(b []byte) error {
	first, last, ok := strings.Cut(string(b), "-")
	f, err1 := netip.ParseAddr(strings.TrimSpace(first))
	l, err2 := netip.ParseAddr(strings.TrimSpace(last))
	if !ok || err1 != nil || err2 != nil {
		return fmt.Errorf("%q is no address range: write 198.18.0.100-198.18.0.199", b)
	}
	if f.BitLen() != l.BitLen() || l.Less(f) {
		return fmt.Errorf("address range %q ends before it begins", b)
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
	var low, high uint32
	var rest string
	n, _ := fmt.Sscanf(string(b), "%d-%d%s", &low, &high, &rest)
	if n != 2 || low < 1 || high > 1<<24-1 || high < low {
		return fmt.Errorf("%q is no VNI range: write low-high within 1-16777215", b)
	}
	*r = VNIRange{low, high}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (r VNIRange) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%d-%d", r.Low, r.High), nil }

// IsZero reports whether no range is set.
func (r VNIRange) IsZero() bool { return r == VNIRange{} }

// Skew says in words how far a clock is off: a host's clock minus bootd's.
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
