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
	"strings"

	"github.com/klauspost/compress/zstd"
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

// WriteZip writes a signed payload of the sources as a zip archive. The same
// files and key give the same bytes.
func WriteZip(ctx context.Context, w io.Writer, key ed25519.PrivateKey, sources []Source) error {
	return writeZip(ctx, w, key, nil, sources)
}

// writeZip writes what base holds, without packing it anew, with the
// sources added or in the place of files of the same path.
func writeZip(ctx context.Context, w io.Writer, key ed25519.PrivateKey, base *Payload, sources []Source) error {
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
	sources = slices.Clone(sources)
	slices.SortFunc(sources, func(a, b Source) int { return cmp.Compare(a.Path, b.Path) })
	for _, source := range sources {
		file, err := writeSource(ctx, out, source)
		if err != nil {
			return fmt.Errorf("pack %s: %w", source.Path, err)
		}
		manifest.Files = append(manifest.Files, file)
	}
	slices.SortFunc(manifest.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
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
	head := make([]byte, 4)
	if _, err := f.ReadAt(head, 0); err != nil {
		return 0, err
	}
	if strings.HasPrefix(string(head), "\x28\xb5\x2f\xfd") || strings.HasPrefix(string(head), "\x1f\x8b") {
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

// PackSources writes the executable out: the ELF part of elf with a payload
// of the sources behind it, signed with key.
func PackSources(ctx context.Context, elf, out string, key ed25519.PrivateKey, sources []Source) error {
	return writeExecutable(elf, out, func(w io.Writer) error { return WriteZip(ctx, w, key, sources) })
}

// Add writes the executable out: the ELF part and the files of p, with the
// sources added or in the place of files of the same path, signed with key.
func Add(ctx context.Context, p *Payload, out string, key ed25519.PrivateKey, sources []Source) error {
	if p.file == nil {
		return fmt.Errorf("payload: %s is a folder: put the files there", p.name)
	}
	return writeExecutable(p.file.Name(), out, func(w io.Writer) error {
		return writeZip(ctx, w, key, p, sources)
	})
}

// writeExecutable writes the ELF part of elf and what write adds, and puts
// it in place of out in one step.
func writeExecutable(elf, out string, write func(io.Writer) error) (err error) {
	program, err := os.Open(elf)
	if err != nil {
		return err
	}
	defer program.Close()
	size, err := elfSize(program)
	if err != nil {
		return fmt.Errorf("%s: %w", elf, err)
	}
	return replace(out, 0o755, func(w io.Writer) error {
		if _, err := io.Copy(w, io.NewSectionReader(program, 0, size)); err != nil {
			return err
		}
		return write(w)
	})
}

// replace writes a file beside out and renames it, so that a program that
// runs from out goes on, and a failure leaves out as it was.
func replace(out string, mode fs.FileMode, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+"-")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), out)
}
