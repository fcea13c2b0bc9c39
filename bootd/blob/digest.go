package blob

import (
	"fmt"
	"strings"
)

// Digest names a blob by its content: "sha256:" and 64 lower-case hexadecimal digits. A Digest that
// did not come from ParseDigest or Store may be anything; Store refuses it.
type Digest string

const (
	algorithm = "sha256:"
	hexLen    = 64
)

// ParseDigest accepts the one spelling that a Digest has. Upper-case digits, spaces or another algorithm
// are errors, so that equal blobs have equal names.
func ParseDigest(s string) (Digest, error) {
	hex, ok := strings.CutPrefix(s, algorithm)
	if !ok {
		return "", fmt.Errorf("digest %q does not begin with %q", shorten(s), algorithm)
	}
	if len(hex) != hexLen {
		return "", fmt.Errorf("digest %q has %d characters after %q, not %d", shorten(s), len(hex), algorithm, hexLen)
	}
	for _, c := range []byte(hex) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", fmt.Errorf("invalid digest %q: got %q, want lower-case hexadecimal digits", s, c)
		}
	}
	return Digest(s), nil
}

// UnmarshalText is ParseDigest for decoders.
func (d *Digest) UnmarshalText(text []byte) error {
	parsed, err := ParseDigest(string(text))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}

// Hex returns the digest without the prefix.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), algorithm) }

func shorten(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
