// Package text writes sizes for people, and makes words of other machines fit to be shown: BMCs, hosts, guests and DHCP clients send
// what they like, and a terminal or a log obeys what it is sent.
package text

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Replacement stands in place of a character that is not shown.
const Replacement = unicode.ReplacementChar

// Shown reports whether a character only shows itself: it is no control character (C0, DEL, C1), no format
// character (which turn the direction of text, or take no room), and no line or paragraph separator.
func Shown(r rune) bool {
	return !unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

// Line is s as one line: white space becomes a space, whatever else is not Shown, and what is no UTF-8, a
// Replacement.
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

// Clip is s as one line of at most n bytes, and "…" when that is not all. It is valid UTF-8.
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

// JSON escapes in a JSON document what encoding/json leaves as it is and a terminal might obey. The
// document stays the same.
func JSON(raw []byte) []byte {
	return escape(raw, func(r rune) string {
		if r <= 0xffff {
			return fmt.Sprintf(`\u%04x`, r)
		}
		hi, lo := utf16.EncodeRune(r)
		return fmt.Sprintf(`\u%04x\u%04x`, hi, lo)
	})
}

// YAML is JSON for a document that is read as YAML, which takes no control characters as they are, and no
// surrogates.
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

// hidden is what stands only inside of strings of a JSON document, and is not Shown.
func hidden(r rune) bool { return r >= 0x7f && !Shown(r) }

// Size writes a number of bytes for people, such as 12.3 MiB.
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
