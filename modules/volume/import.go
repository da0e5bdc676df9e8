package volume

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/internal/archive"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

const (
	// importNote is the file beside a volume's disk that says how much of its file is in it.
	importNote = "import.json"
	// noteEvery is how often it is written, after all before it is on the disk: who is cut off has so much to send again.
	noteEvery = 5 * time.Second
)

// importing is how far an import is. All that it says is there is on the disk.
type importing struct {
	archive.State
	About bool `json:"about"` // the first member was read
	// Broken is why it can't be gone on with, as tenants may read it.
	Broken string `json:"broken,omitempty"`
	// Done says of a shared volume that all is in it. Of a local one its record does.
	Done bool `json:"done,omitempty"`
}

func (p place) importing() (n importing, err error) {
	data, err := os.ReadFile(p.at(importNote))
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &n)
	}
	return n, err
}

// How far a volume's import is, in its record.
const (
	importBegun = wire.ImportBegun
	importDone  = wire.ImportDone
)

// fetchFile asks for a file, from an offset on.
type fetchFile = func(ctx context.Context, from int64) (io.ReadCloser, error)

// tellImport says how far a volume is.
func (h *Host) tellImport(p place) (state, message string) {
	note, err := p.importing()
	switch {
	case err != nil:
		return importBegun, h.words("how far it is can't be read", err).Error()
	case note.Broken != "":
		return wire.ImportBroken, note.Broken
	case note.Done:
		return importDone, ""
	}
	return importBegun, resource.Bytes.Text(note.Offset) + " of its file have come: go on with `mp volumes import`"
}

// Import unpacks a file into a volume that Importing says is to be made from one. fetch asks for the file, from an offset
// on; nobody has seen the volume before all of it is there. Like Export it ends after fileTurn, and goes on where it is.
func (h *Host) Import(ctx context.Context, v wire.Volume, fetch fetchFile) error {
	err := checkUID("volume", v.UID)
	if err == nil {
		err = h.importFile(ctx, v, fetch)
	}
	return h.outward("import volume "+v.Key, err)
}

func (h *Host) importFile(ctx context.Context, v wire.Volume, fetch fetchFile) error {
	disk := v
	if v.Class == resource.SharedVolume { // how far it is stands beside one of its bricks, and goes with that
		if err := checkUID("brick", v.Brick); err != nil {
			return err
		}
		disk.UID = v.Brick
	}
	if err := h.locate(disk); err != nil {
		return err
	}
	p := h.place(disk.UID)
	work, turn, err := h.beginFile(ctx, disk.UID, v.NetworkID)
	if err != nil {
		return err
	}
	defer h.restFile(disk.UID, work)
	rec, err := p.record() // not before it is ours alone: another try may have ended meanwhile, with all that there is
	if errors.Is(err, fs.ErrNotExist) || err == nil && !rec.Owned {
		return saidf("its host has not made it yet")
	}
	if err != nil {
		return err
	}
	note, err := p.importing()
	switch {
	case err != nil:
		return err
	case note.Broken != "":
		return saidf("%s", note.Broken)
	case note.Done || rec.Import != importBegun && !rec.Brick:
		return saidf("all of its file is there already")
	}
	u := &unpacker{place: p, note: note, noted: time.Now()}
	defer u.close()
	if rec.Brick {
		err = h.intoShared(u, v)
	} else {
		err = h.intoLocal(u, v, rec)
	}
	if err != nil {
		return err
	}
	whole, err := u.run(turn, fetch)
	err = u.fullShared(err)
	var said saidError
	why := brokenBy(err)
	switch {
	case whole:
	case why != "":
		h.cfg.Log.Info("import refused", "volume", v.Key, "uid", v.UID, "err", err)
		return cmp.Or(atomicfile.WriteJSON(p.at(importNote), importing{Broken: why}), error(saidf("%s", why)))
	case errors.As(err, &said):
		return h.said(said.text, err)
	case turn.Err() != nil && ctx.Err() == nil:
		return saidf("its turn is over, and it goes on where it ended")
	default:
		return h.said("it was cut off, and goes on where it ended", err)
	}
	failpoint.Reach("volume/import/unpacked")
	if rec.Brick {
		err = onPool(atomicfile.WriteJSON(p.at(importNote), importing{Done: true}))
	} else {
		err = h.changeRecord(p, func(rec *record) { rec.Import = importDone })
	}
	if err == nil {
		h.cfg.Log.Info("volume imported", "volume", v.Key, "uid", v.UID)
	}
	return err
}

