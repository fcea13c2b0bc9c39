package ignition

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	latest "github.com/coreos/ignition/v2/config"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	path = filepath.Join("testdata", path)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: run go test -update", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}

func facts() map[string]any {
	return map[string]any{
		"Machine": map[string]any{"name": "r1u07", "rack": "r1"},
		"Site": map[string]any{
			"domain":  "dc1.example",
			"ntp":     []string{"198.18.8.1", "198.18.8.2"},
			"sshKeys": []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA alice", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB bob"},
		},
		"Zone": map[string]any{
			"name": "yellow", "asn": 64601,
			"registryCA": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
		},
		"Variables": map[string]any{"tier": "app"},
	}
}

func secrets(values map[string]string) func(layer, name, key string) (string, error) {
	return func(_, name, key string) (string, error) {
		value, ok := values[name+"/"+key]
		if !ok {
			return "", errors.New("no such Secret")
		}
		return value, nil
	}
}

func system() System {
	return System{
		Files: []File{
			{Path: "/etc/hostname", Contents: []byte("r1u07\n")},
			{Path: "/etc/rackweft/join.json", Mode: 0o600, Contents: []byte(`{"token":"t"}`)},
		},
		Remote: []RemoteFile{{
			Path: "/opt/rackweft/bin/nodeagent", Mode: 0o755,
			URL:    "https://198.18.0.2:8443/v1/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
			SHA256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
			Token:  "join-token",
		}},
		Units: []Unit{{
			Name: "nodeagent.service", Enabled: true,
			Contents: "[Service]\nExecStart=/opt/rackweft/bin/nodeagent\n[Install]\nWantedBy=multi-user.target\n",
			Dropins:  []Dropin{{Name: "20-site.conf", Contents: "[Service]\nEnvironment=A=b\n"}},
		}},
		Users: []User{{Name: "core", SSHKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIC rackweft"}, Groups: []string{"docker"}}},
	}
}

func layersOf(t testing.TB, dir string) []Layer {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", dir, "*.yaml"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no layers in testdata/%s: %v", dir, err)
	}
	var layers []Layer
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(strings.TrimSuffix(filepath.Base(path), ".yaml"), "-")
		layers = append(layers, Layer{Name: name, Butane: string(text)})
	}
	return layers
}

func example(t testing.TB, dir, version string) Input {
	return Input{
		Layers:  layersOf(t, dir),
		Facts:   facts(),
		Secret:  secrets(map[string]string{"registry/auth": `{"auth": "cGFzcw=="}`}),
		System:  system(),
		Version: version,
	}
}

