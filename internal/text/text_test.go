package text

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestLine(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"Größe 7 µm, 日本語", "Größe 7 µm, 日本語"},
		{"a\x1b[2Jb\x07", "a�[2Jb�"},
		{"two\nlines\r\n\tand a tab", "two lines   and a tab"},
		{"\u009b31mC1", "�31mC1"},
		{"\x9b31m", "�31m"},
		{"user\u202egnp.exe", "user�gnp.exe"},
		{"a\u2066b\u2069c\u200bd\u200de\ufefff", "a�b�c�d�e�f"},
		{"a\u2028b\u2029c\u0085d", "a�b�c�d"},
		{"\U000e0041tag", "�tag"},
		{"cut\xe6\x97", "cut��"},
		{"nul\x00del\x7f", "nul�del�"},
	} {
		if got := Line(c.in); got != c.want {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

func TestClip(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{
		{"short", 10, "short"},
		{"short", 5, "short"},
		{"too long", 3, "too…"},
		{"日本語", 9, "日本語"},
		{"日本語", 8, "日本…"},
		{"日本語", 7, "日本…"},
		{"日本語", 6, "日本…"},
		{"日本語", 2, "…"},
		{"\x1b\x1b\x1b", 3, "�…"},
		{"x", 0, "…"},
		{"", 0, ""},
	} {
		if got := Clip(c.in, c.n); got != c.want {
			t.Errorf("%q to %d: %q, want %q", c.in, c.n, got, c.want)
		}
	}
}

func FuzzText(f *testing.F) {
	for _, seed := range []string{"", "a\x1b[2J", "\u202e\u009b\u2028", "日本語", "\xff\xfe", strings.Repeat("\xe6", 50)} {
		f.Add(seed, 7)
	}
	f.Fuzz(func(t *testing.T, s string, n int) {
		n = max(0, min(n, 1000))
		clipped := Clip(s, n)
		for _, shown := range []string{Line(s), clipped} {
			if !utf8.ValidString(shown) || strings.ContainsFunc(shown, func(r rune) bool { return !Shown(r) }) || Line(shown) != shown {
				t.Errorf("%q is shown as %q", s, shown)
			}
		}
		if len(clipped) > n+len("…") {
			t.Errorf("%q clipped to %d has %d bytes", s, n, len(clipped))
		}
		raw, err := json.Marshal(map[string]string{s: s})
		if err != nil {
			t.Fatal(err)
		}
		escaped := JSON(raw)
		if strings.ContainsFunc(string(escaped), hidden) {
			t.Errorf("%q is hidden in %q", s, escaped)
		}
		var before, after map[string]string
		if json.Unmarshal(raw, &before) != nil || json.Unmarshal(escaped, &after) != nil || len(before) != 1 || len(after) != 1 {
			t.Fatalf("%q", escaped)
		}
		for k, v := range before {
			if after[k] != v {
				t.Errorf("%q became %q", before, after)
			}
		}
	})
}
