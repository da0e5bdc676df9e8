package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/multipaas/multipaas"

// rules say which of our packages may import which. "a" is the package itself,
// "a/" all below it, "." the root. The longest pattern that fits a package is
// its rule; a package without one fails the test, so that nobody adds a folder
// without saying here what it is.
var rules = []struct {
	pkg string
	may []string
	why string
}{
	{".", []string{"appliance", "appliance/", "embed/payload", "modules/client", "installer", "installer/", "iso", "iso/"}, "wires commands to packages"},
	{"appliance", []string{"appliance/", "embed/", "modules/"}, "the one place where parts meet"},
	{"appliance/", []string{"appliance/"}, "leaves: they know no part by name"},
	{"embed/", []string{"appliance/", "embed/internal/"}, "an upstream server and how to run it; never a module, never a neighbour"},
	{"modules/resource", nil, "types, and nothing that acts"},
	{"modules/wire", []string{"modules/resource"}, "what server and hosts agree on, and nothing that acts"},
	{"modules/internal/", []string{"appliance/", "modules/resource", "modules/wire", "modules/store", "modules/internal/"}, "shared by modules only"},
	{"modules/store", []string{"appliance/", "modules/resource", "modules/internal/"}, "keeps resources; knows no controller"},
	{"modules/", []string{"appliance/", "modules/resource", "modules/wire", "modules/store", "modules/internal/"}, "meet each other through interfaces they declare; never embed/"},
	{"installer", []string{"appliance/", "installer/"}, "puts files; runs no part"},
	{"installer/", []string{"appliance/", "installer/"}, "puts files; runs no part"},
	{"iso", []string{"appliance/", "installer", "installer/", "iso/"}, "puts files; runs no part"},
	{"iso/", []string{"appliance/", "installer", "installer/", "iso/"}, "puts files; runs no part"},
	{"testing/", []string{"appliance", "appliance/", "modules/resource", "modules/wire", "testing/"}, "drives from outside; nothing imports it"},
	{"testing/storetest", []string{"modules/store"}, "a real store for tests of modules"},
	{"testing/bench/", []string{"appliance", "appliance/", "embed/", "modules/", "testing/"}, "drives from outside, and measures single parts; nothing imports it"},
}

// only says who alone may import a library: itself, or all below.
var only = []struct {
	library string
	users   []string
	tests   bool // tests of others may too
	why     string
}{
	{"k8s.io/klog/v2", []string{"appliance/logs"}, false, "a global of the process has one owner"},
	{"github.com/sirupsen/logrus", []string{"appliance/logs"}, false, "a global of the process has one owner"},
	{"k8s.io/kubernetes", nil, false, "it is a module of its own, embed/kube: 115 MB in every process"},
	{"github.com/containerd/containerd", nil, false, "it is a module of its own, embed/runtime"},
	{"os/signal", []string{"testing/"}, true, "only a program's main handles signals"},
	{"testing", []string{"testing/"}, true, "it adds flags to the program"},
	{"go.etcd.io/etcd/server", []string{"embed/etcd", "testing/storetest"}, true, "one owner of the embedded server"},
}

// A package's files other than tests may import standard packages of these
// names, but ours may not have them: a reader would take one for the other.
var standardNames = []string{
	"bytes", "context", "embed", "errors", "flag", "fmt", "hash", "html", "http", "io", "iter", "json", "log", "maps", "math", "net", "os", "path",
	"plugin", "reflect", "regexp", "rpc", "runtime", "slices", "slog", "sort", "strconv", "strings", "sync", "syscall", "template", "testing", "time", "tls", "url", "user",
}

// Names that promise nothing.
var emptyNames = []string{"common", "helper", "helpers", "manager", "misc", "types", "util", "utils"}

type sourceFile struct {
	name    string
	test    bool
	pkg     string
	comment bool
	imports []string
}

