package gluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
)

// ErrNotMounted is returned for a volume that isn't mounted, or whose client has died: what was
// bound from there answers ENOTCONN for ever, and has to be bound anew.
var ErrNotMounted = errors.New("it is not mounted")

// ErrAwayBricks is returned for a mount whose client lives, and reaches too few of the volume's
// bricks. It goes on when it does.
var ErrAwayBricks = errors.New("too few of its bricks can be reached")

// ErrHung is returned for a mount that does not answer. It may yet: while a host is being given up,
// all wait.
var ErrHung = errors.New("it does not answer")

// MountState is how a mount is.
type MountState struct {
	Volume string
	// Old says that it runs by another image, or another way, than it would be mounted now.
	// To change it, it has to be unmounted.
	Old bool
	// Err is nil if it answers, and else one of ErrNotMounted, ErrAwayBricks, ErrHung.
	Err error
}

// At is where a volume is mounted.
func (h *Host) At(volume string) string { return h.at("mounts", volume) }

// Mount has a volume mounted At its place, and returns when it answers. servers are hosts whose
// glusterd is asked for the volume, one after the other until one answers. One that is mounted is
// left alone; one whose client died is mounted anew. After an error nothing is mounted, unless it
// is ErrAwayBricks or ErrHung of one that was. Trust comes first. Unmount must have been called for
// what else was bound from a mount that died: it is another file system.
func (h *Host) Mount(ctx context.Context, volume string, servers []netip.Addr) error {
	err := checkName(volume)
	if err == nil && len(servers) == 0 {
		err = errors.New("no server to ask for it")
	}
	if err == nil {
		err = h.mount(ctx, volume, servers)
	}
	if err != nil {
		return fmt.Errorf("mount volume %s: %w", volume, err)
	}
	return nil
}

