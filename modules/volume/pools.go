package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/disk"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// minPool is the smallest disk that is worth being one.
const minPool = 1 << 30

// all are the pools, the host's own first.
func (h *Host) all() []*pool {
	h.knowing.Lock()
	defer h.knowing.Unlock()
	all := []*pool{h.own}
	for _, p := range h.pools {
		all = append(all, p)
	}
	slices.SortFunc(all[1:], func(a, b *pool) int { return strings.Compare(a.uid, b.uid) })
	return all
}

// know takes down that there shall be a pool.
func (h *Host) know(want wire.Pool) *pool {
	h.knowing.Lock()
	defer h.knowing.Unlock()
	p := h.pools[want.UID]
	if p == nil {
		p = &pool{uid: want.UID, dir: cmp.Or(want.Path, filepath.Join(h.cfg.Pools, want.UID))}
		h.pools[want.UID] = p
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.name, p.want = want.Name, want
	return p
}

// forget is the contrary of know.
func (h *Host) forget(uid string) {
	h.knowing.Lock()
	defer h.knowing.Unlock()
	delete(h.pools, uid)
	for volume, p := range h.where {
		if p.uid == uid {
			delete(h.where, volume)
		}
	}
}

func (h *Host) isLost(uid string) bool {
	h.knowing.Lock()
	defer h.knowing.Unlock()
	p := h.pools[uid]
	return p != nil && p.wanted().Lost
}

func (p *pool) wanted() wire.Pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.want
}

// poolOf is where a volume is, as far as it was asked for.
func (h *Host) poolOf(uid string) *pool {
	h.knowing.Lock()
	defer h.knowing.Unlock()
	return cmp.Or(h.where[uid], h.own)
}

// locate takes down in which pool a volume is, and what it is to be made from, and says why that is not there.
func (h *Host) locate(v wire.Volume) error {
	h.knowing.Lock()
	p := h.own
	if v.Pool != "" {
		p = h.pools[v.Pool]
	}
	if p != nil {
		h.where[v.UID] = p
		if v.Source != "" && !v.Made {
			h.where[v.Source] = p
		}
	}
	h.knowing.Unlock()
	switch {
	case p == nil:
		return h.said(poolTrouble, fmt.Errorf("volume %s is in the pool %s, which this host does not have", v.UID, v.Pool))
	case p.wanted().Lost:
		return saidf("it is lost with the disk that it was on")
	}
	if err := h.answers(p); err != nil {
		return h.said(poolTrouble, err)
	}
	return nil
}

