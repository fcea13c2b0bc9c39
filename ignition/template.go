package ignition

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"
)

// document is a rendered layer with its source lines.
type document struct {
	layer string
	text  []byte
	lines []int // source line of each rendered line; nil when they are equal
}

// errorf returns an error at a line of the rendered text, counted from 1; 0
// means no line.
func (d document) errorf(line int, format string, args ...any) error {
	if d.lines != nil && line > 0 {
		line = d.lines[min(line, len(d.lines))-1]
	}
	return &layerError{d.layer, line, fmt.Sprintf(format, args...)}
}

// empty reports whether the document has only comments. Butane would read the
// first of several YAML documents and drop the rest, so several are an error.
func (d document) empty() (bool, error) {
	content, marks := false, 0
	for i, line := range strings.Split(string(d.text), "\n") {
		trimmed := strings.TrimSpace(line)
		switch {
		case trimmed == "" || strings.HasPrefix(trimmed, "#"):
		case trimmed == "---" || strings.HasPrefix(line, "--- "):
			if marks++; marks > 1 || content {
				return false, d.errorf(i+1, "a second YAML document starts here: make it a layer of its own")
			}
			content = trimmed != "---"
		default:
			content = true
		}
	}
	return !content, nil
}

// render executes a layer's template. The output contains marks,
// "\x00LINE\x00", which map each line to the layer's source.
func render(layer Layer, facts any, secret secretFunc, b *budget) (document, error) {
	if strings.Contains(layer.Butane, "\x00") {
		return document{}, &layerError{layer.Name, 0, "contains a NUL byte: want text"}
	}
	if !strings.Contains(layer.Butane, "{{") {
		return document{layer: layer.Name, text: []byte(layer.Butane)}, nil
	}
	tmpl, err := template.New("layer").Option("missingkey=error").Funcs(functions(secret, b)).Parse(layer.Butane)
	if err != nil {
		return document{}, templateError(layer, err, facts)
	}
	marks := newMarker(layer.Butane)
	if name, at, ok := recursive(tmpl); ok {
		return document{}, &layerError{layer.Name, marks.line(at), fmt.Sprintf("template %q calls itself: use range instead", name)}
	}
	for _, t := range tmpl.Funcs(b.functions()).Templates() {
		if t.Tree != nil {
			marks.list(t.Root)
			marks.count(t.Root)
			charge(t.Root)
		}
	}
	out := rendering{budget: b}
	if err := tmpl.Execute(&out, facts); err != nil {
		return document{}, templateError(layer, err, facts)
	}
	return unmark(layer.Name, []byte(out.String()))
}

// marker inserts line marks into a parsed template.
type marker struct {
	breaks []int // offset of each line break in the source
}

func newMarker(source string) marker {
	var m marker
	for i := range len(source) {
		if source[i] == '\n' {
			m.breaks = append(m.breaks, i)
		}
	}
	return m
}

func (m marker) list(list *parse.ListNode) {
	if list == nil {
		return
	}
	for _, node := range list.Nodes {
		switch n := node.(type) {
		case *parse.TextNode:
			n.Text = m.text(n.Text, n.Pos)
		case *parse.IfNode:
			m.list(n.List)
			m.list(n.ElseList)
		case *parse.WithNode:
			m.list(n.List)
			m.list(n.ElseList)
		case *parse.RangeNode:
			m.list(n.List)
			m.list(n.ElseList)
			m.count(n.List)
		}
	}
}

// count starts every pass through list with a mark, because a value may be the
// first output of a pass.
func (m marker) count(list *parse.ListNode) {
	mark := &parse.TextNode{NodeType: parse.NodeText, Pos: list.Pos, Text: m.text(nil, list.Pos)}
	list.Nodes = append([]parse.Node{mark}, list.Nodes...)
}

func (m marker) line(pos parse.Pos) int { return sort.SearchInts(m.breaks, int(pos)) + 1 }

func (m marker) text(text []byte, pos parse.Pos) []byte {
	line := m.line(pos)
	marked := fmt.Appendf(nil, "\x00%d\x00", line)
	for _, b := range text {
		marked = append(marked, b)
		if b == '\n' {
			line++
			marked = fmt.Appendf(marked, "\x00%d\x00", line)
		}
	}
	return marked
}

