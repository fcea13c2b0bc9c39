package ignition

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// Layers that take a processor or all memory, each by another means. All must
// be refused; what that takes, BenchmarkHostile prints.
func hostile() map[string]string {
	big := `{{ $a := "0123456789abcdef" }}{{ range 14 }}{{ $a = print $a $a }}{{ end }}{{ $b := print $a }}`
	return map[string]string{
		"calls itself":             `{{ define "x" }}{{ template "x" }}{{ template "x" }}{{ end }}{{ template "x" }}`,
		"calls of calls":           chain(30),
		"range":                    `{{ range 999999999999 }}{{ end }}`,
		"nested ranges":            strings.Repeat(`{{ range 99 }}`, 40) + strings.Repeat(`{{ end }}`, 40),
		"assignments in a range":   `{{ range 99999 }}` + strings.Repeat(`{{ $x := . }}`, 10000) + `{{ end }}`,
		"one action in a range":    `{{ range 99999 }}{{ $x := and true` + strings.Repeat(` true`, 50000) + ` }}{{ end }}`,
		"one pipeline in a range":  `{{ range 99999 }}{{ $x := print 1` + strings.Repeat(` | print`, 20000) + ` }}{{ end }}`,
		"keys that are sorted":     `{{ range 99999 }}{{ range $.Many }}{{ break }}{{ end }}{{ end }}`,
		"comparisons of large":     big + `{{ range 99999 }}{{ $x := eq $a $b }}{{ end }}`,
		"comparisons side by side": big + strings.Repeat(`{{ $x := eq $a $b }}`, 20000),
		"encodings":                big + `{{ range 99999 }}{{ $x := $a | b64 | b64 }}{{ end }}`,
		"escapes":                  big + strings.Repeat(`{{ $x := js $a }}`, 1000),
		"arguments":                big + `{{ $x := print` + strings.Repeat(` $a`, 10000) + ` }}`,
		"indents":                  `{{ $a := "\n\n\n\n\n\n\n\n" }}{{ range 16 }}{{ $a = print $a $a }}{{ end }}{{ $a | indent 100 }}`,
		"joins":                    big + `{{ $x := .List | join $a }}`,
		"facts":                    `{{ range 99999 }}{{ $x := json $.Many }}{{ end }}`,
		"Secrets":                  `{{ range 99999 }}{{ $x := secret "a" "b" }}{{ end }}`,
		"writing":                  `{{ $s := printf "%999d" 1 }}{{ range 99999 }}{{ $s }}{{ end }}`,
		"a thousand faults":        strings.Repeat("fault: 1\n", 1000),
		"a thousand keys":          keys(1024),
		"many keys":                keys(5000),
		"many units":               "systemd:\n  units:\n" + units(10000),
		"many files":               "storage:\n  files:\n" + strings.Repeat("    - {path: /x}\n", 30000),
		"many brackets":            "x: " + strings.Repeat("[", 200000),
		"aliases":                  "a: &a [" + strings.Repeat("x,", 9000) + "x]\nb: &b [" + strings.Repeat("*a,", 9000) + "*a]",
		"widths":                   `{{ printf "` + strings.Repeat("%999999d", 100) + `" }}`,
	}
}

func keys(n int) string {
	var out strings.Builder
	for i := range n {
		fmt.Fprintf(&out, "k%d: 1\n", i)
	}
	return out.String()
}

func units(n int) string {
	var out strings.Builder
	for i := range n {
		fmt.Fprintf(&out, "    - {name: a%d.service, contents: \"[Service]\"}\n", i)
	}
	return out.String()
}

// chain is templates of which each calls the next one twice.
func chain(n int) string {
	var out strings.Builder
	for i := range n {
		fmt.Fprintf(&out, `{{ define "x%d" }}{{ template "x%d" }}{{ template "x%d" }}{{ end }}`, i, i+1, i+1)
	}
	fmt.Fprintf(&out, `{{ define "x%d" }}{{ end }}{{ template "x0" }}`, n)
	return out.String()
}

func hostileInput(text string) Input {
	many := map[string]string{}
	for i := range 1024 {
		many[fmt.Sprint(i)] = strings.Repeat("v", 100)
	}
	return Input{Layers: []Layer{{"hostile", text}}, Version: "3.4.0",
		Facts:  map[string]any{"Many": many, "List": slices.Repeat([]string{"x"}, 1024)},
		Secret: func(_, _, _ string) (string, error) { return "value", nil }}
}

func TestTemplatesAreBounded(t *testing.T) {
	for name, text := range hostile() {
		if _, err := Compile(hostileInput(text)); err == nil || !strings.Contains(err.Error(), `layer "hostile"`) || len(err.Error()) > 1024 {
			t.Errorf("%s: %.200v", name, err)
		}
		if _, err := UserData("#cloud-config\n"+text, hostileInput("").Facts, hostileInput("").Secret); err == nil && strings.Contains(text, "{{") {
			t.Errorf("%s as user data is rendered", name)
		}
	}
}

// The budget is one for all layers of a config.
func TestLayersShareTheBudget(t *testing.T) {
	in := hostileInput(`{{ range 20000 }}{{ end }}`)
	if _, err := Compile(in); err != nil {
		t.Fatal(err)
	}
	for i := range 9 {
		in.Layers = append(in.Layers, Layer{fmt.Sprint("l", i), in.Layers[0].Butane})
	}
	if _, err := Compile(in); err == nil || !strings.Contains(err.Error(), "all layers together") {
		t.Errorf("ten such layers: %v", err)
	}
}

// A Secret is opened once, however often a layer asks for it.
func TestSecretIsOpenedOnce(t *testing.T) {
	asked := map[string]int{}
	in := Input{Version: "3.4.0", Layers: []Layer{{"a", `# {{ range 9 }}{{ secret "s" "k" }}{{ end }}`}, {"b", `# {{ secret "s" "k" }}`}},
		Secret: func(layer, name, key string) (string, error) { asked[layer+" "+name+"/"+key]++; return "v", nil }}
	if _, err := Compile(in); err != nil || !maps.Equal(asked, map[string]int{"a s/k": 1, "b s/k": 1}) {
		t.Errorf("%v, %v", asked, err)
	}
}

func BenchmarkHostile(b *testing.B) {
	for name, text := range hostile() {
		b.Run(name, func(b *testing.B) {
			in := hostileInput(text)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Compile(in); err == nil {
					b.Fatal("it is compiled")
				}
			}
		})
	}
}

func TestSecretsOf(t *testing.T) {
	for text, want := range map[string]string{
		`a: {{ secret "a" "k" | quote }} {{ secret "b" "k" }} {{ secret "a" "l" }}`:                                    "a b",
		`{{ if eq (secret "a" "k") "x" }}{{ else }}{{ range .L }}{{ with secret "b" "k" }}{{ end }}{{ end }}{{ end }}`: "a b",
		`{{ define "t" }}{{ secret "a" "k" }}{{ end }}{{ template "t" (secret "b" "k") }}`:                             "a b",
		`{{ $n := "a" }}{{ secret $n "k" }}`:                                                                           "",
		`secret "a" "k"`:                                                                                               "",
		`{{ secret "a"`:                                                                                                "",
		`{{ (secret "a" "k").x }}`:                                                                                     "a",
	} {
		if got := strings.Join(SecretsOf(text), " "); got != want {
			t.Errorf("%s asks for %q, want %q", text, got, want)
		}
	}
}
