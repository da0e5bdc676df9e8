package volume

import (
	"context"
	"encoding/binary"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/resource"
)

// A volume goes in and out of the platform as a file (modules/internal/archive), never as an image: to mount a file system that
// somebody else has made is to have his octets read by the host's kernel. Who is cut off asks again, from where he is.

const (
	// fileTurn is how long one try goes on. Then it ends where it is, in good order, and others have their turn.
	fileTurn = 2 * time.Minute
	// fileIdle is how long a snapshot stays mounted, and is known how far it was read, when nobody reads it.
	fileIdle = 2 * time.Minute
	// filePace is as copyPace of package diskimage.
	filePace = 200 << 20
	// maxFiles is how many are known at a time, as many as a server has on their way.
	maxFiles = 8
)

// fileWork is a volume that is read into a file, or written from one. One try at a time works at it.
type fileWork struct {
	network string        // of its workspace
	working chan struct{} // has one in it while somebody is at it
	mounted bool          // for this: it is a snapshot
	walk    *walker       // of one that is read; nil: nothing of it is known
	idle    *time.Timer   // ends it
	rests   time.Time     // since when nobody is at it
	end     context.CancelFunc
}

func (w *fileWork) tryBegin() bool {
	select {
	case w.working <- struct{}{}:
		return true
	default:
		return false
	}
}

// beginFile returns what is known of a volume's file, for one try, whose context it is. The error is that there is one already.
// Of each workspace one is known, but for those at which somebody is, and maxFiles of all: that which rests longest makes way.
func (h *Host) beginFile(ctx context.Context, uid, network string) (*fileWork, context.Context, error) {
	var others []string
	longest, all := "", 0
	h.mu.Lock()
	for other, w := range h.files {
		switch {
		case other == uid:
		case w.network == network:
			others = append(others, other)
		default:
			if all++; len(w.working) == 0 && (longest == "" || w.rests.Before(h.files[longest].rests)) {
				longest = other
			}
		}
	}
	if longest != "" && all >= maxFiles {
		others = append(others, longest)
	}
	h.mu.Unlock()
	for _, other := range others {
		if err := h.endFile(other, false); err != nil {
			return nil, nil, err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	w := h.files[uid]
	if w == nil {
		if len(h.files) >= maxFiles {
			return nil, nil, saidf("it waits for other volumes that its host reads and writes as files")
		}
		w = &fileWork{network: network, working: make(chan struct{}, 1)}
		h.files[uid] = w
	}
	if h.closed || !w.tryBegin() {
		return nil, nil, saidf("another has begun with it, and has not ended")
	}
	if w.idle != nil {
		w.idle.Stop()
	}
	ctx, w.end = context.WithTimeout(ctx, fileTurn)
	return w, ctx, nil
}

// restFile is called when a try is over.
func (h *Host) restFile(uid string, w *fileWork) {
	w.end()
	h.mu.Lock()
	w.rests, w.idle = time.Now(), time.AfterFunc(fileIdle, func() { _ = h.endFile(uid, false) })
	h.mu.Unlock()
	<-w.working
}

// endFile ends what is done with a volume's file and lets go of it, or unless it is now, does nothing while somebody is
// at it.
func (h *Host) endFile(uid string, now bool) error {
	h.mu.Lock()
	w := h.files[uid]
	if w == nil {
		h.mu.Unlock()
		return nil
	}
	if now && w.end != nil {
		w.end()
	}
	h.mu.Unlock()
	if !now && !w.tryBegin() {
		return nil
	}
	if now {
		select {
		case w.working <- struct{}{}:
		case <-time.After(endTime):
			return saidf("its file, which is read or written, does not end: the disk of its host may hang")
		}
	}
	defer func() { <-w.working }()
	h.mu.Lock()
	if w.idle != nil {
		w.idle.Stop()
	}
	if h.files[uid] == w {
		delete(h.files, uid)
	}
	h.mu.Unlock()
	if w.walk != nil {
		w.walk.close()
		w.walk = nil
	}
	if !w.mounted {
		return nil
	}
	return h.unmountSnapshot(uid)
}

// unmountSnapshot unmounts a snapshot that was read, by this process or one that was killed.
func (h *Host) unmountSnapshot(uid string) error {
	h.mu.Lock()
	used := h.files[uid] != nil
	for _, c := range h.copies {
		used = used || c.source == uid // which may have frozen it
	}
	h.mu.Unlock()
	p := h.place(uid)
	if _, mounted, err := device(p.image().Mount); !mounted || used || err != nil {
		return err
	}
	if err := hostmount.Unmount(p.image().Mount); err != nil {
		return err
	}
	return h.release(uid)
}

// openMount opens the root folder of what is mounted at dir.
func openMount(dir string) (root *os.File, err error) {
	_, mounted, err := device(dir)
	if err == nil && !mounted {
		err = errUnmounted
	}
	if err != nil {
		return nil, err
	}
	err = hostmount.Do(func() error {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: dir, Err: err}
		}
		root = os.NewFile(uintptr(fd), dir)
		return nil
	})
	return root, err
}

// owners are the host's users that those of a workspace are, in one volume.
type owners struct{ first uint32 }

// nobody is who owns what belongs to none of the workspace's users.
const nobody = 65534

// inside is a workspace's number of a host's user.
func (o owners) inside(user uint32) (n uint32, known bool) {
	if user < o.first || user-o.first >= resource.MachineUIDs {
		return nobody, false
	}
	return user - o.first, true
}

// outside is the contrary.
func (o owners) outside(n uint32) (user uint32, known bool) {
	if n >= resource.MachineUIDs {
		n = nobody
	}
	return o.first + n, n < resource.MachineUIDs
}

// The attributes of files that are access control lists: whom they name are numbers, too.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// changeACL returns a list with others' numbers (linux/posix_acl_xattr.h: a version, then entries of a tag, rights and
// a number). It is not ok if it is no list.
func changeACL(list []byte, number func(uint32) (uint32, bool)) (out []byte, ok bool) {
	const head, entry, user, group = 4, 8, 0x02, 0x08
	if len(list) < head || (len(list)-head)%entry != 0 || binary.LittleEndian.Uint32(list) != 2 {
		return nil, false
	}
	out = append(out, list...)
	for at := head; at < len(out); at += entry {
		if tag := binary.LittleEndian.Uint16(out[at:]); tag == user || tag == group {
			n, known := number(binary.LittleEndian.Uint32(out[at+4:]))
			if !known {
				return nil, false
			}
			binary.LittleEndian.PutUint32(out[at+4:], n)
		}
	}
	return out, true
}

// pace has work on a disk rest for as long as it works, and be no faster than filePace.
type pace struct{ worked time.Duration }

// did takes down what took so long and read or wrote so much. It may block.
func (p *pace) did(ctx context.Context, since time.Time, bytes int) {
	took := time.Since(since)
	p.worked += max(took, time.Duration(bytes)*time.Second/filePace-took)
	if p.worked < 20*time.Millisecond {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(p.worked):
	}
	p.worked = 0
}
