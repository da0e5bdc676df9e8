package gluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/wait"
)

// TestScrub: what is flipped on a disk, below the file system of a brick, is found although the brick's host has the right
// bytes in memory, and is healed, also in a file that is written to; where nobody can say what is right it is told, and left.
func TestScrub(t *testing.T) {
	if !long {
		t.Skip("takes a minute: MULTIPAAS_LONG=1")
	}
	for _, arbiter := range []bool{false, true} {
		t.Run(fmt.Sprint("arbiter ", arbiter), func(t *testing.T) { testScrub(t, arbiter) })
	}
}

func testScrub(t *testing.T, arbiter bool) {
	c := newCluster(t, 3)
	a, b := c.nodes[0], c.nodes[1]
	var servers []netip.Addr
	v := Wanted{Name: "one", Arbiter: arbiter}
	for _, n := range c.nodes {
		v.Hosts, servers = append(v.Hosts, n.name), append(servers, n.address)
		v.Bricks = append(v.Bricks, WantedBrick{Brick: n.brick(t, "one"), Ready: true})
	}
	lead := NewLead(b.Client, b.address, b.name)
	wait.For(t, wait.Patience, "the volume", func(ctx context.Context) error {
		_, err := lead.Gather(ctx, servers)
		if err == nil {
			_, err = lead.Bring(ctx, servers, v)
		}
		return err
	})
	m := Mount{"one", "m0"}
	if err := b.Mount(t.Context(), m, nil, servers); err != nil {
		t.Fatal(err)
	}
	b.show(t, m)
	at := func(name string) string { return filepath.Join(b.seen(m), name) }
	const size = 1<<20 + 777
	write := func(name string, offset int64) []byte {
		data := make([]byte, size)
		_, _ = rand.Read(data)
		f, err := os.Create(at(name))
		if err == nil {
			_, err = f.WriteAt(data, offset)
		}
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
		return data
	}
	if err := os.MkdirAll(at("some/where"), 0o755); err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{}
	for _, name := range []string{"whole", "own", "other", "two", "busy", "holes", "some/where/lost"} {
		want[name] = write(name, 0)
	}
	want["holes"] = write("holes", 256<<20)
	// flip has a disk return something else than was written to it.
	flip := func(replica int, name string, offset int) {
		t.Helper()
		page := want[name][offset&^(scrubPage-1):][:64]
		img, err := os.OpenFile(filepath.Join(c.dir, c.nodes[replica].name, "one.img"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		buf, found := make([]byte, 1<<20), int64(-1)
		for pos := int64(0); found < 0; pos += int64(len(buf)) {
			n, err := img.ReadAt(buf, pos)
			if n == 0 {
				t.Fatalf("%s is not on the disk of copy %d: %v", name, replica, err)
			}
			for i := 0; i+len(page) <= n; i += scrubPage {
				if bytes.Equal(buf[i:i+len(page)], page) {
					found = pos + int64(i+offset%scrubPage)
				}
			}
		}
		_, err = img.WriteAt([]byte{want[name][offset] ^ (1 << replica)}, found)
		if err = errors.Join(err, img.Sync()); err != nil {
			t.Fatal(err)
		}
	}
	// One writes to a file that has a flipped bit elsewhere.
	busy, err := os.OpenFile(at("busy"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	var synced atomic.Int64
	go func() {
		line := want["busy"][900_000:900_016]
		for {
			copy(line, fmt.Sprintf("%015d\n", synced.Load()+1))
			_, err := busy.WriteAt(line, 900_000)
			if err = errors.Join(err, busy.Sync()); err != nil {
				stopped <- err
				return
			}
			synced.Add(1)
			select {
			case <-stop:
				stopped <- busy.Close()
				return
			default:
			}
		}
	}()
	// Nobody knows which is right of two, and of three that all differ.
	if arbiter {
		flip(1, "some/where/lost", 5)
	} else {
		flip(0, "own", 0)
		flip(1, "other", 500_000)
		flip(0, "two", 4096)
		flip(2, "two", 1<<20)
		flip(2, "busy", 100_000)
		flip(2, "holes", 300_000)
		flip(1, "some/where/lost", 5)
		flip(2, "some/where/lost", 6)
	}
	scrub := func() ScrubSeen {
		t.Helper()
		s := &Scrub{Volume: "one", Own: v.Bricks[0].Brick, pauses: []time.Duration{time.Second, time.Second}}
		began := time.Now()
		for step := range 10 {
			// The first step is a short one.
			done, err := a.Scrub(t.Context(), s, time.Now().Add(50*time.Millisecond+time.Duration(step)*time.Minute))
			if err != nil {
				log, _ := os.ReadFile(a.client(Mount{"one", pin + "heal"}).at(clientLog))
				t.Fatalf("%v: %s", err, log)
			}
			if left, err := a.Pinned(); err != nil || len(left) > 0 {
				t.Errorf("after a step there is %v, %v", left, err)
			}
			if done {
				t.Logf("it took %v, %d steps: %+v", time.Since(began), step+1, s.Seen)
				return s.Seen
			}
		}
		t.Fatal("it does not end")
		return ScrubSeen{}
	}
	first := scrub()
	wantMended := map[Brick]int64{v.Bricks[0].Brick: 1, v.Bricks[1].Brick: 1, v.Bricks[2].Brick: 2}
	lost := []string{"some/where/lost", "two"}
	if arbiter {
		wantMended, lost = nil, lost[:1]
	}
	slices.Sort(first.Names)
	if int(first.Damaged) != len(lost) || !slices.Equal(first.Names, lost) || !reflect.DeepEqual(first.Mended, wantMended) ||
		first.Files != 7 || first.Left != 0 || first.Bytes < 7<<20 {
		t.Errorf("it found %+v", first)
	}
	before := synced.Load()
	wait.For(t, wait.Patience, "the writer goes on", func(context.Context) error {
		if synced.Load() < before+10 {
			return fmt.Errorf("%d writes", synced.Load())
		}
		return nil
	})
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if second := scrub(); second.Mended != nil || second.Damaged != first.Damaged || second.Files != 7 {
		t.Errorf("the second time it found %+v", second)
	}
	// On the disks.
	for i, n := range c.nodes {
		if arbiter && i == 2 {
			continue
		}
		for name, data := range want {
			f, err := os.OpenFile(n.in(v.Bricks[i].Brick, name), os.O_RDONLY|unix.O_DIRECT, 0)
			if err != nil {
				t.Fatal(err)
			}
			offset := int64(0)
			if name == "holes" {
				offset = 256 << 20
			}
			got, err := readDirect(f, offset, len(data))
			f.Close()
			damaged := name == "some/where/lost" && i > 0 && !(arbiter && i != 1) || name == "two" && i != 1 && !arbiter
			if err != nil || bytes.Equal(got, data) == damaged {
				t.Errorf("copy %d of %s is as it was written: %v, %v", i, name, bytes.Equal(got, data), err)
			}
		}
		var st unix.Stat_t
		if err := unix.Stat(n.in(v.Bricks[i].Brick, "holes"), &st); err != nil || st.Blocks > 3<<20>>9 {
			t.Errorf("copy %d of the file with holes takes %d blocks: %v", i, st.Blocks, err)
		}
	}
	all, err := b.Healing(t.Context(), "one")
	if err != nil || slices.ContainsFunc(all, func(s Healing) bool { return s.Pending != 0 || !s.Connected }) {
		t.Errorf("to be healed: %+v, %v", all, err)
	}
	if arbiter {
		return
	}
	// What was marked, and not healed since its agent was killed, is healed by the next: before it wrote to the bad copy, after,
	// and where nothing differs any more.
	cut := func(name string, pages ...int64) {
		t.Helper()
		s := &Scrub{Volume: "one", Own: v.Bricks[0].Brick, pauses: []time.Duration{time.Millisecond}}
		p, err := a.pinCopies(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		gfid := make([]byte, 16)
		if _, err := unix.Getxattr(a.in(s.Own, name), "trusted.gfid", gfid); err != nil {
			t.Fatal(err)
		}
		s.file = &scrubbed{pages: pages}
		s.file.gfid = fmt.Sprintf("%x-%x-%x-%x-%x", gfid[:4], gfid[4:6], gfid[6:8], gfid[8:10], gfid[10:])
		fds, err := p.open()
		if err == nil {
			err = p.mark(fds, []int{1})
		}
		if err == nil && pages != nil {
			if _, err = p.settle(t.Context(), fds, time.Now()); err == nil && len(s.file.pages) != len(pages) {
				err = fmt.Errorf("of the pages %v there are %v", pages, s.file.pages)
			}
			err = errors.Join(err, p.rewrite(fds))
		}
		closeAll(fds)
		if err = errors.Join(err, p.close()); err != nil {
			t.Fatal(name, err)
		}
	}
	flip(1, "whole", 8192)
	flip(1, "other", 12288)
	cut("whole")
	cut("other", 12288)
	cut("own")
	marked := func() (names []string) {
		for name := range want {
			log := changelog{}
			_, err := unix.Getxattr(a.in(v.Bricks[0].Brick, name), "trusted.afr.one-client-1", log[:])
			if err == nil && log != (changelog{}) {
				names = append(names, name)
			} else if err != nil && !errors.Is(err, unix.ENODATA) {
				t.Error(err)
			}
		}
		slices.Sort(names)
		return names
	}
	if names := marked(); !slices.Equal(names, []string{"other", "own", "whole"}) {
		t.Errorf("marked are %v", names)
	}
	if third := scrub(); third.Damaged != 2 || third.Left != 0 || third.Files != 7 {
		t.Errorf("after it was cut off it found %+v", third)
	}
	if names := marked(); names != nil {
		t.Errorf("marked are still %v", names)
	}
	if fourth := scrub(); fourth.Mended != nil || fourth.Damaged != 2 {
		t.Errorf("then it found %+v", fourth)
	}
	// Nothing is changed while a copy is away.
	c.nodes[2].off()
	if _, err := a.Scrub(t.Context(), &Scrub{Volume: "one", Own: v.Bricks[0].Brick}, time.Now().Add(time.Minute)); err == nil {
		t.Error("with a copy away it is done")
	} else if left, _ := a.Pinned(); len(left) > 0 || !strings.Contains(err.Error(), "reach") {
		t.Errorf("with a copy away: %v, left %v", err, left)
	}
	c.nodes[2].start(t)
}

// readDirect reads from the disk.
func readDirect(f *os.File, offset int64, length int) ([]byte, error) {
	mem, err := unix.Mmap(-1, 0, (length+scrubPage-1)&^(scrubPage-1), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Munmap(mem) }()
	n, err := f.ReadAt(mem, offset)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return bytes.Clone(mem[:min(n, length)]), err
}

// TestScrubSettles: pages are read again a few at a time, and those that differ for good stay.
func TestScrubSettles(t *testing.T) {
	const pages = 5
	var fds []int
	var files []*os.File
	c := &pins{Scrub: &Scrub{pauses: []time.Duration{0, 0}, file: &scrubbed{}}}
	for i := range 3 {
		f, err := os.Create(filepath.Join(t.TempDir(), "copy"))
		if err == nil {
			_, err = f.WriteAt(bytes.Repeat([]byte{byte(i / 2)}, pages*scrubPage), 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fds, files = append(fds, int(f.Fd())), append(files, f)
		c.bufs = append(c.bufs, make([]byte, scrubChunk))
	}
	for i := range int64(pages) {
		c.file.pages = append(c.file.pages, i*scrubPage)
	}
	steps := 1
	for ; ; steps++ {
		if done, err := c.settle(t.Context(), fds, time.Time{}); err != nil {
			t.Fatal(err)
		} else if done {
			break
		}
		if steps == pages+1 { // somebody writes to one
			if _, err := files[2].WriteAt([]byte("other"), 3*scrubPage); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := []int64{0, scrubPage, 2 * scrubPage, 4 * scrubPage}
	if bad, ok := wrong(c.file.sums); steps < pages || !slices.Equal(c.file.pages, want) || !ok || !slices.Equal(bad, []int{2}) {
		t.Errorf("after %d steps there are %v, bad are %v, %v", steps, c.file.pages, bad, ok)
	}
	// Too many, of which none differs any more: looked at once more, and then left.
	c.file = &scrubbed{many: true, scanned: true, size: 7}
	if done, err := c.same(); done || err != nil || c.file.scanned || c.file.many || c.file.size != 7 {
		t.Errorf("it is scanned again: %+v", c.file)
	}
	c.file.many = true
	if done, err := c.same(); !done || err != nil || c.Seen.Left != 1 || c.Seen.Files != 0 {
		t.Errorf("it is left: %+v", c.Seen)
	}
}

// TestScrubUnmounted: no folder is left out while a brick isn't mounted.
func TestScrubUnmounted(t *testing.T) {
	h, gfid := NewHost(HostConfig{Dir: t.TempDir()}), "01020304-0506-0708-090a-0b0c0d0e0f10"
	s := &Scrub{Own: Brick{Path: "/brick"}}
	if f, err := h.nextFile(s); f != nil || !errors.Is(err, os.ErrNotExist) || s.dir != 0 {
		t.Errorf("unmounted there is %v, %v, at %d", f, err, s.dir)
	}
	dir := h.at("/brick/.glusterfs/01/02")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, gfid), []byte("data"), 0o600)); err != nil {
		t.Fatal(err)
	}
	f, err := h.nextFile(s)
	if err != nil || f == nil || f.gfid != gfid || f.size != 4 {
		t.Fatalf("mounted there is %v, %v", f, err)
	}
	s.after = gfid
	if f, err := h.nextFile(s); f != nil || err != nil {
		t.Errorf("at the end there is %v, %v", f, err)
	}
}
