// Package payload reads, checks, unpacks and makes the payload: the files
// that the one file carries behind its ELF part, as a zip archive.
//
// It promises that nothing of a payload is used that a trusted key has not
// signed: manifest.json holds the SHA-256 sum, size and mode of every file
// and manifest.sig an Ed25519 signature of it. What differs by a byte is refused
// by name. Unpacking is content-addressed, happens once, appears in one step,
// and may be cut short at any point, or be done by several processes at once.
//
// The parties: the build packs and signs (command embed/payload/cmd/payload);
// an operator may add files and sign with a key of his own; appliance unpacks
// what a role needs and hands the paths on. main mounts Command.
package payload

import (
	"archive/zip"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// The errors of this package, for errors.Is.
var (
	// ErrNone is returned when a file carries no payload at all.
	ErrNone = errors.New("carries no payload")
	// ErrUntrusted is returned when no trusted key has signed the payload.
	ErrUntrusted = errors.New("is not signed by a trusted key")
	// ErrDamaged is returned when something is not what the manifest says.
	ErrDamaged = errors.New("is damaged")
)

// DirVariable names the environment variable with a folder that is taken in
// place of the payload, for development. What is in it is not checked.
const DirVariable = "MULTIPAAS_PAYLOAD"

const (
	manifestName  = "manifest.json"
	signatureName = "manifest.sig"
)

// Payload is an open payload. It is safe for concurrent use.
type Payload struct {
	name     string // of the file or folder, for messages
	dir      string // a plain folder instead of an archive
	file     *os.File
	manifest Manifest
	id       string
	entries  map[string]*zip.File
}

// Self opens the payload of the running program, or the folder that
// MULTIPAAS_PAYLOAD names.
func Self(keys ...ed25519.PublicKey) (*Payload, error) {
	if dir := os.Getenv(DirVariable); dir != "" {
		return OpenDir(dir)
	}
	name, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// By this path the kernel gives the file that runs, even when an upgrade
	// has put another one in its place.
	return open("/proc/self/exe", name, keys)
}

// OpenDir takes a plain folder as the payload. Nothing in it is signed.
func OpenDir(dir string) (*Payload, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("payload: %s: not a folder", dir)
	}
	return &Payload{name: dir, dir: dir}, nil
}

// Open opens the payload behind the executable file, or a zip file of its
// own, and checks that one of keys has signed its manifest, and that the
// archive holds what the manifest names and nothing else. The sums of the
// files themselves are checked when they are read.
func Open(file string, keys ...ed25519.PublicKey) (*Payload, error) {
	return open(file, file, keys)
}

func open(file, name string, keys []ed25519.PublicKey) (*Payload, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	var p *Payload
	info, err := f.Stat()
	if err == nil {
		p, err = read(f, info.Size(), keys)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("payload: %s %w%s", name, err, remedy(err))
	}
	p.name, p.file = name, f
	return p, nil
}

// remedy is what to do about a file that is not what was packed, as an end of the
// error's sentence.
func remedy(err error) string {
	if errors.Is(err, ErrNone) || errors.Is(err, ErrDamaged) {
		return "; put a fresh copy of the program in its place, and compare its sha256sum with that of where it came from"
	}
	return ""
}

// read reads everything but the files' contents.
func read(r io.ReaderAt, size int64, keys []ed25519.PublicKey) (*Payload, error) {
	archive, err := zip.NewReader(r, size)
	if errors.Is(err, zip.ErrFormat) {
		return nil, fmt.Errorf("%w, or it was cut off", ErrNone)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	archive.RegisterDecompressor(zstd.ZipMethodWinZip, zstd.ZipDecompressor(
		zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindowBytes)))

	entries, err := index(archive)
	if err != nil {
		return nil, err
	}
	text, err := takeEntry(entries, manifestName, maxManifestBytes)
	if err != nil {
		return nil, err
	}
	signature, err := takeEntry(entries, signatureName, maxSignatureBytes)
	if err != nil {
		return nil, err
	}
	if err := verifySignature(text, signature, keys); err != nil {
		return nil, err
	}
	manifest, err := parseManifest(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, manifestName, err)
	}
	if err := matchEntries(manifest, entries); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	return &Payload{manifest: manifest, id: hex.EncodeToString(sum[:]), entries: entries}, nil
}

// index lists an archive's entries by name and refuses two of the same.
func index(archive *zip.Reader) (map[string]*zip.File, error) {
	if len(archive.File) > maxFiles+2 {
		return nil, fmt.Errorf("%w: more than %d files", ErrDamaged, maxFiles)
	}
	entries := make(map[string]*zip.File, len(archive.File))
	for _, entry := range archive.File {
		if entries[entry.Name] != nil {
			return nil, fmt.Errorf("%w: %q is there twice", ErrDamaged, entry.Name)
		}
		entries[entry.Name] = entry
	}
	return entries, nil
}

