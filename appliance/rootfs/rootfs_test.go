package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
)

type entry struct {
	name, link, content string
	kind                byte
	mode                int64
}

func layer(t *testing.T, entries ...entry) *tar.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.mode == 0 {
			e.mode = 0o755
		}
		if err := w.WriteHeader(&tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode, Size: int64(len(e.content)), Uid: 7, Gid: 8, Devmajor: 1, Devminor: 3}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return tar.NewReader(&b)
}

func file(name, content string) entry { return entry{name: name, content: content, kind: tar.TypeReg} }
func folder(name string) entry        { return entry{name: name, kind: tar.TypeDir} }
func link(name, to string) entry      { return entry{name: name, link: to, kind: tar.TypeSymlink} }

func TestUntar(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, l := range [][]entry{
		{folder("./"), folder("usr"), folder("usr/bin"), link("bin", "usr/bin"), file("bin/sh", "shell"), folder("etc"), file("etc/a", "a"), file("etc/b", "b"),
			folder("old"), file("old/x", "x"), {name: "dev/null", kind: tar.TypeChar}, {name: "usr/bin/su", content: "su", kind: tar.TypeReg, mode: 0o4755},
			{name: "usr/bin/su2", link: "usr/bin/su", kind: tar.TypeLink}, link("abs", "/etc/a")},
		{file("etc/.wh.a", ""), file("etc/b", "new"), folder("old"), file("old/y", "y"), file("old/.wh..wh..opq", "")},
	} {
		if err := untar(t.Context(), root, layer(t, l...)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"usr/bin/sh": "shell", "etc/b": "new", "old/y": "y", "usr/bin/su2": "su"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	for _, name := range []string{"etc/a", "old/x", "dev/null", "etc/.wh.a", "old/.wh..wh..opq"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there", name)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "usr/bin/su")); err != nil || info.Mode()&fs.ModeSetuid == 0 || info.Mode().Perm() != 0o755 {
		t.Errorf("su: %v %v", info, err)
	}
}

// TestPrune: what no machine uses goes, the payload's image and one that a
// machine's root is mounted over stay.
func TestPrune(t *testing.T) {
	im := Store{Dir: t.TempDir()}
	layoutDir := t.TempDir()
	p, err := layout.Write(layoutDir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(empty.Image); err != nil {
		t.Fatal(err)
	}
	current, err := im.Unpack(t.Context(), layoutDir)
	if err != nil {
		t.Fatal(err)
	}
	used, unused, partial := filepath.Join(im.Dir, "used"), filepath.Join(im.Dir, "unused"), filepath.Join(im.Dir, "x.partial")
	for _, dir := range []string{used, unused, partial} {
		if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	on := t.TempDir()
	for _, dir := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(on, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("overlay", on+"/root", "overlay", 0, "lowerdir="+used+",upperdir="+on+"/upper,workdir="+on+"/work"); err != nil {
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EINVAL) {
			t.Skip("needs root and a folder that overlayfs takes: ", err)
		}
		t.Fatal(err)
	}
	defer func() {
		if err := hostmount.Unmount(on); err != nil {
			t.Error(err)
		}
	}()
	check := func(want map[string]bool) {
		t.Helper()
		for dir, there := range want {
			if _, err := os.Stat(dir); (err == nil) != there {
				t.Errorf("%s: %v; want it there: %v", dir, err, there)
			}
		}
	}
	if err := im.Prune(layoutDir); err != nil {
		t.Fatal(err)
	}
	check(map[string]bool{current: true, used: true, unused: false, partial: false})
	if err := hostmount.Unmount(on); err != nil {
		t.Fatal(err)
	}
	if err := im.Prune(layoutDir); err != nil {
		t.Fatal(err)
	}
	check(map[string]bool{current: true, used: false})
}

func TestUntarEscapes(t *testing.T) {
	outside := t.TempDir()
	for name, l := range map[string][]entry{
		"by name":           {file("../x", "bad")},
		"by a deeper name":  {folder("a"), file("a/../../x", "bad")},
		"by a link":         {link("out", outside), file("out/x", "bad")},
		"by a relative one": {link("out", strings.Repeat("../", 20)+outside[1:]), file("out/x", "bad")},
		"by a hard link":    {{name: "x", link: "../../../../etc/passwd", kind: tar.TypeLink}},
		"by a whiteout":     {link("out", outside), file("out/.wh.kept", "")},
		"whole folder":      {link("out", outside), file("out/.wh..wh..opq", "")},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "root")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(outside, "kept"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			root, err := os.OpenRoot(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			if err := untar(t.Context(), root, layer(t, l...)); err == nil {
				t.Error("taken")
			}
			if found, _ := filepath.Glob(filepath.Join(outside, "*")); len(found) != 1 {
				t.Errorf("outside: %v", found)
			}
			if _, err := os.Lstat(filepath.Join(dir, "..", "x")); err == nil {
				t.Error("a file beside the image")
			}
		})
	}
}

func FuzzUntar(f *testing.F) {
	f.Add("a/b", "../c", byte(tar.TypeSymlink))
	f.Add("../x", "", byte(tar.TypeReg))
	f.Add("a/.wh..wh..opq", "/etc", byte(tar.TypeLink))
	f.Fuzz(func(t *testing.T, name, to string, kind byte) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for range 2 {
			if w.WriteHeader(&tar.Header{Name: name, Linkname: to, Typeflag: kind, Mode: 0o644}) != nil {
				return
			}
			if w.WriteHeader(&tar.Header{Name: name + "/in", Typeflag: tar.TypeReg, Mode: 0o644}) != nil {
				return
			}
		}
		w.Close()
		parent := t.TempDir()
		dir := filepath.Join(parent, "root")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		_ = untar(t.Context(), root, tar.NewReader(&b)) // refused or not: nothing gets out
		if found, _ := os.ReadDir(parent); len(found) != 1 {
			t.Errorf("beside the image: %v", found)
		}
	})
}