// unmark removes the marks and reads the source lines from them. A line that is
// part of a value belongs to the line of the action that wrote it.
func unmark(layer string, marked []byte) (document, error) {
	doc := document{layer: layer, text: make([]byte, 0, len(marked)), lines: []int{1}}
	source, start := 1, true
	for i := 0; i < len(marked); i++ {
		if marked[i] != 0 {
			doc.text = append(doc.text, marked[i])
			start = marked[i] == '\n'
			if start {
				doc.lines = append(doc.lines, source)
			}
			continue
		}
		end := bytes.IndexByte(marked[i+1:], 0)
		line, err := strconv.Atoi(string(marked[i+1 : i+1+max(end, 0)]))
		if err != nil {
			return document{}, &layerError{layer, source, "a value contains a NUL byte"}
		}
		source = line
		if start {
			doc.lines[len(doc.lines)-1] = line
		}
		i += end + 1
	}
	if at := bytes.Index(doc.text, []byte("<no value>")); at >= 0 {
		return document{}, doc.errorf(1+bytes.Count(doc.text[:at], []byte("\n")), "a value is missing here: add `| default \"…\"`")
	}
	return doc, nil
}

// functions are the template functions in addition to text/template's. None
// reads a file, the environment or the clock. Those that return a value are
// charged for it, because a loop could double a value forever.
func functions(secret secretFunc, b *budget) template.FuncMap {
	// paid wraps a function whose result is at most a few times the size of its
	// arguments.
	paid := func(fn func(args ...any) string) func(args ...any) (string, error) {
		return func(args ...any) (string, error) {
			if err := b.take(args...); err != nil {
				return "", err
			}
			return b.make(fn(args...))
		}
	}
	one := func(fn func(string) string) func(v any) (string, error) {
		return func(v any) (string, error) {
			if err := b.take(v); err != nil {
				return "", err
			}
			return b.make(fn(toString(v)))
		}
	}
	return template.FuncMap{
		"secret":  secret,
		"quote":   func(v any) (string, error) { return b.json(toString(v)) }, // JSON strings are YAML strings
		"json":    b.json,
		"b64":     one(func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }),
		"lower":   one(strings.ToLower),
		"upper":   one(strings.ToUpper),
		"indent":  b.indent,
		"join":    b.join,
		"default": orDefault,

		// text/template's own, bounded.
		"print":    paid(fmt.Sprint),
		"println":  paid(fmt.Sprintln),
		"html":     paid(template.HTMLEscaper),
		"js":       paid(template.JSEscaper),
		"urlquery": paid(template.URLQueryEscaper),
		"printf": func(format string, args ...any) (string, error) {
			if err := checkFormat(format); err != nil {
				return "", err
			}
			return paid(func(args ...any) string { return fmt.Sprintf(format, args[1:]...) })(append([]any{format}, args...)...)
		},
	}
}

const functionNames = "b64, default, indent, join, json, lower, quote, secret, upper and text/template's own"

// checkFormat refuses formats whose output is much larger than their input: a
// verb may have a width of up to 999, and use each argument once.
func checkFormat(format string) error {
	if regexp.MustCompile(`%[-+# 0]*(\d{4}|\d*\.\d{4}|\d*\.?\*|\d*\.?\[)`).MatchString(format) {
		return errors.New("invalid format: want widths up to 999, and neither * nor [n]")
	}
	if n := strings.Count(format, "%"); n > 100 {
		return fmt.Errorf("invalid format: want up to 100 verbs, got %d", n)
	}
	return nil
}

func toString(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case []byte:
		return string(v)
	}
	return fmt.Sprint(v)
}

func (b *budget) json(v any) (string, error) {
	if err := b.take(v); err != nil {
		return "", err
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", err
	}
	return b.make(strings.TrimSuffix(out.String(), "\n"))
}

