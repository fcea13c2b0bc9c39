package ignition

import (
	"fmt"
	"reflect"
	"strings"
	"text/template"
	"text/template/parse"

	"go.yaml.in/yaml/v3"
)

// Limits for all layers of one config together. Their authors may not be
// trusted with bootd's processor, and layers are compiled whenever a Machine
// boots or a user asks for an explanation. Steps are counted instead of time,
// so that the same layers give the same result on every machine.
const (
	maxSteps    = 100_000 // nodes and arguments that templates evaluate
	maxWork     = 16 << 20
	maxRendered = 2 << 20 // bytes of all rendered layers, line marks included
	maxValue    = 1 << 20 // bytes that one function may take or return
	maxNodes    = 20_000  // mappings, lists and values of YAML in all rendered layers
	maxKeys     = 1024    // of one mapping
)

// Cost of the expensive template functions, in steps.
const (
	comparison = 64  // of two values of maxValue
	opening    = 400 // of a Secret
)

// budget is what the layers of one config may still use.
type budget struct{ steps, work, rendered, nodes int }

func newBudget() *budget { return &budget{maxSteps, maxWork, maxRendered, maxNodes} }

// read charges for a YAML document: Butane spends time on each node, and the
// YAML reader compares each key of a mapping with all others. The error belongs
// to the returned line.
func (b *budget) read(node *yaml.Node) (line int, err error) {
	if b.nodes--; b.nodes < 0 {
		return node.Line, fmt.Errorf("its YAML is too large: all layers together may have %d keys and values", maxNodes)
	}
	if node.Kind == yaml.MappingNode {
		if len(node.Content)/2 > maxKeys {
			return node.Line, fmt.Errorf("a mapping has %d keys: the limit is %d", len(node.Content)/2, maxKeys)
		}
		first := map[string]int{}
		for i := 0; i < len(node.Content); i += 2 {
			key := node.Content[i]
			if at, twice := first[key.Value]; twice && key.Kind == yaml.ScalarNode {
				return key.Line, fmt.Errorf("key %q is already defined at line %d", key.Value, at)
			}
			first[key.Value] = key.Line
		}
	}
	for _, child := range node.Content {
		if line, err := b.read(child); err != nil {
			return line, err
		}
	}
	return 0, nil
}

// step charges for n steps. Templates call it; it writes nothing.
func (b *budget) step(n int) (string, error) {
	if b.steps -= n; b.steps < 0 {
		return "", fmt.Errorf("the template takes too long: all layers together may take %d steps", maxSteps)
	}
	return "", nil
}

// ranged charges for a range over v: the keys of a map are sorted before the
// first pass.
func (b *budget) ranged(v any) (any, error) {
	_, err := b.step(length(v))
	return v, err
}

// take charges for the arguments of a function.
func (b *budget) take(args ...any) error {
	n := 0
	for _, a := range args {
		if n += size(a); n > maxValue {
			return fmt.Errorf("takes values of more than %d MiB", maxValue>>20)
		}
	}
	if b.work -= n; b.work < 0 {
		return fmt.Errorf("the template takes too long: the functions of all layers together may read and write %d MiB", maxWork>>20)
	}
	return nil
}

// make charges for the result of a function.
func (b *budget) make(s string) (string, error) {
	if len(s) > maxValue {
		return "", fmt.Errorf("makes a value of more than %d MiB", maxValue>>20)
	}
	return s, b.take(s)
}

// rendering is the output of a template.
type rendering struct {
	strings.Builder
	budget *budget
}

func (r *rendering) Write(p []byte) (int, error) {
	if r.budget.rendered -= len(p); r.budget.rendered < 0 {
		return 0, fmt.Errorf("the template writes too much: all layers together may write %d MiB", maxRendered>>20)
	}
	return r.Builder.Write(p)
}

// The functions with which templates are charged. They are defined after a
// layer is parsed, so that no layer can call them by name.
const (
	stepName   = "step"
	rangedName = "ranged"
)

func (b *budget) functions() template.FuncMap {
	return template.FuncMap{stepName: b.step, rangedName: b.ranged}
}

// length returns how many entries a range iterates over; 0 for one that counts.
func length(v any) int {
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Map, reflect.Slice, reflect.Array:
		return r.Len()
	}
	return 0
}

