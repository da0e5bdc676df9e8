// Package volume keeps volumes on a host: file systems of a size that is a limit, which
// machines see as folders. DESIGN.md says how and why.
//
// It promises that a volume is there as it was left, or not at all: an empty one never takes
// the place of one whose disk is away. What is in it is destroyed by Remove alone.
//
// Parties: the node's agent calls it; modules/machine gives each machine the folder in
// which volumes appear. Only package appliance may import it.
package volume

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/disk"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// Config says where things are.
type Config struct {
	Dir      string   // the pool that each host has: a folder for each volume; survives a reboot
	Pools    string   // a folder for each disk that is a pool, where it is mounted
	Others   []string // folders that are the platform's: no pool is in one of them, or around it
	Machines string   // a folder for each machine, with one in it in which its volumes appear
	Bricks   string   // a tmpfs, somebody else's, in which bricks appear
	Shared   Mounts   // of shared volumes
	Mark     string   // a file by which the host knows the disk that Dir is on; on another than that
	// Tools is the root file system of a Debian with mkfs.xfs. It may block for seconds.
	Tools func(ctx context.Context) (root string, err error)
	// Encryption is how volumes are encrypted.
	Encryption Encryption
	// HostUser is the host's user that root in machines is, of whom the server says that it
	// is first: 0, where the host can't do better.
	HostUser func(first uint32) (uint32, error)
	// Fetch asks the host that has a volume for it, from an offset on: what that one's Send writes.
	Fetch func(ctx context.Context, v wire.Volume, from int64) (io.ReadCloser, error)
	// MachineUser is the host's user that root in this machine is; 0: the host's own root.
	MachineUser func(machine string) (uint32, error)
	Log         *slog.Logger
}

// Mounts are those of shared volumes, which others serve: of each, one for each machine. Implemented by
// package appliance, with embed/gluster. Nobody who serves one is waited for.
type Mounts interface {
	// Device is the number of the device that a volume is for a machine. fs.ErrNotExist: it isn't mounted.
	Device(volume, machine string) (uint64, error)
	// Take returns that mount, as one that is nowhere yet (open_tree(2)). The caller closes it.
	Take(volume, machine string) (*os.File, error)
}

// Host is the volumes of this host. Calls for one volume, those for its attachments apart,
// follow one another; all others may be concurrent.
type Host struct {
	cfg Config

	marking sync.Mutex // of the host's own pool
	own     *pool

	knowing sync.Mutex       // as pool.mu
	pools   map[string]*pool // the others, by UID
	where   map[string]*pool // what was asked for by volumes' UIDs; all else is in the host's own

	recording sync.Mutex // from when a record is read until it is written

	thawing sync.Mutex
	thawed  map[string]bool // by UID

	blocking map[string]*sync.Mutex // whose node is shown or closed, by UID; under mu
	numbers  diskimage.Numbers      // of the devices of raw blocks

	mu     sync.Mutex
	copies map[string]*copying // that are being made, or have ended and nobody has looked since; by UID
	files  map[string]*fileWork
	rests  map[string]pause // until when none is made of raw blocks that are written to all the time; by UID
	// crowded says that something waits to come from another host since one has made way.
	crowded bool
	closed  bool                           // none are begun any more
	asked   map[string]*asker[int64]       // what file systems have in use, by UID
	disks   map[disk.Device]*asker[string] // which file systems are on the host's disks
	told    map[string]bool                // what the log has of errors
}

// New changes nothing on the host.
func New(cfg Config) *Host {
	return &Host{cfg: cfg, own: &pool{name: resource.DefaultPool, dir: cfg.Dir}, pools: map[string]*pool{},
		where: map[string]*pool{}, asked: map[string]*asker[int64]{}, told: map[string]bool{}, copies: map[string]*copying{},
		files: map[string]*fileWork{}, thawed: map[string]bool{}, blocking: map[string]*sync.Mutex{}, rests: map[string]pause{},
		numbers: diskimage.Numbers{File: filepath.Join(filepath.Dir(cfg.Mark), "loops.json")}}
}

