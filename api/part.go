package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
)

// Part is one part of a HostSpec as it goes over the wire. Its name says what
// it holds: base, network/NAME, guest/NAME or bgp.
type Part = json.RawMessage

// PartKind describes the parts that hold one thing.
type PartKind struct {
	Name  string // of the part, or what is before the slash in it
	Named bool   // there is one for each object: NAME/OBJECT
	New   func() any
	// Mask takes the keys out of one that people are shown; nil when it has none.
	Mask func(Part) (Part, error)
}

// PartKinds lists every kind of part.
func PartKinds() []PartKind {
	return []PartKind{basePart(), bgpPart(), networkPart(), guestPart()}
}

// PartKindOf finds the kind of a part by its name, and the object that the part
// is about.
func PartKindOf(name string) (kind PartKind, object string, err error) {
	word, object, named := strings.Cut(name, "/")
	for _, k := range PartKinds() {
		if k.Name == word && k.Named == named && (!named || ValidateName(object) == nil) {
			return k, object, nil
		}
	}
	return PartKind{}, "", fmt.Errorf("no HostSpec part is called %q", name)
}

// DecodePart decodes a part into a pointer to the type that its name stands
// for. Unknown fields are kept out without an error: a host must live with a
// newer bootd.
func DecodePart(name string, part Part) (any, error) {
	kind, _, err := PartKindOf(name)
	if err != nil {
		return nil, err
	}
	v := kind.New()
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

// NotShown stands for a key that people are not shown.
const NotShown = "(not shown)"

// MaskPart is a part as people see it: without keys.
func MaskPart(name string, part Part) (Part, error) {
	kind, _, err := PartKindOf(name)
	if err != nil {
		return nil, err
	}
	if kind.Mask == nil {
		return part, nil
	}
	masked, err := kind.Mask(part)
	if err != nil {
		return nil, fmt.Errorf("mask the keys of HostSpec part %s: %w", name, err)
	}
	return masked, nil
}

// maskPasswords has the passwords taken out of a part that has any.
func maskPasswords[T any](part Part, mask func(*T)) (Part, error) {
	if !bytes.Contains(part, []byte(`"password"`)) {
		return part, nil
	}
	v := new(T)
	if err := json.Unmarshal(part, v); err != nil {
		return nil, err
	}
	mask(v)
	return EncodePart(v)
}
