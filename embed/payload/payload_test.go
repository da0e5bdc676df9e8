package payload

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Getenv(unpackVariable) != "" {
		os.Exit(unpackForKill())
	}
	// Programs under test look behind themselves, whatever the tests run with.
	os.Unsetenv(DirVariable)
	os.Exit(m.Run())
}

// files that tests pack: of all three methods, executable and not.
func testFiles() map[string][]byte {
	noise := make([]byte, 300<<10)
	source := rand.NewChaCha8([32]byte{1})
	source.Read(noise)
	packed := append([]byte("\x28\xb5\x2f\xfd"), noise...) // looks like zstd already
	return map[string][]byte{
		"kube/1.36/kube":           bytes.Repeat([]byte("kubernetes "), 200<<10),
		"runtime/runc":             noise,
		"runtime/cni/bridge":       []byte("small"),
		"images/pause/index.json":  []byte("{}\n"),
		"images/pause/blobs/layer": packed,
		"empty":                    nil,
	}
}

func executable(path string) bool {
	return strings.HasPrefix(path, "runtime/") || strings.HasSuffix(path, "/kube")
}

// writeTree puts files into a new folder and lists them as sources.
func writeTree(t *testing.T, files map[string][]byte) []Source {
	t.Helper()
	dir := t.TempDir()
	for path, data := range files {
		name, mode := filepath.Join(dir, path), fs.FileMode(0o644)
		if executable(path) {
			mode = 0o755
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, mode); err != nil {
			t.Fatal(err)
		}
	}
	sources, err := Sources(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	return sources
}

func newKeyPair(t *testing.T) (ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return public, private
}

// writeArchive makes a payload of files as a zip file of its own.
func writeArchive(t *testing.T, key ed25519.PrivateKey, files map[string][]byte) string {
	t.Helper()
	var b bytes.Buffer
	if err := WriteZip(t.Context(), &b, key, nil, writeTree(t, files)); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "payload.zip")
	if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func mustOpen(t *testing.T, name string, keys ...ed25519.PublicKey) *Payload {
	t.Helper()
	p, err := Open(name, keys...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// checkTree fails unless root holds exactly the files.
func checkTree(t *testing.T, root string, files map[string][]byte) {
	t.Helper()
	seen := 0
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		seen++
		path, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		want, ok := files[path]
		if !ok {
			t.Errorf("unpacked %s, which nobody wanted", path)
		}
		got, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: other contents than were packed", path)
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if want := (File{Executable: executable(path)}).mode(); info.Mode() != want {
			t.Errorf("%s: mode %v, want %v", path, info.Mode(), want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen != len(files) {
		t.Errorf("unpacked %d files, want %d", seen, len(files))
	}
}

func buildSelf(t *testing.T, ldflags string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "self")
	build := exec.Command("go", "build", "-ldflags", "-s -w "+ldflags, "-o", name, "./testdata/self")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return name
}

// TestExecutable packs, runs and repacks a real program.
func TestExecutable(t *testing.T) {
	public, key := newKeyPair(t)
	elf := buildSelf(t, "-X github.com/multipaas/multipaas/embed/payload.linkedKeys="+FormatPublicKey(public))
	packed := filepath.Join(t.TempDir(), "packed")
	archive := writeArchive(t, key, testFiles())
	if err := Pack(elf, archive, packed); err != nil {
		t.Fatal(err)
	}
	run := func(program, path string, env ...string) string {
		t.Helper()
		command := exec.Command(program, path, t.TempDir())
		command.Env = append(os.Environ(), env...)
		out, err := command.CombinedOutput()
		if err != nil {
			return "error: " + string(out)
		}
		return string(out)
	}
	if got := run(packed, "runtime/cni/bridge"); got != "small" {
		t.Errorf("from its own payload: %.80q, want %q", got, "small")
	}
	if got := run(elf, "runtime/cni/bridge"); !strings.Contains(got, "carries no payload") {
		t.Errorf("without a payload: %.80q", got)
	}

	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hi"), []byte("from the folder"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := run(packed, "hi", DirVariable+"="+dir); got != "from the folder" {
		t.Errorf("with a folder: %q", got)
	}

	// Added to with an operator's own key, in place: trusted once it is named.
	operator, operatorKey := newKeyPair(t)
	extra := filepath.Join(t.TempDir(), "extra")
	if err := os.WriteFile(extra, []byte("an image"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := mustOpen(t, packed, public)
	if err := Add(t.Context(), p, packed, operatorKey, []Source{{Path: "images/extra", File: extra}, {Path: "empty", File: extra}}); err != nil {
		t.Fatal(err)
	}
	if got := run(packed, "images/extra"); !strings.Contains(got, "is not signed by a trusted key") {
		t.Errorf("signed with another key: %q", got)
	}
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte("# ours\n"+FormatPublicKey(operator)+" # operator\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"images/extra": "an image", "empty": "an image", "runtime/cni/bridge": "small"} {
		if got := run(packed, path, KeysVariable+"="+keys); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}

	// Packed again, the old payload is no part of it.
	again := filepath.Join(t.TempDir(), "again")
	if err := Pack(packed, archive, again); err != nil {
		t.Fatal(err)
	}
	first, _ := os.ReadFile(again)
	if err := Pack(elf, archive, packed); err != nil {
		t.Fatal(err)
	}
	if second, _ := os.ReadFile(packed); !bytes.Equal(first, second) {
		t.Error("repacking an executable that carried a payload gives another file than packing the bare one")
	}
}

func TestUnpack(t *testing.T) {
	public, key := newKeyPair(t)
	files := testFiles()
	p := mustOpen(t, writeArchive(t, key, files), public)
	data := t.TempDir()

	root, err := p.Unpack(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	checkTree(t, root, files)
	if again, err := p.Unpack(t.Context(), data); err != nil || again != root {
		t.Errorf("a second time: %q, %v; want %q", again, err, root)
	}

	some, err := p.Unpack(t.Context(), data, "runtime", "images/pause/")
	if err != nil {
		t.Fatal(err)
	}
	want := testFiles()
	delete(want, "empty")
	delete(want, "kube/1.36/kube")
	checkTree(t, some, want)
	if some == root {
		t.Errorf("a selection went to the tree of everything")
	}

	_, err = p.Unpack(t.Context(), data, "runtime", "kube/1.99", "run")
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "kube/1.99") || strings.Contains(err.Error(), "no runtime") {
		t.Errorf("a prefix that nothing is below: %v", err)
	}

	// What was damaged from outside is made again: one file gone, another's contents changed.
	if err := os.Remove(filepath.Join(root, "empty")); err != nil {
		t.Fatal(err)
	}
	blob, err := os.OpenFile(filepath.Join(root, "runtime/runc"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	blob.WriteAt([]byte("damage"), 1000)
	blob.Close()
	if _, err := p.Unpack(t.Context(), data); err != nil {
		t.Fatal(err)
	}
	checkTree(t, root, files)

	// Another version shares what has not changed; the old one can go.
	files["runtime/cni/bridge"] = []byte("newer")
	next := mustOpen(t, writeArchive(t, key, files), public)
	newer, err := next.Unpack(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	old, _ := os.Stat(filepath.Join(root, "runtime/runc"))
	shared, _ := os.Stat(filepath.Join(newer, "runtime/runc"))
	if !os.SameFile(old, shared) {
		t.Error("a file that did not change was unpacked again")
	}
	if err := Prune(t.Context(), data, newer); err != nil {
		t.Fatal(err)
	}
	checkTree(t, newer, files)
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old tree after Prune: %v", err)
	}
	blobs, _ := os.ReadDir(filepath.Join(data, blobsName))
	if len(blobs) != len(files) {
		t.Errorf("%d blobs after Prune, want %d", len(blobs), len(files))
	}
	if err := Prune(t.Context(), filepath.Join(data, "none")); err != nil {
		t.Errorf("Prune where nothing is: %v", err)
	}
}

func TestUnpackConcurrently(t *testing.T) {
	public, key := newKeyPair(t)
	files := testFiles()
	archive := writeArchive(t, key, files)
	data := t.TempDir()
	roots := make(chan string)
	for range 8 {
		go func() {
			p, err := Open(archive, public)
			if err != nil {
				t.Error(err)
				roots <- ""
				return
			}
			defer p.Close()
			root, err := p.Unpack(context.Background(), data)
			if err != nil {
				t.Error(err)
			}
			roots <- root
		}()
	}
	seen := map[string]bool{}
	for range 8 {
		seen[<-roots] = true
	}
	if len(seen) != 1 {
		t.Fatalf("roots %v, want one", seen)
	}
	for root := range seen {
		checkTree(t, root, files)
	}
}

// TestDamage flips one byte of every file's packed contents in turn.
func TestDamage(t *testing.T) {
	public, key := newKeyPair(t)
	archive := writeArchive(t, key, testFiles())
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	r, err := zip.OpenReader(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, entry := range r.File {
		if entry.CompressedSize64 == 0 {
			continue
		}
		offset, err := entry.DataOffset()
		if err != nil {
			t.Fatal(err)
		}
		damaged := slices.Clone(data)
		damaged[offset+int64(entry.CompressedSize64)/2] ^= 0x10
		name := filepath.Join(t.TempDir(), "damaged.zip")
		if err := os.WriteFile(name, damaged, 0o644); err != nil {
			t.Fatal(err)
		}
		err = unpackOnly(t, name, public)
		if !(errors.Is(err, ErrDamaged) || entry.Name == signatureName && errors.Is(err, ErrUntrusted)) {
			t.Errorf("%s: a byte flipped: %v, want ErrDamaged", entry.Name, err)
			continue
		}
		if !strings.Contains(err.Error(), entry.Name) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: the error names neither what nor where: %v", entry.Name, err)
		}
	}
}

// unpackOnly opens and unpacks; nothing must be left of what was refused.
func unpackOnly(t *testing.T, name string, keys ...ed25519.PublicKey) error {
	t.Helper()
	p, err := Open(name, keys...)
	if err != nil {
		return err
	}
	defer p.Close()
	data := t.TempDir()
	_, err = p.Unpack(t.Context(), data)
	if err != nil {
		if trees, _ := os.ReadDir(filepath.Join(data, treesName)); len(trees) > 0 {
			t.Errorf("%s: refused, yet there is a tree", name)
		}
		if _, tmpErr := os.Stat(filepath.Join(data, tmpName)); !errors.Is(tmpErr, fs.ErrNotExist) {
			t.Errorf("%s: refused, yet there are temporary files", name)
		}
		if verifyErr := p.Verify(t.Context()); !errors.Is(verifyErr, ErrDamaged) {
			t.Errorf("%s: Verify finds nothing wrong: %v", name, verifyErr)
		}
	}
	return err
}

func TestTruncated(t *testing.T) {
	public, key := newKeyPair(t)
	data, err := os.ReadFile(writeArchive(t, key, testFiles()))
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, 100, len(data) / 2, len(data) - 100, len(data) - 1} {
		name := filepath.Join(t.TempDir(), "short.zip")
		if err := os.WriteFile(name, data[:size], 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(name, public); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%d of %d bytes: %v, want an error that names the file", size, len(data), err)
		}
	}
}

func TestUntrusted(t *testing.T) {
	public, key := newKeyPair(t)
	stranger, _ := newKeyPair(t)
	archive := writeArchive(t, key, testFiles())
	if _, err := Open(archive); !errors.Is(err, ErrUntrusted) {
		t.Errorf("without keys: %v, want ErrUntrusted", err)
	}
	if _, err := Open(archive, stranger); !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), keyID(public)) {
		t.Errorf("with another key: %v, want ErrUntrusted and who signed it", err)
	}
	mustOpen(t, archive, stranger, public)
}

// TestForged writes archives whose signature is good for another manifest,
// or whose entries are others than the manifest's.
func TestForged(t *testing.T) {
	public, key := newKeyPair(t)
	content := []byte("content")
	sum := "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
	good := Manifest{Files: []File{{Path: "a", SHA256: sum, SizeBytes: int64(len(content))}}}
	text, err := good.text()
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Replace(text, []byte(`"executable": false`), []byte(`"executable": true`), 1)
	type entry struct {
		name string
		data []byte
	}
	for _, test := range []struct {
		name    string
		entries []entry
		want    string // in the error; empty is good
	}{
		{"good", []entry{{"a", content}, {manifestName, text}, {signatureName, sign(text, key)}}, ""},
		{"manifest changed", []entry{{"a", content}, {manifestName, other}, {signatureName, sign(text, key)}}, "does not fit"},
		{"no manifest", []entry{{"a", content}, {signatureName, sign(text, key)}}, "manifest.json is missing"},
		{"no signature", []entry{{"a", content}, {manifestName, text}}, "manifest.sig is missing"},
		{"empty signature", []entry{{"a", content}, {manifestName, text}, {signatureName, nil}}, "holds no signature"},
		{"file missing", []entry{{manifestName, text}, {signatureName, sign(text, key)}}, "a is missing"},
		{"file more", []entry{{"a", content}, {"b", content}, {manifestName, text}, {signatureName, sign(text, key)}}, `"b" is not in the manifest`},
		{"file twice", []entry{{"a", content}, {"a", content}, {manifestName, text}, {signatureName, sign(text, key)}}, `"a" is there twice`},
		{"file longer", []entry{{"a", append(content, '!')}, {manifestName, text}, {signatureName, sign(text, key)}}, "a has 8 bytes, the manifest says 7"},
		{"other contents", []entry{{"a", []byte("CONTENT")}, {manifestName, text}, {signatureName, sign(text, key)}}, "other contents"},
	} {
		t.Run(test.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "forged.zip")
			f, err := os.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			out := zip.NewWriter(f)
			for _, entry := range test.entries {
				w, err := out.Create(entry.name)
				if err != nil {
					t.Fatal(err)
				}
				w.Write(entry.data)
			}
			if err := errors.Join(out.Close(), f.Close()); err != nil {
				t.Fatal(err)
			}
			err = unpackOnly(t, name, public)
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// TestBomb packs more than the header and the manifest say.
func TestBomb(t *testing.T) {
	public, key := newKeyPair(t)
	var huge bytes.Buffer
	inner := zip.NewWriter(&huge)
	w, err := inner.CreateHeader(&zip.FileHeader{Name: "a", Method: zip.Deflate})
	if err != nil {
		t.Fatal(err)
	}
	io.CopyN(w, zeros{}, 64<<20)
	if err := inner.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := zip.NewReader(bytes.NewReader(huge.Bytes()), int64(huge.Len()))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := r.File[0].OpenRaw()
	if err != nil {
		t.Fatal(err)
	}
	packed, err := io.ReadAll(raw)
	if err != nil {
		t.Fatal(err)
	}

	name := filepath.Join(t.TempDir(), "bomb.zip")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	out := zip.NewWriter(f)
	w, err = out.CreateRaw(&zip.FileHeader{Name: "a", Method: zip.Deflate, CompressedSize64: uint64(len(packed)), UncompressedSize64: 5})
	if err != nil {
		t.Fatal(err)
	}
	w.Write(packed)
	m := Manifest{Files: []File{{Path: "a", SHA256: strings.Repeat("0", 64), SizeBytes: 5}}}
	if err := errors.Join(closeZip(out, key, m), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := unpackOnly(t, name, public); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, want ErrDamaged", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestSameInputSameBytes(t *testing.T) {
	_, key := newKeyPair(t)
	first, err := os.ReadFile(writeArchive(t, key, testFiles()))
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(writeArchive(t, key, testFiles()))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("the same files and key gave another archive")
	}
}

func TestOpenDir(t *testing.T) {
	if _, err := OpenDir(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "runtime"), 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if root, err := p.Unpack(t.Context(), t.TempDir(), "runtime"); err != nil || root != dir {
		t.Errorf("Unpack: %q, %v; want the folder itself", root, err)
	}
	if _, err := p.Unpack(t.Context(), t.TempDir(), "kube"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Unpack of what is not there: %v", err)
	}
	if _, err := p.OpenFile("../etc/passwd"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("OpenFile out of the folder: %v", err)
	}
}