func TestCompileExamples(t *testing.T) {
	for _, tt := range []struct{ dir, version string }{{"flatcar", "3.4.0"}, {"debian", "3.6.0"}} {
		t.Run(tt.dir, func(t *testing.T) {
			in := example(t, tt.dir, tt.version)
			result, err := Compile(in)
			if err != nil {
				t.Fatal(err)
			}
			var config bytes.Buffer
			if err := json.Indent(&config, result.Config, "", "  "); err != nil {
				t.Fatal(err)
			}
			golden(t, tt.dir+"/config.json", append(config.Bytes(), '\n'))

			var story strings.Builder
			for _, o := range result.Provenance {
				fmt.Fprintf(&story, "%s: %s", o.Path, o.Layer)
				for _, earlier := range slices.Backward(o.Overrides) {
					fmt.Fprintf(&story, " over %s", earlier)
				}
				story.WriteByte('\n')
			}
			for _, w := range result.Warnings {
				fmt.Fprintf(&story, "warning: %s\n", w)
			}
			for _, s := range result.SecretsUsed {
				fmt.Fprintf(&story, "secret: %s\n", s)
			}
			golden(t, tt.dir+"/story.txt", []byte(story.String()))

			again, err := Compile(in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(result, again); diff != "" {
				t.Errorf("a second compile differs:\n%s", diff)
			}
			if _, verdict, err := latest.Parse(result.Config); err != nil || verdict.IsFatal() {
				t.Errorf("Ignition rejects the config: %v\n%s", err, verdict)
			}
		})
	}
}

// Each version is made from a layer without a version, from one written for
// each older spec, and read back by that version's own parser.
func TestCompileVersions(t *testing.T) {
	const body = `
storage:
  directories: [{path: /a, mode: 0750}]
  files: [{path: /a/b, contents: {inline: hello}}]
  links: [{path: /l, target: /a/b}]
  raid: [{name: r, level: raid0, devices: [/dev/x, /dev/y]}]
systemd:
  units: [{name: x.service, enabled: true, contents: "[Install]\nWantedBy=multi-user.target"}]
`
	for _, version := range Versions() {
		in := Input{Layers: []Layer{{"plain", body}}, System: system(), Version: version}
		for _, d := range dialects() {
			if specIndex(d.spec) <= specIndex(version) {
				name := d.variant + d.version
				text := strings.ReplaceAll(body, "/a", "/"+name)
				if d.variant == "r4e" || d.variant == "fiot" { // which have no RAID
					text = regexp.MustCompile(`(?m)^  raid:.*$`).ReplaceAllString(text, "")
				}
				in.Layers = append(in.Layers, Layer{name, "variant: " + d.variant + "\nversion: " + d.version + text})
			}
		}
		result, err := Compile(in)
		if err != nil {
			t.Errorf("%s: %v", version, err)
			continue
		}
		if result.Version != version || !bytes.Contains(result.Config, []byte(`"version":"`+version+`"`)) {
			t.Errorf("%s: result has version %s", version, result.Version)
		}
		config, verdict, err := latest.Parse(result.Config)
		if err != nil || len(verdict.Entries) > 0 {
			t.Errorf("%s: Ignition says %v\n%s", version, err, verdict)
		}
		if got, want := len(config.Storage.Directories), len(in.Layers); got != want {
			t.Errorf("%s: %d directories, want %d", version, got, want)
		}
	}
}

// A layer for an older spec keeps that spec's meaning: before 3.6 Ignition
// ignored special mode bits.
func TestTranslateUpKeepsMeaning(t *testing.T) {
	compile := func(version string) string {
		result, err := Compile(Input{Version: "3.6.0", Layers: []Layer{{"l",
			"variant: fcos\nversion: " + version + "\nstorage: {files: [{path: /x, mode: 04755, contents: {inline: x}}]}"}}})
		if err != nil {
			t.Fatal(err)
		}
		return string(result.Config)
	}
	if got := compile("1.6.0"); !strings.Contains(got, `"mode":493`) {
		t.Errorf("1.6.0 did not lose the setuid bit: %s", got)
	}
	if got := compile("1.7.0"); !strings.Contains(got, `"mode":2541`) {
		t.Errorf("1.7.0 lost the setuid bit: %s", got)
	}
}

func TestCompileErrors(t *testing.T) {
	one := func(text string) []Layer { return []Layer{{"worker", text}} }
	tests := []struct {
		name    string
		layers  []Layer
		version string // 3.4.0 unless given
		system  System
		want    string
	}{
		{"version unknown", nil, "3.9.0", System{}, `cannot produce Ignition version "3.9.0": use one of 3.1.0, `},
		{"version too old", nil, "3.0.0", System{}, `cannot produce Ignition version "3.0.0"`},
		{"no name", []Layer{{"", ""}}, "", System{}, "layer 1 has no name"},
		{"reserved name", []Layer{{"rackweft", ""}}, "", System{}, `layer 1 is named "rackweft"`},
		{"listed twice", []Layer{{"a", ""}, {"a", ""}}, "", System{}, `layer "a" is listed twice`},

		{"template syntax", one("a: 1\nb: {{ .X "), "", System{}, `layer "worker" line 2: unclosed action`},
		{"unknown function", one("\n\n{{ env \"HOME\" }}"), "", System{}, `layer "worker" line 3: function "env" not defined: a layer can use b64, default`},
		{"no files", one(`{{ readFile "/etc/passwd" }}`), "", System{}, `function "readFile" not defined`},
		{"missing key", one("# x\nstorage: {{ .Machine.nam }}"), "", System{},
			`layer "worker" line 2: .Machine.nam: there is no "nam" among name, rack; if it is optional, write {{ index .Machine "nam" | default "…" }}`},
		{"missing root", one("{{ .Machin.name }}"), "", System{}, `there is no "Machin" among Machine, Site, Variables, Zone; if it is optional, write {{ index . "Machin"`},
		{"no value", one("a: x\nb: {{ index .Variables \"x\" }}"), "", System{}, `layer "worker" line 2: a value is missing here`},
		{"join no list", one("{{ .Machine.name | join \",\" }}"), "", System{}, `line 1: join: the value is not a list`},
		{"secret not allowed", one("a: {{ secret \"a\" \"b\" }}"), "", System{}, `layer "worker" line 1: secret: this machine may not be given Secrets`},
		{"endless loop", one("{{ range 9999999999 }}{{ end }}"), "", System{}, `layer "worker" line 1: the template takes too long: all layers together may take 100000 steps`},
		{"endless writing", one("{{ $s := printf \"%999d\" 1 }}{{ range 9999999 }}{{ $s }}{{ end }}"), "", System{}, `the template writes too much: all layers together may write 2 MiB`},
		{"branching recursion", one(`{{ define "x" }}{{ if lt (len .) 40 }}{{ template "x" (print . "x") }}{{ template "x" (print . "x") }}{{ end }}{{ end }}{{ template "x" "" }}`),
			"", System{}, `layer "worker" line 1: template "x" calls itself: use range instead`},
		{"endless recursion", one(`{{ define "x" }}{{ template "x" }}{{ end }}{{ template "x" }}`), "", System{}, `template "x" calls itself`},
		{"recursion of two", one("{{ define \"x\" }}{{ template \"y\" }}{{ end }}\n{{ define \"y\" }}{{ if true }}{{ else }}{{ template \"x\" }}{{ end }}{{ end }}"), "", System{}, `calls itself`},
		{"the payment", one("{{ step 1 }}"), "", System{}, `function "step" not defined`},
		{"wide verbs", one("{{ printf \"%1000000d\" 1 }}"), "", System{}, `printf: invalid format: want widths up to 999`},
		{"precise verbs", one("{{ printf \"%.1000000d\" 1 }}"), "", System{}, `printf: invalid format: want widths up to 999`},
		{"verbs that share an argument", one("{{ printf \"%[1]s%[1]s\" 1 }}"), "", System{}, `printf: invalid format: want widths up to 999, and neither * nor [n]`},
		{"many verbs", one("{{ printf \"" + strings.Repeat("%d", 101) + "\" }}"), "", System{}, `printf: invalid format: want up to 100 verbs`},
		{"doubling", one("{{ $s := \"xx\" }}{{ range 99 }}{{ $s = printf \"%s%s\" $s $s }}{{ end }}"), "", System{}, `takes values of more than 1 MiB`},
		{"NUL", one("a: \x00"), "", System{}, `layer "worker": contains a NUL byte`},

		{"YAML syntax", one("storage:\n  files: [\n"), "", System{}, `layer "worker" line 2: did not find expected node content`},
		{"not a mapping", one("hello"), "", System{}, `layer "worker" line 1: cannot unmarshal !!str ` + "`hello`" + `: a layer is a mapping`},
		{"wrong type", one("storage:\n  files: 7\n"), "", System{}, `layer "worker" line 2: cannot unmarshal !!int ` + "`7`" + `: a list belongs here`},
		{"line behind a loop", one("{{ range .Site.ntp }}\n# {{ . }}\n{{ end }}\nstorage:\n  files: 7\n"), "", System{}, `layer "worker" line 5: cannot unmarshal`},
		{"line in a loop", one("storage:\n  files:\n{{- range .Site.ntp }}\n  - path: /{{ . }}\n    mod: 1\n{{- end }}\n"), "", System{},
			"layer \"worker\" line 5: storage.files.0.mod: unknown key\nlayer \"worker\" line 5: storage.files.1.mod: unknown key"},
		{"line behind a long value", one("passwd:\n# {{ .Zone.registryCA | indent 1 | printf \"%s\" | b64 }}\n  users: 7\n"), "", System{}, `line 3: cannot unmarshal`},
		{"unknown key", one("stoarge: {}\n"), "", System{}, `layer "worker" line 1: stoarge: unknown key`},
		{"bad mode", one("storage:\n  files:\n    - path: /x\n      mode: 755"), "", System{}, ``},
		{"relative path", one("storage:\n  files:\n    - path: etc/x\n"), "", System{}, `layer "worker" line 3: storage.files.0.path: path not absolute`},
		{"local file", one("storage:\n  files:\n    - path: /x\n      contents:\n        local: passwd"), "", System{},
			`line 5: storage.files.0.contents.local: a layer cannot read files: write the contents inline`},
		{"local unit", one("systemd: {units: [{name: a.service, contents_local: a}]}"), "", System{}, `a layer cannot read files`},
		{"local tree", one("storage: {trees: [{local: etc}]}"), "", System{}, `a layer cannot read files`},
		{"local key", one("passwd: {users: [{name: a, ssh_authorized_keys_local: [x]}]}"), "", System{}, `a layer cannot read files`},
		{"two documents", one("storage: {}\n---\nsystemd: {}"), "", System{}, `layer "worker" line 2: a second YAML document starts here`},

		{"unknown variant", one("variant: openshift\nversion: 4.8.0"), "", System{}, `line 1: Butane variant "openshift" is not supported: use fcos, fiot, flatcar or r4e`},
		{"unknown Butane version", one("variant: flatcar\nversion: 2.0.0"), "", System{}, `line 2: Butane has no version "2.0.0" of variant flatcar: use one of 1.0.0, 1.1.0, or leave it out`},
		{"experimental", one("variant: fcos\nversion: 1.8.0-experimental"), "", System{}, `Butane has no version "1.8.0-experimental"`},
		{"layer too new", one("variant: fcos\nversion: 1.6.0"), "", System{},
			`layer "worker" line 2: fcos 1.6.0 needs Ignition 3.5.0, the image's Ignition understands 3.4.0: write version: 1.5.0, or leave it out`},
		{"variant too new", one("variant: flatcar"), "3.2.0", System{}, `line 1: variant flatcar needs a newer Ignition than 3.2.0`},
		{"field too new", one("kernel_arguments: {should_exist: [quiet]}"), "3.2.0", System{}, `line 1: kernel_arguments: unknown key`},
		{"replace", one("ignition: {config: {replace: {source: http://h/c}}}"), "", System{}, `layer "worker": ignition.config.replace would throw away every other layer`},

		{"layers clash", []Layer{
			{"a", "storage: {links: [{path: /data, target: /var}]}"},
			{"b", "storage: {files: [{path: /data/x}]}"},
			{"c", "storage: {files: [{path: /data/x, mode: 0600}]}"},
		}, "", System{}, `the merged layers do not fit together: file /data/x (layer "c" over "b"): `},

		{"system digest", nil, "", System{Remote: []RemoteFile{{Path: "/x", URL: "http://h/x", SHA256: "beef"}}}, `remote file /x: "beef" is not a SHA-256 digest`},
		{"system URL", nil, "", System{Remote: []RemoteFile{{Path: "/x", URL: "file:///x"}}}, `remote file /x: its URL is not an http or https URL`},
		{"system token in clear", nil, "", System{Remote: []RemoteFile{{Path: "/x", URL: "http://h/x", Token: "t",
			SHA256: strings.Repeat("00", 32)}}}, `remote file /x: a token is only sent over https`},
		{"system CA", nil, "", System{CAs: [][]byte{[]byte("x")}}, `the CA is not a PEM certificate`},
		{"system path", nil, "", System{Files: []File{{Path: "x"}}}, `file x (layer "rackweft"): path not absolute`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			version := tt.version
			if version == "" {
				version = "3.4.0"
			}
			result, err := Compile(Input{Layers: tt.layers, Facts: facts(), System: tt.system, Version: version})
			switch {
			case err == nil && tt.want == "":
			case err == nil:
				t.Fatalf("no error, but %s", result.Config)
			case !strings.Contains(err.Error(), tt.want) || tt.want == "":
				t.Errorf("error is\n  %v\nwant\n  %s", err, tt.want)
			}
		})
	}
}