// present says why a pool that an operator has given is not there.
func (p *pool) present() error {
	own, err := readMark(p.markIn())
	if err != nil || own.ID == p.uid {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return cmp.Or(p.problem, fmt.Errorf("%w there", errAway))
}

// Pools are where this host can have volumes, those that are away too: its own, and those that it shall have. Free and
// capacity are told in whole GiB. It blocks for lookTime at most.
func (h *Host) Pools(wanted []wire.Pool) (all []resource.Pool) {
	for _, w := range wanted {
		if checkUID("pool", w.UID) == nil && (!w.Removing || w.Lost) {
			h.know(w) // that what is in it is looked for from the beginning
		}
	}
	for _, p := range h.all()[1:] {
		if !slices.ContainsFunc(wanted, func(w wire.Pool) bool { return w.UID == p.uid }) {
			h.forget(p.uid) // one that was refused and asked for anew. What is on a disk stays
		}
	}
	for _, l := range h.look() {
		l.pool.mu.Lock()
		p := resource.Pool{Name: l.name, UID: l.uid, Path: l.dir, Device: l.device.Name, Serial: l.device.Serial, Note: l.note}
		problem := l.problem
		p.Tried = l.tried
		early := l.pool != h.own && !l.looked && !l.want.Made
		l.pool.mu.Unlock()
		p.Health = h.healthOf(l.pool)
		if l.pool != h.own && l.err == nil {
			l.err = problem
		}
		if l.err != nil && early { // that it isn't there yet is no answer to who asked for it
			continue
		}
		if l.err != nil {
			p.Message = l.err.Error()
			all = append(all, p)
			continue
		}
		p.Made, p.Copies, p.Reflink = l.pool != h.own, true, l.room.reflink
		p.SizeBytes, p.FreeBytes = int64(l.disk.Blocks)*l.disk.Bsize, int64(l.disk.Bavail)*l.disk.Bsize>>30<<30
		if l.pool != h.own {
			// What is free, and what volumes that were asked for have of it already: see the host's own capacity.
			capacity := int64(l.disk.Bavail) * l.disk.Bsize
			for _, f := range l.volumes {
				if h.poolOf(f.uid) == l.pool && (f.rec.Source == "" || !l.room.reflink) {
					capacity += f.takesBytes
				}
			}
			p.CapacityBytes = capacity >> 30 << 30
		}
		all = append(all, p)
	}
	return all
}

// knownFile says that a pool was here: nothing is made anew in its place, also if the server has not heard of it.
func (h *Host) knownFile(uid string) string {
	return filepath.Join(filepath.Dir(h.cfg.Mark), "pool-"+uid+".json")
}

// triedFile says that the consent to erase a disk for a pool was used. It stays for good, also if the pool goes: a server
// that was restored from a backup may ask for it again.
func (h *Host) triedFile(uid string) string {
	return filepath.Join(filepath.Dir(h.cfg.Mark), "erase-"+uid+".json")
}

// consent has the consent to erase a disk be used up, before anything is done with it: a disk that is in use now, or
// another by the same name after a reboot, must not be erased some day. It says whether it was used up before.
func (h *Host) consent(want *wire.Pool) (tried bool, err error) {
	used, err := readMark(h.triedFile(want.UID))
	if err != nil || used.ID == want.UID {
		want.Erase = ""
		return err == nil, err
	}
	if want.Erase == "" {
		return false, nil
	}
	return false, atomicfile.WriteJSON(h.triedFile(want.UID), mark{ID: want.UID})
}

// EnsurePool makes a pool, or finds it, and mounts it. Nothing that a disk or a folder holds is lost by that, unless
// the disk's serial number was given for it, which is good for one call; and none that was there is made anew. It blocks
// for seconds. The error is for operators.
func (h *Host) EnsurePool(ctx context.Context, want wire.Pool) error {
	if err := checkUID("pool", want.UID); err != nil {
		return err
	}
	p := h.know(want)
	tried, err := h.consent(&want)
	erase, known := tried || want.Erase != "", mark{}
	if err == nil {
		known, err = readMark(h.knownFile(want.UID))
	}
	made := want.Made || known.ID == want.UID
	if err == nil {
		if want.Device != "" {
			err = h.ensureDisk(ctx, p, want, made)
		} else {
			err = h.ensureFolder(p, want, made)
		}
	}
	if err == nil {
		err = p.present()
	}
	if err == nil && known.ID != want.UID {
		err = atomicfile.WriteJSON(h.knownFile(want.UID), mark{ID: want.UID})
	}
	if err != nil && erase && !made {
		err = fmt.Errorf("%w; --erase was consent to that one try: adding it again with --erase gives it anew", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problem, p.tried, p.looked = err, p.tried || erase, true
	return err
}

// ensureDisk mounts the disk of a pool, wherever it is now, or makes one of that which was named.
func (h *Host) ensureDisk(ctx context.Context, p *pool, want wire.Pool, made bool) error {
	mounted, err := hostmount.Has(p.dir)
	if err != nil {
		return err
	}
	if mounted {
		var st unix.Stat_t
		if err := hostmount.Do(func() error { return unix.Stat(p.dir, &st) }); !errors.Is(err, unix.EIO) {
			return cmp.Or(err, p.identify(want), p.marked(made))
		}
		// Its file system has stopped. To be mounted anew mends it, if the disk is there.
		if err := h.empty(p); err != nil {
			return err
		}
		if err := hostmount.Unmount(p.dir); err != nil {
			return err
		}
	}
	found, silent, err := h.withXFS(want.UID)
	switch {
	case err != nil:
		return err
	case len(found) > 1:
		return fmt.Errorf("%s and %s say both that they are this pool: one is a copy; take it away", found[0].Name, found[1].Name)
	case len(found) == 0 && made:
		or := ""
		if len(silent) > 0 {
			or = fmt.Sprintf(", or is one of %d that can't be read (%v)", len(silent), silent[0])
		}
		return fmt.Errorf("its disk is away%s, which was %s when it was made: nothing is made anew in its place; "+
			"if it is lost for good, say so: mp nodes storage remove NODE %s --lost", or, want.Device, want.Name)
	case len(found) == 0:
		d, err := disk.Open(want.Device)
		if i := slices.IndexFunc(silent, func(u unread) bool { return u.Device == d }); err == nil && i >= 0 {
			return silent[i]
		}
		d, err = free(want)
		if err != nil {
			return err
		}
		if err := h.format(ctx, d, want.UID); err != nil {
			return err
		}
		found = []disk.Device{d}
	}
	d := found[0]
	err = h.mountDisk(d, p.dir)
	if err != nil && !made {
		// A process was killed while it made the file system: nobody else's has this UUID.
		if by, inUse := d.InUse(); inUse != nil || by != "" {
			return cmp.Or(inUse, errors.New(by))
		}
		if err = h.format(ctx, d, want.UID); err == nil {
			err = h.mountDisk(d, p.dir)
		}
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", d.Name, err)
	}
	h.cfg.Log.Info("pool mounted", "pool", want.Name, "uid", want.UID, "device", d.Name)
	return cmp.Or(p.identify(want), p.marked(made))
}

// identify takes down what is mounted as a pool.
func (p *pool) identify(want wire.Pool) error {
	_, infos, err := hostmount.Infos(p.dir)
	if err != nil || len(infos) == 0 {
		return cmp.Or(err, fmt.Errorf("nothing is mounted at %s", p.dir))
	}
	d, err := disk.Open(infos[len(infos)-1].Source)
	if err != nil {
		return err
	}
	if is, err := d.XFS(); err != nil || is != want.UID {
		return cmp.Or(err, fmt.Errorf("something else is mounted at %s", p.dir))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.device = d
	return nil
}

// marked marks a pool that is new as what it is.
func (p *pool) marked(made bool) error {
	own, err := readMark(p.markIn())
	switch {
	case err != nil || own.ID == p.uid:
		return err
	case own.ID != "":
		return fmt.Errorf("%s is another pool", p.dir)
	case made:
		return fmt.Errorf("%w: the file %s is missing", errAway, p.markIn())
	}
	return atomicfile.WriteJSON(p.markIn(), mark{ID: p.uid})
}

// free is the device that shall become a pool, if it may.
func free(want wire.Pool) (disk.Device, error) {
	d, err := disk.Open(want.Device)
	if err != nil {
		return d, err
	}
	switch by, err := d.InUse(); {
	case err != nil:
		return d, err
	case diskimage.IsShown(d.Name):
		return d, fmt.Errorf("%s is raw blocks of a tenant", d.Name)
	case by != "":
		return d, fmt.Errorf("%s is in use: %s", d.Name, by)
	case d.ReadOnly:
		return d, fmt.Errorf("%s can't be written to", d.Name)
	case d.SizeBytes < minPool:
		return d, fmt.Errorf("%s has %s: a pool has %s at least", d.Name, resource.Bytes.Text(d.SizeBytes),
			resource.Bytes.Text(minPool))
	}
	what, err := d.Holds()
	switch {
	case err != nil:
		return d, err
	case want.Erase != "" && want.Erase != d.Serial:
		return d, fmt.Errorf("the serial number of %s is %s, and not %s: nothing was changed on it", d.Name, d.Serial, want.Erase)
	case what != "" && want.Erase == "":
		return d, fmt.Errorf("%s holds %s: to destroy that, add it again with --erase %s", d.Name, what, d.Serial)
	}
	return d, nil
}

func (h *Host) format(ctx context.Context, d disk.Device, uuid string) error {
	tools, err := h.cfg.Tools(ctx)
	if err != nil {
		return err
	}
	if err := d.Node(); err != nil {
		return err
	}
	if err := diskimage.FormatDevice(ctx, d.Name, uuid, tools); err != nil {
		return fmt.Errorf("make a file system on %s: %w", d.Name, err)
	}
	failpoint.Reach("volume/pool/formatted")
	// The kernel forgets partitions that were there. It can't of what has none.
	if f, err := d.Open(unix.O_RDWR); err == nil {
		_ = unix.IoctlSetInt(int(f.Fd()), unix.BLKRRPART, 0)
		return f.Close()
	}
	return nil
}

func (h *Host) mountDisk(d disk.Device, dir string) error {
	if err := d.Node(); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return hostmount.Do(func() error {
		return unix.Mount(d.Name, dir, "xfs", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "")
	})
}

// ensureFolder finds the folder of a pool as it was, or takes one that is empty.
func (h *Host) ensureFolder(p *pool, want wire.Pool, made bool) error {
	own, err := readMark(p.markIn())
	if err != nil {
		return err
	}
	var st, root unix.Stat_t
	if err := cmp.Or(unix.Stat(p.dir, &st), unix.Stat("/", &root)); err != nil && !made {
		return fmt.Errorf("there is no folder %s: make it first", p.dir)
	}
	p.mu.Lock()
	p.note = ""
	if st.Dev == root.Dev {
		p.note = "it is on the host's root file system: what fills it can stop the host"
	}
	p.mu.Unlock()
	switch {
	case own.ID == p.uid:
		return writable(p.dir)
	case made:
		return fmt.Errorf("%s does not hold it: if a disk is mounted there, it is away; nothing is made anew in its place; "+
			"if it is lost for good, say so: mp nodes storage remove NODE %s --lost", p.dir, want.Name)
	}
	if err := cmp.Or(h.canBePool(p.dir, st), writable(p.dir)); err != nil {
		return err
	}
	return p.marked(made)
}

// canBePool says why a folder can't become a pool.
func (h *Host) canBePool(dir string, st unix.Stat_t) error {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	within := func(a, b string) bool { return a == b || strings.HasPrefix(a, strings.TrimSuffix(b, "/")+"/") }
	for _, other := range append([]string{h.cfg.Dir, h.cfg.Pools}, h.cfg.Others...) {
		if other != "" && (within(dir, other) || within(other, dir)) {
			return fmt.Errorf("%s has to do with %s, which the platform keeps itself: name another folder", dir, other)
		}
	}
	var kind unix.Statfs_t
	if err := unix.Statfs(dir, &kind); err != nil {
		return err
	}
	switch {
	case real != dir:
		return fmt.Errorf("%s leads to %s: name that", dir, real)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is no folder", dir)
	case st.Uid != 0 || st.Mode&0o022 != 0:
		return fmt.Errorf("others than root can write to %s: have it belong to root alone (chown root, chmod 700)", dir)
	case slices.Contains([]int64{unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.FUSE_SUPER_MAGIC,
		unix.NFS_SUPER_MAGIC, unix.OVERLAYFS_SUPER_MAGIC}, int64(kind.Type)):
		return fmt.Errorf("%s is on no disk of the host, or would not survive a reboot", dir)
	}
	for _, p := range h.all() {
		var other unix.Stat_t
		at := p.dir
		for unix.Stat(at, &other) != nil && at != "/" {
			at = filepath.Dir(at)
		}
		if p.dir != dir && other.Dev == st.Dev {
			return fmt.Errorf("%s is on one file system with %s, whose room would be promised twice: mount a disk there, or name it "+
				"by --device", dir, p.dir)
		}
	}
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if e.Name() != "lost+found" && !strings.HasPrefix(e.Name(), "."+markName) {
			return fmt.Errorf("%s is not empty: it has %q", dir, e.Name())
		}
	}
	return err
}

// RemovePool lets go of a pool in which no volume is any more, or which is lost. None there is no error.
func (h *Host) RemovePool(_ context.Context, want wire.Pool) error {
	if err := checkUID("pool", want.UID); err != nil {
		return err
	}
	p := h.know(want)
	own, err := readMark(p.markIn())
	if err != nil && !want.Lost {
		return err
	}
	// One that is away is forgotten without a look: no volume that the platform knows is in it.
	if own.ID == want.UID && !want.Lost {
		uids, err := p.uids()
		if err != nil {
			return err
		}
		if len(uids) > 0 {
			return fmt.Errorf("%d volumes are in %s of which the platform doesn't know any more: see `multipaas doctor` there",
				len(uids), p.dir)
		}
		if err := os.Remove(p.markIn()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := h.closeNodes(p); err != nil {
		return err
	}
	if want.Device != "" {
		if err := hostmount.Unmount(p.dir); err != nil {
			return err
		}
		// It takes no folder away in which something is.
		if err := os.Remove(p.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(h.knownFile(want.UID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if want.Lost {
		p.mu.Lock()
		p.problem = errors.New("it is lost")
		p.mu.Unlock()
		return nil // that it is has to be known as long as there are volumes
	}
	h.forget(want.UID)
	return nil
}

// Leave lets go of all volumes, which this host has no use for any more, and returns the folders
// of those that are kept: of all. If their disk is away, that is the pool's. A disk without volumes is unmounted.
func (h *Host) Leave() (kept []string, err error) {
	for _, l := range h.look() {
		if l.err != nil {
			if err := h.closeNodes(l.pool); err != nil {
				return nil, err
			}
			if known, _ := readMark(h.knownFile(l.uid)); l.pool == h.own || known.ID != "" {
				h.cfg.Log.Warn("look at volumes", "err", l.err)
				kept = append(kept, l.dir)
			}
			continue
		}
		for _, f := range l.volumes {
			h.knowing.Lock()
			h.where[f.uid] = l.pool
			h.knowing.Unlock()
			if err := h.letGo(f.uid); err != nil {
				return nil, err
			}
			kept = append(kept, string(f.place))
		}
		if l.pool != h.own && len(l.volumes) == 0 {
			if err := h.RemovePool(context.Background(), l.wanted()); err != nil {
				return nil, err
			}
		}
	}
	return kept, nil
}
