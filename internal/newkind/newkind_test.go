// Package newkind holds the test of what a new kind costs.
package newkind

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// edit puts text in the place of another one, which a file of the tree has once.
type edit struct{ old, new string }

// TestNewKind adds a kind to the tree, as an overlay of it, with no more than a
// file for each room and a row in each table. All of it builds, and the tests of
// the tables pass.
func TestNewKind(t *testing.T) {
	if testing.Short() {
		t.Skip("builds bootd and weftctl with another kind")
	}
	for _, c := range []struct {
		kind         string
		files, edits int // at most
		edit         map[string][]edit
	}{
		{kind: "shelf", files: 6, edits: 3, edit: map[string][]edit{
			"api/kind.go":              {{"guestKind(),", "guestKind(), shelfKind(),"}},
			"bootd/admission/rules.go": {{"guestRules()}", "guestRules(), shelfRules()}"}},
			"bootd/kinds.go": {
				{"\t\"github.com/rackweft/rackweft/bootd/store\"\n", "\t\"github.com/rackweft/rackweft/bootd/shelf\"\n\t\"github.com/rackweft/rackweft/bootd/store\"\n"},
				{"zoneKind(d),\n", "zoneKind(d),\n\t\t{name: \"Shelf\", control: func(env control.Env) runner { return (&shelf.Controller{Env: env}).Control() }},\n"},
			},
		}},
	} {
		t.Run(c.kind, func(t *testing.T) {
			added, overlay := overlaid(t, c.kind, c.edit)
			if added > c.files || len(c.edit) > c.edits {
				t.Errorf("a new kind costs %d files and %d edits, want at most %d and %d", added, len(c.edit), c.files, c.edits)
			}
			run(t, "build", "-overlay", overlay, "./bootd/...", "./nodeagent", "./cmd/...")
			run(t, "test", "-overlay", overlay, "-skip", "^TestReferenceIsCurrent$", "./api", "./cmd/weftctl/internal/show") // docs/reference.md is generated
			run(t, "test", "-overlay", overlay, "-run", "^(TestShelf|TestEveryKind.*|TestOthersConcernNoHost)$", "./bootd/admission", "./bootd/hostspec")
		})
	}
}

// overlaid counts the files that a kind adds, and writes the overlay (go help build).
func overlaid(t *testing.T, kind string, edits map[string][]edit) (added int, overlay string) {
	t.Helper()
	root, dir := absolute(t, "../.."), t.TempDir()
	replace := map[string]string{}
	from := absolute(t, filepath.Join("testdata", kind))
	err := filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !strings.HasSuffix(file, "_test.go") {
			added++
		}
		replace[filepath.Join(root, strings.TrimPrefix(file, from))] = file
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for file, list := range edits {
		source, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		text := string(source)
		for _, e := range list {
			if strings.Count(text, e.old) != 1 {
				t.Fatalf("%s has %q %d times, want once", file, e.old, strings.Count(text, e.old))
			}
			text = strings.Replace(text, e.old, e.new, 1)
		}
		at := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(root, file)] = at
	}
	raw, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay = filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return added, overlay
}

func run(t *testing.T, args ...string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "go", args...)
	c.Dir = absolute(t, "../..")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
