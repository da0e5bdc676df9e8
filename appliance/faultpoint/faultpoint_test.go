package faultpoint

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestList holds the list and the code together: each point is reached at one
// place, by its name in full, and whatever is reached is in the list.
func TestList(t *testing.T) {
	reached := map[string][]string{}
	root := filepath.Join("..", "..")
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
		if !strings.HasSuffix(base, ".go") || strings.HasSuffix(base, "_test.go") || filepath.Base(filepath.Dir(name)) == "faultpoint" {
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
			if pkg, ok := sel.X.(*ast.Ident); !ok || pkg.Name != "faultpoint" {
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
	for _, p := range Points() {
		if listed[p.Name] {
			t.Errorf("%s is in the list twice", p.Name)
		}
		listed[p.Name] = true
		if p.Cuts == "" || !slices.Contains([]string{Server, Node, Both}, p.In) {
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

func TestArmRefusesWhatIsNoPoint(t *testing.T) {
	for value, want := range map[string]string{
		"no/such/point":       "store/committed", // the list
		"store/committed@0":   "no count",
		"store/committed@two": "no count",
		"store/committed@":    "no count",
	} {
		err := Arm(value)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), value) {
			t.Errorf("Arm(%q): %v, want one that names it and says %q", value, err, want)
		}
	}
	if armed.Load() != nil {
		t.Error("a refused value has armed something")
	}
}

// TestReachCounts passes other points and the first times, and dies at the n-th.
func TestReachCounts(t *testing.T) {
	f, err := parse("store/committed@3")
	if err != nil {
		t.Fatal(err)
	}
	died := 0
	f.die = func(name string) {
		if died++; name != "store/committed" {
			t.Errorf("died at %s", name)
		}
	}
	for i, name := range []string{"store/committed", "file/written", "store/committed", "file/written"} {
		if f.reach(name); died != 0 {
			t.Fatalf("died at call %d, %s", i, name)
		}
	}
	if f.reach("store/committed"); died != 1 {
		t.Fatalf("died %d times at the third, want once", died)
	}
	if f.reach("store/committed"); died != 1 {
		t.Error("died at the fourth too")
	}
}

// TestDies runs this test anew as a child that reaches the point.
func TestDies(t *testing.T) {
	if value := os.Getenv("FAULTPOINT_TEST"); value != "" {
		t.Setenv(Variable, value)
		if err := Arm(value); err != nil {
			t.Fatal(err)
		}
		if got := os.Getenv(Variable); got != "" {
			t.Fatalf("children would inherit %s=%s", Variable, got)
		}
		defer os.WriteFile(os.Getenv("FAULTPOINT_AFTER"), nil, 0o600) // what SIGTERM, or a panic, would still do
		Reach("file/written")
		Reach("store/committed")
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	after := filepath.Join(t.TempDir(), "after")
	cmd := exec.Command(exe, "-test.run", "^TestDies$")
	cmd.Env = append(os.Environ(), "FAULTPOINT_TEST=store/committed", "FAULTPOINT_AFTER="+after)
	var errs strings.Builder
	cmd.Stderr = &errs
	err = cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("it ended with %v, want a signal: %s", err, errs.String())
	}
	if status := exit.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v, want SIGKILL: %s", exit, errs.String())
	}
	if !strings.Contains(errs.String(), Mark("store/committed")+"\n") {
		t.Errorf("it said %q, not where it died", errs.String())
	}
	if _, err := os.Stat(after); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it did something after it died: %v", err)
	}
}

// BenchmarkReach is what a point costs while none is chosen.
func BenchmarkReach(b *testing.B) {
	for b.Loop() {
		Reach("store/committed")
	}
}
