package gluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/testing/wait"
)

// stepEnv is set in a process that takes one step on a host and ends: those of testing/vm are virtual machines.
const stepEnv = "MULTIPAAS_TEST_STEP"

type step struct {
	Do       string
	Config   HostConfig
	Identity Identity
	Volume   string
	At       string // where it is shown
	Bricks   []Brick
}

func takeStep(text string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute) // processors may be emulated
	defer cancel()
	var s step
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	h := NewHost(s.Config)
	c, m := h.Client(), Mount{Volume: s.Volume, Machine: "m1"}
	var all []netip.Addr
	var names []string
	for i, b := range s.Bricks {
		all, names = append(all, b.Host), append(names, "host"+strconv.Itoa(i))
	}
	disk := diskimage.Image{File: filepath.Clean(s.Config.Dir) + "." + s.Volume + ".img", Mount: filepath.Join(h.BrickDir(), s.Volume)}
	switch s.Do {
	case "serve":
		root, err := h.Image(ctx)
		if err == nil {
			err = errors.Join(h.Trust(s.Identity), h.ShareBricks())
		}
		if err == nil {
			err = disk.Ensure(ctx, 400<<20, root)
		}
		if err == nil {
			err = hostmount.Do(func() error { return os.MkdirAll(filepath.Join(disk.Mount, "volume"), 0o700) })
		}
		if err == nil {
			_, err = h.Ensure(ctx, false)
		}
		return err
	case "make":
		lead := NewLead(c, s.Config.Address, names[0])
		return errors.Join(
			wait.Until(ctx, 10*time.Minute, "hosts know each other", func(ctx context.Context) error { _, err := lead.Gather(ctx, all); return err }),
			c.Create(ctx, s.Volume, s.Bricks, false, VolumeOptions(names)))
	case "mount":
		err := wait.Until(ctx, 10*time.Minute, "it answers", func(ctx context.Context) error {
			err := h.Mount(ctx, m, nil, all)
			if err != nil && !errors.Is(err, ErrAwayBricks) && !errors.Is(err, ErrHung) {
				err = wait.Final(err)
			}
			return err
		})
		if err != nil {
			return err
		}
		tree, err := h.Take(ctx, m)
		if err != nil {
			return err
		}
		defer tree.Close()
		return hostmount.Do(func() error {
			return errors.Join(os.MkdirAll(s.At, 0o755), unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, s.At, unix.MOVE_MOUNT_F_EMPTY_PATH))
		})
	case "healed":
		return wait.Until(ctx, 15*time.Minute, "all have all", func(ctx context.Context) error {
			healing, err := c.Healing(ctx, s.Volume)
			for _, b := range healing {
				if !b.Connected || b.Pending != 0 {
					err = errors.Join(err, fmt.Errorf("%+v", b))
				}
			}
			return err
		})
	case "remove":
		return c.Remove(ctx, s.Volume)
	case "clear":
		return errors.Join(hostmount.Unmount(s.At), h.Unmount(ctx, m), h.Stop(ctx), hostmount.Unmount(disk.Mount), h.Clear(ctx), os.Remove(disk.File))
	}
	return fmt.Errorf("step %q", s.Do)
}