// Run ends the copies that are being made when ctx is done, so that nothing stays frozen while no
// process is there.
func (h *Host) Run(ctx context.Context, ready func()) error {
	ready()
	<-ctx.Done()
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	if err := h.endCopies(""); err != nil {
		h.cfg.Log.Warn("copies of volumes", "err", err)
	}
	return nil
}

// Traces are what volumes are on a host, kept in these folders: its own pool's, and those of other pools.
func Traces(pools ...string) inventory.Traces {
	owner := func(name string) inventory.Owner {
		if checkUID("volume", name) != nil { // the pool's mark, lost+found
			return inventory.Appliance
		}
		return inventory.Volume(name)
	}
	t := inventory.Traces{Closed: pools}
	for _, dir := range pools {
		t.Folders = append(t.Folders, inventory.OwnedFolder{Dir: dir, Owner: owner, HalfWritten: true})
	}
	return t
}

// place is the folder of a volume's things. Nothing in it is a tenant's but what is below mount.
type place string

func (p place) at(name string) string { return filepath.Join(string(p), name) }

// image is that of a volume with a file system; see blocks for others.
func (p place) image() diskimage.Image {
	return diskimage.Image{File: p.at("disk.img"), Mount: p.at("mount")}
}

func (h *Host) place(uid string) place { return h.poolOf(uid).place(uid) }

// shown is where a machine's volumes appear, or one of them.
func (h *Host) shown(machine string, volume ...string) string {
	return filepath.Join(append([]string{h.cfg.Machines, machine, wire.VolumesOfMachine}, volume...)...)
}

// record is what is kept of a volume beside its disk, for whoever finds it.
type record struct {
	Key       string `json:"key"`
	UID       string `json:"uid"`
	NetworkID string `json:"networkId"`
	// Owned says that its root was given to its owner, who may have done with it since what
	// he likes.
	Owned bool `json:"owned"`
	// Brick says that it is a part of a shared volume: what is below brickRoot belongs to
	// GlusterFS.
	Brick bool `json:"brick,omitempty"`
	// Source is the UID of what it was made from.
	Source string `json:"source,omitempty"`
	// Encrypted says that its disk is. The key is nowhere on this host.
	Encrypted bool `json:"encrypted,omitempty"`
	// Block says that its disk has no file system. What its file is called says so for certain: see blocks.go.
	Block bool `json:"block,omitempty"`
	// Snapshot says that it is a copy that nobody mounts.
	Snapshot bool `json:"snapshot,omitempty"`
	// HostUsers says that it was made when machines here had no users of their own: files in it
	// belong to the host's users 0 and up. A machine that has users of its own sees them as those.
	HostUsers bool `json:"hostUsers,omitempty"`
	// Move is the ID of the move by which its disk came to this host, or comes.
	Move string `json:"move,omitempty"`
	// Import says how far it is of one that is made from a file: nobody sees it before that is done.
	Import string `json:"import,omitempty"`
}

const recordName = "volume.json"

func (p place) record() (r record, err error) {
	data, err := os.ReadFile(p.at(recordName))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%s: %w", p.at(recordName), err)
	}
	return r, nil
}

// noted is the record of a volume, which is written if it is not as it shall be.
func (h *Host) noted(v wire.Volume, made, brick bool) (record, error) {
	p := h.place(v.UID)
	h.recording.Lock()
	defer h.recording.Unlock()
	rec, err := p.record()
	if err != nil {
		rec.Owned = made // the record of one that was made is lost
	}
	// The root of a copy is whose its source's is.
	want := record{Key: v.Key, UID: v.UID, NetworkID: v.NetworkID, Owned: rec.Owned || v.Source != "",
		Brick: brick, Source: v.Source, Encrypted: v.Encrypted, HostUsers: h.ofHostUsers(v, rec, made), Move: rec.Move,
		Import: rec.Import, Block: v.Block}
	if v.Importing {
		want.Import = cmp.Or(rec.Import, importBegun)
	}
	if v.Incoming {
		want.Move = v.Arrival()
	}
	if err == nil && rec == want {
		return rec, nil
	}
	return want, cmp.Or(os.MkdirAll(string(p), 0o700), atomicfile.WriteJSON(p.at(recordName), want))
}

