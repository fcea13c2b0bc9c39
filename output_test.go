package rackweft

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"testing"
)

// CombinedOutput mixes warnings into what a program answers: ip(8) complains of
// other people's namespaces and exits with 0. So it is only for messages, and
// internal/command.Output is for data.
func TestCombinedOutputIsNoData(t *testing.T) {
	calls := 0
	eachFile(t, parser.SkipObjectResolution, func(file string, f *ast.File) {
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			n, misused := combined(fn.Body)
			calls += n
			if misused {
				t.Errorf("%s: %s uses CombinedOutput other than in a message: take command.Output", file, fn.Name.Name)
			}
		}
	})
	if calls < 20 {
		t.Errorf("only %d calls were checked: the walk does not see the tree", calls)
	}
}

// combined counts calls of CombinedOutput, and reports whether what one returns
// is used for anything but the words of an error or a log line.
func combined(body *ast.BlockStmt) (calls int, misused bool) {
	results, targets := map[string]bool{}, map[ast.Node]bool{}
	kept := 0
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			if called(n) == "CombinedOutput" {
				calls++
			}
		case *ast.AssignStmt:
			for _, left := range n.Lhs {
				targets[left] = true
			}
			call, ok := n.Rhs[0].(*ast.CallExpr)
			if name, isName := n.Lhs[0].(*ast.Ident); ok && isName && called(call) == "CombinedOutput" {
				kept++
				results[name.Name] = name.Name != "_"
			}
		}
		return true
	})
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			return !slices.Contains([]string{"Errorf", "Error", "Fatalf", "Fatal", "Logf", "Log", "Skipf", "Skip"}, called(n))
		case *ast.Ident:
			misused = misused || results[n.Name] && !targets[n]
		}
		return true
	})
	return calls, misused || kept != calls
}

// called is the name of the method or function that is called.
func called(call *ast.CallExpr) string {
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		return f.Sel.Name
	case *ast.Ident:
		return f.Name
	}
	return ""
}

func TestMisusesAreFound(t *testing.T) {
	for body, want := range map[string]bool{
		`if out, err := c.CombinedOutput(); err != nil { return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out))) }`: false,
		`_, err := c.CombinedOutput(); return err`:                                                      false,
		`out, err := c.CombinedOutput(); t.Log(err); return string(out)`:                                true,
		`out, err := c.CombinedOutput(); if strings.Contains(string(out), "x") { t.Fatalf("%s", out) }`: true,
		`return c.CombinedOutput()`:                                                                     true,
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\nfunc f() {"+body+"}", parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if _, misused := combined(f.Decls[0].(*ast.FuncDecl).Body); misused != want {
			t.Errorf("%s: misused %t, want %t", body, misused, want)
		}
	}
}
