package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rackweft/rackweft/api"
)

const machines = `# a rack
apiVersion: rackweft/v1alpha1
kind: Machine
metadata: {name: r1u07}
spec:
  zone: yellow
  links:
    - {name: pxe0, mac: "52-54", subnet: pxe}
    - name: prod
      mac: "52:54:00:01:07:01"
      addresses:
        - 198.18.8.7
        - 198.18.8
---
kind: Machine
metadata:
  name: r1u08
  labels: {"rack/unit": "8"}
spec:
  links: [{name: pxe0, mac: "52:54:00:01:08:00"}]
`

func parse(t *testing.T, text string) []*Document {
	t.Helper()
	documents, err := Parse("machines.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return documents
}

func TestLocate(t *testing.T) {
	documents := parse(t, machines)
	if len(documents) != 2 {
		t.Fatalf("%d documents", len(documents))
	}
	for _, c := range []struct {
		document int
		pointer  string
		line     int
	}{
		{0, "", 2},
		{0, "/kind", 3},
		{0, "/metadata/name", 4},
		{0, "/spec/zone", 6},
		{0, "/spec/links", 7},
		{0, "/spec/links/0", 8},
		{0, "/spec/links/0/mac", 8},
		{0, "/spec/links/1/mac", 10},
		{0, "/spec/links/1/addresses/1", 13},
		{0, "/spec/links/1/addresses/9", 11}, // not there: the nearest that is
		{0, "/spec/profile", 5},
		{0, "/nothing/at/all", 2},
		{1, "", 15},
		{1, "/metadata/labels/rack~1unit", 18},
		{1, "/spec/links/0/mac", 20},
	} {
		if got := documents[c.document].Locate(c.pointer); got != c.line {
			t.Errorf("document %d %q: line %d, want %d", c.document, c.pointer, got, c.line)
		}
	}
}

func TestFaultsOfAnObject(t *testing.T) {
	_, err := api.DecodeObject(parse(t, machines)[0].JSON)
	faults := parse(t, machines)[0].Place(err)
	want := Faults{{File: "machines.yaml", Line: 8, Text: `    - {name: pxe0, mac: "52-54", subnet: pxe}`, Pointer: "/spec/links/0/mac",
		Message: `invalid MAC address "52-54": want six octets, such as 52:54:00:01:07:00`}}
	if diff := cmp.Diff(want, faults); diff != "" {
		t.Error(diff)
	}
	if got, want := faults[0].Error(), `machines.yaml:8: /spec/links/0/mac: invalid MAC address "52-54"`; !strings.HasPrefix(got, want) {
		t.Errorf("%s", got)
	}
}

// TestPlace: every way in which an error comes has its line.
func TestPlace(t *testing.T) {
	d := parse(t, machines)[0]
	field := api.FieldError{Pointer: "/spec/zone", Message: "no"}
	for name, c := range map[string]struct {
		err   error
		lines []int
	}{
		"nil":           {nil, nil},
		"one field":     {fmt.Errorf("apply: %w", field), []int{6}},
		"fields":        {api.FieldErrors{field, {Pointer: "/kind", Message: "no"}}, []int{6, 3}},
		"problem":       {&api.Problem{Status: 422, Errors: api.FieldErrors{field}}, []int{6}},
		"plain":         {errors.New("no"), []int{2}},
		"plain problem": {&api.Problem{Status: 409, Title: "Conflict"}, []int{2}},
	} {
		var lines []int
		for _, f := range d.Place(c.err) {
			lines = append(lines, f.Line)
		}
		if diff := cmp.Diff(c.lines, lines); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestValues(t *testing.T) {
	for _, c := range []struct{ yaml, json string }{
		{"a: 1\nb: 1.5\nc: true\nd: null\ne:\nf: text", `{"a":1,"b":1.5,"c":true,"d":null,"e":null,"f":"text"}`},
		{"mac: 52:54:00:01:07:00\nversion: 3.6.0\nyes: no", `{"mac":"52:54:00:01:07:00","version":"3.6.0","yes":"no"}`},
		{"big: 18446744073709551615\nhex: 0x1F\noctal: 0o17", `{"big":18446744073709551615,"hex":31,"octal":15}`},
		{"at: 2026-11-21", `{"at":"2026-11-21"}`},
		{"text: |\n  a\n  b\n", `{"text":"a\nb\n"}`},
		{"x: &a {k: 1}\ny: *a", `{"x":{"k":1},"y":{"k":1}}`},
		{"x: &a {k: 1, l: 2}\ny: {<<: *a, l: 3}", `{"x":{"k":1,"l":2},"y":{"l":3,"k":1}}`},
		{"x: &a {k: 1}\nz: &b {m: 2}\ny:\n  <<: [*a, *b]", `{"x":{"k":1},"z":{"m":2},"y":{"k":1,"m":2}}`},
		{`{"a": [1, "é", "\u2028"]}`, "{\"a\":[1,\"é\",\"\\u2028\"]}"},
	} {
		if got := string(parse(t, c.yaml)[0].JSON); got != c.json {
			t.Errorf("%q:\n got %s\nwant %s", c.yaml, got, c.json)
		}
	}
}

func TestRefusals(t *testing.T) {
	deep := strings.Repeat("[", 300) + strings.Repeat("]", 300)
	laughs := "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 'b'; i < 'k'; i++ {
		laughs += fmt.Sprintf("%c: &%c [*%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c]\n", i, i, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1)
	}
	for _, c := range []struct {
		name, yaml string
		line       int
		words      string
	}{
		{"no YAML", "a: 1\nb: [1, 2\nc: 3\n", 2, "not YAML"},
		{"tab", "a:\n\tb: 1\n", 2, "not YAML"},
		{"key twice", "a: 1\nb: 2\na: 3\n", 3, `"a" is already at line 1`},
		{"key twice below", "a:\n  x: 1\n  x: 2\n", 3, `"x" is already at line 2`},
		{"odd key", "? [a]\n: 1\n", 1, "plain text"},
		{"not a number", "a: .nan\n", 1, "invalid number"},
		{"too deep", deep, 1, "nested too deeply"},
		{"laughs", laughs, 0, ""},
	} {
		_, err := Parse("x.yaml", []byte(c.yaml))
		var f Fault
		if !errors.As(err, &f) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if c.line > 0 && f.Line != c.line || !strings.Contains(f.Message, c.words) {
			t.Errorf("%s: %v, want line %d and %q", c.name, f, c.line, c.words)
		}
	}
}

func TestNumberThatShouldBeText(t *testing.T) {
	d := parse(t, "kind: Image\nmetadata: {name: a}\nspec:\n  version: 1.10\n")[0]
	_, err := api.DecodeObject(d.JSON)
	faults := d.Place(err)
	if len(faults) != 1 || faults[0].Line != 4 || faults[0].Message != `YAML reads 1.10 as a number: write "1.10"` {
		t.Errorf("%+v", faults)
	}
}

func TestLists(t *testing.T) {
	documents := parse(t, `{"kind":"List","items":[
 {"kind":"Zone","metadata":{"name":"a"}},
 {"kind":"Zone","metadata":{"name":"b"}}]}`)
	if len(documents) != 2 || documents[1].Locate("/metadata/name") != 3 {
		t.Errorf("%d documents", len(documents))
	}
}

func TestReadDirectory(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"b.yaml": "kind: B", "a.yml": "kind: A\n---\n---\nkind: AA", "c.json": `{"kind":"C"}`, "README.md": "not: [yaml", "empty.yaml": "# nothing\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	documents, err := Read(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range documents {
		got = append(got, filepath.Base(d.File)+" "+string(d.JSON))
	}
	want := []string{`a.yml {"kind":"A"}`, `a.yml {"kind":"AA"}`, `b.yaml {"kind":"B"}`, `c.json {"kind":"C"}`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := Read(t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "holds no .yaml") {
		t.Errorf("an empty directory: %v", err)
	}
	stdin, err := Read("-", strings.NewReader("kind: X"))
	if err != nil || stdin[0].File != "stdin" {
		t.Errorf("stdin: %v", err)
	}
}

func TestYAMLKeepsOrderAndQuotes(t *testing.T) {
	got, err := YAML(map[string]any{"b": "true", "a": []any{}, "c": "a\nb\n", "d": "52:54:00:01:07:00", "e": 1.5, "f": "1.10", "g": map[string]any{"x": nil}})
	if err != nil {
		t.Fatal(err)
	}
	want := "a: []\nb: \"true\"\nc: |\n  a\n  b\nd: 52:54:00:01:07:00\ne: 1.5\nf: \"1.10\"\ng:\n  x: null\n"
	if string(got) != want {
		t.Errorf("%s", got)
	}
}

// pointers are those of every field of a JSON value.
func pointers(at string, v any) []string {
	all := []string{at}
	switch v := v.(type) {
	case map[string]any:
		for k, below := range v {
			all = append(all, pointers(at+api.Pointer(k), below)...)
		}
	case []any:
		for i, below := range v {
			all = append(all, pointers(at+api.Pointer(i), below)...)
		}
	}
	return all
}

// FuzzLocate: whatever is read is JSON, and each of its fields is found on a line of the file.
func FuzzLocate(f *testing.F) {
	f.Add([]byte(machines))
	f.Add([]byte("x: &a {k: 1, l: [1, 2]}\ny: {<<: *a, l: 3}\n"))
	f.Add([]byte(`{"kind":"List","items":[{"kind":"Zone"}]}`))
	f.Add([]byte("a: |\n  b\n--- # c\n- ? x\n  : y\n"))
	f.Add([]byte("\ufeffa: \"\\u00e9\"\r\nb: !!str 1\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		documents, err := Parse("f.yaml", raw)
		if err != nil {
			return
		}
		lines := bytes.Count(raw, []byte("\n")) + bytes.Count(raw, []byte("\r")) + bytes.Count(raw, []byte("\u2028")) +
			bytes.Count(raw, []byte("\u2029")) + bytes.Count(raw, []byte("\u0085")) + 1
		for _, d := range documents {
			var v any
			if err := json.Unmarshal(d.JSON, &v); err != nil {
				t.Fatalf("not JSON: %v\n%s", err, d.JSON)
			}
			all := pointers("", v)
			for _, pointer := range all[:min(len(all), 500)] {
				at := d.find(pointer)
				if !at.exact || at.line < 1 || at.line > lines {
					t.Fatalf("%q is at line %d of %d, found %v", pointer, at.line, lines, at.exact)
				}
			}
			if _, err := api.DecodeObject(d.JSON); err != nil {
				d.Place(err)
			}
		}
	})
}
