package gluster

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/child"
	"github.com/multipaas/multipaas/appliance/runc"
)

// ErrNotMounted is returned for a mount that isn't there, or whose client has died: what was
// shown of it answers ENOTCONN for ever, and has to be taken anew.
var ErrNotMounted = errors.New("it is not mounted")

// ErrAwayBricks is returned for a mount whose client lives, and reaches too few of the volume's
// bricks. It goes on when it does.
var ErrAwayBricks = errors.New("too few of its bricks can be reached")

// ErrHung is returned for a mount that does not answer. It may yet: while a host is being given up,
// all wait.
var ErrHung = errors.New("it does not answer")

// Mount is a volume as one machine of this host has it.
type Mount struct{ Volume, Machine string }

func (m Mount) String() string { return m.Volume + " for " + m.Machine }

// name is that of its folder and its container.
func (m Mount) name() string { return m.Volume + "." + m.Machine }

func (m Mount) check() error { return errors.Join(checkName(m.Volume), checkName(m.Machine)) }

// Users is the user namespace of a machine: FUSE answers to who is in it, or below, and to nobody
// else, and what is 0 there is 0 in the volume.
type Users struct {
	File *os.File // open until Mount returns
	// First is the host's user and group that is 0 in it, of Count that follow one another.
	First, Count uint32
}

// have says whether a process is in it; in ours, if it is nil.
func (u *Users) have(pid int) (bool, error) {
	is, err := os.Stat(fmt.Sprintf("/proc/%d/ns/user", pid))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	var want os.FileInfo
	switch {
	case err != nil:
		return false, err
	case u == nil:
		want, err = os.Stat("/proc/self/ns/user")
	default:
		want, err = u.File.Stat()
	}
	return err == nil && os.SameFile(is, want), err
}

// Mount has a volume mounted for a machine, and returns when it answers. It is seen by nobody: see
// Take. users are the machine's, nil if they are the host's. servers are hosts whose glusterd is asked
// for the volume, one after the other until one answers. What is mounted is left alone; what has no
// client any more, or one of other users, is mounted anew, as another file system. After an error
// nothing is mounted, unless it is ErrAwayBricks or ErrHung: it goes on by itself. Trust comes first.
func (h *Host) Mount(ctx context.Context, m Mount, users *Users, servers []netip.Addr) error {
	err := m.check()
	if err == nil && len(servers) == 0 {
		err = errors.New("no server to ask for it")
	}
	if err == nil {
		err = h.mount(ctx, m, users, servers)
	}
	if err != nil {
		return fmt.Errorf("mount volume %v: %w", m, err)
	}
	return nil
}

func (h *Host) mount(ctx context.Context, m Mount, users *Users, servers []netip.Addr) error {
	h.client(m).boundLog()
	now, err := h.find(ctx, m)
	if err == nil {
		var same bool
		if same, err = users.have(now.pid); err != nil {
			return err
		}
		if same {
			err = h.look(ctx, m, now)
		} else {
			err = ErrNotMounted
		}
	}
	if !errors.Is(err, ErrNotMounted) {
		return err
	}
	if err := h.unmount(ctx, m); err != nil {
		return err
	}
	began := time.Now()
	if err = h.startClient(ctx, m, users, asked(m.Volume, servers)); err == nil {
		err = h.awaitMount(ctx, m)
	}
	if errors.Is(err, ErrAwayBricks) || errors.Is(err, ErrHung) {
		return err // it goes on by itself when they are back
	}
	if err != nil {
		return errors.Join(err, h.unmount(context.WithoutCancel(ctx), m))
	}
	h.cfg.Log.Info("volume mounted", "volume", m.Volume, "machine", m.Machine, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// startClient starts the client of what isn't mounted. of is as clientSpec has it.
func (h *Host) startClient(ctx context.Context, m Mount, users *Users, of []string) error {
	image, err := h.images.Unpack(ctx, h.imageLayout())
	if err != nil {
		return err
	}
	c := h.client(m)
	if err := h.prepare(c, users); err != nil {
		return err
	}
	spec, err := h.clientSpec(c, image, users, of)
	if err != nil {
		return err
	}
	_, _, err = c.ensure(ctx, spec, image, true, func() error { return nil })
	return err
}

// awayTime is for how long a new mount is waited for that reaches too few bricks: others wait for who waits.
const awayTime = 5 * time.Second

// awaitMount waits until what a client was started for is mounted and answers, or the client
// has ended.
func (h *Host) awaitMount(ctx context.Context, m Mount) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, patient := h.client(m), time.Now().Add(awayTime)
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		state, _, err := h.runc.State(ctx, c.id)
		if err != nil {
			return err
		}
		if !state.Running() {
			return fmt.Errorf("its client ended: %s", cmp.Or(c.lastError(), c.said(), "it said nothing"))
		}
		now, err := h.find(ctx, m)
		if err == nil {
			err = h.look(ctx, m, now)
		}
		if err == nil || time.Now().After(patient) && (errors.Is(err, ErrAwayBricks) || errors.Is(err, ErrHung)) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", err, c.lastError())
		}
	}
}

