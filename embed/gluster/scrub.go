package gluster

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Scrub is the comparison of a volume's copies, byte by byte: how far it is, and what was found. DESIGN.md has how.
// One that was cut off is begun again.
type Scrub struct {
	Volume string
	// Own is the brick of this host: what files there are is read from it. It has data.
	Own  Brick
	Seen ScrubSeen

	dir   int    // of the folders by gfid, the one that it is at
	after string // the file there that was compared last
	file  *scrubbed

	pauses []time.Duration // nil: settleAfter
}

// ScrubSeen is what a scrub has found so far.
type ScrubSeen struct {
	Files, Bytes int64           // that were compared, of one copy
	Mended       map[Brick]int64 // files of which this copy was not as the others, and is now
	// Damaged are files that are not the same in all copies, and stay so: nobody can say which is right, or it could not be
	// written. Names are where some of them are.
	Damaged int64
	Names   []string
	// Left are files that could not be compared, and folders that could not be listed: some copy had yet to be given something.
	Left int64
}

// scrubbed is a file that is compared.
type scrubbed struct {
	gfid   string
	size   int64
	failed int // how often it could not be read, or was not there

	offset  int64
	scanned bool    // to its end
	pages   []int64 // offsets of those that were not the same
	many    bool    // there are too many of them
	again   bool    // it is scanned for the second time, for there were
	settling

	bad     []int // copies that are to be healed, once they are known
	mended  []int // all that ever were
	tries   int   // to heal it
	healing bool  // a client is mounted that does
	healed  bool  // and has: it is to be seen by what is read
}

// settling is how far pages are read again.
type settling struct {
	round int // all of them were read so often
	at    int // in this round, so many
	// sums are what each copy had of each page in the round before.
	sums [][][sha256.Size]byte
	// left are those of this round that differ still, now what each copy has of them.
	left []int64
	now  [][][sha256.Size]byte
}

const (
	scrubPage  = 4 << 10
	scrubChunk = 256 << 10
	// scrubPart is what part of the time copies are read: the disks are there for others.
	scrubPart = 4
	// scrubPages bounds how much of a file may differ: 2,048 pages are 8 MiB, and read from a slow disk in 20 s.
	scrubPages = 2 << 10
	// scrubWrite is for how long pages are written at a time; what is left is for the next try.
	scrubWrite = time.Minute
	// scrubNames bounds Names.
	scrubNames = 10
	// scrubSoon is for how long healing a file is waited for at first, scrubHeal at last, and scrubTries how often, and once
	// more for each GiB: what has to be read takes a tenth of that.
	scrubSoon  = 5 * time.Second
	scrubHeal  = 90 * time.Second
	scrubTries = 10
)

// settleAfter is after what times pages that differ are read again. A write reaches one copy after the other, and
// the last one after as long as a host is waited for, which is 10 s (see clusterOptions): together they are longer.
var settleAfter = []time.Duration{time.Second, 4 * time.Second, 10 * time.Second}

var gfidForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// Scrub goes on with a scrub until then, and some minutes more at most, and says whether it is done. What differs
// between the copies for good, and is the same in all but one of three, is healed; see DESIGN.md. All copies have to
// be there, else it is an error, and changes nothing. One scrub of a volume at a time.
func (h *Host) Scrub(ctx context.Context, s *Scrub, until time.Time) (done bool, err error) {
	c, err := h.pinCopies(ctx, s)
	if err != nil {
		return false, fmt.Errorf("scrub volume %s: %w", s.Volume, err)
	}
	defer func() {
		if errClose := c.close(); err == nil {
			err = errClose
		}
	}()
	for time.Now().Before(until) {
		if s.file == nil {
			if s.file, err = h.nextFile(s); err != nil || s.file == nil {
				return err == nil, err
			}
		}
		finished, err := c.compare(ctx, until)
		if errors.Is(err, errMissing) || unreadable(err) {
			finished, err = c.waits(ctx, err)
		}
		if err != nil {
			return false, fmt.Errorf("scrub volume %s: %w", s.Volume, cmp.Or(context.Cause(ctx), err))
		}
		if finished {
			s.after, s.file = s.file.gfid, nil
		}
	}
	return false, nil
}

// errMissing is of a file that some copy hasn't.
var errMissing = errors.New("a copy has not this file")

// unreadable says whether an error is of one file on a disk, and not of all of a copy.
func unreadable(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EBADMSG) || errors.Is(err, unix.ENODATA)
}

