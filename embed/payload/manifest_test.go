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
	file := fmt.Sprintf(`{"sha256":%q,"size":1,"mode":"0444"}`, sum)
	for _, test := range []struct{ name, text, want string }{
		{"nothing", ``, "EOF"},
		{"not JSON", `hello`, "invalid character"},
		{"two values", `{"version":1,"files":{}} {}`, "more than one"},
		{"version", `{"version":2,"files":{}}`, "version 2"},
		{"unknown field", `{"version":1,"files":{},"links":{}}`, "links"},
		{"parent", `{"version":1,"files":{"../a":` + file + `}}`, "not a relative"},
		{"parent within", `{"version":1,"files":{"a/../../b":` + file + `}}`, "not a relative"},
		{"absolute", `{"version":1,"files":{"/etc/passwd":` + file + `}}`, "not a relative"},
		{"empty", `{"version":1,"files":{"":` + file + `}}`, "not a relative"},
		{"dot", `{"version":1,"files":{".":` + file + `}}`, "not a relative"},
		{"backslash", `{"version":1,"files":{"a\\b":` + file + `}}`, "character"},
		{"newline", `{"version":1,"files":{"a\nb":` + file + `}}`, "character"},
		{"NUL", `{"version":1,"files":{"a\u0000b":` + file + `}}`, "character"},
		{"not UTF-8", "{\"version\":1,\"files\":{\"a\xff\":" + file + `}}`, "character"},
		{"long", `{"version":1,"files":{"` + strings.Repeat("a", 600) + `":` + file + `}}`, "longer than 512"},
		{"reserved", `{"version":1,"files":{"manifest.sig":` + file + `}}`, "taken"},
		{"file and folder", `{"version":1,"files":{"a/b/c":` + file + `,"a":` + file + `}}`, "both a file and the folder"},
		{"sum", `{"version":1,"files":{"a":{"sha256":"xyz","size":1,"mode":"0444"}}}`, "sha256"},
		{"sum upper", `{"version":1,"files":{"a":{"sha256":"` + strings.ToUpper(sum) + `","size":1,"mode":"0444"}}}`, "sha256"},
		{"size", `{"version":1,"files":{"a":{"sha256":"` + sum + `","size":-1,"mode":"0444"}}}`, "size"},
		{"huge", `{"version":1,"files":{"a":{"sha256":"` + sum + `","size":99999999999999,"mode":"0444"}}}`, "size"},
		{"setuid", `{"version":1,"files":{"a":{"sha256":"` + sum + `","size":1,"mode":"4755"}}}`, "mode"},
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
	f.Add([]byte(`{"version":1,"files":{"a/b":{"sha256":"` + strings.Repeat("ab", 32) + `","size":1,"mode":"0555"}}}`))
	f.Add([]byte(`{"version":1,"files":{"../a":{}}}`))
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
	if err := WriteZip(f.Context(), &b, key, []Source{{Path: "a/b", File: file}}); err != nil {
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