// packages parses the files of every folder of this module, whatever their
// build tags. Folders with a go.mod of their own are other modules.
func packages(t *testing.T) map[string][]sourceFile {
	t.Helper()
	found := map[string][]sourceFile{}
	root := os.DirFS(".")
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name == "." {
				return nil
			}
			base := path.Base(name)
			if strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || base == "testdata" || base == "dist" {
				return fs.SkipDir
			}
			if _, err := fs.Stat(root, path.Join(name, "go.mod")); err == nil {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || name == "deps.go" { // which only keeps go.mod's list
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		s := sourceFile{name: name, test: strings.HasSuffix(name, "_test.go"), pkg: f.Name.Name, comment: packageComment(f)}
		for _, spec := range f.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, p)
		}
		found[path.Dir(name)] = append(found[path.Dir(name)], s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func packageComment(f *ast.File) bool {
	return f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != ""
}

// fits says whether a pattern names the package.
func fits(pattern, pkg string) bool {
	if below, ok := strings.CutSuffix(pattern, "/"); ok {
		return strings.HasPrefix(pkg, below+"/")
	}
	return pattern == pkg
}

// TestImports holds the directions in which our packages import each other.
func TestImports(t *testing.T) {
	for pkg, files := range packages(t) {
		rule := -1
		for i, r := range rules {
			if fits(r.pkg, pkg) && (rule < 0 || len(r.pkg) > len(rules[rule].pkg)) {
				rule = i
			}
		}
		if rule < 0 {
			t.Errorf("%s: no rule for this folder: say in imports_test.go what it is", pkg)
			continue
		}
		r := rules[rule]
		for _, f := range files {
			for _, imp := range f.imports {
				ours, ok := strings.CutPrefix(imp, module+"/")
				if !ok {
					continue
				}
				// What stands in one folder, commands of a package included, is its own
				// business; tests may use the lab.
				if ours == pkg || strings.HasPrefix(ours, pkg+"/") || strings.HasPrefix(pkg, ours+"/") || f.test && fits("testing/", ours) {
					continue
				}
				// A module's test may have its real neighbour in place of a stand-in.
				if f.test && fits("modules/", pkg) && fits("modules/", ours) {
					continue
				}
				if !slices.ContainsFunc(r.may, func(p string) bool { return fits(p, ours) }) {
					t.Errorf("%s imports %s; %s may import %v: %s", f.name, ours, pkg, r.may, r.why)
				}
			}
		}
	}
}

// TestLibraries holds who may use which library.
func TestLibraries(t *testing.T) {
	for pkg, files := range packages(t) {
		for _, f := range files {
			for _, imp := range f.imports {
				for _, o := range only {
					if imp != o.library && !strings.HasPrefix(imp, o.library+"/") {
						continue
					}
					if o.library == "testing" && imp != "testing" {
						continue // testing/slogtest and the like add no flags
					}
					if f.test && o.tests || f.pkg == "main" && o.library == "os/signal" {
						continue
					}
					if !slices.ContainsFunc(o.users, func(p string) bool { return fits(p, pkg) }) {
						t.Errorf("%s imports %s, which only %v may: %s", f.name, imp, o.users, o.why)
					}
				}
			}
		}
	}
}

// TestPackages holds names and comments: exactly one package comment, in a file
// that is no test; no name of a standard package, none that promises nothing.
func TestPackages(t *testing.T) {
	for pkg, files := range packages(t) {
		var comments, names []string
		sources := 0
		for _, f := range files {
			if f.test {
				continue
			}
			sources++
			if f.comment {
				comments = append(comments, f.name)
			}
			if !slices.Contains(names, f.pkg) {
				names = append(names, f.pkg)
			}
		}
		if sources == 0 {
			continue // only tests: end-to-end ones say in their names what they do
		}
		if len(comments) != 1 {
			t.Errorf("%s: has %d package comments %v, must have one", pkg, len(comments), comments)
		}
		for _, name := range names {
			if slices.Contains(standardNames, name) {
				t.Errorf("%s: package %s is called like a standard one", pkg, name)
			}
			if slices.Contains(emptyNames, name) || slices.Contains(emptyNames, path.Base(pkg)) {
				t.Errorf("%s: the name promises nothing", pkg)
			}
		}
	}
}
