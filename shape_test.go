package rackweft

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The bounds that keep a file, a type and a function small enough to be read.
const (
	maxLines   = 600 // of a file
	maxMethods = 40  // of a type
	maxParams  = 6   // of a function
)

// outsized lists what is over a bound; an entry that is no longer over it fails
// the test, so the list only shrinks.
func outsized() map[string]bool {
	list := map[string]bool{}
	for _, name := range []string{
		"bootd/lease/table.go",
	} {
		list[name] = true
	}
	return list
}

func TestShape(t *testing.T) {
	methods, over := map[string]int{}, map[string]string{}
	eachFile(t, parser.SkipObjectResolution, func(file string, f *ast.File) {
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(source, []byte("\n")); n > maxLines {
			over[file] = fmt.Sprintf("has %d lines, want at most %d", n, maxLines)
		}
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			name := filepath.ToSlash(filepath.Dir(file))
			if fn.Recv != nil {
				name += "." + receiver(fn.Recv.List[0].Type)
				methods[name]++
			}
			if n := fn.Type.Params.NumFields(); n > maxParams {
				over[name+"."+fn.Name.Name+"()"] = fmt.Sprintf("has %d parameters, want at most %d", n, maxParams)
			}
		}
	})
	for name, n := range methods {
		if n > maxMethods {
			over[name] = fmt.Sprintf("has %d methods, want at most %d", n, maxMethods)
		}
	}
	if len(methods) < 300 {
		t.Errorf("only %d types with methods were found: the walk does not see the tree", len(methods))
	}
	known := outsized()
	for _, name := range slices.Sorted(maps.Keys(over)) {
		if !known[name] {
			t.Errorf("%s %s", name, over[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(known)) {
		if over[name] == "" {
			t.Errorf("%s is within the bounds: remove it from the list", name)
		}
	}
}

// receiver names the type of a method.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return fmt.Sprintf("%T", e)
}
