package show

import (
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
)

// Field is the help for one field of a kind.
type Field struct {
	Name string
	Type string
	Doc  string
	Enum []string
	// Fields are the fields below it, for a map with fixed fields or a list of such maps.
	Fields []Field
}

// Fields finds the help on a field of a kind: path is its names joined by dots, as in spec.links.mac, and is
// empty for the kind itself. The error lists the fields that exist.
func Fields(k api.Kind, path string) (Field, error) {
	at := Field{Name: strings.ToLower(k.Name), Type: "map"}
	t := reflect.TypeOf(k.New()).Elem()
	at.Fields = below(t)
	if path == "" {
		return at, nil
	}
	for i, name := range strings.Split(path, ".") {
		f, ok := find(t, name)
		if !ok {
			where := strings.Join(append([]string{k.Plural}, strings.Split(path, ".")[:i]...), ".")
			if names := namesOf(t); len(names) > 0 {
				return at, fmt.Errorf("%s has no field %q: its fields are %s", where, name, strings.Join(names, ", "))
			}
			return at, fmt.Errorf("%s has no fields below it", where)
		}
		at = describe(f)
		t = inner(f.Type)
		at.Fields = below(t)
	}
	return at, nil
}

func namesOf(t reflect.Type) []string {
	var names []string
	for _, f := range below(t) {
		names = append(names, f.Name)
	}
	return names
}

// below lists the fields of a struct type, including those of embedded structs.
func below(t reflect.Type) []Field {
	var fields []Field
	for _, f := range structFields(t) {
		fields = append(fields, describe(f))
	}
	return fields
}

func structFields(t reflect.Type) []reflect.StructField {
	if t.Kind() != reflect.Struct || isText(t) {
		return nil
	}
	return slices.DeleteFunc(reflect.VisibleFields(t), func(f reflect.StructField) bool {
		return f.Anonymous || !f.IsExported() || jsonName(f) == ""
	})
}

func find(t reflect.Type, name string) (reflect.StructField, bool) {
	for _, f := range structFields(t) {
		if jsonName(f) == name {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	if name == "-" {
		return ""
	}
	return name
}

func describe(f reflect.StructField) Field {
	d := Field{Name: jsonName(f), Type: typeWord(f.Type), Doc: f.Tag.Get("doc")}
	if enum := f.Tag.Get("enum"); enum != "" {
		d.Enum = strings.Split(enum, ",")
	}
	return d
}

// inner is the element type under pointers, lists and maps.
func inner(t reflect.Type) reflect.Type {
	for {
		if isText(t) {
			return t
		}
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			t = t.Elem()
		default:
			return t
		}
	}
}

func isText(t reflect.Type) bool {
	unmarshaler := reflect.TypeFor[encoding.TextUnmarshaler]()
	return t.Implements(unmarshaler) || reflect.PointerTo(t).Implements(unmarshaler)
}

// typeWord names a type in YAML's terms.
func typeWord(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t {
	case reflect.TypeFor[time.Time]():
		return "time"
	case reflect.TypeFor[api.Duration]():
		return "duration"
	case reflect.TypeFor[api.Quantity]():
		return "quantity"
	case reflect.TypeFor[api.Part]():
		return "any"
	case reflect.TypeFor[netip.Addr]():
		return "address"
	case reflect.TypeFor[netip.Prefix]():
		return "prefix"
	case reflect.TypeFor[api.MAC]():
		return "MAC"
	}
	if isText(t) {
		return "text"
	}
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice, reflect.Array:
		return "list of " + typeWord(t.Elem())
	case reflect.Map:
		return "map of text to " + typeWord(t.Elem())
	case reflect.Struct:
		return "map"
	case reflect.Interface:
		return "any"
	}
	return "number"
}
