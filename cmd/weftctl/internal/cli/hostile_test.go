package cli

import (
	"encoding"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/text"
)

// hostile is what a BMC, a host or a guest might say of itself.
const hostile = "x\x1b[2J\x1b]0;owned\x07\u009b5m\u202egnp\u200b\nfake   row\x7f\U000e0041"

// spoil puts hostile words into every text below v, which is a pointer. Lists and maps get one element.
func spoil(v reflect.Value, depth int) {
	if depth > 8 {
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		spoil(v.Elem(), depth+1)
	case reflect.Struct:
		if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
			return
		}
		if _, ok := v.Addr().Interface().(json.Unmarshaler); ok {
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				spoil(v.Field(i), depth+1)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.Uint8 {
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			spoil(v.Index(0), depth+1)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		e := reflect.New(v.Type().Elem())
		spoil(e, depth+1)
		v.SetMapIndex(reflect.ValueOf(hostile).Convert(v.Type().Key()), e.Elem())
	case reflect.String:
		if v.Type() == reflect.TypeFor[api.SHA256]() {
			v.SetString(strings.Repeat("a", 64))
			return
		}
		if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); !ok {
			v.SetString(hostile)
		}
	}
}

// TestHostileWords shows objects whose statuses were made by machines that mean ill: a terminal obeys nothing of it.
func TestHostileWords(t *testing.T) {
	b := newBootd(t)
	var shown []string
	for _, k := range api.Kinds() {
		o := k.New()
		status := reflect.ValueOf(o).Elem().FieldByName("Status")
		if !status.IsValid() {
			continue
		}
		spoil(status.Addr(), 0)
		o.Meta().Name = "x1"
		o.Meta().Labels = map[string]string{"l": hostile}
		o.Meta().Annotations = map[string]string{"a": hostile}
		b.store(o)
		shown = append(shown, strings.ToLower(k.Name))
	}
	if len(shown) < 5 {
		t.Fatalf("only %v are shown", shown)
	}
	for _, kind := range shown {
		for _, args := range [][]string{{"get", kind}, {"get", kind, "-o", "wide"}, {"get", kind, "x1", "-o", "json"}, {"describe", kind, "x1"}, {"get", kind, "x1", "-o", "yaml"}} {
			r := b.run(t, "", args...)
			if r.code != 0 {
				t.Errorf("%v: %d %s", args, r.code, r.err)
			}
			if args[len(args)-1] == "yaml" {
				continue // for programs: it must be whole, and is made fit to be seen on a terminal alone
			}
			for _, out := range []string{r.out, r.err} {
				if !utf8.ValidString(out) || strings.ContainsFunc(out, func(r rune) bool { return r != '\n' && r != '\t' && !text.Shown(r) }) {
					t.Errorf("%v writes %q", args, out)
				}
				if strings.Contains(out, "\nfake   row") {
					t.Errorf("%v writes a row of the attacker: %q", args, out)
				}
			}
		}
	}
}
