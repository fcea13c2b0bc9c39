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

// At most this many files and edits a new kind may cost.
const maxFiles, maxEdits = 6, 3

// toy is a kind that is not there. Its files are in testdata.
type toy struct {
	name string
	edit map[string][]edit // by file
}

func toys() []toy {
	return []toy{
		{"shelf", map[string][]edit{ // others matter to it; hosts know nothing of it
			"api/kind.go":              {{"guestKind(),", "guestKind(), shelfKind(),"}},
			"bootd/admission/rules.go": {{"guestRules()}", "guestRules(), shelfRules()}"}},
			"bootd/kinds.go": {
				{"\t\"github.com/rackweft/rackweft/bootd/store\"\n", "\t\"github.com/rackweft/rackweft/bootd/shelf\"\n\t\"github.com/rackweft/rackweft/bootd/store\"\n"},
				{"zoneKind(d),\n", "zoneKind(d),\n\t\t{name: \"Shelf\", control: func(env control.Env) runner { return (&shelf.Controller{Env: env}).Control() }},\n"},
			},
		}},
		{"beacon", map[string][]edit{ // hosts act upon it; no other object matters to it
			"api/kind.go": {{"guestKind(),", "guestKind(), beaconKind(),"}},
			"bootd/kinds.go": {
				{"\t\"github.com/rackweft/rackweft/bootd/ca\"\n", "\t\"github.com/rackweft/rackweft/bootd/beacon\"\n\t\"github.com/rackweft/rackweft/bootd/ca\"\n"},
				{"zoneKind(d),\n", "zoneKind(d),\n\t\t{\"Beacon\", func(env control.Env) runner { return (&beacon.Controller{Env: env}).Control() },\n" +
					"\t\t\tfunc(c *store.Cache) part.Kind { return beacon.Parts{Cache: c, Key: d.zones.Keys.Key}.Kind() }},\n"},
			},
			"cmd/nodeagent/command.go": {
				{"\t\"github.com/rackweft/rackweft/nodeagent\"\n", "\t\"github.com/rackweft/rackweft/nodeagent\"\n\t\"github.com/rackweft/rackweft/nodeagent/beacon\"\n"},
				{"newSpeaker(s, inside, log),\n", "newSpeaker(s, inside, log), beacon.Handler{Dir: s.runDir + \"/beacons\"},\n"},
			},
		}},
	}
}

// TestNewKind adds kinds to the tree, as an overlay of it, each with no more than
// a file for each room and a row in each table. All of it builds, the tests of the
// tables pass, and so do those of the kinds.
func TestNewKind(t *testing.T) {
	if testing.Short() {
		t.Skip("builds bootd, nodeagent and weftctl with other kinds")
	}
	root := absolute(t, "../..")
	replace, edits := map[string]string{}, map[string][]edit{}
	for _, toy := range toys() {
		added := addFiles(t, toy.name, root, replace)
		if added > maxFiles || len(toy.edit) > maxEdits {
			t.Errorf("%s costs %d files and %d edits, want at most %d and %d", toy.name, added, len(toy.edit), maxFiles, maxEdits)
		}
		for file, list := range toy.edit {
			edits[file] = append(edits[file], list...)
		}
	}
	editFiles(t, edits, root, replace)
	overlay := write(t, replace)
	run(t, "build", "-overlay", overlay, "./bootd/...", "./nodeagent/...", "./cmd/...")
	run(t, "test", "-overlay", overlay, "-skip", "^TestReferenceIsCurrent$", "./api", "./cmd/weftctl/internal/show") // docs/reference.md is generated
	// vet goes to the directories, which are not there.
	run(t, "test", "-overlay", overlay, "-vet=off", "-run", "^(TestShelf|TestBeacon.*|TestKinds|TestEveryKind.*|TestOthersConcernNoHost)$",
		"./bootd", "./bootd/admission", "./bootd/hostspec", "./cmd/nodeagent")
}

// addFiles has a kind's files replace none (go help build). It returns how many
// there are beside tests.
func addFiles(t *testing.T, kind, root string, replace map[string]string) (added int) {
	t.Helper()
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
	return added
}

// editFiles has edited files replace those of the tree.
func editFiles(t *testing.T, edits map[string][]edit, root string, replace map[string]string) {
	t.Helper()
	dir := t.TempDir()
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
}

// write writes the overlay.
func write(t *testing.T, replace map[string]string) string {
	t.Helper()
	raw, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func run(t *testing.T, args ...string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "go", args...)
	c.Dir, c.Env = absolute(t, "../.."), append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath") // what a release is built of is built already
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
