package api

import (
	"bytes"
	"encoding"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// DecodeStrict decodes one JSON value into v. Unknown fields, duplicate names,
// long lists and trailing data are errors; an error is a FieldError whose
// pointer names the field at fault.
func DecodeStrict(data []byte, v any) error {
	if err := short(data); err != nil {
		return err
	}
	err := json.Unmarshal(data, v, json.RejectUnknownMembers(true), json.WithUnmarshalers(json.JoinUnmarshalers(
		strict(ParseAddr), strict(ParsePrefix), strict(ParseAddrPort))))
	if err == nil {
		return nil
	}
	return fieldError(err)
}

// maxEntries bounds each list and map: validation and admission compare the
// entries of a list with each other.
const maxEntries = 1024

// short returns an error for a list or map that is too long. Invalid JSON is
// left to the decoder.
func short(data []byte) error {
	d := jsontext.NewDecoder(bytes.NewReader(data), jsontext.AllowDuplicateNames(true))
	for {
		if _, err := d.ReadToken(); err != nil {
			return nil
		}
		kind, n := d.StackIndex(d.StackDepth())
		if kind == '{' {
			n /= 2
		}
		if n > maxEntries {
			return FieldError{Pointer: string(d.StackPointer().Parent()), Message: fmt.Sprintf("it has more than %d entries", maxEntries)}
		}
	}
}

// strict decodes a type of net/netip by a parser that accepts only one spelling
// of a value.
func strict[T any](parse func(string) (T, error)) *json.Unmarshalers {
	return json.UnmarshalFunc(func(raw []byte, v *T) error {
		if jsontext.Value(raw).Kind() != '"' {
			return json.SkipFunc // the decoder refuses it
		}
		text, err := jsontext.AppendUnquote(nil, raw)
		if err != nil || len(text) == 0 {
			*v = *new(T)
			return err
		}
		*v, err = parse(string(text))
		return err
	})
}

func fieldError(err error) FieldError {
	var syntactic *jsontext.SyntacticError
	if errors.As(err, &syntactic) {
		return FieldError{Pointer: string(syntactic.JSONPointer), Message: "not JSON: " + cause(syntactic.Err, err)}
	}
	var semantic *json.SemanticError
	if !errors.As(err, &semantic) {
		return FieldError{Message: err.Error()}
	}
	pointer := string(semantic.JSONPointer)
	if errors.Is(semantic.Err, json.ErrUnknownName) {
		name := semantic.JSONPointer.LastToken()
		return FieldError{Pointer: pointer, Message: fmt.Sprintf("unknown field %s%s", quote(name), known(semantic.GoType))}
	}
	// The value for a type that reads text is not text, such as an unquoted
	// 0123.
	if k := semantic.JSONKind; k == '0' || k == 't' || k == 'f' {
		if _, isText := reflect.New(textType(semantic.GoType)).Interface().(encoding.TextUnmarshaler); isText {
			return FieldError{Pointer: pointer, Message: fmt.Sprintf("a %s is not text: put it in quotes", jsonWord(k))}
		}
	}
	if semantic.Err != nil {
		return FieldError{Pointer: pointer, Message: semantic.Err.Error()}
	}
	return FieldError{Pointer: pointer, Message: fmt.Sprintf("a %s is not %s", jsonWord(semantic.JSONKind), goWord(semantic.GoType))}
}

// textType returns the type of a value without its pointers.
func textType(t reflect.Type) reflect.Type {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil {
		return reflect.TypeFor[struct{}]()
	}
	return t
}

func cause(inner, outer error) string {
	if inner != nil {
		return inner.Error()
	}
	return outer.Error()
}

// known lists the fields that the author may have meant.
func known(t reflect.Type) string {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || t.Kind() != reflect.Struct {
		return ""
	}
	var names []string
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return ": want one of " + strings.Join(names, ", ")
}

func jsonWord(k jsontext.Kind) string {
	switch k {
	case '{':
		return "map"
	case '[':
		return "list"
	case '"':
		return "text"
	case '0':
		return "number"
	case 't', 'f':
		return "boolean"
	case 'n':
		return "null"
	}
	return "value"
}

func goWord(t reflect.Type) string {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil {
		return "the expected type"
	}
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "a map"
	}
	return "a number"
}

// DecodeObject decodes an object of any kind by its apiVersion and kind. It
// sets defaults; the caller validates.
func DecodeObject(data []byte) (Object, error) {
	var t TypeMeta
	if err := json.Unmarshal(data, &t); err != nil {
		return nil, fieldError(err)
	}
	if t.APIVersion != "" && t.APIVersion != Version {
		return nil, FieldError{Pointer: "/apiVersion", Message: fmt.Sprintf("invalid %s: want %s", quote(t.APIVersion), Version)}
	}
	for _, k := range Kinds() {
		if k.Name == t.Kind {
			o := k.New()
			if err := DecodeStrict(data, o); err != nil {
				return nil, err
			}
			o.SetDefaults()
			return o, nil
		}
	}
	var names []string
	for _, k := range Kinds() {
		names = append(names, k.Name)
	}
	return nil, FieldError{Pointer: "/kind", Message: fmt.Sprintf("unknown kind %s: want one of %s", quote(t.Kind), strings.Join(names, ", "))}
}

// Encode writes an object as JSON; equal objects give equal bytes.
func Encode(o any) ([]byte, error) {
	b, err := stdjson.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", o, err)
	}
	return b, nil
}
