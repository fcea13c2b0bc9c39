package rackweft

import (
	"go/ast"
	"go/parser"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestParts: make test-rack runs every TestFurther…, which make test leaves out.
func TestParts(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	list := func(variable string) []string {
		m := regexp.MustCompile(`(?m)^` + variable + ` *= (.+)$`).FindSubmatch(makefile)
		if m == nil {
			t.Fatalf("the Makefile has no %s", variable)
		}
		return strings.Fields(string(m[1]))
	}
	parts, packages := list("PARTS"), list("RACKPACKAGES")
	empty := map[string]bool{}
	for _, p := range parts {
		empty[p] = true
	}
	eachFile(t, parser.SkipObjectResolution, func(file string, f *ast.File) {
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(fn.Name.Name, "TestFurther") {
				continue
			}
			part, _, _ := strings.Cut(strings.ToLower(strings.TrimPrefix(fn.Name.Name, "TestFurther")), "_")
			if !slices.Contains(parts, part) || !slices.Contains(packages, "./"+filepath.ToSlash(filepath.Dir(file))) {
				t.Errorf("%s: %s is not run: PARTS or RACKPACKAGES of the Makefile lack it", file, fn.Name.Name)
			}
			delete(empty, part)
		}
	})
	for part := range empty {
		t.Errorf("part %s of the Makefile has no test", part)
	}
}