// size returns roughly how many bytes a function makes of a value.
func size(v any) int {
	switch v := v.(type) {
	case string:
		return len(v)
	case []byte:
		return len(v)
	}
	switch reflect.ValueOf(v).Kind() {
	case reflect.Map, reflect.Slice, reflect.Array, reflect.Struct, reflect.Pointer, reflect.Interface:
		return len(fmt.Sprint(v))
	}
	return 32
}

// charge makes each list pay for what one pass of it evaluates.
func charge(list *parse.ListNode) {
	if list == nil {
		return
	}
	steps := 1
	for _, node := range list.Nodes {
		steps++
		switch n := node.(type) {
		case *parse.ActionNode:
			steps += cost(n.Pipe)
		case *parse.TemplateNode:
			steps += cost(n.Pipe)
		case *parse.IfNode:
			steps += chargeBranch(&n.BranchNode)
		case *parse.WithNode:
			steps += chargeBranch(&n.BranchNode)
		case *parse.RangeNode:
			steps += chargeBranch(&n.BranchNode)
			n.Pipe.Cmds = append(n.Pipe.Cmds, call(n.Pos, rangedName))
		}
	}
	pay := call(list.Pos, stepName, &parse.NumberNode{NodeType: parse.NodeNumber, Pos: list.Pos, IsInt: true, Int64: int64(steps), Text: fmt.Sprint(steps)})
	list.Nodes = append([]parse.Node{&parse.ActionNode{NodeType: parse.NodeAction, Pos: list.Pos,
		Pipe: &parse.PipeNode{NodeType: parse.NodePipe, Pos: list.Pos, Cmds: []*parse.CommandNode{pay}}}}, list.Nodes...)
}

func chargeBranch(b *parse.BranchNode) int {
	charge(b.List)
	charge(b.ElseList)
	return cost(b.Pipe)
}

func call(at parse.Pos, name string, args ...parse.Node) *parse.CommandNode {
	return &parse.CommandNode{NodeType: parse.NodeCommand, Pos: at, Args: append([]parse.Node{parse.NewIdentifier(name).SetPos(at)}, args...)}
}

// cost returns how many steps an evaluation takes.
func cost(node parse.Node) int {
	steps := 1
	switch n := node.(type) {
	case *parse.PipeNode:
		if n == nil {
			return 0
		}
		for _, c := range n.Cmds {
			steps += cost(c)
		}
	case *parse.CommandNode:
		for _, a := range n.Args {
			steps += cost(a)
		}
	case *parse.ChainNode:
		steps += cost(n.Node) + len(n.Field)
	case *parse.FieldNode:
		steps += len(n.Ident)
	case *parse.VariableNode:
		steps += len(n.Ident)
	case *parse.IdentifierNode:
		switch n.Ident {
		case "eq", "ne", "lt", "le", "gt", "ge":
			steps += comparison
		case "secret":
			steps += opening
		}
	}
	return steps
}

// recursive finds a template that calls itself, directly or indirectly.
func recursive(t *template.Template) (name string, at parse.Pos, ok bool) {
	calls := map[string][]*parse.TemplateNode{}
	for _, one := range t.Templates() {
		if one.Tree != nil {
			calls[one.Name()] = called(one.Root, nil)
		}
	}
	const open, done = 1, 2
	state := map[string]int{}
	var visit func(name string) (*parse.TemplateNode, bool)
	visit = func(name string) (*parse.TemplateNode, bool) {
		state[name] = open
		for _, c := range calls[name] {
			if state[c.Name] == open {
				return c, true
			}
			if state[c.Name] == done {
				continue
			}
			if found, ok := visit(c.Name); ok {
				return found, true
			}
		}
		state[name] = done
		return nil, false
	}
	for _, one := range t.Templates() {
		if state[one.Name()] == 0 {
			if c, found := visit(one.Name()); found {
				return c.Name, c.Pos, true
			}
		}
	}
	return "", 0, false
}

// called lists the template calls in a list.
func called(list *parse.ListNode, calls []*parse.TemplateNode) []*parse.TemplateNode {
	if list == nil {
		return calls
	}
	for _, node := range list.Nodes {
		switch n := node.(type) {
		case *parse.TemplateNode:
			calls = append(calls, n)
		case *parse.IfNode:
			calls = called(n.ElseList, called(n.List, calls))
		case *parse.WithNode:
			calls = called(n.ElseList, called(n.List, calls))
		case *parse.RangeNode:
			calls = called(n.ElseList, called(n.List, calls))
		}
	}
	return calls
}