func TestStructFacts(t *testing.T) {
	type machine struct{ Name string }
	type data struct{ Machine *machine }
	in := Input{Version: "3.4.0", Facts: data{&machine{"r1u07"}}, Layers: []Layer{{"l", "storage: {files: [{path: /x, contents: {inline: {{ .Machine.Name }}}}]}"}}}
	result, err := Compile(in)
	if err != nil || !bytes.Contains(result.Config, []byte("r1u07")) {
		t.Fatalf("%s, %v", result.Config, err)
	}
	in.Layers[0].Butane = "{{ .Machine.Rack }}"
	if _, err := Compile(in); err == nil || err.Error() != `layer "l" line 1: .Machine.Rack: there is no "Rack"` {
		t.Errorf("wrong field: %v", err)
	}
	in.Facts, in.Layers[0].Butane = data{}, "{{ .Machine.Name }}"
	if _, err := Compile(in); err == nil || !strings.Contains(err.Error(), "what should hold") {
		t.Errorf("nil pointer: %v", err)
	}
}

func TestEmptyLayers(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n# nothing", "{{ if false }}storage: 7{{ end }}", "variant: fcos", "{}"} {
		result, err := Compile(Input{Layers: []Layer{{"l", text}}, Version: "3.3.0"})
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if got := string(result.Config); got != `{"ignition":{"version":"3.3.0"}}` {
			t.Errorf("%q: %s", text, got)
		}
	}
}

