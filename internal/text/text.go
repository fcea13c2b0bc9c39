// Package text formats sizes, and makes text from other machines safe to show:
// BMCs, hosts, guests and DHCP clients may send anything, and a terminal or a
// log interprets control characters.
package text

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Replacement replaces a character that is not shown.
const Replacement = unicode.ReplacementChar

// Shown reports whether a character is safe to print: not a control character
// (C0, DEL, C1), not a format character (which change the direction of text or
// have no width), and not a line or paragraph separator.
func Shown(r rune) bool {
	return !unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

// Line returns s as one line: white space becomes a space; characters that are
// not Shown and invalid UTF-8 become a Replacement.
func Line(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case !Shown(r):
			return Replacement
		}
		return r
	}, s)
}

// Clip returns s as one line of at most n bytes, with "…" when it was
// truncated. It is valid UTF-8.
func Clip(s string, n int) string {
	whole := Line(s[:min(len(s), n+utf8.UTFMax)]) // enough to find where to cut
	cut := len(s) > n+utf8.UTFMax || len(whole) > n
	if len(whole) > n {
		end := n
		for end > 0 && !utf8.RuneStart(whole[end]) {
			end--
		}
		whole = whole[:end]
	}
	if cut {
		whole += "…"
	}
	return whole
}

// JSON escapes characters of a JSON document that encoding/json leaves alone
// and a terminal might interpret. The document's value is unchanged.
func JSON(raw []byte) []byte {
	return escape(raw, func(r rune) string {
		if r <= 0xffff {
			return fmt.Sprintf(`\u%04x`, r)
		}
		hi, lo := utf16.EncodeRune(r)
		return fmt.Sprintf(`\u%04x\u%04x`, hi, lo)
	})
}

// YAML is JSON for a document that is read as YAML, which accepts neither raw
// control characters nor surrogates.
func YAML(raw []byte) []byte {
	return escape(raw, func(r rune) string { return fmt.Sprintf(`\U%08x`, r) })
}

func escape(raw []byte, escaped func(rune) string) []byte {
	if bytes.IndexFunc(raw, hidden) < 0 {
		return raw
	}
	var b bytes.Buffer
	for len(raw) > 0 {
		r, size := utf8.DecodeRune(raw)
		if hidden(r) {
			b.WriteString(escaped(r))
		} else {
			b.Write(raw[:size])
		}
		raw = raw[size:]
	}
	return b.Bytes()
}

// hidden reports a character that can appear only inside strings of a JSON
// document and is not Shown.
func hidden(r rune) bool { return r >= 0x7f && !Shown(r) }

// Size formats a number of bytes, such as 12.3 MiB.
func Size(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/(1<<10), "KiB"
	for _, u := range []string{"MiB", "GiB", "TiB"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, u
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}
