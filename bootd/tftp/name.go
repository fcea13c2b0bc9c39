package tftp

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf8"
)

// cleanName turns a requested name into a slash-separated path below the root,
// as fs.ValidPath requires. Firmware may or may not begin names with a slash,
// some of it writes backslashes, and some appends the 0xFF that ends the DHCP
// options after the name (netboot.xyz#1198).
func cleanName(asked string) (string, error) {
	name := asked
	for strings.HasSuffix(name, "\xff") {
		name = name[:len(name)-1]
	}
	switch {
	case len(name) > 255:
		return "", errors.New("the name is longer than 255 bytes")
	case !utf8.ValidString(name):
		return "", errors.New("the name is not valid UTF-8")
	}
	for _, r := range name {
		if r < ' ' || r == 0x7f {
			return "", errors.New("the name holds control characters")
		}
	}
	var parts []string
	for part := range strings.SplitSeq(strings.ReplaceAll(name, `\`, "/"), "/") {
		switch part {
		case "", ".":
		case "..":
			return "", errors.New(`the name holds ".."`)
		default:
			parts = append(parts, part)
		}
	}
	clean := strings.Join(parts, "/")
	if clean == "" {
		return "", errors.New("the name is empty")
	}
	if !fs.ValidPath(clean) {
		return "", fmt.Errorf("invalid path %q", clean)
	}
	return clean, nil
}