// Ensure makes a volume, or finds it there, and mounts it. One that shall be larger grows while
// it is used; none shrinks. It blocks for some tenths of a second, and up to ten seconds when
// somebody has the disk still. A snapshot, or a volume that is made from something, comes at once
// where disks share blocks; elsewhere the error says how far it is copied.
func (h *Host) Ensure(ctx context.Context, v wire.Volume) error {
	err := cmp.Or(checkUID("volume", v.UID), checkSize(v.SizeBytes))
	if err == nil {
		err = h.ensure(ctx, v, false)
	}
	kind := "volume "
	if v.Snapshot {
		kind = "snapshot "
	}
	return h.outward(kind+cmp.Or(v.Key, v.UID), err)
}

func (h *Host) ensure(ctx context.Context, v wire.Volume, brick bool) error {
	if err := h.locate(v); err != nil {
		return err
	}
	if err := h.begin(v); err != nil {
		return err
	}
	if v.Snapshot {
		return h.snapshot(ctx, v)
	}
	if v.Incoming {
		return h.receive(ctx, v)
	}
	if err := h.thaw(v.UID); err != nil {
		return err
	}
	p := h.place(v.UID)
	disk := h.disk(v)
	there, err := h.there(v)
	if err != nil {
		return err
	}
	if !there && v.Made {
		return h.said(missing, &os.PathError{Op: "stat", Path: disk.File, Err: fs.ErrNotExist})
	}
	if v.Block && (brick || v.Encrypted || v.Importing) {
		return saidf("raw blocks are of local volumes that are not encrypted, and no files come into them")
	}
	if there {
		if err := h.arrived(v); err != nil {
			return err
		}
	}
	if was, err := p.record(); err == nil && was.Source != "" && v.Source == "" && !there {
		return saidf("it was to be made from another volume or a snapshot, and is not made empty instead")
	}
	rec, err := h.noted(v, there, brick)
	if err != nil {
		return err
	}
	if rec.Import == importBegun && !v.Importing {
		return saidf("its file is not unpacked to the end")
	}
	if !there {
		failpoint.Reach("volume/make/recorded")
		if err := os.Remove(p.at(importNote)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if !there && v.Source != "" {
		if err := h.bring(ctx, v); err != nil {
			return err
		}
		there = true
	}
	if v.Block {
		return h.ensureBlocks(ctx, v, rec)
	}
	_, mounted, err := device(disk.Mount)
	if errors.Is(err, unix.EIO) {
		// XFS shuts itself down when the disk below fails, or is full. To be mounted anew mends it.
		h.cfg.Log.Warn("volume's file system has stopped after an error of the disk below; mounting it anew", "uid", v.UID)
		err = h.letGo(v.UID)
	}
	if err != nil {
		return err
	}
	if !mounted {
		if err := h.hide(v.UID); err != nil { // a brick's, if only that is left
			return err
		}
		if err := h.mount(ctx, v, disk, there); err != nil {
			return err
		}
	}
	if brick {
		// Whoever a machine's root makes files for, and whatever they may be there: here they are the
		// host's users.
		err := hostmount.Do(func() error {
			return unix.MountSetattr(unix.AT_FDCWD, disk.Mount, 0, &unix.MountAttr{
				Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC})
		})
		if err != nil {
			return &os.PathError{Op: "mount_setattr", Path: disk.Mount, Err: err}
		}
	}
	if !rec.Owned {
		failpoint.Reach("volume/make/mounted")
		root, first := disk.Mount, uint32(0)
		if brick { // what is root's in a machine is 0's in a brick
			root = filepath.Join(root, brickRoot)
		} else if first, err = h.cfg.HostUser(v.FirstUID); err != nil {
			return fmt.Errorf("users of its machines: %w", err)
		}
		err = hostmount.Do(func() error {
			return cmp.Or(os.MkdirAll(root, 0o700), os.Chown(root, int(first), int(first)), os.Chmod(root, 0o755))
		})
		if err != nil {
			return err
		}
		rec.Owned, rec.HostUsers = true, first == 0 && !brick
		if err := atomicfile.WriteJSON(p.at(recordName), rec); err != nil {
			return err
		}
		h.cfg.Log.Info("volume made", "volume", v.Key, "uid", v.UID)
	}
	if err := disk.Grow(ctx, wholeMiB(v.SizeBytes)); err != nil && !errors.Is(err, diskimage.ErrShrink) {
		return err
	}
	return nil
}

// mount mounts a volume, made before if it is not there.
func (h *Host) mount(ctx context.Context, v wire.Volume, disk diskimage.Image, there bool) error {
	tools, size := "", int64(0)
	if !there {
		var err error
		size = wholeMiB(v.SizeBytes)
		if tools, err = h.cfg.Tools(ctx); err != nil {
			return err
		}
	}
	if err := disk.Ensure(ctx, size, tools); err != nil {
		if errors.Is(err, diskimage.ErrInUse) {
			return h.said("its file system had stopped, and somebody has it open still: delete the pods that use it", err)
		}
		return err
	}
	return nil
}

// letGo unmounts a volume, and where machines have it.
func (h *Host) letGo(uid string) error {
	// First: it needs nothing of the disk, which may be lost.
	if err := h.closeNode(uid); err != nil {
		return err
	}
	if err := cmp.Or(h.endCopies(uid), h.endFile(uid, true)); err != nil {
		return err
	}
	if err := h.thaw(uid); err != nil { // what is unmounted frozen keeps its disk
		return err
	}
	attached, err := h.Attached()
	if err != nil {
		return err
	}
	for _, a := range attached[uid] {
		if err := h.detach(uid, a.MachineUID); err != nil {
			return err
		}
	}
	if err := h.hide(uid); err != nil {
		return err
	}
	if err := h.closeBlocks(uid); err != nil {
		return err
	}
	if err := hostmount.Unmount(string(h.place(uid))); err != nil {
		return err
	}
	return h.release(uid)
}

// Keep puts a volume away that is in the trash: no machine sees it, nothing of it is mounted, and what
// is in it stays. It blocks for up to ten seconds while somebody has it open, and fails then.
func (h *Host) Keep(ctx context.Context, v wire.Volume) error {
	err := checkUID("volume", v.UID)
	if err == nil {
		err = h.keep(ctx, v)
	}
	return h.outward("keep volume "+cmp.Or(v.Key, v.UID), err)
}

func (h *Host) keep(ctx context.Context, v wire.Volume) error {
	if err := h.locate(v); err != nil {
		return err
	}
	disk := h.place(v.UID).stored()
	if there, err := exists(disk.File); err != nil {
		return err
	} else if !there {
		return h.said(missing, &os.PathError{Op: "stat", Path: disk.File, Err: fs.ErrNotExist})
	}
	if _, err := h.noted(v, true, false); err != nil {
		return err
	}
	// One that is put away already may be being copied, which letGo would end.
	put, err := h.putAway(v.UID)
	if err == nil && !put {
		err = h.letGo(v.UID)
	} else if err == nil {
		err = cmp.Or(h.closeBlocks(v.UID), h.release(v.UID))
	}
	if err != nil {
		return err
	}
	if err := diskimage.AwaitFree(ctx, disk.File); err != nil {
		return h.said("somebody in a machine has it open still: delete the pods that use it", err)
	}
	return nil
}

// putAway says whether no machine has a volume, and nothing of it is mounted.
func (h *Host) putAway(uid string) (bool, error) {
	attached, err := h.Attached()
	if err != nil || len(attached[uid]) > 0 {
		return false, err
	}
	mounted, err := hostmount.Has(h.place(uid).image().Mount)
	return !mounted, err
}

// Remove destroys what is in a volume and takes everything of it away, from whatever state
// it is in, also from those who use it. None there is no error.
func (h *Host) Remove(ctx context.Context, v wire.Volume) error {
	err := checkUID("volume", v.UID)
	if err == nil {
		err = h.remove(ctx, v)
	}
	return h.outward("remove volume "+v.UID, err)
}

func (h *Host) remove(ctx context.Context, v wire.Volume) error {
	uid := v.UID
	err := h.locate(v)
	if h.isLost(v.Pool) {
		return h.letGo(uid) // of what is mounted still; what is in it went with its disk
	}
	if err != nil {
		return err // what isn't there is not removed
	}
	if err := cmp.Or(h.endCopies(uid), h.endFile(uid, true)); err != nil {
		return err
	}
	p := h.place(uid)
	disk := p.image()
	mounted, err := hostmount.Has(disk.Mount)
	if err != nil {
		return err
	}
	raw, err := exists(h.blocks(uid).File)
	if err != nil {
		return err
	}
	if raw {
		if err := cmp.Or(h.closeNode(uid), h.blocks(uid).ShutDown()); err != nil {
			return err
		}
	} else if mounted {
		if err := h.thaw(uid); err != nil {
			return err
		}
		// Root in a machine may have it mounted where nobody else can take it away. Once it is shut
		// down nobody writes to it any more, and its room is given back now.
		if err := disk.ShutDown(); err != nil {
			return err
		}
		failpoint.Reach("volume/remove/shut-down")
		if err := os.Truncate(disk.File, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := h.letGo(uid); err != nil {
		return err
	}
	failpoint.Reach("volume/remove/unmounted")
	if err := cmp.Or(diskimage.AwaitFree(ctx, disk.File), diskimage.AwaitFree(ctx, h.blocks(uid).File)); err != nil {
		return h.said("its data is gone, but somebody in a machine holds on to it still: that is over at the latest "+
			"when the machine is removed or started anew", err)
	}
	raws := h.blocks(uid).File
	for _, file := range []string{disk.File, disk.File + diskimage.Partial, raws, raws + diskimage.Partial} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	failpoint.Reach("volume/remove/disk-deleted")
	// The folder last: as long as it is there, List shows the volume. This takes no folder away in
	// which something is.
	if err := os.Remove(disk.Mount); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	there, err := exists(string(p))
	if err != nil {
		return err
	}
	if there {
		if err := os.RemoveAll(string(p)); err != nil {
			return err
		}
		h.cfg.Log.Info("volume removed", "uid", uid)
	}
	h.mu.Lock()
	delete(h.rests, uid)
	delete(h.blocking, uid)
	h.mu.Unlock()
	if h.poolOf(uid) != h.own {
		return nil
	}
	return h.unmarkPool()
}

// wholeMiB is a size that no block or sector divides otherwise, at least n.
func wholeMiB(n int64) int64 { return (n + 1<<20 - 1) >> 20 << 20 }

func checkSize(n int64) error {
	if n < resource.MinVolumeBytes {
		return saidf("%d bytes: a volume has %d at least", n, int64(resource.MinVolumeBytes))
	}
	return nil
}

// checkUID keeps what becomes a folder's name from leading elsewhere.
func checkUID(what, uid string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-"
	if uid == "" || len(uid) > 128 || strings.Trim(uid, letters) != "" || uid[0] == '-' {
		return saidf("%s UID %q: want letters, digits and dashes", what, uid)
	}
	return nil
}

func exists(name string) (bool, error) {
	_, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// device is what is mounted at dir, if something is. It may ask that: unix.EIO is of a file
// system that has stopped.
func device(dir string) (dev uint64, mounted bool, err error) {
	var above uint64
	err = hostmount.Do(func() (err error) {
		if dev, err = deviceOf(unix.AT_FDCWD, dir, 0); err == nil {
			above, err = deviceOf(unix.AT_FDCWD, filepath.Dir(dir), 0)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	return dev, dev != above, nil
}

// deviceOf is the device of what a path leads to. Nobody who serves a file system from elsewhere is
// waited for.
func deviceOf(at int, name string, flags int) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(at, name, flags|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return 0, &os.PathError{Op: "statx", Path: name, Err: err}
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor), nil
}
