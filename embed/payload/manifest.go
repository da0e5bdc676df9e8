package payload

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
)

// Bounds of what is believed of a payload before anything of it is used. The
// build's own has about 60 files and 300 MB.
const (
	maxFiles          = 20_000
	maxPathBytes      = 512
	maxFileBytes      = 32 << 30
	maxTotalBytes     = 256 << 30
	maxManifestBytes  = 16 << 20 // maxFiles x 800 bytes
	maxSignatureBytes = 16 << 10 // about a hundred signatures
	maxWindowBytes    = 64 << 20 // of memory that decompression takes; we write with 8 MiB
)

const manifestVersion = 1

// Manifest says what a payload holds, sorted by path.
type Manifest struct {
	Files []File
}

// File is one file of a payload.
type File struct {
	Path       string
	SHA256     string // hex, lower case
	SizeBytes  int64
	Executable bool
}

// mode is the mode of the unpacked file. Nobody writes to it.
func (f File) mode() fs.FileMode {
	if f.Executable {
		return 0o555
	}
	return 0o444
}

// TotalBytes is the size of all files together.
func (m Manifest) TotalBytes() int64 {
	var total int64
	for _, file := range m.Files {
		total += file.SizeBytes
	}
	return total
}

// File looks a file up by its path.
func (m Manifest) File(path string) (File, bool) {
	i, ok := slices.BinarySearchFunc(m.Files, path, func(f File, path string) int { return cmp.Compare(f.Path, path) })
	if !ok {
		return File{}, false
	}
	return m.Files[i], true
}

// The manifest as it is written.
type manifestText struct {
	Version int                 `json:"version"`
	Files   map[string]fileText `json:"files"`
}

type fileText struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
	Mode   string `json:"mode"` // "0555" or "0444"
}

// text is what gets signed: the same manifest gives the same bytes.
func (m Manifest) text() ([]byte, error) {
	out := manifestText{Version: manifestVersion, Files: make(map[string]fileText, len(m.Files))}
	for _, file := range m.Files {
		out.Files[file.Path] = fileText{SHA256: file.SHA256, Size: file.SizeBytes, Mode: fmt.Sprintf("%04o", file.mode())}
	}
	data, err := json.MarshalIndent(out, "", " ")
	return append(data, '\n'), err
}

// parseManifest reads a manifest and refuses whatever could do harm later,
// reporting every mistake.
func parseManifest(text []byte) (Manifest, error) {
	var in manifestText
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		return Manifest{}, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return Manifest{}, errors.New("more than one JSON value")
	}
	if in.Version != manifestVersion {
		return Manifest{}, fmt.Errorf("version %d: this program knows %d", in.Version, manifestVersion)
	}
	if len(in.Files) > maxFiles {
		return Manifest{}, fmt.Errorf("%d files: more than %d", len(in.Files), maxFiles)
	}
	var m Manifest
	var errs []error
	for path, file := range in.Files {
		f, err := file.file(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("%q: %w", path, err))
			continue
		}
		m.Files = append(m.Files, f)
	}
	slices.SortFunc(m.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	if err := errors.Join(errs...); err != nil {
		return Manifest{}, err
	}
	return m, m.check()
}

func (t fileText) file(path string) (File, error) {
	f := File{Path: path, SHA256: t.SHA256, SizeBytes: t.Size, Executable: t.Mode == "0555"}
	if err := checkPath(path); err != nil {
		return f, err
	}
	if raw, err := hex.DecodeString(t.SHA256); err != nil || len(raw) != 32 || strings.ToLower(t.SHA256) != t.SHA256 {
		return f, errors.New("sha256: not a sum in lower-case hex")
	}
	if t.Size < 0 || t.Size > maxFileBytes {
		return f, fmt.Errorf("size: %d is not between 0 and %d", t.Size, int64(maxFileBytes))
	}
	if t.Mode != "0555" && t.Mode != "0444" {
		return f, fmt.Errorf("mode: %q: have 0555 and 0444", t.Mode)
	}
	return f, nil
}

// checkPath lets only relative, clean paths pass, made of what every file
// system and every tool takes.
func checkPath(path string) error {
	switch {
	case len(path) > maxPathBytes:
		return fmt.Errorf("longer than %d bytes", maxPathBytes)
	case !fs.ValidPath(path) || path == ".":
		return errors.New("not a relative, clean path")
	case path == manifestName || path == signatureName:
		return errors.New("the name is taken")
	}
	for _, r := range path {
		if r <= ' ' || r == '\\' || r >= 0x7f {
			return fmt.Errorf("has the character %q", r)
		}
	}
	return nil
}

// check looks at what concerns more than one file. m.Files is sorted.
func (m Manifest) check() error {
	if total := m.TotalBytes(); total > maxTotalBytes || total < 0 {
		return fmt.Errorf("%d bytes together: more than %d", total, int64(maxTotalBytes))
	}
	for _, file := range m.Files {
		for parent := file.Path; strings.Contains(parent, "/"); {
			parent = parent[:strings.LastIndexByte(parent, '/')]
			if _, ok := m.File(parent); ok {
				return fmt.Errorf("%q: is both a file and the folder of %q", parent, file.Path)
			}
		}
	}
	return nil
}

// isBelow says whether path is prefix or stands below it.
func isBelow(path, prefix string) bool {
	prefix = strings.TrimSuffix(prefix, "/")
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}