// waits waits until a file is looked at once more that a copy hasn't or can't read: it may be removed just now, or the disk
// is gone, which the brick says some seconds later. Then it takes down how the file is.
func (c *pins) waits(ctx context.Context, why error) (finished bool, err error) {
	if ctx.Err() != nil { // it ends what reads
		return false, context.Cause(ctx)
	}
	f := c.file
	own := c.host.at(c.Own.Path, ".glusterfs", f.gfid[:2], f.gfid[2:4], f.gfid)
	_, err = os.Lstat(own)
	gone, missing := errors.Is(err, os.ErrNotExist), errors.Is(why, errMissing)
	switch pauses := c.rounds(); {
	case missing && gone:
		return true, nil
	case f.failed < len(pauses):
		f.failed++
		return false, pauseFor(ctx, pauses[f.failed-1])
	case missing:
		c.Seen.Left++
	default:
		c.damaged()
	}
	return true, nil
}

func (s *Scrub) rounds() []time.Duration {
	if s.pauses != nil {
		return s.pauses
	}
	return settleAfter
}

func pauseFor(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d): // what is written meanwhile makes no event
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// nextFile is the next file with data in the own brick, nil if there is none. Each has a link by its gfid: so one that is
// renamed is not missed, and no name of a tenant's is followed.
func (h *Host) nextFile(s *Scrub) (_ *scrubbed, err error) {
	root, dir, after := h.at(s.Own.Path, ".glusterfs"), s.dir, s.after
	defer func() {
		if err != nil { // nothing is left out
			s.dir, s.after = dir, after
		}
	}()
	if _, err := os.Lstat(root); err != nil { // it isn't mounted
		return nil, err
	}
	for ; s.dir < 1<<16; s.dir, s.after = s.dir+1, "" {
		top := filepath.Join(root, fmt.Sprintf("%02x", s.dir>>8))
		if s.dir&0xff == 0 && s.after == "" {
			if _, err := os.Lstat(top); errors.Is(err, os.ErrNotExist) {
				s.dir |= 0xff
				continue
			}
		}
		dir := filepath.Join(top, fmt.Sprintf("%02x", s.dir&0xff))
		entries, err := os.ReadDir(dir) // in order
		some := unreadable(err)
		if err != nil && !some && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if e.Name() <= s.after || !gfidForm.MatchString(e.Name()) || !e.Type().IsRegular() {
				continue
			}
			info, err := e.Info()
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if unreadable(err) { // so it is for its brick
				return &scrubbed{gfid: e.Name()}, nil
			}
			if err != nil {
				return nil, err
			}
			if info.Size() > 0 {
				return &scrubbed{gfid: e.Name(), size: info.Size()}, nil
			}
		}
		if some {
			s.Seen.Left++
		}
	}
	_, err = os.Lstat(root) // as before
	return nil, err
}

// pins are a volume's copies with data, each mounted alone.
type pins struct {
	host *Host
	*Scrub
	*layout
	trees []*os.File
	mem   []byte   // of all buffers
	bufs  [][]byte // one for each copy, of a chunk
	stop  func()   // what ends the clients when the context does
}

