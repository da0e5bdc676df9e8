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
	maxSignatureBytes = 1 << 10  // one takes 120
	maxWindowBytes    = 64 << 20 // of memory that decompression takes; we write with 8 MiB
)

const manifestVersion = 2

// Manifest says what a payload holds, sorted by path.
type Manifest struct {
	Version int    `json:"version"`
	Files   []File `json:"files"`
}

// File is one file of a payload.
type File struct {
	Path       string `json:"path"`
	SHA256     string `json:"sha256"` // hex, lower case
	SizeBytes  int64  `json:"size"`
	Executable bool   `json:"executable"`
}

func byPath(a, b File) int { return cmp.Compare(a.Path, b.Path) }

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
	i, ok := slices.BinarySearchFunc(m.Files, File{Path: path}, byPath)
	if !ok {
		return File{}, false
	}
	return m.Files[i], true
}

// text is what gets signed: the same manifest gives the same bytes.
func (m Manifest) text() ([]byte, error) {
	m.Version = manifestVersion
	data, err := json.MarshalIndent(m, "", " ")
	return append(data, '\n'), err
}

// parseManifest reads a manifest and refuses whatever could do harm later,
// reporting every mistake.
func parseManifest(text []byte) (Manifest, error) {
	var m Manifest
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return Manifest{}, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return Manifest{}, errors.New("more than one JSON value")
	}
	if m.Version != manifestVersion {
		return Manifest{}, fmt.Errorf("version %d: this program knows %d", m.Version, manifestVersion)
	}
	if len(m.Files) > maxFiles {
		return Manifest{}, fmt.Errorf("%d files: more than %d", len(m.Files), maxFiles)
	}
	var errs []error
	for i, file := range m.Files {
		err := file.check()
		if i > 0 && m.Files[i-1].Path >= file.Path {
			err = errors.New("not behind the one before it")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%q: %w", file.Path, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Manifest{}, err
	}
	return m, m.check()
}

func (f File) check() error {
	if err := checkPath(f.Path); err != nil {
		return err
	}
	if raw, err := hex.DecodeString(f.SHA256); err != nil || len(raw) != 32 || strings.ToLower(f.SHA256) != f.SHA256 {
		return errors.New("sha256: not a sum in lower-case hex")
	}
	if f.SizeBytes < 0 || f.SizeBytes > maxFileBytes {
		return fmt.Errorf("size: %d is not between 0 and %d", f.SizeBytes, int64(maxFileBytes))
	}
	return nil
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
