package tftp

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf8"
)

// cleanName turns what a client asks for into a slash-separated path below the root, as fs.ValidPath
// wants it. Firmware begins names with slashes or not, some of it writes backslashes, and some adds the
// 0xFF that ends the DHCP options after the name (netboot.xyz#1198).
func cleanName(asked string) (string, error) {
	name := asked
	for strings.HasSuffix(name, "\xff") {
		name = name[:len(name)-1]
	}
	switch {
	case len(name) > 255:
		return "", errors.New("the name is longer than 255 bytes")
	case !utf8.ValidString(name):
		return "", errors.New("the name is no UTF-8")
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
		return "", fmt.Errorf("%q is no valid path", clean)
	}
	return clean, nil
}
