// Package selector owns the syntax by which objects are selected by their labels. It is that of Kubernetes:
// key=value, key==value, key!=value, key in (a,b), key notin (a,b), key, and !key, with commas between; all of
// them must hold.
package selector

import (
	"fmt"
	"slices"
	"strings"
)

// Selector selects labels; one without terms selects everything.
type Selector []term

// term is one condition on the label of a key. Without values it asks whether the label exists.
type term struct {
	key    string
	values []string
	not    bool
}

// Matches reports whether every term holds. As in Kubernetes, != and notin also hold for labels without the key.
func (s Selector) Matches(labels map[string]string) bool {
	for _, t := range s {
		if t.holds(labels) == t.not {
			return false
		}
	}
	return true
}

func (t term) holds(labels map[string]string) bool {
	value, there := labels[t.key]
	return there && (t.values == nil || slices.Contains(t.values, value))
}

// Parse reads a selector.
func Parse(text string) (Selector, error) {
	p := parser{rest: text}
	var s Selector
	for p.space(); p.rest != ""; {
		if p.take(",") { // kubectl lets empty terms pass, too
			continue
		}
		t, err := p.term()
		if err != nil {
			return nil, fmt.Errorf("invalid selector %q: %w", text, err)
		}
		s = append(s, t)
		if p.rest != "" && !p.take(",") {
			return nil, fmt.Errorf("invalid selector %q: want a comma before %q", text, p.rest)
		}
	}
	return s, nil
}

type parser struct{ rest string }

// space skips blanks.
func (p *parser) space() { p.rest = strings.TrimLeft(p.rest, " \t\r\n") }

// take skips a sign, and the blanks behind it, if it comes next.
func (p *parser) take(sign string) bool {
	rest, ok := strings.CutPrefix(p.rest, sign)
	if ok {
		p.rest = rest
		p.space()
	}
	return ok
}

// word is the text up to the next sign or blank; it may be empty.
func (p *parser) word() string {
	end := strings.IndexAny(p.rest, " \t\r\n,()=!")
	if end < 0 {
		end = len(p.rest)
	}
	word := p.rest[:end]
	p.rest = p.rest[end:]
	p.space()
	return word
}

func (p *parser) term() (term, error) {
	not := p.take("!")
	t := term{key: p.word(), not: not}
	if t.key == "" {
		return t, fmt.Errorf("want a label at %q", p.rest)
	}
	if not || p.rest == "" || p.rest[0] == ',' {
		return t, nil
	}
	switch {
	case p.take("!="):
		t.values, t.not = []string{p.word()}, true
		return t, nil
	case p.take("=="), p.take("="):
		t.values = []string{p.word()}
		return t, nil
	}
	switch operator := p.word(); operator {
	case "in", "notin":
		t.not = operator == "notin"
		return t, p.list(&t)
	}
	return t, fmt.Errorf("want =, ==, !=, in or notin behind label %s", t.key)
}

// list reads the values of in and notin.
func (p *parser) list(t *term) error {
	if !p.take("(") {
		return fmt.Errorf("want (value,…) behind the operator of label %s", t.key)
	}
	for {
		t.values = append(t.values, p.word())
		switch {
		case p.take(")"):
			return nil
		case !p.take(","):
			return fmt.Errorf("want a comma or ) in the list of label %s", t.key)
		}
	}
}
