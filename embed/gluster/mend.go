package gluster

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// mend heals a file of which a copy lacks something, and says whether it is finished with it.
func (c *pins) mend(ctx context.Context, fds []int, until time.Time) (finished bool, err error) {
	f := c.file
	if !f.healed {
		if f.healed, err = c.heal(ctx, fds); err != nil {
			return false, err
		}
		switch f.tries++; {
		case f.healed, f.tries < scrubTries+int(f.size>>30): // its turn comes again
			return false, nil
		case len(f.bad) == 0:
			c.Seen.Left++
		default:
			c.damaged()
		}
		return true, nil
	}
	if f.scanned {
		settled, err := c.settle(ctx, fds, until)
		if err != nil || !settled {
			return false, err
		}
		if len(f.pages) == 0 {
			return c.same()
		}
		if f.tries >= scrubTries {
			c.damaged()
			return true, nil
		}
	}
	f.bad, f.healed = nil, false // now it is known what it lacks; or somebody wrote just then
	return false, nil
}

// damaged takes down that the file is, and stays so.
func (c *pins) damaged() {
	c.Seen.Damaged++
	c.Seen.Files++
	if len(c.Seen.Names) < scrubNames {
		if name := pathOf(c.host.at(c.Own.Path), c.file.gfid); name != "" {
			c.Seen.Names = append(c.Seen.Names, name)
		}
	}
}

// changelog is what a copy says that another lacks of a file: how many changes of its data, attributes, names.
type changelog [12]byte

// lacks reads what the copy behind fd says of another.
func lacks(fd int, attr string) (log changelog, have bool, err error) {
	n, err := unix.Fgetxattr(fd, attr, log[:])
	switch {
	case errors.Is(err, unix.ENODATA):
		return log, false, nil
	case err == nil && n != len(log):
		err = fmt.Errorf("%d bytes", n)
	}
	if err != nil {
		return log, false, fmt.Errorf("read what a copy says of another: %w", err)
	}
	return log, true, nil
}

// pending says whether a copy says of another that it lacks something of the file.
func (c *pins) pending(fds []int) (bool, error) {
	for _, fd := range fds {
		for _, r := range c.copies {
			if log, _, err := lacks(fd, r.pending); err != nil || log != (changelog{}) {
				return err == nil, err
			}
		}
	}
	return false, nil
}

// mark has all good copies say of the bad ones that they lack something of the file's data: nobody reads those from then
// on, and who heals takes the good ones. The bricks change that attribute only when a copy misses something.
func (c *pins) mark(fds []int, bad []int) error {
	var log changelog
	binary.BigEndian.PutUint32(log[:], 1)
	for i, fd := range fds {
		if slices.Contains(bad, i) {
			continue
		}
		for _, b := range bad {
			attr := c.copies[b].pending
			now, have, err := lacks(fd, attr)
			if err != nil {
				return err
			}
			if now != (changelog{}) { // just now: it is to be healed anyway
				continue
			}
			flags := unix.XATTR_CREATE // not over what came meanwhile
			if have {
				flags = unix.XATTR_REPLACE
			}
			if err := unix.Fsetxattr(fd, attr, log[:], flags); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("mark a copy as bad: %w", err)
			}
		}
	}
	return nil
}

// rewrite writes the pages that are wrong as they are in a right copy, to the disk: who heals compares with what the copy's
// host has in memory, which may be right, and would write nothing. The copy is marked: what somebody writes at the same time
// it is given by who heals.
func (c *pins) rewrite(fds []int) error {
	began, sums := time.Now(), c.file.sums
	to := make([]int, len(fds))
	defer func() { closeAll(slices.DeleteFunc(to, func(fd int) bool { return fd == 0 })) }()
	for i, offset := range c.file.pages {
		if time.Since(began) > scrubWrite {
			break
		}
		parts, err := c.read(fds, offset, scrubPage)
		if err != nil {
			return err
		}
		at, _ := right(sums[i])
		if parts[at].broken || sha256.Sum256(parts[at].data) != sums[i][at] {
			continue // it was written to
		}
		for k, p := range parts {
			if p.same(parts[at]) || sums[i][k] == sums[i][at] {
				continue
			}
			if to[k] == 0 {
				const flags = unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC
				if to[k], err = unix.Openat(int(c.trees[k].Fd()), ".gfid/"+c.file.gfid, flags, 0); err != nil {
					to[k] = 0
					return fmt.Errorf("open a file of a copy: %w", err)
				}
			}
			if _, err := unix.Pwrite(to[k], parts[at].data, offset); err != nil {
				return fmt.Errorf("write to a copy: %w", err)
			}
		}
	}
	for _, fd := range to {
		if fd != 0 {
			if err := unix.Fsync(fd); err != nil {
				return fmt.Errorf("write to a copy: %w", err)
			}
		}
	}
	return nil
}

// heal has a client of its own heal the file, under the locks that all clients heed, so that writers go on. It waits until
// no copy lacks anything any more, or its patience is over: then the client goes on until the next call.
func (c *pins) heal(ctx context.Context, fds []int) (healed bool, err error) {
	m, f := Mount{c.Volume, pin + "heal"}, c.file
	tree, err := c.host.Take(ctx, m)
	// One that knows the file looks at it no more: so now and then it is another, each of which has twice as long.
	if !f.healing || f.tries&(f.tries-1) == 0 || err != nil {
		if err == nil {
			tree.Close()
		}
		if tree, err = c.host.mountPin(ctx, m, c.healing()); err != nil {
			return false, err
		}
	}
	f.healing = true
	defer func() {
		tree.Close()
		if healed {
			f.healing = false
			err = c.host.Unmount(context.WithoutCancel(ctx), m)
		}
	}()
	patience := min(scrubHeal, scrubSoon<<min(f.tries, 10)) // now and then one heals nothing, and says nothing
	for end, pause := time.Now().Add(patience), 50*time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		// Who opens a file of which a copy lacks something begins to heal it.
		fd, err := unix.Openat(int(tree.Fd()), ".gfid/"+f.gfid, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			_, _ = unix.Pread(fd, make([]byte, 1), 0)
			_ = unix.Close(fd)
		}
		pending, err := c.pending(fds)
		if err != nil || !pending || time.Now().After(end) {
			return err == nil && !pending, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}