func (h *Host) pinCopies(ctx context.Context, s *Scrub) (_ *pins, err error) {
	c := &pins{host: h, Scrub: s}
	if c.layout, err = h.layout(s.Volume); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(c.copies, func(r replica) bool { return r.Brick == s.Own }) {
		return nil, fmt.Errorf("brick %v: %w", s.Own, ErrNotFound)
	}
	// What reads waits in the kernel until its client ends.
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		_ = h.Unpin(context.WithoutCancel(ctx), s.Volume)
	})
	c.stop = func() {
		if !stop() { // or it would unmount what the next step mounts
			<-stopped
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	for i, r := range c.copies {
		tree, err := h.mountPin(ctx, Mount{s.Volume, fmt.Sprint(pin, i)}, r.client)
		if err != nil {
			return nil, err
		}
		c.trees = append(c.trees, tree)
	}
	// Pages of their own: what is read past the kernel's memory wants that.
	c.mem, err = unix.Mmap(-1, 0, len(c.copies)*scrubChunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("memory to compare copies: %w", err)
	}
	for i := range c.copies {
		c.bufs = append(c.bufs, c.mem[i*scrubChunk:(i+1)*scrubChunk])
	}
	return c, nil
}

func (c *pins) close() error {
	c.stop()
	for _, t := range c.trees {
		t.Close()
	}
	if c.mem != nil {
		_ = unix.Munmap(c.mem)
	}
	healing := c.file != nil && c.file.healing
	return c.host.unpin(context.Background(), c.Volume, func(m Mount) bool { return !healing || m.Machine != pin+"heal" })
}

// open opens the file in all copies. errMissing: one hasn't got it.
func (c *pins) open() (fds []int, err error) {
	for _, t := range c.trees {
		// Past the memory of the bricks' hosts, which may have what the disk has no more.
		fd, err := unix.Openat(int(t.Fd()), ".gfid/"+c.file.gfid, unix.O_RDONLY|unix.O_DIRECT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
			err = errMissing
		}
		if err != nil {
			closeAll(fds)
			return nil, fmt.Errorf("open a file of a copy: %w", err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// part is what a copy has at a place: some bytes, or none can be read.
type part struct {
	data   []byte
	broken bool
}

func (p part) same(q part) bool { return p.broken == q.broken && bytes.Equal(p.data, q.data) }

// read reads as much of all copies from an offset on, at the same time. It is good until the next call.
func (c *pins) read(fds []int, offset int64, length int) (parts []part, err error) {
	parts = make([]part, len(fds))
	errs := make([]error, len(fds))
	var wg sync.WaitGroup
	for i, fd := range fds {
		wg.Go(func() {
			n, err := unix.Pread(fd, c.bufs[i][:length], offset)
			switch {
			case unreadable(err):
				parts[i].broken = true
			case err != nil:
				errs[i] = fmt.Errorf("read a copy: %w", err)
			default:
				parts[i].data = c.bufs[i][:n]
			}
		})
	}
	wg.Wait()
	return parts, errors.Join(errs...)
}

// compare goes on with the file, and says whether it is finished with it.
func (c *pins) compare(ctx context.Context, until time.Time) (finished bool, err error) {
	f := c.file
	fds, err := c.open()
	if err != nil {
		return false, err
	}
	defer closeAll(fds)
	if !f.scanned && f.bad == nil {
		// It was cut off, before or after it had written to a bad copy, or one was away: what it lacks it is given first.
		pending, err := c.pending(fds)
		if err != nil {
			return false, err
		}
		if pending {
			f.bad = []int{}
		} else if f.scanned, err = c.scan(ctx, fds, until); err != nil || !f.scanned {
			return false, err
		}
	}
	if f.bad == nil {
		return c.judge(ctx, fds, until)
	}
	return c.mend(ctx, fds, until)
}

// scan reads the rest of the file, and takes down which pages differ.
func (c *pins) scan(ctx context.Context, fds []int, until time.Time) (ended bool, err error) {
	f := c.file
	for time.Now().Before(until) {
		if f.offset >= f.size { // what grows is for the next time
			return true, nil
		}
		began := time.Now()
		parts, err := c.read(fds, f.offset, scrubChunk)
		if err != nil {
			return false, err
		}
		longest, equal, hole := 0, true, true
		for _, p := range parts {
			longest = max(longest, len(p.data))
			if p.broken {
				longest = scrubChunk
			}
			equal, hole = equal && p.same(parts[0]), hole && !p.broken && zero(p.data)
		}
		if longest == 0 { // it was cut
			return true, nil
		}
		if !equal {
			f.note(parts, longest)
		}
		f.offset += scrubChunk
		c.Seen.Bytes += int64(longest)
		if hole && equal {
			if f.offset, err = nextData(fds, f.offset); err != nil {
				return false, err
			}
		}
		select {
		case <-time.After((scrubPart - 1) * time.Since(began)):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
	return false, nil
}

// note takes down the pages of a chunk that differ.
func (f *scrubbed) note(parts []part, longest int) {
	for at := 0; at < longest; at += scrubPage {
		page := func(p part) []byte { return p.data[min(at, len(p.data)):min(at+scrubPage, len(p.data))] }
		if !slices.ContainsFunc(parts, func(p part) bool { return p.broken || !bytes.Equal(page(p), page(parts[0])) }) {
			continue
		}
		if f.many = f.many || len(f.pages) == scrubPages; !f.many {
			f.pages = append(f.pages, f.offset+int64(at))
		}
	}
}

func zero(data []byte) bool {
	return !slices.ContainsFunc(data, func(b byte) bool { return b != 0 })
}

// nextData is where from an offset on the first of the copies has anything, at a whole page.
func nextData(fds []int, from int64) (int64, error) {
	next := int64(math.MaxInt64)
	for _, fd := range fds {
		at, err := unix.Seek(fd, from, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // it ends with a hole
			continue
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return from, nil
		case err != nil:
			return 0, fmt.Errorf("look for data in a copy: %w", err)
		}
		next = min(next, at)
	}
	return max(next&^(scrubPage-1), from), nil
}

// settle reads pages that differ again and again, and leaves those that do for good, with what each copy has of them. With a
// writer at it, what one copy has another will. It goes on until then, and says whether it is done.
func (c *pins) settle(ctx context.Context, fds []int, until time.Time) (done bool, err error) {
	f, pauses := c.file, c.rounds()
	if f.round == 0 && f.at == 0 {
		f.settling = settling{}
	}
	for {
		if f.round > 0 && f.at == 0 {
			if err := pauseFor(ctx, pauses[f.round-1]); err != nil {
				return false, err
			}
		}
		for first := f.at; f.at < len(f.pages); f.at++ {
			if f.at > first && time.Now().After(until) {
				return false, nil
			}
			parts, err := c.read(fds, f.pages[f.at], scrubPage)
			if ctx.Err() != nil { // it ends what reads
				err = context.Cause(ctx)
			}
			if err != nil {
				return false, err
			}
			var one [][sha256.Size]byte
			for _, p := range parts {
				sum := broken
				if !p.broken {
					sum = sha256.Sum256(p.data)
				}
				one = append(one, sum)
			}
			differs := slices.ContainsFunc(one, func(s [sha256.Size]byte) bool { return s != one[0] })
			if (differs || one[0] == broken) && (f.round == 0 || slices.Equal(one, f.sums[f.at])) {
				f.left, f.now = append(f.left, f.pages[f.at]), append(f.now, one)
			}
		}
		f.pages, f.settling = f.left, settling{round: f.round + 1, sums: f.now}
		if len(f.pages) == 0 || f.round > len(pauses) {
			f.round = 0
			return true, nil
		}
	}
}

// broken stands for the sum of what can't be read.
var broken [sha256.Size]byte

// right is a copy that is right, by what each has: as most are.
func right(one [][sha256.Size]byte) (at int, ok bool) {
	for i, sum := range one {
		n := 0
		for _, other := range one {
			if other == sum {
				n++
			}
		}
		if sum != broken && 2*n > len(one) {
			return i, true
		}
	}
	return 0, false
}

// wrong says which copy is not right somewhere, if it is one, and the others are everywhere in the file: at least two, so that
// with one of them away none is written to of which only that one says that it is bad. Each would deny the other then.
func wrong(sums [][][sha256.Size]byte) (bad []int, ok bool) {
	for _, one := range sums {
		at, ok := right(one)
		if !ok {
			return nil, false
		}
		for i, sum := range one {
			if sum != one[at] && !slices.Contains(bad, i) {
				bad = append(bad, i)
			}
		}
	}
	return bad, len(bad) == 1
}

// judge finds out which copy of a scanned file is bad, and has the others say so. It says whether it is finished with the file.
func (c *pins) judge(ctx context.Context, fds []int, until time.Time) (finished bool, err error) {
	f := c.file
	if len(f.pages) == 0 {
		return c.same()
	}
	settled, err := c.settle(ctx, fds, until)
	if err != nil || !settled {
		return false, err
	}
	if len(f.pages) == 0 { // somebody wrote
		return c.same()
	}
	pending, err := c.pending(fds)
	if err != nil {
		return false, err
	}
	if pending { // a copy was away
		f.bad = []int{}
		return false, nil
	}
	bad, ok := wrong(f.sums)
	if !ok || f.many {
		c.damaged()
		return true, nil
	}
	// Marked again: somebody else may have healed it meanwhile, by what its host has in memory.
	for _, do := range []func() error{
		func() error { return c.mark(fds, bad) },
		func() error { return c.rewrite(fds) },
		func() error { return c.mark(fds, bad) },
	} {
		if err := do(); err != nil {
			return false, err
		}
	}
	f.bad = bad
	for _, i := range bad {
		if !slices.Contains(f.mended, i) {
			f.mended = append(f.mended, i)
		}
	}
	return false, nil
}

// same takes down that all copies of a file are the same, as far as it is known.
func (c *pins) same() (finished bool, err error) {
	switch f := c.file; {
	case f.many && f.again:
		c.Seen.Left++
		return true, nil
	case f.many: // of those that were not taken down nothing is known
		*f = scrubbed{gfid: f.gfid, size: f.size, again: true, mended: f.mended, tries: f.tries}
		return false, nil
	}
	for _, i := range c.file.mended {
		if c.Seen.Mended == nil {
			c.Seen.Mended = map[Brick]int64{}
		}
		c.Seen.Mended[c.copies[i].Brick]++
	}
	c.Seen.Files++
	return true, nil
}