// lastError is the last error in a client's log.
func (c container) lastError() (last string) {
	text, err := os.ReadFile(c.at(clientLog))
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

// Unmount ends a mount, whether it answers or not. Who has taken it gets ENOTCONN then. None there is
// no error.
func (h *Host) Unmount(ctx context.Context, m Mount) error {
	err := m.check()
	if err == nil {
		err = h.unmount(ctx, m)
	}
	if err != nil {
		return fmt.Errorf("unmount volume %v: %w", m, err)
	}
	h.prune()
	return nil
}

func (h *Host) unmount(ctx context.Context, m Mount) error {
	// It is in its client's mounts, and ends with them. What waits for it is let go.
	c := h.client(m)
	if err := c.end(ctx); err != nil {
		return err
	}
	h.remember(m, nil)
	// The folder last: as long as it is there, Mounted shows it.
	return os.RemoveAll(c.dir)
}

// Mounted lists the mounts of which there is something, other than those of a scrub. It asks none.
func (h *Host) Mounted() (all []Mount, err error) {
	all, err = h.mounts()
	return slices.DeleteFunc(all, Mount.pinned), err
}

// mounts are all of which there is something.
func (h *Host) mounts() (all []Mount, err error) {
	entries, err := os.ReadDir(h.at("clients"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		volume, machine, _ := strings.Cut(e.Name(), ".")
		if m := (Mount{volume, machine}); m.check() == nil {
			all = append(all, m)
		}
	}
	return all, err
}

// Old says whether a mount that is there runs by another image than it would be mounted by now. To change it, it has
// to be unmounted.
func (h *Host) Old(ctx context.Context, m Mount) (bool, error) {
	image, err := h.images.Unpack(ctx, h.imageLayout())
	if err != nil {
		return false, err
	}
	bundle, err := os.ReadFile(h.client(m).at("bundle/config.json"))
	return err == nil && !bytes.Contains(bundle, []byte(`"`+filepath.Base(image)+`"`)), err
}

// Look says how a mount is: nil if it answers, and else ErrNotMounted, ErrAwayBricks or ErrHung.
func (h *Host) Look(ctx context.Context, m Mount) error {
	if err := m.check(); err != nil {
		return err
	}
	now, err := h.find(ctx, m)
	if err != nil {
		return err
	}
	h.mu.Lock()
	now.answered = time.Time{}
	h.mu.Unlock()
	return h.look(ctx, m, now)
}

// askEvery is for how long what answered, and whose client lives, is taken to answer: to ask is to
// start a program, of 30 ms of a CPU, and a hundred mounts are looked at every 10 s.
const askEvery = 2 * time.Minute

// look says how a mount whose client lives is. It waits for it no longer than patience, and leaves one
// goroutine at most waiting for each: only the end of its client lets that go.
func (h *Host) look(ctx context.Context, m Mount, now *found) error {
	h.mu.Lock()
	fresh := time.Since(now.answered) < askEvery
	h.mu.Unlock()
	if fresh {
		return nil
	}
	said := h.ask(ctx, m)
	switch {
	case said == nil:
		h.mu.Lock()
		now.answered = time.Now()
		h.mu.Unlock()
	case !now.alive():
		return ErrNotMounted
	}
	return said
}

// boundLog bounds a client's log, which it does not itself. It appends, so what is cut goes on at its beginning.
func (c container) boundLog() {
	if info, err := os.Stat(c.at(clientLog)); err == nil && info.Size() > logBytes {
		_ = os.Truncate(c.at(clientLog), 0)
	}
}

// ask asks how much a mounted file system holds. In its client's container, since FUSE answers nobody of
// other users; so who waits there for ever counts as the client's, and ends with it.
func (h *Host) ask(ctx context.Context, m Mount) error {
	h.mu.Lock()
	answer := h.looks[m]
	if answer == nil {
		answer = make(chan error, 1)
		h.looks[m] = answer
		go func() {
			err := h.statfs(m)
			h.mu.Lock()
			delete(h.looks, m)
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
			return h.ask(ctx, m)
		}
		return err
	case <-ctx.Done():
		return ErrHung
	}
}

// statfs returns when it is answered, or the client has ended.
func (h *Host) statfs(m Mount) error {
	cmd := h.runc.Command(context.Background(), "exec", h.client(m).id, "/usr/bin/stat", "--file-system", "--format=%t", mountPoint)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := child.Command(cmd)
	switch said := runc.LastLine(errOut.String()); {
	case err != nil && strings.HasSuffix(said, notConnected):
		return ErrAwayBricks
	case err != nil:
		return fmt.Errorf("%w: %s", err, said)
	case strings.TrimSpace(out.String()) != fuseMagic: // its client has unmounted it, and ends
		return ErrNotMounted
	}
	return nil
}

// fuseMagic is the kind of a file system that FUSE serves, as statfs(2) has it.
const fuseMagic = "65735546"

// notConnected is how the C library says ENOTCONN.
const notConnected = "Transport endpoint is not connected"
