package payload

import (
	"archive/zip"
	"cmp"
	"compress/flate"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/multipaas/multipaas/appliance/atomicfile"
)

const (
	// smallBytes and less are written with Deflate: zstd gains nothing
	// there, and the manifest can be read with any unzip.
	smallBytes = 64 << 10
	// packWindowBytes is how far back zstd looks. 8 MiB is what its own
	// level 3 and browsers take as the largest harmless one.
	packWindowBytes = 8 << 20
)

// Source is one file to pack.
type Source struct {
	// Path in the payload.
	Path string
	// File on this machine. It becomes executable if its owner may run it.
	File string
}

// Sources lists what is to be packed as path: a file itself, or all files below a
// folder. Anything else than files and folders is an error.
func Sources(file, path string) ([]Source, error) {
	var sources []Source
	err := filepath.WalkDir(file, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if !entry.Type().IsRegular() {
			return fmt.Errorf("%s: neither a file nor a folder", name)
		}
		rest, err := filepath.Rel(file, name)
		if err != nil {
			return err
		}
		sources = append(sources, Source{Path: filepath.ToSlash(filepath.Join(path, rest)), File: name})
		return nil
	})
	return sources, err
}

// WriteZip writes a signed payload as a zip archive: what base holds, if there
// is one, without packing it anew, with the sources added or in the place of
// files of the same path. The same files and key give the same bytes.
func WriteZip(ctx context.Context, w io.Writer, key ed25519.PrivateKey, base *Payload, sources []Source) error {
	added := make(map[string]bool, len(sources))
	for _, source := range sources {
		if err := checkPath(source.Path); err != nil {
			return fmt.Errorf("pack %q: %w", source.Path, err)
		}
		if added[source.Path] {
			return fmt.Errorf("pack %q: named twice", source.Path)
		}
		added[source.Path] = true
	}
	out := zip.NewWriter(w)
	out.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) {
		return flate.NewWriter(w, flate.BestCompression)
	})
	out.RegisterCompressor(zstd.ZipMethodWinZip, zstd.ZipCompressor(
		zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(packWindowBytes)))

	var manifest Manifest
	if base != nil {
		for _, file := range base.manifest.Files {
			if added[file.Path] {
				continue
			}
			if err := out.Copy(base.entries[file.Path]); err != nil {
				return fmt.Errorf("pack %s: %w", file.Path, err)
			}
			manifest.Files = append(manifest.Files, file)
		}
	}
	inOrder := func(a, b Source) int { return cmp.Compare(a.Path, b.Path) }
	for _, source := range slices.SortedFunc(slices.Values(sources), inOrder) {
		file, err := writeSource(ctx, out, source)
		if err != nil {
			return fmt.Errorf("pack %s: %w", source.Path, err)
		}
		manifest.Files = append(manifest.Files, file)
	}
	slices.SortFunc(manifest.Files, byPath)
	return closeZip(out, key, manifest)
}

// closeZip writes the manifest and its signature, and ends the archive.
func closeZip(out *zip.Writer, key ed25519.PrivateKey, manifest Manifest) error {
	text, err := manifest.text()
	if err != nil {
		return err
	}
	// What Open would refuse must not be written.
	if _, err := parseManifest(text); err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	for _, entry := range []struct {
		name string
		data []byte
	}{{manifestName, text}, {signatureName, sign(text, key)}} {
		w, err := out.CreateHeader(&zip.FileHeader{Name: entry.name, Method: zip.Deflate})
		if err != nil {
			return err
		}
		if _, err := w.Write(entry.data); err != nil {
			return err
		}
	}
	return out.Close()
}

func writeSource(ctx context.Context, out *zip.Writer, source Source) (File, error) {
	f, err := os.Open(source.File)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	method, err := methodFor(f, info.Size())
	if err != nil {
		return File{}, err
	}
	header := &zip.FileHeader{Name: source.Path, Method: method}
	file := File{Path: source.Path, SizeBytes: info.Size(), Executable: info.Mode()&0o100 != 0}
	header.SetMode(file.mode())
	w, err := out.CreateHeader(header)
	if err != nil {
		return File{}, err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), &interruptible{ctx, f})
	if err != nil {
		return File{}, err
	}
	if n != file.SizeBytes {
		return File{}, errors.New("changed while it was read")
	}
	file.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return file, nil
}

// methodFor chooses how a file is packed. Layers of images are packed already.
func methodFor(f io.ReaderAt, sizeBytes int64) (uint16, error) {
	if sizeBytes <= smallBytes {
		return zip.Deflate, nil
	}
	var head [4]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return 0, err
	}
	if string(head[:]) == "\x28\xb5\x2f\xfd" || string(head[:2]) == "\x1f\x8b" {
		return zip.Store, nil
	}
	return zstd.ZipMethodWinZip, nil
}

// Pack writes the executable out: the ELF part of elf with the payload
// archive (a zip file, or a file that carries one) behind it. The archive is
// copied as it is, so it takes no key.
func Pack(elf, archive, out string) error {
	zipped, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer zipped.Close()
	begin, err := payloadOffset(zipped)
	if err != nil {
		return fmt.Errorf("%s: %w", archive, err)
	}
	return writeExecutable(elf, out, func(w io.Writer) error {
		if _, err := zipped.Seek(begin, io.SeekStart); err != nil {
			return err
		}
		_, err := io.Copy(w, zipped)
		return err
	})
}

// Add writes the executable out: the ELF part and the files of p, with the
// sources added or in the place of files of the same path, signed with key.
func Add(ctx context.Context, p *Payload, out string, key ed25519.PrivateKey, sources []Source) error {
	if p.file == nil {
		return fmt.Errorf("payload: %s is a folder: put the files there", p.name)
	}
	return writeExecutable(p.file.Name(), out, func(w io.Writer) error {
		return WriteZip(ctx, w, key, p, sources)
	})
}

// writeExecutable writes the ELF part of elf and what write adds, and puts
// it in place of out in one step.
func writeExecutable(elf, out string, write func(io.Writer) error) error {
	program, err := os.Open(elf)
	if err != nil {
		return err
	}
	defer program.Close()
	size, err := elfSize(program)
	if err != nil {
		return fmt.Errorf("%s: %w", elf, err)
	}
	return atomicfile.WriteFunc(out, 0o755, func(w io.Writer) error {
		if _, err := io.Copy(w, io.NewSectionReader(program, 0, size)); err != nil {
			return err
		}
		return write(w)
	})
}
