package terminal

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/rackweft/rackweft/internal/text"
)

// hostile is what a BMC might call itself.
const hostile = "ACME\x1b[2J\x1b]0;owned\x07\x1b[31mred\x1b[0m\u009b5m\u202egnp\u2069\u200b\x9b\r\x08"

// visible fails when a terminal would obey anything but the colours that Paint makes.
func visible(t *testing.T, raw string) {
	t.Helper()
	for _, c := range []Colour{Plain, Bold, Dim, Red, Green, Yellow, Cyan} {
		raw = strings.ReplaceAll(raw, fmt.Sprintf("\x1b[%dm", c), "")
	}
	raw = strings.ReplaceAll(raw, "\r\n", "\n")
	if !utf8.ValidString(raw) || strings.ContainsFunc(raw, func(r rune) bool { return r != '\n' && r != '\t' && !text.Shown(r) }) {
		t.Errorf("written: %q", raw)
	}
}

func TestOnlyOwnEscapesAreWritten(t *testing.T) {
	var plain, colour bytes.Buffer
	for out, term := range map[*bytes.Buffer]*Terminal{&plain: New(&plain, noEnv), &colour: live(&colour)} {
		if _, err := fmt.Fprintf(term, "%s: %s\r\n\tthe end\n", hostile, term.Paint(Green, "Active "+hostile)); err != nil {
			t.Fatal(err)
		}
		visible(t, out.String())
		if !strings.Contains(out.String(), "�[31mred�[0m") || !strings.Contains(out.String(), "the end\n") {
			t.Errorf("written: %q", out)
		}
	}
	if n := strings.Count(colour.String(), "\x1b"); n != 2 || !strings.Contains(colour.String(), "\x1b[32mActive") {
		t.Errorf("%d escapes: %q", n, colour.String())
	}
	if strings.Contains(plain.String(), "\x1b") {
		t.Errorf("%q", plain.String())
	}
}

func TestRegionsAreClean(t *testing.T) {
	var out bytes.Buffer
	term := live(&out)
	r := term.Region()
	r.Draw([]string{term.Paint(Red, strings.Repeat("x", 100)), hostile + "\nanother line"})
	r.Print(hostile + "\n")
	raw := out.String()
	if strings.Count(raw, "\n") != 3 {
		t.Errorf("%q", raw)
	}
	for _, own := range []string{"\x1b[K", "\x1b[J", "\x1b[2A\r"} {
		raw = strings.ReplaceAll(raw, own, "")
	}
	visible(t, raw)
}

func TestDataIsLeftAloneWhereNobodyLooks(t *testing.T) {
	var file, screen bytes.Buffer
	if err := New(&file, noEnv).WriteData([]byte(hostile)); err != nil || file.String() != hostile {
		t.Errorf("%q, %v", file.String(), err)
	}
	if err := live(&screen).WriteData([]byte(hostile)); err != nil {
		t.Fatal(err)
	}
	visible(t, screen.String())
}

func FuzzWrite(f *testing.F) {
	for _, seed := range []string{hostile, "\x1b[", "\x1b[1;31m", "\r\n", "\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, term := range []*Terminal{New(io.Discard, noEnv), live(io.Discard)} {
			var out bytes.Buffer
			term.out = &out
			if _, err := io.WriteString(term, s+Cut(s, 7)+term.Paint(Red, s)); err != nil {
				t.Fatal(err)
			}
			visible(t, out.String())
			if own := strings.Count(out.String(), "\x1b"); own > 2 {
				t.Errorf("%d escapes: %q", own, out.String())
			}
		}
	})
}