func (h *Host) mount(ctx context.Context, volume string, servers []netip.Addr) error {
	err := h.look(ctx, volume)
	if !errors.Is(err, ErrNotMounted) {
		return err
	}
	if err := h.unmount(ctx, volume); err != nil {
		return err
	}
	image, err := h.images.Unpack(ctx, h.imageLayout())
	if err != nil {
		return err
	}
	if err := h.share("mounts"); err != nil {
		return err
	}
	for _, dir := range []string{h.at("log", "clients"), h.client(volume).dir, h.At(volume)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	c := h.client(volume)
	spec, err := h.clientSpec(c, image, volume, servers)
	if err != nil {
		return err
	}
	began := time.Now()
	_, _, err = c.ensure(ctx, spec, image, true, func() error { return nil })
	if err == nil {
		err = h.awaitMount(ctx, volume)
	}
	if err != nil {
		return errors.Join(err, h.unmount(context.WithoutCancel(ctx), volume))
	}
	h.cfg.Log.Info("volume mounted", "volume", volume, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// awaitMount waits until a volume whose client was started is mounted and answers, or its client
// has ended.
func (h *Host) awaitMount(ctx context.Context, volume string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c := h.client(volume)
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		now, _, err := h.runc.State(ctx, c.id)
		if err != nil {
			return err
		}
		if !now.Running() {
			return fmt.Errorf("its client ended: %s", cmp.Or(h.lastError(volume), c.said(), "it said nothing"))
		}
		err = h.look(ctx, volume)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", err, h.lastError(volume))
		}
	}
}

// lastError is the last error in a client's log.
func (h *Host) lastError(volume string) (last string) {
	text, err := os.ReadFile(h.at("log", "clients", volume+".log"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "] E [") || strings.Contains(line, "] C [") {
			last = strings.TrimSpace(line)
		}
	}
	return last[:min(len(last), 500)]
}

// clientSpec is the container of one mount.
func (h *Host) clientSpec(c container, image, volume string, servers []netip.Addr) (*specs.Spec, error) {
	args := []string{"/usr/sbin/glusterfs", "--process-name=fuse", "--no-daemon", "--direct-io-mode=disable",
		"--log-file=/var/log/glusterfs/" + volume + ".log", "--log-level=WARNING", "--fuse-mountopts=nosuid,nodev"}
	for _, s := range servers {
		args = append(args, "--volfile-server="+s.String())
	}
	args = append(args, "--volfile-id="+volume, "/mnt")
	spec, err := c.base(image, args, cmp.Or(h.cfg.ClientMemory, 1<<30), []string{"CAP_SYS_ADMIN"},
		bind(h.At(volume), "/mnt", "rshared"), bind(h.at("log", "clients"), "/var/log/glusterfs"))
	if err != nil {
		return nil, err
	}
	// It has the host's processes: of who wants a file it has to know what groups he is in, and
	// that it reads by the number that the kernel gives it, which is 0 for a process that its
	// mounter can't see.
	spec.Linux.RootfsPropagation = "rshared"
	return spec, mayMount(spec)
}

// Unmount takes a volume's mount away, whether it answers or not. What was bound from it answers
// ENOTCONN then. None there is no error.
func (h *Host) Unmount(ctx context.Context, volume string) error {
	err := checkName(volume)
	if err == nil {
		err = h.unmount(ctx, volume)
	}
	if err != nil {
		return fmt.Errorf("unmount volume %s: %w", volume, err)
	}
	h.prune()
	return nil
}

func (h *Host) unmount(ctx context.Context, volume string) error {
	err := hostmount.Do(func() error {
		for { // one on the other, if we were killed between two looks
			err := unix.Unmount(h.At(volume), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			switch {
			case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
				return nil
			case err != nil:
				return fmt.Errorf("unmount %s: %w", h.At(volume), err)
			}
		}
	})
	if err != nil {
		return err
	}
	// What waits for it is let go when its client ends.
	c := h.client(volume)
	if err := c.end(ctx); err != nil {
		return err
	}
	if err := os.Remove(h.At(volume)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The folder last: as long as it is there, Mounts shows it.
	return os.RemoveAll(c.dir)
}

// Mounted lists the volumes of whose mounts there is something. It asks none.
func (h *Host) Mounted() (volumes []string, err error) {
	entries, err := os.ReadDir(h.at("clients"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if checkName(e.Name()) == nil {
			volumes = append(volumes, e.Name())
		}
	}
	return volumes, err
}

// Mounts says how all mounts are of which there is something, by volume.
func (h *Host) Mounts(ctx context.Context) ([]MountState, error) {
	volumes, err := h.Mounted()
	if err != nil || len(volumes) == 0 {
		return nil, err
	}
	image, err := h.images.Unpack(ctx, h.imageLayout())
	if err != nil {
		return nil, err
	}
	var all []MountState
	for _, v := range volumes {
		s := MountState{Volume: v, Err: h.look(ctx, v)}
		if bundle, err := os.ReadFile(h.client(v).at("bundle/config.json")); err == nil {
			s.Old = !strings.Contains(string(bundle), `"`+filepath.Base(image)+`"`)
		}
		all = append(all, s)
	}
	return all, nil
}

// look says how a mount is. It waits for it no longer than patience, and leaves one goroutine
// at most waiting for each: only the end of its client lets that go. One that answers costs
// little: it is looked at often.
func (h *Host) look(ctx context.Context, volume string) error {
	said := h.ask(ctx, volume)
	if said == nil || errors.Is(said, ErrHung) {
		return said
	}
	_, _, alive, err := h.client(volume).running(ctx)
	if err != nil {
		return err
	}
	there, err := h.mounted(volume)
	if err != nil {
		return err
	}
	if !alive || !there {
		return ErrNotMounted
	}
	if errors.Is(said, unix.ENOTCONN) {
		return ErrAwayBricks
	}
	return said
}

// ask asks what is at a mount's place: nil if that is FUSE, and answers.
func (h *Host) ask(ctx context.Context, volume string) error {
	h.mu.Lock()
	answer := h.looks[volume]
	if answer == nil {
		answer = make(chan error, 1)
		h.looks[volume] = answer
		go func() {
			// What the kernel remembers of it, as stat(2) tells, says nothing.
			var st unix.Statfs_t
			err := unix.Statfs(h.At(volume), &st)
			if err == nil && st.Type != unix.FUSE_SUPER_MAGIC {
				err = ErrNotMounted
			}
			h.mu.Lock()
			delete(h.looks, volume)
			h.mu.Unlock()
			answer <- err
			close(answer)
		}()
	}
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, h.patience)
	defer cancel()
	select {
	case err, ok := <-answer:
		if !ok { // another took it
			return h.ask(ctx, volume)
		}
		return err
	case <-ctx.Done():
		return ErrHung
	}
}

// mounted says whether something is mounted at a volume's place. It does not look at it, which
// might never end.
func (h *Host) mounted(volume string) (there bool, err error) {
	err = hostmount.Do(func() error {
		dir, err := filepath.EvalSymlinks(h.at("mounts"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(filepath.Join(dir, volume)))
		there = len(infos) > 0
		return err
	})
	return there, err
}
