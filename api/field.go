package api

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// FieldError is one invalid field. Pointer is an RFC 6901 JSON pointer from the
// object's root; the message says what is wrong and what is valid.
type FieldError struct {
	Pointer string `json:"pointer"`
	Message string `json:"message"`
}

func (e FieldError) Error() string {
	if e.Pointer == "" {
		return e.Message
	}
	return e.Pointer + ": " + e.Message
}

// FieldErrors are all invalid fields of one object.
type FieldErrors []FieldError

func (e FieldErrors) Error() string {
	lines := make([]string, len(e))
	for i, f := range e {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "; ")
}

// OrNil returns nil as a plain error when there are none.
func (e FieldErrors) OrNil() error {
	if len(e) == 0 {
		return nil
	}
	return e
}

// maxFaults bounds the faults that are listed: lists compared entry by entry
// could have a million.
const maxFaults = 100

// add records a fault at the pointer built from the parts: strings are object
// keys, ints are list indexes.
func (e *FieldErrors) add(at []any, format string, args ...any) {
	if len(*e) >= maxFaults {
		return
	}
	*e = append(*e, FieldError{Pointer: Pointer(at...), Message: fmt.Sprintf(format, args...)})
}

// Pointer builds an RFC 6901 JSON pointer: strings are keys, ints are indexes.
func Pointer(parts ...any) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(token(p))
	}
	return b.String()
}

// token runs for every field of every validated object, so it must not allocate
// when nothing needs escaping.
func token(part any) string {
	var text string
	switch part := part.(type) {
	case string:
		text = part
	case int:
		return strconv.Itoa(part)
	default:
		text = fmt.Sprint(part)
	}
	if strings.ContainsAny(text, "~/") {
		text = strings.ReplaceAll(strings.ReplaceAll(text, "~", "~0"), "/", "~1")
	}
	return text
}

func at(parts ...any) []any { return parts }

func singular(k Kind) string { return strings.ToLower(k.Name) }

// ValidateName checks an RFC 1123 label.
func ValidateName(name string) error {
	if name == "" {
		return errors.New("a name is required")
	}
	if !isLabel(name) {
		return fmt.Errorf("invalid name %s: want an RFC 1123 label, up to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit", quote(name))
	}
	return nil
}

func isLabel(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

func (e *FieldErrors) name(where []any, name string) {
	if err := ValidateName(name); err != nil {
		e.add(where, "%s", err)
	}
}

// optionalName checks a reference that may be empty.
func (e *FieldErrors) optionalName(where []any, name string) {
	if name != "" {
		e.name(where, name)
	}
}

// domain checks a DNS domain.
func (e *FieldErrors) domain(where []any, domain string) {
	ok := len(domain) <= 253
	for label := range strings.SplitSeq(domain, ".") {
		if !ok || !isLabel(label) {
			e.add(where, "invalid domain %s: want labels of a-z, 0-9 and '-' joined by dots, such as dc1.example", quote(domain))
			return
		}
	}
}

// interfaceName checks a name for validity as a Linux network interface.
func (e *FieldErrors) interfaceName(where []any, name string) {
	if name == "" || len(name) > 15 || strings.ContainsAny(name, "/ \t\n:") {
		e.add(where, "invalid interface name %s: want 1 to 15 characters without '/', ':' or space", quote(name))
	}
}

func (e *FieldErrors) oneOf(where []any, got string, want ...string) {
	for _, w := range want {
		if got == w {
			return
		}
	}
	e.add(where, "%s is not one of %s", quote(got), strings.Join(want, ", "))
}

func (e *FieldErrors) between(where []any, got, low, high int) {
	if got < low || got > high {
		e.add(where, "%d is not between %d and %d", got, low, high)
	}
}

// prefixes checks that each is in its masked form and that no two overlap.
func (e *FieldErrors) prefixes(where []any, list []netip.Prefix) {
	for i, p := range list {
		here := append(append([]any{}, where...), i)
		if !p.IsValid() {
			e.add(here, "a prefix is required, such as 198.18.0.0/24")
			continue
		}
		if p != p.Masked() {
			e.add(here, "%s has host bits set: write %s", p, p.Masked())
		}
		for j, q := range list[:i] {
			if p.Overlaps(q) {
				e.add(here, "%s overlaps %s, entry %d of the same list", p, q, j)
			}
		}
	}
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// common checks what every kind has in common.
func (b *Base) common(kind string) FieldErrors {
	var e FieldErrors
	if b.APIVersion != Version {
		e.add(at("apiVersion"), "invalid %s: want %s", quote(b.APIVersion), Version)
	}
	if b.Kind != kind {
		e.add(at("kind"), "%s is not %s", quote(b.Kind), kind)
	}
	e.name(at("metadata", "name"), b.Metadata.Name)
	for k := range b.Metadata.Labels {
		if k == "" || len(k) > 253 {
			e.add(at("metadata", "labels"), "label key %s must have 1 to 253 characters", quote(k))
		}
	}
	return e
}

func (b *Base) defaultType(kind string) {
	if b.APIVersion == "" {
		b.APIVersion = Version
	}
	if b.Kind == "" {
		b.Kind = kind
	}
}

// ListenPort checks an address to listen on, [address]:port, and returns its
// port (1-65535).
func ListenPort(listen string) (int, error) {
	host, p, err := net.SplitHostPort(listen)
	if err != nil {
		return 0, errors.New("write :port or address:port")
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("invalid port %q: want 1 to 65535", p)
	}
	if _, err := netip.ParseAddr(host); host != "" && err != nil {
		return 0, fmt.Errorf("invalid address %q: want an IP address", host)
	}
	return int(n), nil
}