// intoLocal has an import go into a volume of this host.
func (h *Host) intoLocal(u *unpacker, v wire.Volume, rec record) (err error) {
	if !rec.HostUsers {
		if u.owners.first, err = h.cfg.HostUser(v.FirstUID); err != nil {
			return err
		}
	}
	u.root, err = openMount(u.place.image().Mount)
	return err
}

// brokenBy is why an import that failed so can't be gone on with, as tenants may read it; "" if it can.
func brokenBy(err error) string {
	var said saidError
	var unfit unfitError
	switch {
	case errors.As(err, &unfit):
		return unfit.text
	case errors.Is(err, archive.ErrFormat), errors.Is(err, errOdd):
		return "what was sent is no file of a volume, or damaged: delete the volume, and import another file"
	case errors.As(err, &said): // of the disk of the host (onPool), say
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return "the file has more in it than the volume holds: delete it, and import into a larger one"
	}
	return ""
}

// onPool is an error of the disk with volumes, which may be full: not of the volume.
func onPool(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC):
		return saidError{poolFull, err}
	}
	return saidError{poolTrouble, err}
}

// sync has all that was written be on the disk. What a local volume has no room for was refused before that.
func (u *unpacker) sync() error {
	if u.mark != "" {
		return u.syncShared()
	}
	return onPool(unix.Syncfs(int(u.root.Fd())))
}

// unpacker puts what is read where it belongs. Whoever made the file, no path leads out of the volume: the kernel walks
// it from the root, by no link, and over no mount (openat2).
type unpacker struct {
	place  place
	root   *os.File
	owners owners
	note   importing
	noted  time.Time
	in     *archive.Reader
	file   *os.File // the one that is being written
	mark   string   // see syncShared; "": it is a local volume
	tree   *os.File // of a shared one, what root is in
	pace   pace

	parent   *os.File // the folder of the last path
	parentOf string
}

func (u *unpacker) close() {
	for _, f := range []*os.File{u.parent, u.root, u.tree} {
		if f != nil {
			_ = f.Close()
		}
	}
}

var (
	// errOdd is of a file that says what can't be.
	errOdd = errors.New("a member can't be unpacked")
	// errCut is of a file that was cut off within a member, of which all that was read is written.
	errCut = errors.New("cut off")
)

func odd(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errOdd, fmt.Sprintf(format, args...))
}

// run unpacks until all is there, and then is whole, or something fails. Then what was unpacked is taken down.
func (u *unpacker) run(ctx context.Context, fetch fetchFile) (whole bool, err error) {
	body, err := fetch(ctx, u.note.Offset)
	if err != nil {
		return false, err
	}
	defer body.Close()
	defer context.AfterFunc(ctx, func() { _ = body.Close() })()
	var h *archive.Header
	if u.note.Offset == 0 {
		// What is there is of a try of which nothing was taken down, with another file, maybe.
		if err := u.empty(ctx); err != nil {
			return false, err
		}
		u.in = archive.NewReader(body)
	} else if u.in, h, err = archive.Resume(body, u.note.State); err != nil {
		return false, err
	}
	if h != nil && strings.HasPrefix(h.Path, archive.Root+"/") && h.Kind == archive.File {
		if err := u.data(ctx, h, false); err != nil {
			return false, u.failed(err)
		}
	}
	for {
		if err := u.checkpoint(context.Cause(ctx) != nil); err != nil {
			return false, err
		}
		h, err := u.in.Next()
		if err != nil {
			return false, err // a header is read anew: what was taken down last is before it
		}
		if h.Path == archive.EndName {
			return u.ends(h)
		}
		if err := u.member(ctx, h); err != nil {
			return false, u.failed(err)
		}
	}
}

