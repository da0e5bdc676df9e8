package appliance

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance/failpoint"
)

// TestFailpoints holds the list and the code together: each point is reached at one
// place, by its name in full, and whatever is reached is in the list.
func TestFailpoints(t *testing.T) {
	reached := map[string][]string{}
	root := ".."
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() {
			if name != root && (strings.HasPrefix(base, ".") || base == "dist" || base == "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") || strings.HasSuffix(base, "_test.go") || filepath.Base(filepath.Dir(name)) == "failpoint" {
			return nil
		}
		files := token.NewFileSet()
		f, err := parser.ParseFile(files, name, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "Reach" {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); !ok || pkg.Name != "failpoint" {
				return true
			}
			where := files.Position(call.Pos()).String()
			text, ok := call.Args[0].(*ast.BasicLit)
			if !ok {
				t.Errorf("%s: the point is not named by a text: nobody can search for it", where)
				return true
			}
			point, err := strconv.Unquote(text.Value)
			if err != nil {
				t.Errorf("%s: %v", where, err)
			}
			reached[point] = append(reached[point], where)
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, p := range Failpoints() {
		if listed[p.Name] {
			t.Errorf("%s is in the list twice", p.Name)
		}
		listed[p.Name] = true
		if p.Cuts == "" || !slices.Contains([]string{failpoint.Server, failpoint.Node, failpoint.Both}, p.In) {
			t.Errorf("%s: the list does not say where it is and what it cuts", p.Name)
		}
		if got := reached[p.Name]; len(got) != 1 {
			t.Errorf("%s is reached at %d places, want 1: %v", p.Name, len(got), got)
		}
	}
	for name, where := range reached {
		if !listed[name] {
			t.Errorf("%v: point %q is not in the list", where, name)
		}
	}
}
