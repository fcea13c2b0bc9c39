package console

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/rackweft/rackweft/internal/text"
)

func cleaned(chunks ...string) (all []string) {
	var c cleaner
	for _, chunk := range chunks {
		c.write([]byte(chunk), func(line string) { all = append(all, line) })
	}
	if begun := c.unfinished(); begun != "" {
		all = append(all, begun)
	}
	return all
}

func TestClean(t *testing.T) {
	for sent, want := range map[string]string{
		"a\r\nb\n\n  \r\nc": "a|b|c",
		"\x1b[0m\x1b[30;47mStart PXE\x1b[05;01Hover IPv4":              "Start PXE|over IPv4",
		"Downloading 1%\rDownloading 22%\rDone\r\n":                    "Done",
		"typo\b\b\bhis\r\n":                                            "this",
		"grün\b\bu\n":                                                  "gru",
		"\x1b]0;title\x07text\x1b]8;;http://x\x1b\\link":               "textlink",
		"\x1b(B\x1b)0box\x1b[?25l\x1b[Kend":                            "boxend",
		"cut\x1b[" + strings.Repeat("1;", 300) + "m":                   "cut" + strings.Repeat("1;", 172) + "m",
		"\xff\x00bin\x07ary\u202e":                                     "\ufffdbinary\ufffd",
		"GET /boot/YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY/x.ipxe": "GET /boot/(secret)/x.ipxe",
		"asset MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U":                       "asset (secret)",
		"sha256:" + strings.Repeat("0a", 32):                           "sha256:" + strings.Repeat("0a", 32),
		"uuid 6BA7B810-9DAD-11D1-80B4-00C04FD430C8":                    "uuid 6BA7B810-9DAD-11D1-80B4-00C04FD430C8",
	} {
		if got := strings.Join(cleaned(sent), "|"); got != want {
			t.Errorf("%q is %q, want %q", sent, got, want)
		}
	}
	if got := cleaned("spl\x1b", "[3", "1mit ü"[:5]); strings.Join(got, "") != "split" {
		t.Errorf("divided: %q", got)
	}
	if got := cleaned(strings.Repeat("x", 1000) + "\n"); len(got[0]) > lineLimit+len("…") || !strings.HasSuffix(got[0], "…") {
		t.Errorf("a long line has %d bytes", len(got[0]))
	}
}

// FuzzClean: whatever a serial port sends, lines are harmless, bounded, and the same however they come divided.
func FuzzClean(f *testing.F) {
	f.Add("\x1b[2J\x1b[1;1HBooting `Flatcar'\r\n", 5)
	f.Add("\x1b]0;\u202e\x9b31m\r\rx\by", 3)
	f.Fuzz(func(t *testing.T, sent string, at int) {
		at = max(0, min(at, len(sent)))
		whole, divided := cleaned(sent), cleaned(sent[:at], sent[at:])
		if strings.Join(whole, "\n") != strings.Join(divided, "\n") {
			t.Errorf("%q is %q, divided at %d %q", sent, whole, at, divided)
		}
		for _, line := range whole {
			if strings.ContainsFunc(line, func(r rune) bool { return !text.Shown(r) }) || !utf8.ValidString(line) || len(line) > lineLimit+len("…") {
				t.Errorf("%q shows %q", sent, line)
			}
		}
	})
}

// TestBounds: of a console that never stops the last lines are kept, and of all consoles together at most the limit.
func TestBounds(t *testing.T) {
	k := New(Config{})
	defer k.Close()
	now := time.Now()
	for n := range 600 {
		p := &port{name: "m"}
		k.ports[strings.Repeat("x", n+1)] = p
		for line := range 120 {
			p.heard([]byte(strings.Repeat("y", 300+line%2)+"\n"), now.Add(time.Duration(n)*time.Second))
		}
		if len(p.log.kept) > portLines || p.log.bytes > portBytes || len(p.log.kept) < 50 {
			t.Fatalf("%d lines of %d bytes", len(p.log.kept), p.log.bytes)
		}
		k.bound(p)
	}
	total, kept := 0, 0
	for uid, p := range k.ports {
		total += p.log.bytes
		if p.log.bytes > 0 {
			kept++
		} else if len(uid) > 500 {
			t.Errorf("a console that talked lately has lost its lines")
		}
	}
	if total > totalBytes || kept < 400 {
		t.Errorf("%d consoles have %d bytes", kept, total)
	}
}
