package show

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
)

// Reference is docs/reference.md: every field of every kind, generated from the types.
func Reference() string {
	var b strings.Builder
	b.WriteString(`# Reference

Every field of every kind, generated from the types in ` + "`api/`" + ` (` + "`make reference`" + `).
` + "`weftctl explain KIND[.FIELD…]`" + ` shows the same in a terminal. A field marked * is required.
Units are part of each text; quantities are Kubernetes' (` + "`4Gi`, `500M`" + `), durations Go's (` + "`90s`, `15m`" + `).

## Every object

`)
	table(&b, reflect.TypeFor[api.Base](), "")
	b.WriteString("\n`status.conditions` is a list of these, one of each type:\n\n")
	table(&b, reflect.TypeFor[api.Condition](), "")
	for _, k := range api.Kinds() {
		kind(&b, k)
	}
	return b.String()
}

func kind(b *strings.Builder, k api.Kind) {
	fmt.Fprintf(b, "\n## %s\n\n%s\n\n", k.Name, k.Doc)
	names := append([]string{strings.ToLower(k.Name), k.Plural}, k.Short...)
	fmt.Fprintf(b, "weftctl: `%s`. ", strings.Join(names, "`, `"))
	if k.Computed {
		b.WriteString("Compiled by bootd, never stored; it cannot be written.\n\n")
	} else {
		fmt.Fprintf(b, "Written by: %s.\n\n", k.Writer)
	}
	table(b, reflect.TypeOf(k.New()).Elem(), "")
}

// table writes the fields below a type; those of Base only for Base itself.
func table(b *strings.Builder, t reflect.Type, prefix string) {
	b.WriteString("| field | type | meaning |\n|---|---|---|\n")
	rows(b, t, prefix, nil)
}

func rows(b *strings.Builder, t reflect.Type, prefix string, above []reflect.Type) {
	if slices.Contains(above, t) || len(above) > 0 && t == reflect.TypeFor[api.Condition]() {
		return
	}
	for _, f := range structFields(t) {
		if len(f.Index) > 1 && t != reflect.TypeFor[api.Base]() { // of an embedded type
			continue
		}
		d := describe(f)
		fmt.Fprintf(b, "| `%s%s`%s | %s | %s |\n", prefix, d.Name, star(f), d.Type, strings.ReplaceAll(meaning(d), "|", "\\|"))
		rows(b, inner(f.Type), prefix+d.Name+steps(f.Type), append(above, t))
	}
}

// meaning is a field's text, with the values that it may have.
func meaning(d Field) string {
	if len(d.Enum) == 0 {
		return d.Doc
	}
	return d.Doc + " One of `" + strings.Join(d.Enum, "`, `") + "`."
}

// star marks a field that is required.
func star(f reflect.StructField) string {
	if optional(f) {
		return ""
	}
	return "*"
}

func optional(f reflect.StructField) bool {
	_, options, _ := strings.Cut(f.Tag.Get("json"), ",")
	return strings.Contains(options, "omit")
}

// steps is how the path continues below a field: [] for a list, .KEY for a map.
func steps(t reflect.Type) string {
	var s string
	for !isText(t) {
		switch t.Kind() {
		case reflect.Slice:
			s += "[]"
		case reflect.Map:
			s += ".KEY"
		case reflect.Pointer:
		default:
			return s + "."
		}
		t = t.Elem()
	}
	return s + "."
}
