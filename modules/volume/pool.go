package volume

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/disk"
	"github.com/multipaas/multipaas/modules/wire"
)

// pool is a folder in which there is one for each volume.
type pool struct {
	uid, name, dir string // no UID: the host's own
	want           wire.Pool

	asking asker[room]
	health health
	// askPresent is apart, for it is asked often.
	askPresent asker[struct{}]

	mu      sync.Mutex // nothing that asks a disk is done with it
	reflink *bool      // nil: it was not found out yet
	// What EnsurePool has found last.
	device  disk.Device
	note    string
	problem error
	tried   bool // see resource.Pool
	looked  bool // it has looked
}

func (p *pool) place(uid string) place { return place(filepath.Join(p.dir, uid)) }

// markName is the file that tells a pool's disk from the folder that it is mounted at.
const markName = "pool.json"

// mark is in a pool with volumes, and beside what else the host keeps: both, or the pool's disk
// is away.
type mark struct {
	ID string `json:"id"`
}

func readMark(file string) (m mark, err error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("%s: %w", file, err)
	}
	return m, nil
}

// markIn is the pool's own mark.
func (p *pool) markIn() string { return filepath.Join(p.dir, markName) }

// present says why a pool is not there. The host's own is, if it has not heard of it.
func (h *Host) present(p *pool) error {
	if p != h.own {
		return p.present()
	}
	known, err := readMark(h.cfg.Mark)
	if err != nil || known.ID == "" {
		return err
	}
	own, err := readMark(h.own.markIn())
	if err != nil || own == known {
		return err
	}
	return fmt.Errorf("%w at %s: mount it there; if it is lost for good, delete the file %s, and then "+
		"the volumes that were on it", errAway, h.cfg.Dir, h.cfg.Mark)
}

var errAway = errors.New("the disk with volumes is not")

// begin makes the folder of a volume that is new, in a pool that is marked as one that has volumes:
// as one step, or who removes the last of the others would take the mark away in between.
func (h *Host) begin(v wire.Volume) error {
	at := h.poolOf(v.UID)
	if at == h.own {
		h.marking.Lock()
		defer h.marking.Unlock()
		if err := h.markPool(); err != nil {
			return err
		}
	}
	if v.Made {
		return nil
	}
	return os.MkdirAll(string(at.place(v.UID)), 0o700)
}

// markPool marks the pool as one that has volumes, before it has any. The caller holds h.marking.
func (h *Host) markPool() error {
	known, err := readMark(h.cfg.Mark)
	if err != nil || known.ID != "" {
		return err
	}
	own, err := readMark(h.own.markIn())
	if err != nil {
		return err
	}
	if own.ID == "" {
		own.ID = rand.Text()
		if err := os.MkdirAll(h.cfg.Dir, 0o700); err != nil {
			return err
		}
		if err := atomicfile.WriteJSON(h.own.markIn(), own); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(h.cfg.Mark), 0o700); err != nil {
		return err
	}
	return atomicfile.WriteJSON(h.cfg.Mark, own)
}

