// Package images makes the container images that the payload carries, as OCI
// layouts, from files that are there already: no container engine, no
// registry, no network.
//
// It promises that the same input gives the same digest, on every machine and
// whenever it is built: entries are sorted, times and owners fixed. The build
// calls it through the command embed/images/cmd/ociimage; the appliance only
// reads what comes out. The sources of the images stand below this folder:
// pause and hello are programs, machine is a list of Debian packages.
package images

import (
	"archive/tar"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// epoch is the time of everything in an image. Any would do, as long as it
// is always the same; some tools take a zero time for "no time".
var epoch = time.Unix(1700000000, 0).UTC()

// refNameAnnotation is where OCI layouts keep the name of an image.
const refNameAnnotation = "org.opencontainers.image.ref.name"

// File is one file of an image.
type File struct {
	// Source is the file on this machine.
	Source string
	// Path is where it stands in the image, absolute. The folders above it
	// are made, owned by root, mode 0755.
	Path string
	// Mode are its permission bits.
	Mode fs.FileMode
}

// Spec says what an image is made of.
type Spec struct {
	// Name is the image's full reference, "multipaas.internal/pause:1".
	Name string
	// RootTar is a tar archive with a whole root file system, or empty.
	RootTar string
	// Files are put on top of it.
	Files []File

	Entrypoint []string
	// User is "uid:gid"; empty is root.
	User  string
	Ports []string // "8080/tcp"
}

// Write makes the image in the OCI layout folder dir, replacing what stood
// there, and returns the digest of its manifest. dir appears in one step.
func Write(spec Spec, dir string) (digest v1.Hash, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("image %s: %w", spec.Name, err)
		}
	}()
	work, err := os.MkdirTemp(filepath.Dir(filepath.Clean(dir)), ".image-")
	if err != nil {
		return digest, err
	}
	defer os.RemoveAll(work)

	var layers []mutate.Addendum
	for _, source := range []struct {
		name  string
		there bool
		write func(*tar.Writer) error
	}{
		{"root file system", spec.RootTar != "", func(w *tar.Writer) error { return writeRoot(w, spec.RootTar) }},
		{"files", len(spec.Files) > 0, func(w *tar.Writer) error { return writeFiles(w, spec.Files) }},
	} {
		if !source.there {
			continue
		}
		archive := filepath.Join(work, fmt.Sprintf("layer-%d.tar", len(layers)))
		if err := writeArchive(archive, source.write); err != nil {
			return digest, fmt.Errorf("%s: %w", source.name, err)
		}
		layer, err := tarball.LayerFromFile(archive,
			tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd))
		if err != nil {
			return digest, fmt.Errorf("%s: %w", source.name, err)
		}
		layers = append(layers, mutate.Addendum{
			Layer:     layer,
			MediaType: types.OCILayerZStd,
			History:   v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "multipaas: " + source.name},
		})
	}
	if len(layers) == 0 {
		return digest, errors.New("has neither a root archive nor files")
	}
	image, err := spec.image(layers)
	if err != nil {
		return digest, err
	}
	if digest, err = image.Digest(); err != nil {
		return digest, err
	}
	fresh := filepath.Join(work, "layout")
	p, err := layout.Write(fresh, empty.Index)
	if err != nil {
		return digest, err
	}
	platform := v1.Platform{OS: "linux", Architecture: "amd64"}
	if err := p.AppendImage(image, layout.WithPlatform(platform),
		layout.WithAnnotations(map[string]string{refNameAnnotation: spec.Name})); err != nil {
		return digest, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return digest, err
	}
	return digest, os.Rename(fresh, dir)
}

// image puts the layers and the configuration together.
func (s Spec) image(layers []mutate.Addendum) (v1.Image, error) {
	image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	image = mutate.ConfigMediaType(image, types.OCIConfigJSON)
	image, err := mutate.Append(image, layers...)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Created = v1.Time{Time: epoch}
	config.Config = v1.Config{
		Entrypoint: s.Entrypoint,
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		User:       s.User,
		WorkingDir: "/",
	}
	config.Config.ExposedPorts = map[string]struct{}{}
	for _, port := range s.Ports {
		config.Config.ExposedPorts[port] = struct{}{}
	}
	return mutate.ConfigFile(image, config)
}

// writeArchive makes the archive name of what write puts into it.
func writeArchive(name string, write func(*tar.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	out := tar.NewWriter(f)
	if err := write(out); err != nil {
		return err
	}
	return errors.Join(out.Close(), f.Close())
}

// writeRoot copies a root archive and takes out what differs between two
// builds. The order of its entries is kept: hard links must follow what they
// point at, and mmdebstrap sorts already.
func writeRoot(out *tar.Writer, rootTar string) error {
	f, err := os.Open(rootTar)
	if err != nil {
		return err
	}
	defer f.Close()
	in := tar.NewReader(f)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		normalize(header)
		if err := out.WriteHeader(header); err != nil {
			return fmt.Errorf("%s: %w", header.Name, err)
		}
		if _, err := io.Copy(out, in); err != nil {
			return fmt.Errorf("%s: %w", header.Name, err)
		}
	}
}

// normalize leaves of a header what belongs to the file itself: extended
// attributes (file capabilities) stay, times and names of owners go.
func normalize(h *tar.Header) {
	h.Name = strings.TrimPrefix(h.Name, "./")
	if h.Name == "" {
		h.Name = "./"
	}
	if h.Typeflag == tar.TypeLink {
		h.Linkname = strings.TrimPrefix(h.Linkname, "./")
	}
	h.ModTime, h.AccessTime, h.ChangeTime = epoch, time.Time{}, time.Time{}
	h.Uname, h.Gname = "", ""
	for key := range h.PAXRecords {
		if !strings.HasPrefix(key, "SCHILY.xattr.") {
			delete(h.PAXRecords, key)
		}
	}
	h.Format = tar.FormatPAX
}

// writeFiles writes single files, sorted, and the folders above them.
func writeFiles(out *tar.Writer, files []File) error {
	byPath := func(a, b File) int { return cmp.Compare(a.Path, b.Path) }
	made := map[string]bool{".": true}
	for _, file := range slices.SortedStableFunc(slices.Values(files), byPath) {
		if !path.IsAbs(file.Path) || path.Clean(file.Path) != file.Path {
			return fmt.Errorf("%s: not an absolute, clean path", file.Path)
		}
		name := strings.TrimPrefix(file.Path, "/")
		if err := writeFolders(out, path.Dir(name), made); err != nil {
			return err
		}
		if made[name] {
			return fmt.Errorf("%s: named twice", file.Path)
		}
		made[name] = true
		if err := writeFile(out, name, file); err != nil {
			return fmt.Errorf("%s: %w", file.Path, err)
		}
	}
	return nil
}

func writeFolders(out *tar.Writer, name string, made map[string]bool) error {
	if made[name] {
		return nil
	}
	if err := writeFolders(out, path.Dir(name), made); err != nil {
		return err
	}
	made[name] = true
	return out.WriteHeader(&tar.Header{
		Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: epoch, Format: tar.FormatPAX,
	})
}

func writeFile(out *tar.Writer, name string, file File) error {
	f, err := os.Open(file.Source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: not a regular file", file.Source)
	}
	if err := out.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: info.Size(),
		Mode: int64(file.Mode.Perm()), ModTime: epoch, Format: tar.FormatPAX,
	}); err != nil {
		return err
	}
	_, err = io.Copy(out, f)
	return err
}
