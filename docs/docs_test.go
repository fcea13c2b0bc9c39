// Package docs_test keeps the documentation true to the code.
package docs_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/rackweft/rackweft/api"
)

// Every object that the documentation shows is one that bootd would take.
func TestObjects(t *testing.T) {
	objects := 0
	for _, page := range pages(t) {
		for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(page.text, -1) {
			for _, document := range bytes.Split(block[1], []byte("---\n")) {
				if !bytes.Contains(document, []byte("apiVersion:")) {
					continue
				}
				objects++
				raw, err := yaml.YAMLToJSONStrict(document)
				if err != nil {
					t.Errorf("%s: %v in\n%s", page.name, err, document)
					continue
				}
				o, err := api.DecodeObject(raw)
				if err != nil {
					t.Errorf("%s: %v in\n%s", page.name, err, document)
					continue
				}
				o.SetDefaults()
				if err := o.Validate().OrNil(); err != nil {
					t.Errorf("%s: %v in\n%s", page.name, err, document)
				}
			}
		}
	}
	if objects < 10 {
		t.Errorf("%d objects were found; the pages hold more", objects)
	}
}

// Links between pages and into the tree lead somewhere.
func TestLinks(t *testing.T) {
	for _, page := range pages(t) {
		for _, link := range regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`).FindAllSubmatch(page.text, -1) {
			to := string(link[1])
			if strings.Contains(to, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page.name), to)); err != nil {
				t.Errorf("%s links to %s: %v", page.name, to, err)
			}
		}
	}
}

// Every page can be found from the first one.
func TestEveryPageIsListed(t *testing.T) {
	for _, index := range []string{"README.md", "internals/README.md"} {
		list, err := os.ReadFile(index)
		if err != nil {
			t.Fatal(err)
		}
		for _, page := range pages(t) {
			name := filepath.Base(page.name)
			if filepath.Dir(page.name) == filepath.Dir(index) && page.name != index && !bytes.Contains(list, []byte("]("+name+")")) {
				t.Errorf("docs/%s does not list %s", index, name)
			}
		}
	}
}

// What the source names in these places, the pages name too.
func TestNothingIsLeftOut(t *testing.T) {
	for _, c := range []struct{ page, source, from, to, name, written string }{
		{"configuration.md", "../bootd/config.go", "type Config struct", "func LoadConfig", `json:"(\w+)[",]`, "%"},
		{"configuration.md", "../cmd/bootd/command.go", "f := c.Flags()", "return c", `"([a-z]+-?[a-z]+)", (?:"|default|nil)`, "--%"},
		{"configuration.md", "../api/stream.go", "type AgentConfig struct", "// EventType", `json:"(\w+)[",]`, "`%`"},
		{"provisioning.md", "../bootd/boot/compile.go", `"Machine": map`, `"Site":`, `"(\w+)":\s*[mfo]\w*[.(]`, ".Machine.%"},
		{"provisioning.md", "../bootd/boot/compile.go", `"Site": `, `"Image":`, `"(\w+)": site`, ".Site.%"},
		{"provisioning.md", "../bootd/boot/compile.go", `facts["Zone"]`, "return facts", `"(\w+)":\s*[zo]`, ".Zone.%"},
		{"provisioning.md", "../ignition/template.go", "return template.FuncMap", "text/template's own", `"(\w+)":\s`, "`%"},
		{"configuration.md", "../bootd/dhcp/metrics.go", "", "", `"(rackweft_\w+)"`, "`%"},
		{"configuration.md", "../bootd/tftp/metrics.go", "", "", `"(rackweft_\w+)"`, "`%"},
		{"configuration.md", "../bootd/httpboot/metrics.go", "", "", `"(rackweft_\w+)"`, "`%"},
		{"configuration.md", "../bootd/server/metrics.go", "", "", `"(rackweft_\w+)"`, "`%"},
		{"configuration.md", "../bootd/boot/record.go", "", "", `"(rackweft_\w+)"`, "`%"},
		{"configuration.md", "../bootd/record.go", "", "", `"(rackweft_\w+)"`, "`%"},
		{"configuration.md", "../nodeagent/metrics.go", "", "", `"(rackweft_\w+)"`, "`%"},
		{"configuration.md", "../nodeagent/overlay/metrics.go", "", "", `"(rackweft_\w+)"`, "`%"},
		{"configuration.md", "../nodeagent/guest/config.go", "", "", `"(rackweft_\w+)"`, "`%"},
		{"configuration.md", "../nodeagent/guest/usage.go", "", "", `"(rackweft_\w+)"`, "`%"},
		{"guests.md", "../bootd/guest/config.go", `"Guest": map`, `"Image":`, `"(\w+)":\s*[gd]`, ".Guest.%"},
	} {
		page, err := os.ReadFile(c.page)
		if err != nil {
			t.Fatal(err)
		}
		source, err := os.ReadFile(c.source)
		if err != nil {
			t.Fatal(err)
		}
		_, part, found := strings.Cut(string(source), c.from)
		if c.to != "" {
			part, _, found = strings.Cut(part, c.to)
		}
		names := regexp.MustCompile(c.name).FindAllStringSubmatch(part, -1)
		if !found || len(names) == 0 {
			t.Errorf("%s: nothing is found from %q to %q: correct this test", c.source, c.from, c.to)
		}
		for _, n := range names {
			if want := strings.ReplaceAll(c.written, "%", n[1]); !strings.Contains(string(page), want) {
				t.Errorf("%s has %s, which %s does not name (%s)", c.source, n[1], c.page, want)
			}
		}
	}
}

type page struct {
	name string
	text []byte
}

func pages(t *testing.T) []page {
	t.Helper()
	var names []string
	for _, pattern := range []string{"*.md", "internals/*.md", "../*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, found...)
	}
	var all []page
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page{name, text})
	}
	return all
}

// Every row of a table of security.md names the test that shows it or says that
// none does, and every test that it names exists.
func TestSecurityIsShown(t *testing.T) {
	text, err := os.ReadFile("security.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := testNames(t)
	rows := 0
	for _, line := range strings.Split(string(text), "\n") {
		cells := strings.Split(strings.Trim(line, "| "), "|")
		shown := strings.TrimSpace(cells[len(cells)-1])
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|--") || shown == "shown by" {
			continue
		}
		rows++
		named := regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(shown, -1)
		if len(named) == 0 && !strings.Contains(shown, "not tested") {
			t.Errorf("no test is named, nor that there is none:\n%s", line)
		}
		for _, name := range named {
			if !tests[name] {
				t.Errorf("no test is called %s:\n%s", name, line)
			}
		}
	}
	if rows < 20 {
		t.Errorf("%d rows were found; the page holds more", rows)
	}
}

// testNames are the tests of the tree.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(source, -1) {
			names[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