// indent puts n spaces in front of each line, including the first: `{{ .X |
// indent 4 }}`.
func (b *budget) indent(n int, v any) (string, error) {
	if n < 0 || n > 100 {
		return "", fmt.Errorf("invalid indent %d: want 0 to 100 spaces", n)
	}
	text := strings.TrimSuffix(toString(v), "\n")
	if err := b.take(text); err != nil {
		return "", err
	}
	if len(text)+n*(1+strings.Count(text, "\n")) > maxValue {
		return "", fmt.Errorf("makes a value of more than %d MiB", maxValue>>20)
	}
	pad := strings.Repeat(" ", n)
	return b.make(pad + strings.ReplaceAll(text, "\n", "\n"+pad))
}

// join writes a list with sep between: `{{ .Site.dns | join " " }}`.
func (b *budget) join(sep string, list any) (string, error) {
	v := reflect.ValueOf(list)
	if v.Kind() != reflect.Slice && v.Kind() != reflect.Array {
		return "", errors.New("the value is not a list")
	}
	var out strings.Builder
	for i := range v.Len() {
		if i > 0 {
			out.WriteString(sep)
		}
		out.WriteString(toString(v.Index(i).Interface()))
		if out.Len() > maxValue {
			return "", fmt.Errorf("makes a value of more than %d MiB", maxValue>>20)
		}
	}
	return b.make(out.String())
}

// orDefault returns v unless it is missing, empty, zero or false:
// `{{ index .Variables "tier" | default "app" }}`.
func orDefault(fallback, v any) any {
	if truth, _ := template.IsTrue(v); truth {
		return v
	}
	return fallback
}

// templateError rewords text/template's errors for the author of a layer.
func templateError(layer Layer, err error, facts any) error {
	m := regexp.MustCompile(`(?s)^template: layer:(\d+)(?::\d+)?: (.*)$`).FindStringSubmatch(err.Error())
	if m == nil {
		return &layerError{layer.Name, 0, err.Error()}
	}
	line, _ := strconv.Atoi(m[1]) // the pattern has digits only
	if regexp.MustCompile(`\{\{-?\s*(with|range|define|block)\b`).MatchString(layer.Butane) {
		facts = nil // the dot may be something else than the facts, so do not list their names
	}
	return &layerError{layer.Name, line, explain(m[2], facts)}
}

func explain(message string, facts any) string {
	if strings.HasPrefix(message, "function ") {
		return message + ": a layer can use " + functionNames
	}
	m := regexp.MustCompile(`(?s)^executing .*? at <(.*?)>: (.*)$`).FindStringSubmatch(message)
	if m == nil {
		return message
	}
	expr, cause := m[1], m[2]
	if key, ok := match(`^map has no entry for key "(.*)"$`, cause); ok {
		parent, _, _ := strings.Cut(expr+".", "."+key+".")
		return fmt.Sprintf("%s: there is no %q%s; if it is optional, write {{ index %s %q | default \"…\" }}",
			expr, key, known(facts, parent), orDefault(".", parent), key)
	}
	if field, ok := match(`^can't evaluate field (\S+) in type .*$`, cause); ok {
		return fmt.Sprintf("%s: there is no %q", expr, field)
	}
	if field, ok := match(`^nil (?:pointer|data; no entry for key).* (\S+)$`, cause); ok {
		return fmt.Sprintf("%s: what should hold %s is empty", expr, field)
	}
	if called, ok := match(`(?s)^error calling (.*)$`, cause); ok {
		return strings.TrimPrefix(strings.TrimPrefix(called, stepName+": "), rangedName+": ")
	}
	return expr + ": " + cause
}

func match(pattern, text string) (string, bool) {
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if m == nil {
		return "", false
	}
	return m[1], true
}

// known lists the names below path, such as ".Machine", if facts are maps.
func known(facts any, path string) string {
	for _, name := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' }) {
		m, ok := facts.(map[string]any)
		if !ok {
			return ""
		}
		facts = m[name]
	}
	m, ok := facts.(map[string]any)
	if !ok || len(m) == 0 {
		return ""
	}
	return " among " + strings.Join(slices.Sorted(maps.Keys(m)), ", ")
}