// No message may show a Secret, whatever it does to the layer.
func TestSecretsStaySecret(t *testing.T) {
	const value = "hunter2: [swordfish\n"
	layers := map[string]string{
		"breaks YAML":     "storage:\n  files:\n    - path: {{ secret \"a\" \"b\" }}\n",
		"wrong type":      "storage:\n  files:\n    - path: /x\n      mode: {{ secret \"a\" \"b\" | quote }}\n",
		"map key":         "storage: {{ index .Machine (secret \"a\" \"b\") }}{{ .Machine.x }}",
		"unknown key":     "{{ secret \"a\" \"b\" | quote }}: 1",
		"encoded":         "storage: {{ secret \"a\" \"b\" | b64 }}",
		"path":            "storage: {files: [{path: {{ secret \"a\" \"b\" | quote }}}]}",
		"bad URL":         "storage: {files: [{path: /x, contents: {source: {{ secret \"a\" \"b\" | quote }}}}]}",
		"unit in warning": "systemd: {units: [{name: {{ secret \"a\" \"b\" | printf \"%q.service\" }}, enabled: true, contents: \"[Service]\"}]}",
	}
	for name, text := range layers {
		t.Run(name, func(t *testing.T) {
			result, err := Compile(Input{
				Layers: []Layer{{"l", text}}, Facts: facts(), Version: "3.4.0",
				Secret: secrets(map[string]string{"a/b": value}),
			})
			told := fmt.Sprint(err, result.Warnings, result.Provenance)
			if err != nil {
				t.Log(err)
			}
			for _, leak := range []string{"hunter2", "swordfish", "aHVudGVyMjogW3N3"} {
				if strings.Contains(told, leak) {
					t.Errorf("%q is shown in %s", leak, told)
				}
			}
		})
	}

	_, err := Compile(Input{
		Layers: []Layer{{"l", "a: 1\nb: {{ secret \"a\" \"c\" }}"}}, Version: "3.4.0",
		Secret: secrets(map[string]string{"a/b": value}),
	})
	if err == nil || err.Error() != `layer "l" line 2: secret: a, key c: no such Secret` {
		t.Errorf("missing Secret: %v", err)
	}
}

