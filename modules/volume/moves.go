package volume

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/wire"
)

// sent is the line before a volume's image, when it goes to another host: what there is to know of it
// that isn't in the image.
type sent struct {
	HostUsers bool `json:"hostUsers,omitempty"` // see record
}

const maxSent = 4 << 10

// sentRaw goes before that line if the image is of raw blocks. Who knows none takes the line for one that isn't whole, and mounts
// nothing.
const sentRaw = "blocks "

// Send writes a volume that is put away (Keep) to w, from an offset on, for another host's Config.Fetch. It
// blocks as long as w does.
func (h *Host) Send(ctx context.Context, uid string, from int64, w io.Writer) error {
	err := checkUID("volume", uid)
	if err == nil {
		err = h.send(ctx, uid, from, w)
	}
	return h.outward("send volume "+uid, err)
}

func (h *Host) send(ctx context.Context, uid string, from int64, w io.Writer) error {
	if err := h.answers(h.poolOf(uid)); err != nil {
		return h.said(poolTrouble, err)
	}
	p := h.place(uid)
	put, err := h.putAway(uid)
	if err != nil {
		return err
	}
	if !put {
		return saidf("its former host has not put it away")
	}
	disk := p.stored()
	if err := diskimage.AwaitFree(ctx, disk.File); err != nil {
		return h.said("somebody in a machine has it open still: delete the pods that use it", err)
	}
	rec, err := p.record()
	if err != nil {
		return err
	}
	line, err := json.Marshal(sent{HostUsers: rec.HostUsers})
	if err != nil {
		return err
	}
	if p.raw() {
		line = append([]byte(sentRaw), line...)
	}
	if _, err := w.Write(append(line, '\n')); err != nil {
		return err
	}
	return disk.Send(ctx, w, from)
}

// receive fetches a volume that comes from another host, or finds all of it there. The error says how far it is.
func (h *Host) receive(ctx context.Context, v wire.Volume) error {
	p := h.place(v.UID)
	there, err := h.there(v)
	if err != nil {
		return err
	}
	if there {
		return h.arrived(v)
	}
	if rec, err := p.record(); err != nil || rec.Move != v.Arrival() {
		if err := p.disk(v.Block).Forget(); err != nil { // of another move, if there is something
			return err
		}
	}
	if _, err := h.noted(v, true, false); err != nil {
		return err
	}
	h.mu.Lock()
	c := h.copies[v.UID]
	h.mu.Unlock()
	if c == nil {
		c = h.beginCopy(v, func(ctx context.Context, c *copying) error { return h.receiving(ctx, v, c) })
	}
	return h.await(ctx, v, c, "it is copied from its former host")
}

// arrived refuses a disk that is taken for one that came by the move that a volume is on, and did not: a host
// that was given up, and joined anew, may have an older one.
func (h *Host) arrived(v wire.Volume) error {
	id := v.Arrival()
	if id == "" && !v.Incoming {
		return nil
	}
	rec, err := h.place(v.UID).record()
	if err == nil && rec.Move == id && id != "" {
		return nil
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("volume %s moves here by move %q, and its disk is there, by move %q", v.UID, id, rec.Move)
	}
	if v.Incoming {
		return h.said("an older copy of it is on that host, which was given up once: `mp volumes move NAME --stay` has that copy "+
			"removed, and then it can be moved there", err)
	}
	return h.said("an older copy of it is on that host: the operator removes it there (multipaas doctor)", err)
}

func (h *Host) receiving(ctx context.Context, v wire.Volume, c *copying) error {
	most := wholeMiB(v.SizeBytes)
	if v.Encrypted { // it comes as it is
		most += diskimage.HeaderBytes
	}
	err := h.place(v.UID).disk(v.Block).Receive(ctx, most, func(from int64) (io.ReadCloser, error) {
		return h.fetch(ctx, v, from)
	}, c.tell)
	switch {
	case errors.Is(err, errTurn):
		return saidf("it makes way for others that come to its host, and goes on where it ended")
	case errors.Is(err, diskimage.ErrStream):
		return h.said("the copy from its former host was cut off, and goes on where it ended", err)
	case err == nil:
		failpoint.Reach("volume/move/received")
		h.cfg.Log.Info("volume received", "volume", v.Key, "uid", v.UID)
	}
	return err
}

// fetch asks for the image, and writes down what comes before it.
func (h *Host) fetch(ctx context.Context, v wire.Volume, from int64) (io.ReadCloser, error) {
	body, err := h.cfg.Fetch(ctx, v, from)
	if err != nil {
		return nil, h.said("its former host does not send it yet", err)
	}
	in := bufio.NewReaderSize(body, maxSent)
	line, err := in.ReadSlice('\n')
	var say sent
	line, raw := bytes.CutPrefix(line, []byte(sentRaw))
	if err == nil {
		err = json.Unmarshal(line, &say)
	}
	if err == nil && raw != v.Block {
		return nil, errors.Join(errKind, body.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", diskimage.ErrStream, errors.Join(err, body.Close()))
	}
	p := h.place(v.UID)
	rec, err := p.record()
	if err == nil && rec.HostUsers != say.HostUsers {
		rec.HostUsers = say.HostUsers
		err = atomicfile.WriteJSON(p.at(recordName), rec)
	}
	if err != nil {
		return nil, errors.Join(err, body.Close())
	}
	return &turn{in, body, h, time.Now()}, nil
}

var errTurn = errors.New("others wait")

// turn is a stream that ends once it has had its time and others wait.
type turn struct {
	io.Reader
	io.Closer
	h     *Host
	since time.Time
}

func (t *turn) Read(p []byte) (int, error) {
	if time.Since(t.since) > receiveTurn {
		if t.h.yields() {
			return 0, errTurn
		}
		t.since = time.Now()
	}
	return t.Reader.Read(p)
}
