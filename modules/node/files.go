package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// Volumes go out to tenants and come from them as files, by the same pairs of requests as from host to host: sends.

// askAgain is when who was cut off may ask again.
const askAgain = time.Second

// Export writes a snapshot to w as a file, from an offset on; some of it, which goes on where that ends. If it writes nothing
// that was all. deadline is of w, for each piece. An *access.Refusal: nothing was written, and why.
func (h *Hub) Export(ctx context.Context, s *resource.Snapshot, from int64, w io.Writer, deadline func(time.Time) error) error {
	taken := s.CreatedAt
	if s.Status.ReadyAt != nil {
		taken = *s.Status.ReadyAt
	}
	one, err := h.fileOf(ctx, s.WorkspaceKey(), s.UID, s.Spec.Class, s.Status.Node, s.Status.NodeUID, s.Status.Conditions)
	if err != nil {
		return outward(err)
	}
	one.file.From, one.file.Volume = from, s.WorkspaceKey()+"/"+s.Spec.Volume
	one.file.Class, one.file.TakenAt = cmp.Or(s.Spec.Class, resource.LocalVolume), taken
	if err := h.sends.begin(one); err != nil {
		return outward(err)
	}
	defer h.sends.over(one)
	in, err := one.take(ctx)
	if err != nil {
		return outward(err)
	}
	defer in.Close()
	defer context.AfterFunc(ctx, func() { _ = in.Close() })()
	done, err := passOn(in, &tenant{writer: w, deadline: deadline}, noDeadline)
	if done == 0 {
		return outward(err)
	}
	return err
}

// BeginImport waits for the host of a volume to want what a tenant sends: from which offset on, and as what he sends it
// soon, by Import. An *access.Refusal says why not.
func (h *Hub) BeginImport(ctx context.Context, v *resource.Volume) (id string, from int64, err error) {
	if v.Spec.Class == resource.SharedVolume && !v.Status.Conditions.Is(resource.VolumeServed) {
		return "", 0, outward(refuse(http.StatusConflict, "%s", because("its copies are not there yet", waitsFor(v.Status.Conditions))))
	}
	node, uid := v.FileHost()
	one, err := h.fileOf(ctx, v.WorkspaceKey(), v.UID, v.Spec.Class, node, uid, v.Status.Conditions)
	if err != nil {
		return "", 0, outward(err)
	}
	one.file.Import, one.asked = true, make(chan int64, 1)
	if err := h.sends.begin(one); err != nil {
		return "", 0, outward(err)
	}
	select {
	case from = <-one.asked: // and its request waits
		return one.file.ID, from, nil
	case no := <-one.come: // its host says that it takes none
		_, err = no.Read(nil)
	case <-one.end:
		err = refuse(http.StatusConflict, "it was asked for once more")
	case <-time.After(sendPatience):
		err = refuse(http.StatusConflict, "%s", because("its host does not take it yet", one.waits))
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	h.sends.over(one)
	return "", 0, outward(err)
}

// Import has the host of a volume take what a tenant sends, until one of them ends that. An *access.Refusal says why it was not
// taken, or not to the end: the host knows how far it is.
func (h *Hub) Import(ctx context.Context, v *resource.Volume, id string, in io.Reader, deadline func(time.Time) error) error {
	_, node := v.FileHost()
	one := h.sends.find(node, id)
	if one == nil || one.asked == nil || one.UID != v.UID {
		return outward(gone)
	}
	return outward(one.give(ctx, &tenant{reader: in, deadline: deadline}, noDeadline))
}

func noDeadline(time.Time) error { return nil }

// tenant is the tenant's side of a file, who may take his time, and not all: while it is waited for him there is a deadline,
// which is later once a leastPiece has gone. What a host takes in between is not his.
type tenant struct {
	reader   io.Reader // one of the two
	writer   io.Writer
	deadline func(time.Time) error
	took     time.Duration // for so many octets
	bytes    int64
}

func (t *tenant) Read(p []byte) (int, error)  { return t.wait(t.reader.Read, p) }
func (t *tenant) Write(p []byte) (int, error) { return t.wait(t.writer.Write, p) }

func (t *tenant) wait(do func([]byte) (int, error), p []byte) (int, error) {
	began := time.Now()
	if err := t.deadline(began.Add(sendPatience - t.took)); err != nil {
		return 0, err
	}
	n, err := do(p)
	t.took, t.bytes = t.took+time.Since(began), t.bytes+int64(n)
	if t.bytes >= leastPiece {
		t.took, t.bytes = 0, 0
	}
	if over := t.deadline(time.Time{}); err == nil {
		err = over
	}
	return n, err
}

// waitsFor is what something waits for, as its first condition says that does.
func waitsFor(is resource.Conditions) string {
	for _, c := range is {
		if c.Status != resource.True && c.Message != "" {
			return c.Message
		}
	}
	return ""
}

// fileOf is what is to be begun with a host that is there and can do it: else nobody waits.
func (h *Hub) fileOf(
	ctx context.Context, workspace, uid, class, node, nodeUID string, is resource.Conditions,
) (*sending, error) {
	waits, driver := waitsFor(is), wire.FileDriver
	if class == resource.SharedVolume {
		driver = wire.SharedFileDriver
	}
	n, ok := h.cfg.Nodes.Get(node)
	switch {
	case node == "":
		return nil, refuse(http.StatusConflict, "%s", because("it has no host yet", waits))
	case !ok || n.UID != nodeUID || n.Gone():
		return nil, refuse(http.StatusConflict, "%s", because("its host is not there", waits))
	case n.Silent():
		return nil, refuse(http.StatusConflict, "the host that it is on does not report: it goes on once that does")
	case !slices.Contains(n.Status.Drivers, driver):
		return nil, refuse(http.StatusConflict, "the host that it is on knows no files of it yet: the operator has to upgrade it first")
	}
	ws, err := store.Of[resource.Workspace](h.cfg.Store).Get(ctx, workspace)
	if err != nil {
		return nil, err
	}
	account, _, _ := strings.Cut(workspace, "/")
	f := &wire.File{ID: rand.Text(), UID: uid, NetworkID: ws.Status.ID}
	return &sending{Send: wire.Send{ID: f.ID, UID: uid}, file: f, account: account, waits: waits, from: nodeUID,
		come: make(chan io.ReadCloser), end: make(chan struct{})}, nil
}

// ask is what a node wants of a tenant who waits for that.
func (s *sends) ask(node, id string, from int64) (*sending, error) {
	one := s.find(node, id)
	if one == nil || one.asked == nil {
		return nil, gone
	}
	select {
	case one.asked <- from:
		return one, nil
	default:
		return nil, refuse(http.StatusConflict, "it is asked for already")
	}
}

// outward is an error as tenants may read it, who ask again then.
func outward(err error) error {
	var no refusal
	switch {
	case err == nil:
		return nil
	case errors.As(err, &no) && no.status == http.StatusUnprocessableEntity:
		return &access.Refusal{Reason: access.ErrInvalid, Text: "It can't be done: " + no.text + "."}
	case errors.As(err, &no):
	case errors.Is(err, io.ErrClosedPipe), errors.Is(err, io.ErrUnexpectedEOF):
		no = refusal{text: "its host has ended it"}
	default:
		return err
	}
	return &access.Refusal{Reason: access.ErrExists, Text: "Not now: " + no.text + ".", RetryAfter: askAgain}
}