// failed is err, once what is there is taken down.
func (u *unpacker) failed(err error) error {
	if errors.Is(err, errCut) {
		return errors.Join(err, u.checkpoint(true))
	}
	if u.mark != "" && errors.Is(err, unix.ENAMETOOLONG) { // a local one has longer ones
		return errors.Join(unfitError{"the file has a path in it that is too long for a shared volume: " +
			"import it into one of class local"}, err)
	}
	return err
}

// checkpoint takes down where it is, once all before is on the disk.
func (u *unpacker) checkpoint(now bool) error {
	if !now && time.Since(u.noted) < noteEvery {
		return nil
	}
	began := time.Now()
	s, err := u.in.State()
	if err == nil {
		err = u.sync()
	}
	if err != nil {
		return err
	}
	u.note.State, u.noted = s, time.Now()
	u.pace.worked += time.Since(began)
	return onPool(atomicfile.WriteJSON(u.place.at(importNote), u.note))
}

// ends compares the sum.
func (u *unpacker) ends(h *archive.Header) (whole bool, err error) {
	sum := fmt.Sprintf("%x", u.in.SumBefore())
	var end archive.End
	text, err := u.small(h)
	if err == nil && json.Unmarshal(text, &end) != nil {
		err = odd("its end can't be read")
	}
	if err != nil {
		return false, err
	}
	if end.SHA256 != sum || !u.note.About {
		return false, odd("its sum is %s, and should be %s", sum, end.SHA256)
	}
	if err := u.sync(); err != nil {
		return false, err
	}
	return true, nil
}

// small reads a member of ours.
func (u *unpacker) small(h *archive.Header) ([]byte, error) {
	if h.Kind != archive.File || h.Extents != nil || h.Size > 1<<20 {
		return nil, odd("%s is no text", h.Path)
	}
	text := make([]byte, h.Size)
	_, err := io.ReadFull(u.in, text)
	return text, err
}

func (u *unpacker) member(ctx context.Context, h *archive.Header) error {
	began := time.Now()
	defer func() { u.pace.did(ctx, began, 0) }()
	switch {
	case h.Path == archive.AboutName && !u.note.About:
		var about archive.About
		text, err := u.small(h)
		if err == nil && (json.Unmarshal(text, &about) != nil || about.Format != archive.Format) {
			err = odd("its format is %.100q", about.Format)
		}
		u.note.About = err == nil
		return err
	case !u.note.About:
		return odd("it does not begin with %s", archive.AboutName)
	case h.Path == archive.SummaryName:
		return nil
	case h.Path == archive.Root:
		if h.Kind != archive.Folder {
			return odd("its root is no folder")
		}
		return u.attributes(u.root, h)
	}
	at, ok := strings.CutPrefix(h.Path, archive.Root+"/")
	if !ok || path.Clean(at) != at || strings.HasPrefix(at, "/") || at == ".." || strings.HasPrefix(at, "../") || at == "." {
		return odd("%.200q is no path in it", h.Path)
	}
	if u.mark != "" && (ofGluster(at) || at == u.mark) {
		return unfitError{"the file has something in it that is called " + at + ", as nothing in a shared volume can be: " +
			"delete the volume, and import into one of class " + resource.LocalVolume}
	}
	dir, name, err := u.within(at)
	if err != nil {
		return err
	}
	if h.Kind == archive.Folder {
		return u.folder(dir, name, h)
	}
	if h.Kind == archive.File {
		return u.data(ctx, h, true)
	}
	// What was unpacked after the last note is unpacked again.
	if err := unix.Unlinkat(dir, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return pathError("unlink", at, err)
	}
	switch h.Kind {
	case archive.Link:
		return u.link(dir, name, h)
	case archive.Symlink:
		if err := unix.Symlinkat(h.Target, dir, name); err != nil {
			return pathError("symlink", at, err)
		}
	case archive.Pipe:
		if err := unix.Mkfifoat(dir, name, 0o600); err != nil {
			return pathError("mkfifo", at, err)
		}
	}
	return u.named(dir, name, h)
}

