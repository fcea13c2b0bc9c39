package selector

import (
	"strings"
	"testing"
)

func TestMatches(t *testing.T) {
	labels := map[string]string{"tier": "app", "rack": "r1", "rackweft/discovered": "true", "empty": ""}
	for text, want := range map[string]bool{
		"":                              true,
		"tier=app":                      true,
		"tier==app":                     true,
		" tier = app , rack != r2 ":     true,
		"tier=db":                       false,
		"tier!=app":                     false,
		"missing!=x":                    true,
		"missing=x":                     false,
		"missing=":                      false,
		"empty=":                        true,
		"tier in (db, app)":             true,
		"tier in (db),rack":             false,
		"tier notin (db,web)":           true,
		"missing notin (a)":             true,
		"tier notin (app)":              false,
		"rackweft/discovered":           true,
		"!rackweft/discovered":          false,
		"! missing,tier=app":            true,
		"missing":                       false,
		"rack in (r1,r2),tier=app":      true,
		"tier=app,rack in (r1),!absent": true,
		",tier=app,":                    true,
	} {
		s, err := Parse(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := s.Matches(labels); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for text, words := range map[string]string{
		"=app":          `want a label at "=app"`,
		"!":             "want a label",
		"tier app":      "want =, ==, !=, in or notin behind label tier",
		"tier in app":   "want (value,…)",
		"tier in (a":    "want a comma or )",
		"tier in (a b)": "want a comma or )",
		"a=b c=d":       `want a comma before "c=d"`,
		"a=b=c":         `want a comma before "=c"`,
		"!a=b":          `want a comma before "=b"`,
		"a ~ b":         "want =",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, want %q", text, err, words)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"a=b", "a in (b,c),!d", "a notin ()", "a!=", ",,", "a in (", "\x00=é"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		for _, term := range s {
			if term.key == "" || strings.ContainsAny(term.key, " ,()=!") {
				t.Errorf("%q: label %q", text, term.key)
			}
		}
		s.Matches(map[string]string{"a": "b"})
	})
}
