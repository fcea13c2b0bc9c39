package rackweft

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// banned are phrases that a reader has to translate, each with a plainer one,
// and how many places still have it. The number only falls.
func banned() map[string]struct {
	instead string
	left    int
} {
	return map[string]struct {
		instead string
		left    int
	}{
		`\banew\b`:             {"again, recreated", 0},
		`\bis none of\b`:       {"invalid …: want …", 0},
		`, for (it|they) `:     {"because, or a colon", 0},
		`\bTaken is\b`:         {"… is accepted", 0},
		`\bwhat of an? `:       {"the fields of … that …", 0},
		`\bunless set\b`:       {"Default: …", 0},
		`\b(no|some)body\b`:    {"no one, or who it is", 0},
		`\bgoes? on\b`:         {"continues", 0},
		`\bno more\b`:          {"no longer", 0},
		`\bas it stands\b`:     {"it is, it exists", 0},
		`\bas they stand\b`:    {"current", 0},
		`\b(is|are) what of\b`: {"the fields of … that …", 0},
		`\bwho has told\b`:     {"… that has advertised, reported", 0},
		`\bis said of\b`:       {"the name of the value, and a colon", 0},
		`\bwhat becomes of\b`:  {"what happens to", 0},
		`\btakes? no part\b`:   {"does not take part", 0},
		`\bis to be what\b`:    {"the desired state", 0},
		`\bhas heard\b`:        {"has received", 0},
		`\bis not told\b`:      {"is not reported", 0},
		`\bwas told\b`:         {"received, was sent", 0},
		`\bput back\b`:         {"restore", 0},
		`\binside of\b`:        {"inside, of", 0},
		`\bhow far it has\b`:   {"its progress", 0},
	}
}

func TestWords(t *testing.T) {
	found := map[string][]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
			return fs.SkipDir
		}
		prose := strings.HasSuffix(path, ".md") || strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go")
		if !prose {
			return nil
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for phrase := range banned() {
			for range regexp.MustCompile(phrase).FindAll(raw, -1) {
				found[phrase] = append(found[phrase], path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, phrase := range slices.Sorted(maps.Keys(banned())) {
		b := banned()[phrase]
		if n := len(found[phrase]); n != b.left {
			t.Errorf("%d places say %s, %d are allowed: write %s; when there are fewer, lower the number\n%s", n, phrase, b.left, b.instead,
				strings.Join(slices.Compact(found[phrase]), "\n"))
		}
	}
}