// pathError is an error with a path of the tenant's. What says that there is no such path is of a file that says what
// can't be: all folders stand before what is in them.
func pathError(op, at string, err error) error {
	for _, e := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV, unix.EISDIR, unix.EEXIST, unix.EINVAL,
		unix.ENAMETOOLONG, unix.EPERM, unix.ENOTEMPTY, unix.EMLINK} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %s %.200q: %w", errOdd, op, at, err)
		}
	}
	return &os.PathError{Op: op, Path: at, Err: err}
}

// open walks to a path below the root.
func (u *unpacker) open(at string, flags uint64) (*os.File, error) {
	const most = unix.PathMax - 1
	from := u.root
	for {
		step, rest := at, ""
		if len(step) > most { // the kernel takes no longer ones
			i := strings.LastIndexByte(step[:most], '/')
			if i <= 0 {
				return nil, odd("a name is too long")
			}
			step, rest = at[:i], at[i+1:]
		}
		how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV}
		if rest == "" {
			how.Flags = flags | unix.O_NOFOLLOW | unix.O_CLOEXEC
		}
		fd, err := unix.Openat2(int(from.Fd()), step, how)
		if from != u.root {
			_ = from.Close()
		}
		if err != nil {
			return nil, pathError("open", at, err)
		}
		f := os.NewFile(uintptr(fd), at)
		if rest == "" {
			return f, nil
		}
		from, at = f, rest
	}
}

// within is the folder that a path is in, until it is called again, and the name there.
func (u *unpacker) within(at string) (dir int, name string, err error) {
	of, name := path.Split(at)
	if of == "" {
		return int(u.root.Fd()), name, nil
	}
	if u.parent == nil || u.parentOf != of {
		f, err := u.open(strings.TrimSuffix(of, "/"), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return 0, "", err
		}
		if u.parent != nil {
			_ = u.parent.Close()
		}
		u.parent, u.parentOf = f, of
	}
	return int(u.parent.Fd()), name, nil
}

func (u *unpacker) folder(dir int, name string, h *archive.Header) error {
	if err := unix.Mkdirat(dir, name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return pathError("mkdir", h.Path, err)
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", h.Path, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return u.attributes(f, h)
}

// link gives a file that is there another name.
func (u *unpacker) link(dir int, name string, h *archive.Header) error {
	to, ok := strings.CutPrefix(h.Target, archive.Root+"/")
	if !ok {
		return odd("a link to %.200q", h.Target)
	}
	f, err := u.open(to, unix.O_PATH)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return odd("a link to what is no file: %v", err)
	}
	if err := unix.Linkat(int(f.Fd()), "", dir, name, unix.AT_EMPTY_PATH); err != nil {
		return pathError("link", h.Path, err)
	}
	return nil
}

// data writes a file, or goes on with it.
func (u *unpacker) data(ctx context.Context, h *archive.Header, anew bool) error {
	dir, name, err := u.within(strings.TrimPrefix(h.Path, archive.Root+"/"))
	if err != nil {
		return err
	}
	flags := unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK
	if anew {
		if err := unix.Unlinkat(dir, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return pathError("unlink", h.Path, err)
		}
		flags |= unix.O_CREAT | unix.O_EXCL
	}
	fd, err := unix.Openat(dir, name, flags, 0o600)
	if err != nil {
		return pathError("open", h.Path, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	u.file = f
	defer func() { u.file = nil }()
	if err := f.Truncate(h.Size); err != nil {
		return pathError("truncate", h.Path, err)
	}
	chunk := make([]byte, readChunk)
	past := h.DataBytes() - u.in.Left()
	for _, part := range h.Parts() {
		at := min(past, part.Size)
		for past -= at; at < part.Size; {
			if err := context.Cause(ctx); err != nil {
				return fmt.Errorf("%w: %w", errCut, err)
			}
			n, err := u.in.Read(chunk[:min(int64(len(chunk)), part.Size-at)])
			if err != nil {
				return fmt.Errorf("%w: %w", errCut, err)
			}
			began := time.Now()
			if _, err := f.WriteAt(chunk[:n], part.Offset+at); err != nil {
				return err
			}
			at += int64(n)
			u.pace.did(ctx, began, n)
			if err := u.checkpoint(false); err != nil {
				return err
			}
		}
	}
	err = u.attributes(f, h)
	if err == nil && u.mark != "" {
		err = f.Sync()
	}
	return err
}
