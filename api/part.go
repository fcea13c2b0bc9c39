package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
)

// Part is one part of a HostSpec in its wire format. Its name identifies the
// content: base, network/NAME, guest/NAME or bgp.
type Part = json.RawMessage

// PartKind describes one kind of part.
type PartKind struct {
	Name  string // of the part, or the text before the slash
	Named bool   // one for each object: NAME/OBJECT
	New   func() any
	// Mask removes the keys from a part that is shown to users; nil when it has
	// none.
	Mask func(Part) (Part, error)
}

// PartKinds lists every kind of part.
func PartKinds() []PartKind {
	list := []PartKind{basePart()}
	for _, k := range Kinds() {
		if k.Part.Name != "" {
			list = append(list, k.Part)
		}
	}
	return list
}

// PartKindOf returns the kind of a part by its name, and the object of the
// part.
func PartKindOf(name string) (kind PartKind, object string, err error) {
	word, object, named := strings.Cut(name, "/")
	for _, k := range PartKinds() {
		if k.Name == word && k.Named == named && (!named || ValidateName(object) == nil) {
			return k, object, nil
		}
	}
	return PartKind{}, "", fmt.Errorf("unknown HostSpec part %q", name)
}

// PartObject returns the name of the object that a part is named for; empty for a
// part that is one of a kind.
func PartObject(name string) string {
	_, object, _ := strings.Cut(name, "/")
	return object
}

// DecodePart decodes a part into a pointer to the type for its name. It ignores
// unknown fields, because bootd may be newer than the host.
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

// PartDigest is the digest with which bootd and host compare parts.
func PartDigest(p Part) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:])
}

// NotShown replaces a key that is not shown to users.
const NotShown = "(not shown)"

// MaskPart returns a part without its keys.
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

// maskPasswords removes the passwords from a part.
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