func TestMergeOfUserIsUnion(t *testing.T) {
	result, err := Compile(Input{Version: "3.4.0", System: system(), Layers: []Layer{{"site",
		"passwd: {users: [{name: core, groups: [wheel], ssh_authorized_keys: [ssh-ed25519 AAAA alice]}]}"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"wheel", "docker", "alice", "rackweft"} {
		if !bytes.Contains(result.Config, []byte(want)) {
			t.Errorf("user core lacks %s: %s", want, result.Config)
		}
	}
}

func TestCompileConcurrently(t *testing.T) {
	in := example(t, "flatcar", "3.4.0")
	want, err := Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			got, err := Compile(in)
			if err != nil || !bytes.Equal(got.Config, want.Config) {
				t.Errorf("differs: %v", err)
			}
		})
	}
	wg.Wait()
}

func FuzzCompile(f *testing.F) {
	for _, dir := range []string{"flatcar", "debian"} {
		for _, l := range layersOf(f, dir) {
			f.Add(l.Butane, "3.4.0")
		}
	}
	f.Add("a: &a [*a]", "3.1.0")
	f.Add("{{ range .Site.ntp }}\n{{ . }}:\n{{ end }}", "3.6.0")
	f.Add("{{ define \"x\" }}{{ template \"x\" }}{{ end }}{{ template \"x\" }}", "3.6.0")
	f.Add("null", "3.6.0")
	f.Fuzz(func(t *testing.T, text, version string) {
		in := Input{
			Layers: []Layer{{"fuzzed", text}}, Facts: facts(), System: system(), Version: version,
			Secret: secrets(map[string]string{"registry/auth": "top-secret-value"}),
		}
		result, err := Compile(in)
		if err != nil {
			if strings.Contains(err.Error(), "top-secret") {
				t.Fatalf("shows a Secret: %v", err)
			}
			return
		}
		if _, verdict, err := latest.Parse(result.Config); err != nil {
			t.Fatalf("Ignition rejects it: %v\n%s\n%s", err, verdict, result.Config)
		}
		again, err := Compile(in)
		if err != nil || !bytes.Equal(result.Config, again.Config) {
			t.Fatalf("not deterministic: %v", err)
		}
	})
}

func BenchmarkCompile(b *testing.B) {
	small := Input{Version: "3.4.0", Facts: facts(), Layers: []Layer{{"worker",
		"storage: {files: [{path: /etc/motd, contents: {inline: {{ .Machine.name | quote }}}}]}"}}}
	typical := example(b, "flatcar", "3.4.0")
	large := example(b, "flatcar", "3.4.0")
	var text strings.Builder
	text.WriteString("storage:\n  files:\n")
	for i := range 100 {
		fmt.Fprintf(&text, "    - path: /etc/x/%d\n      mode: 0600\n      contents:\n        inline: |\n%s", i,
			strings.Repeat("          some = line # of {{ .Machine.name }}\n", 20))
	}
	large.Layers = append(large.Layers, Layer{"large", text.String()})
	for _, bench := range []struct {
		name string
		in   Input
	}{{"small", small}, {"typical", typical}, {"large", large}} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Compile(bench.in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