// unmarkPool forgets a pool that has no volumes.
func (h *Host) unmarkPool() error {
	h.marking.Lock()
	defer h.marking.Unlock()
	uids, err := h.own.uids()
	if err != nil || len(uids) > 0 {
		return err
	}
	for _, file := range []string{h.cfg.Mark, h.own.markIn()} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// uids are those of all volumes of which there is something.
func (p *pool) uids() (uids []string, err error) {
	entries, err := os.ReadDir(p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if e.IsDir() && checkUID("volume", e.Name()) == nil {
			uids = append(uids, e.Name())
		}
	}
	return uids, err
}

// room is what a look at a pool has found.
type room struct {
	volumes []found
	disk    unix.Statfs_t
	reflink bool
}

// found is a volume's folder.
type found struct {
	place      place
	uid        string
	rec        record
	err        error // of the record
	sizeBytes  int64
	takesBytes int64 // of the pool
}

// looked is what a look at one of the pools has found.
type looked struct {
	*pool
	room
	err error
}

// look looks at all pools. Disks that don't answer keep nobody waiting for more than lookTime.
func (h *Host) look() (all []looked) {
	pools := h.all()
	var answers []*answer[room]
	for _, p := range pools {
		answers = append(answers, p.asking.begin(func() (room, error) { return h.roomIn(p) }))
	}
	patience := time.After(lookTime)
	for i, p := range pools {
		r, err := answers[i].get(patience, aDisk)
		if errors.Is(err, errSilent) {
			closed := make(chan time.Time)
			close(closed)
			patience = closed // it is over
		}
		all = append(all, looked{p, r, err})
	}
	return all
}

const aDisk = "the disk with volumes"

func (h *Host) roomIn(p *pool) (r room, err error) {
	if err := h.present(p); err != nil {
		return r, err
	}
	if p == h.own {
		if err := os.MkdirAll(p.dir, 0o700); err != nil {
			return r, err
		}
	}
	if err := unix.Statfs(p.dir, &r.disk); err != nil {
		return r, &os.PathError{Op: "statfs", Path: p.dir, Err: err}
	}
	r.reflink = h.canReflink(p)
	uids, err := p.uids()
	for _, uid := range uids {
		f := found{uid: uid, place: p.place(uid)}
		f.rec, f.err = f.place.record()
		if info, err := os.Stat(f.place.stored().File); err == nil {
			f.sizeBytes = sizeOf(info, f.rec.Encrypted)
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				f.takesBytes = st.Blocks * 512
			}
		}
		r.volumes = append(r.volumes, f)
	}
	return r, err
}

// answers says why a pool is not there, or does not answer within lookTime.
func (h *Host) answers(p *pool) error {
	_, err := p.askPresent.ask(time.After(lookTime), aDisk, func() (none struct{}, err error) {
		return none, h.present(p)
	})
	return err
}

// canReflink says whether files in a pool can share blocks. It is found out once, and may take as long as the disk does: who
// waits for p.mu doesn't.
func (h *Host) canReflink(p *pool) bool {
	p.mu.Lock()
	known := p.reflink
	p.mu.Unlock()
	if known != nil {
		return *known
	}
	err := tryReflink(p.dir)
	for _, e := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EINVAL, unix.EXDEV, unix.EISDIR, unix.ENOENT} {
		if err == nil || errors.Is(err, e) {
			p.mu.Lock()
			p.reflink = new(err == nil)
			p.mu.Unlock()
			break
		}
	}
	return err == nil // any other error passes
}

// tryReflink has two files without names share a block.
func tryReflink(dir string) error {
	var files [2]*os.File
	for i := range files {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		files[i] = os.NewFile(uintptr(fd), dir)
		defer files[i].Close()
	}
	if _, err := files[0].Write(make([]byte, 4096)); err != nil {
		return err
	}
	return unix.IoctlFileClone(int(files[1].Fd()), int(files[0].Fd()))
}

// Trouble is what is wrong with a pool, for problems: its name, and for each of PoolAway, PoolFilling, PoolFull
// and PoolAiling an error, or nil.
type Trouble struct {
	Pool                        string
	Away, Filling, Full, Ailing error
}

// Troubles says how all pools are. Of the host's own nothing is said if no volumes are in it. It blocks for lookTime at most.
func (h *Host) Troubles() (all []Trouble) {
	for _, l := range h.look() {
		t := Trouble{Pool: l.dir, Away: l.err}
		if l.err == nil && (l.pool != h.own || len(l.volumes) > 0) {
			free := l.disk.Bavail
			used := l.disk.Blocks - l.disk.Bfree
			percent := used * 100 / max(used+free, 1) // as df says it
			text := fmt.Errorf("%d %% of %s are used, %.1f GiB are free", percent, l.dir, float64(int64(free)*l.disk.Bsize)/(1<<30))
			switch {
			case percent >= fullPercent:
				t.Full = text
			case percent >= fillingPercent:
				t.Filling = text
			}
			t.Ailing = h.ailing(l.pool)
		}
		all = append(all, t)
	}
	return all
}
