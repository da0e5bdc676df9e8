package payload

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseManifestRefuses(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	files := func(paths ...string) string {
		text := `{"version":2,"files":[`
		for i, path := range paths {
			text += strings.Repeat(",", min(i, 1)) + fmt.Sprintf(`{"path":"%s","sha256":%q,"size":1}`, path, sum)
		}
		return text + "]}"
	}
	for _, test := range []struct{ name, text, want string }{
		{"nothing", ``, "EOF"},
		{"not JSON", `hello`, "invalid character"},
		{"two values", `{"version":2,"files":[]} {}`, "more than one"},
		{"version", `{"version":1,"files":[]}`, "version 1"},
		{"unknown field", `{"version":2,"files":[],"links":{}}`, "links"},
		{"parent", files(`../a`), "not a relative"},
		{"parent within", files(`a/../../b`), "not a relative"},
		{"absolute", files(`/etc/passwd`), "not a relative"},
		{"empty", files(``), "not a relative"},
		{"dot", files(`.`), "not a relative"},
		{"backslash", files(`a\\b`), "character"},
		{"newline", files(`a\nb`), "character"},
		{"NUL", files(`a\u0000b`), "character"},
		{"not UTF-8", files("a\xff"), "character"},
		{"long", files(strings.Repeat("a", 600)), "longer than 512"},
		{"reserved", files(`manifest.sig`), "taken"},
		{"twice", files("a", "a"), "not behind"},
		{"not sorted", files("b", "a"), "not behind"},
		{"file and folder", files("a", "a/b/c"), "both a file and the folder"},
		{"sum", `{"version":2,"files":[{"path":"a","sha256":"xyz","size":1}]}`, "sha256"},
		{"sum upper", strings.Replace(files("a"), sum, strings.ToUpper(sum), 1), "sha256"},
		{"size", strings.Replace(files("a"), `:1}`, `:-1}`, 1), "size"},
		{"huge", strings.Replace(files("a"), `:1}`, `:99999999999999}`, 1), "size"},
		{"setuid", strings.Replace(files("a"), `:1}`, `:1,"mode":"4755"}`, 1), "mode"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parseManifest([]byte(test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"version":2,"files":[{"path":"a/b","sha256":"` + strings.Repeat("ab", 32) + `","size":1,"executable":true}]}`))
	f.Add([]byte(`{"version":2,"files":[{"path":"../a"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseManifest(text)
		if err != nil {
			return
		}
		for _, file := range m.Files {
			if !filepath.IsLocal(file.Path) {
				t.Errorf("took the path %q", file.Path)
			}
		}
		again, err := m.text()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseManifest(again); err != nil {
			t.Errorf("does not take what it wrote itself: %v\n%s", err, again)
		}
	})
}

// FuzzRead opens and reads archives: what passes has the signed contents.
func FuzzRead(f *testing.F) {
	_, key := fuzzKey()
	var b bytes.Buffer
	file := filepath.Join(f.TempDir(), "file")
	if err := os.WriteFile(file, []byte("content"), 0o644); err != nil {
		f.Fatal(err)
	}
	if err := WriteZip(f.Context(), &b, key, nil, []Source{{Path: "a/b", File: file}}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:b.Len()-1])
	f.Add(append([]byte("something before it"), b.Bytes()...))
	f.Fuzz(func(t *testing.T, data []byte) {
		public, _ := fuzzKey()
		p, err := read(bytes.NewReader(data), int64(len(data)), keysOf(public))
		if err != nil {
			return
		}
		r, err := p.OpenFile("a/b")
		if err != nil {
			return
		}
		defer r.Close()
		var got bytes.Buffer
		if _, err := got.ReadFrom(r); err == nil && got.String() != "content" {
			t.Errorf("gave %q out as signed", got.String())
		}
	})
}
