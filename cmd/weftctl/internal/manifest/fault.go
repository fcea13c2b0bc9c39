package manifest

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/rackweft/rackweft/api"
)

// Fault is an error at a position in a file.
type Fault struct {
	File    string
	Line    int    // from 1; 0 when it is not known
	Text    string // of that line
	Pointer string // to the field; empty when it is not about one
	Message string
}

// Error is `machines.yaml:17: /spec/links/0/mac: what is wrong`.
func (f Fault) Error() string {
	where := f.File
	if f.Line > 0 {
		where += ":" + strconv.Itoa(f.Line)
	}
	if f.Pointer == "" {
		return where + ": " + f.Message
	}
	return where + ": " + f.Pointer + ": " + f.Message
}

// Faults are all the errors found.
type Faults []Fault

func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i := range f {
		lines[i] = f[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Locate finds the line of the field that an RFC 6901 pointer names, or of the nearest enclosing field that
// exists.
func (d *Document) Locate(pointer string) int {
	at := d.find(pointer)
	return at.line
}

// place is the position that a pointer names.
type place struct {
	line  int
	value *yaml.Node
	exact bool // the field exists
}

func (d *Document) find(pointer string) place {
	at := place{line: d.root.Line, value: resolve(d.root), exact: true}
	for _, token := range tokens(pointer) {
		next, ok := d.step(at.value, token)
		if !ok {
			at.exact = false
			return at
		}
		at.line, at.value = next.line, next.value
	}
	return at
}

func (d *Document) step(n *yaml.Node, token string) (place, bool) {
	switch n.Kind {
	case yaml.MappingNode:
		pairs, err := d.pairs(n)
		if err != nil {
			return place{}, false
		}
		for _, p := range pairs {
			if p.key.Value == token {
				return place{line: p.key.Line, value: resolve(p.value)}, true
			}
		}
	case yaml.SequenceNode:
		i, err := strconv.Atoi(token)
		if err == nil && i >= 0 && i < len(n.Content) {
			return place{line: n.Content[i].Line, value: resolve(n.Content[i])}, true
		}
	}
	return place{}, false
}

// tokens splits a pointer (RFC 6901, section 4).
func tokens(pointer string) []string {
	if pointer == "" {
		return nil
	}
	parts := strings.Split(strings.TrimPrefix(pointer, "/"), "/")
	for i := range parts {
		parts[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(parts[i])
	}
	return parts
}

func child(n *yaml.Node, name string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return resolve(n.Content[i+1])
		}
	}
	return nil
}

// Fault adds the position to an error about a field.
func (d *Document) Fault(f api.FieldError) Fault {
	at := d.find(f.Pointer)
	message := f.Message
	// YAML reads version: 1.10 as the number 1.1: text that looks like a number must be quoted.
	if at.exact && strings.HasSuffix(message, "a number is not text") {
		message = fmt.Sprintf("YAML reads %s as a number: write \"%s\"", at.value.Value, at.value.Value)
	}
	return Fault{File: d.File, Line: at.line, Text: lineText(d.lines, at.line), Pointer: f.Pointer, Message: message}
}

// Place turns an error about the document's object into Faults where it names fields, and otherwise into
// one Fault at the document's first line. A nil error is nil.
func (d *Document) Place(err error) Faults {
	if err == nil {
		return nil
	}
	var one api.FieldError
	var many api.FieldErrors
	var problem *api.Problem
	switch {
	case errors.As(err, &one):
		many = api.FieldErrors{one}
	case errors.As(err, &problem) && len(problem.Errors) > 0:
		many = problem.Errors
	case errors.As(err, &many):
	default:
		return Faults{{File: d.File, Line: d.root.Line, Message: err.Error()}}
	}
	faults := make(Faults, len(many))
	for i, f := range many {
		faults[i] = d.Fault(f)
	}
	return faults
}

func (d *Document) faultAt(n *yaml.Node, pointer, message string) Fault {
	return Fault{File: d.File, Line: n.Line, Text: lineText(d.lines, n.Line), Pointer: pointer, Message: message}
}