// takeEntry reads a small entry whole and takes it out of entries.
func takeEntry(entries map[string]*zip.File, name string, maxBytes int64) ([]byte, error) {
	entry := entries[name]
	if entry == nil {
		return nil, fmt.Errorf("%w: %s is missing", ErrDamaged, name)
	}
	delete(entries, name)
	r, err := entry.Open()
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, name, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxBytes+1))
	if err == nil && int64(len(data)) > maxBytes {
		err = fmt.Errorf("larger than %d bytes", maxBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, name, err)
	}
	return data, nil
}

// matchEntries checks that archive and manifest name the same files.
func matchEntries(m Manifest, entries map[string]*zip.File) error {
	var errs []error
	for _, file := range m.Files {
		switch entry := entries[file.Path]; {
		case entry == nil:
			errs = append(errs, fmt.Errorf("%w: %s is missing", ErrDamaged, file.Path))
		case entry.UncompressedSize64 != uint64(file.SizeBytes):
			errs = append(errs, fmt.Errorf("%w: %s has %d bytes, the manifest says %d",
				ErrDamaged, file.Path, entry.UncompressedSize64, file.SizeBytes))
		}
	}
	if len(errs) == 0 && len(entries) != len(m.Files) {
		for name := range entries {
			if _, ok := m.File(name); !ok {
				errs = append(errs, fmt.Errorf("%w: %q is not in the manifest", ErrDamaged, name))
			}
		}
	}
	return errors.Join(errs...)
}

// Close closes it. What was unpacked stays.
func (p *Payload) Close() error {
	if p.file == nil { // a folder
		return nil
	}
	return p.file.Close()
}

// ID tells payloads apart: the SHA-256 sum of the manifest. A folder has none.
func (p *Payload) ID() string { return p.id }

// Manifest says what it holds. A folder has an empty one.
func (p *Payload) Manifest() Manifest { return p.manifest }

// OpenFile opens one file of the payload. The reader gives ErrDamaged in
// place of io.EOF when the contents are not those that were signed. The error wraps
// fs.ErrNotExist when there is no such file.
func (p *Payload) OpenFile(path string) (io.ReadCloser, error) {
	if p.dir != "" {
		if !fs.ValidPath(path) {
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrInvalid}
		}
		return os.Open(filepath.Join(p.dir, path))
	}
	file, ok := p.manifest.File(path)
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	r, err := p.entries[path].Open()
	if err != nil {
		return nil, fmt.Errorf("payload: %s: %s %w: %w", p.name, path, ErrDamaged, err)
	}
	return &checked{p: p, file: file, r: r, sum: sha256.New()}, nil
}

// checked is the contents of a file with its sum.
type checked struct {
	p    *Payload
	file File
	r    io.ReadCloser
	sum  hash.Hash
	read int64
}

func (c *checked) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.sum.Write(b[:n])
	c.read += int64(n)
	switch {
	case c.read > c.file.SizeBytes:
		return 0, c.damaged(fmt.Errorf("more than %d bytes", c.file.SizeBytes))
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		return n, c.damaged(err)
	case c.read < c.file.SizeBytes:
		return n, c.damaged(fmt.Errorf("%d of %d bytes", c.read, c.file.SizeBytes))
	case hex.EncodeToString(c.sum.Sum(nil)) != c.file.SHA256:
		return n, c.damaged(errors.New("other contents than were signed"))
	}
	return n, io.EOF
}

func (c *checked) damaged(err error) error {
	return fmt.Errorf("payload: %s: %s %w: %w", c.p.name, c.file.Path, ErrDamaged, err)
}

func (c *checked) Close() error { return c.r.Close() }

// Verify reads every file and reports all that are damaged.
func (p *Payload) Verify(ctx context.Context) error {
	var errs []error
	for _, file := range p.manifest.Files {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := p.OpenFile(file.Path)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w%s", err, remedy(err))
	}
	return nil
}

// wanted lists the files at or below the prefixes, all without any. A prefix that
// nothing stands below is an error: the caller relies on those files.
func (p *Payload) wanted(prefixes []string) ([]File, error) {
	if len(prefixes) == 0 {
		return p.manifest.Files, nil
	}
	var errs []error
	for _, prefix := range prefixes {
		if !slices.ContainsFunc(p.manifest.Files, func(f File) bool { return isBelow(f.Path, prefix) }) {
			errs = append(errs, fmt.Errorf("payload: %s has no %s: %w", p.name, prefix, fs.ErrNotExist))
		}
	}
	return slices.DeleteFunc(slices.Clone(p.manifest.Files), func(f File) bool {
		return !slices.ContainsFunc(prefixes, func(prefix string) bool { return isBelow(f.Path, prefix) })
	}), errors.Join(errs...)
}
