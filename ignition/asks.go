package ignition

import (
	"slices"
	"strings"
	"text/template"
	"text/template/parse"
)

// SecretsOf lists the names of the Secrets that a template uses, each once. It
// does not find names computed from variables, and finds none in text that is
// not a valid template.
func SecretsOf(text string) []string {
	if !strings.Contains(text, "{{") || !strings.Contains(text, "secret") {
		return nil
	}
	tmpl, err := template.New("layer").Funcs(functions(placeholder, newBudget())).Parse(text)
	if err != nil {
		return nil
	}
	var names []string
	for _, t := range tmpl.Templates() {
		if t.Tree != nil {
			names = asked(t.Root, names)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// asked adds the names used by the commands below a node.
func asked(node parse.Node, names []string) []string {
	list := func(l *parse.ListNode) {
		if l != nil {
			for _, n := range l.Nodes {
				names = asked(n, names)
			}
		}
	}
	branch := func(b *parse.BranchNode) {
		names = asked(b.Pipe, names)
		list(b.List)
		list(b.ElseList)
	}
	switch n := node.(type) {
	case *parse.ListNode:
		list(n)
	case *parse.ActionNode:
		names = asked(n.Pipe, names)
	case *parse.TemplateNode:
		names = asked(n.Pipe, names)
	case *parse.IfNode:
		branch(&n.BranchNode)
	case *parse.WithNode:
		branch(&n.BranchNode)
	case *parse.RangeNode:
		branch(&n.BranchNode)
	case *parse.PipeNode:
		if n != nil {
			for _, c := range n.Cmds {
				names = asked(c, names)
			}
		}
	case *parse.ChainNode:
		names = asked(n.Node, names)
	case *parse.CommandNode:
		if f, ok := n.Args[0].(*parse.IdentifierNode); ok && f.Ident == "secret" && len(n.Args) > 1 {
			if name, ok := n.Args[1].(*parse.StringNode); ok {
				names = append(names, name.Text)
			}
		}
		for _, a := range n.Args {
			names = asked(a, names)
		}
	}
	return names
}
