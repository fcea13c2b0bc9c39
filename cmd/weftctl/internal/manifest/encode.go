package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"

	"go.yaml.in/yaml/v3"
)

// maxNodes limits the size to which aliases may expand a document.
const maxNodes = 1 << 20

// maxDepth limits nesting, so that no document can exhaust the stack.
const maxDepth = 200

// encoder writes a YAML tree as JSON.
type encoder struct {
	d     *Document
	out   bytes.Buffer
	nodes int
	depth int
}

func (d *Document) encode() ([]byte, error) {
	e := &encoder{d: d}
	if err := e.value(d.root); err != nil {
		return nil, err
	}
	return e.out.Bytes(), nil
}

func (e *encoder) value(n *yaml.Node) error {
	e.nodes++
	e.depth++
	defer func() { e.depth-- }()
	if e.nodes > maxNodes || e.depth > maxDepth {
		return e.d.faultAt(n, "", "nested too deeply, or too large once its aliases are expanded")
	}
	switch n.Kind {
	case yaml.AliasNode:
		return e.value(n.Alias)
	case yaml.MappingNode:
		return e.mapping(n)
	case yaml.SequenceNode:
		return e.sequence(n)
	}
	return e.scalar(n)
}

func (e *encoder) sequence(n *yaml.Node) error {
	e.out.WriteByte('[')
	for i, item := range n.Content {
		if i > 0 {
			e.out.WriteByte(',')
		}
		if err := e.value(item); err != nil {
			return err
		}
	}
	e.out.WriteByte(']')
	return nil
}

func (e *encoder) mapping(n *yaml.Node) error {
	pairs, err := e.d.pairs(n)
	if err != nil {
		return err
	}
	e.out.WriteByte('{')
	for i, p := range pairs {
		if i > 0 {
			e.out.WriteByte(',')
		}
		if err := e.text(p.key.Value); err != nil {
			return err
		}
		e.out.WriteByte(':')
		if err := e.value(p.value); err != nil {
			return err
		}
	}
	e.out.WriteByte('}')
	return nil
}

func (e *encoder) text(s string) error {
	raw, err := json.Marshal(s)
	e.out.Write(raw)
	return err
}

func (e *encoder) scalar(n *yaml.Node) error {
	switch n.ShortTag() {
	case "!!null":
		e.out.WriteString("null")
		return nil
	case "!!bool", "!!int", "!!float":
		var v any
		if err := n.Decode(&v); err != nil {
			return e.d.faultAt(n, "", fmt.Sprintf("%q cannot be read: %s", n.Value, err))
		}
		if f, ok := v.(float64); ok && (math.IsNaN(f) || math.IsInf(f, 0)) {
			return e.d.faultAt(n, "", fmt.Sprintf("invalid number %s: want one that JSON can represent", n.Value))
		}
		raw, err := json.Marshal(v)
		e.out.Write(raw)
		return err
	}
	return e.text(n.Value)
}

type pair struct{ key, value *yaml.Node }

// pairs are a mapping's keys and values, including those that << merges in; a duplicate key is a fault.
func (d *Document) pairs(n *yaml.Node) ([]pair, error) {
	var own []pair
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.ShortTag() == "!!merge" {
			continue
		}
		if key.Kind != yaml.ScalarNode {
			return nil, d.faultAt(key, "", "a key must be plain text")
		}
		if line, twice := seen[key.Value]; twice {
			return nil, d.faultAt(key, "", fmt.Sprintf("%q is already at line %d", key.Value, line))
		}
		seen[key.Value] = key.Line
		own = append(own, pair{key, value})
	}
	for _, p := range merged(n, 0) {
		if _, there := seen[p.key.Value]; !there {
			seen[p.key.Value] = p.key.Line
			own = append(own, p)
		}
	}
	return own, nil
}

// merged are the pairs that a mapping's << adds, the first source before the next.
func merged(n *yaml.Node, depth int) []pair {
	if depth > 8 {
		return nil
	}
	var all []pair
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].ShortTag() != "!!merge" {
			continue
		}
		from := resolve(n.Content[i+1])
		sources := []*yaml.Node{from}
		if from.Kind == yaml.SequenceNode {
			sources = slices.Clone(from.Content)
		}
		for _, s := range sources {
			all = append(all, mappingPairs(resolve(s), depth)...)
		}
	}
	return all
}

func mappingPairs(n *yaml.Node, depth int) []pair {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	var all []pair
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].ShortTag() != "!!merge" && n.Content[i].Kind == yaml.ScalarNode {
			all = append(all, pair{n.Content[i], n.Content[i+1]})
		}
	}
	return append(all, merged(n, depth+1)...)
}

func resolve(n *yaml.Node) *yaml.Node {
	for i := 0; n.Kind == yaml.AliasNode && n.Alias != nil && i < 8; i++ {
		n = n.Alias
	}
	return n
}
