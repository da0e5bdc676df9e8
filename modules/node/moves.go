package node

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

const (
	// maxSends is how many volumes come from one host to another through this server at a time, and
	// maxOwnSends how many of one account: each takes as much of the network as it gets.
	maxSends, maxOwnSends = 8, 2
	// maxFiles and maxOwnFiles are the same of what goes out to tenants and comes from them. They are no part of the others:
	// these go as fast as tenants want, and hold up no move.
	maxFiles, maxOwnFiles = 16, 2
	// sendPatience is how long one host waits for the other: for it to begin, and in between.
	sendPatience = 20 * time.Second // less than agents wait for the head of an answer
	// leastPiece is how much a tenant has to take, or send, within sendPatience.
	leastPiece = 256 << 10
)

// sends are the volumes that hosts and tenants wait for, and that tenants send. Who asks waits here, the host that has the
// volume is told by its state, and its answer is what the first one reads. A server that ends cuts both off.
type sends struct {
	mu  sync.Mutex
	all []*sending // in the order in which they were asked for
	// changed are closed and taken out when what a node, by its UID, is waited for may have changed: it alone is told.
	changed map[string]chan struct{}
}

// waitChange is closed once a node may be waited for something else. Only its stream of states asks.
func (s *sends) waitChange(node string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = map[string]chan struct{}{}
	}
	if s.changed[node] == nil {
		s.changed[node] = make(chan struct{})
	}
	return s.changed[node]
}

// wake is called with mu held.
func (s *sends) wake(node string) {
	if changed := s.changed[node]; changed != nil {
		close(changed)
		delete(s.changed, node)
	}
}

// sending is a volume that one host waits for and another has; or with a file, that a tenant waits for, or sends.
type sending struct {
	wire.Send
	file    *wire.File
	account string
	waits   string             // why a tenant waits, as its condition says; "" is not known
	from    string             // UID of the node that has it, or shall have it
	asked   chan int64         // from which offset on that one wants what a tenant sends; one is taken
	come    chan io.ReadCloser // what is sent; one is taken
	end     chan struct{}      // closed when nobody waits any more
}

// failed is a stream that was not begun. What the host says of that is for whoever waits.
type failed struct{ error }

func (f failed) Read([]byte) (int, error) { return 0, f.error }
func (failed) Close() error               { return nil }

// begin adds one, in place of one of the same volume that nobody may wait for any more.
func (s *sends) begin(now *sending) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = slices.DeleteFunc(s.all, func(was *sending) bool {
		if was.UID == now.UID {
			close(was.end)
			s.wake(was.from)
		}
		return was.UID == now.UID
	})
	all, own, most, mostOwn := 0, 0, maxSends, maxOwnSends
	if now.file != nil {
		most, mostOwn = maxFiles, maxOwnFiles
	}
	for _, other := range s.all {
		if (other.file == nil) != (now.file == nil) {
			continue
		}
		all++
		if other.account == now.account {
			own++
		}
	}
	if own >= mostOwn || all >= most {
		return refuse(http.StatusConflict, "it waits for other volumes that are on their way")
	}
	s.all = append(s.all, now)
	s.wake(now.from)
	return nil
}

func (s *sends) over(one *sending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.all, one); i >= 0 {
		s.all = slices.Delete(s.all, i, i+1)
		close(one.end)
		s.wake(one.from)
	}
}

// of are those that a node is waited for.
func (s *sends) of(node string) (all []wire.Send, files []wire.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.all {
		switch {
		case one.from != node:
		case one.file != nil:
			files = append(files, *one.file)
		default:
			all = append(all, one.Send)
		}
	}
	return all, files
}

func (s *sends) find(node, id string) *sending {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.all {
		if one.from == node && one.ID == id {
			return one
		}
	}
	return nil
}

// fetch gives a node a volume that it shall have, from the node that has put it away, or from a tenant who sends it.
func (h *Hub) fetch(w http.ResponseWriter, r *http.Request, node *resource.Node) {
	q := r.URL.Query()
	from, err := strconv.ParseInt(q.Get("from"), 10, 64)
	if err != nil || from < 0 {
		h.answer(w, nil, refuse(http.StatusBadRequest, "from is no number of octets"))
		return
	}
	var one *sending
	if q.Has("id") {
		one, err = h.sends.ask(node.UID, q.Get("id"), from)
	} else if one, err = h.wanted(r, node, from); err == nil {
		err = h.sends.begin(one)
	}
	if err != nil {
		h.answer(w, nil, err)
		return
	}
	defer h.sends.over(one)
	in, err := one.take(r.Context())
	if err != nil {
		h.answer(w, nil, err)
		return
	}
	defer in.Close()
	defer context.AfterFunc(r.Context(), func() { _ = in.Close() })()
	w.Header().Set("Content-Type", "application/octet-stream")
	if _, err := passOn(in, w, http.NewResponseController(w).SetWriteDeadline); err != nil {
		panic(http.ErrAbortHandler) // or who reads would take it for the end
	}
}

// take waits for what is sent.
func (one *sending) take(ctx context.Context) (io.ReadCloser, error) {
	select {
	case in := <-one.come:
		return in, nil
	case <-one.end:
		return nil, refuse(http.StatusConflict, "it was asked for once more")
	case <-time.After(sendPatience):
		return nil, refuse(http.StatusConflict, "%s", because("who has it does not send it", one.waits))
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// because is a text and why that is, if that is known.
func because(text, why string) string {
	if why != "" {
		text += ": " + strings.TrimSuffix(why, ".")
	}
	return text
}

// give has somebody take what is read, and blocks until he has. deadline is for each piece.
func (one *sending) give(ctx context.Context, in io.Reader, deadline func(time.Time) error) error {
	// Each side is timed by its own request, of which nothing may be touched once that is over.
	theirs, ours := io.Pipe()
	select {
	case one.come <- theirs:
		_, err := passOn(in, ours, deadline)
		_ = ours.CloseWithError(err) // nil is the end
		return err
	case <-one.end:
		return gone
	case <-time.After(sendPatience):
		return refuse(http.StatusConflict, "it is sent already")
	case <-ctx.Done(): // who waits need not wait for longer
		select {
		case one.come <- failed{refuse(http.StatusConflict, "it was cut off")}:
		default:
		}
		return context.Cause(ctx)
	}
}

var gone = refuse(http.StatusNotFound, "nobody waits for that any more")

// passOn copies to the end, giving one side a time for each piece: of two hosts one may stop without a word.
// It returns how much has gone out.
func passOn(in io.Reader, out io.Writer, deadline func(time.Time) error) (done int64, err error) {
	chunk := make([]byte, 64<<10)
	for {
		if err := deadline(time.Now().Add(sendPatience)); err != nil {
			return done, err
		}
		n, err := in.Read(chunk)
		if errors.Is(err, io.EOF) {
			err = nil
			if n == 0 {
				return done, deadline(time.Time{})
			}
		}
		if err == nil {
			n, err = out.Write(chunk[:n])
			done += int64(n)
		}
		if err != nil {
			return done, err
		}
	}
}

// wanted is what a node asks for, if it shall have that.
func (h *Hub) wanted(r *http.Request, node *resource.Node, from int64) (*sending, error) {
	q := r.URL.Query()
	v, err := store.Of[resource.Volume](h.cfg.Store).Get(r.Context(), q.Get("volume"))
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalidKey) ||
		err == nil && (v.UID != q.Get("uid") || !v.Status.MovingOn(node.UID) || v.Status.Moving.Stage != resource.MoveCopying) {
		return nil, refuse(http.StatusNotFound, "this volume does not move to node %s", node.Name)
	}
	if err != nil {
		return nil, err
	}
	if !v.Status.Moving.Away {
		return nil, refuse(http.StatusConflict, "the host that has it has not put it away yet")
	}
	ws, err := store.Of[resource.Workspace](h.cfg.Store).Get(r.Context(), v.WorkspaceKey())
	if err != nil {
		return nil, err
	}
	account, _, _ := strings.Cut(v.WorkspaceKey(), "/")
	return &sending{Send: wire.Send{ID: rand.Text(), UID: v.UID, NetworkID: ws.Status.ID, From: from},
		account: account, from: v.Status.NodeUID, come: make(chan io.ReadCloser), end: make(chan struct{})}, nil
}

// send takes a volume that another node waits for, or a tenant.
func (h *Hub) send(w http.ResponseWriter, r *http.Request, node *resource.Node) {
	one := h.sends.find(node.UID, r.URL.Query().Get("id"))
	if one == nil {
		h.answer(w, nil, gone)
		return
	}
	if why := r.URL.Query().Get("failed"); why != "" {
		status := http.StatusConflict
		if r.URL.Query().Has("lasting") {
			status = http.StatusUnprocessableEntity
		}
		select {
		case one.come <- failed{refuse(status, "%s", clip(why, maxText))}:
		case <-one.end:
		case <-r.Context().Done():
		}
		h.answer(w, nothing{}, nil)
		return
	}
	if one.asked != nil { // it comes from a tenant
		h.answer(w, nil, gone)
		return
	}
	err := one.give(r.Context(), r.Body, http.NewResponseController(w).SetReadDeadline)
	var no refusal
	if !errors.As(err, &no) {
		err = nil // who waits knows, and asks again
	}
	h.answer(w, nothing{}, err)
}

// otherHost is what the other host of a volume that moves is told of it.
func otherHost(w wire.Volume, m *resource.VolumeMove) wire.Volume {
	w.Pool, w.FirstUID, w.Source, w.Attachments, w.Move = m.Pool, m.FirstUID, "", nil, m.Step()
	w.Made, w.Incoming, w.Keep, w.Remove = false, m.Stage == resource.MoveCopying, m.Stage == resource.MoveSwitched,
		m.Stage == resource.MoveRemoving
	return w
}

// lookMoving takes down what one of the two hosts says of a volume that moves. It says whether that was all
// there is to take down.
func lookMoving(s *resource.VolumeStatus, node *resource.Node, rep wire.VolumeReport) bool {
	m := s.Moving
	switch {
	case rep.Move != m.Step():
		return true // of what was to be before
	case s.MovingOn(node.UID):
		switch {
		case m.Stage == resource.MoveCopying:
			m.Copied = rep.Ready
			s.Conditions.Set(resource.Condition{Type: resource.VolumeReady, Status: resource.False, Reason: "Moving",
				Message: clip(rep.Message, maxText)})
		case m.Stage == resource.MoveRemoving && rep.Removed:
			m.Removed = true
		}
		return true
	case m != nil && m.Stage == resource.MoveCopying:
		m.Away = rep.Ready
		if !m.Away {
			s.Conditions.Set(resource.Condition{Type: resource.VolumeReady, Status: resource.False, Reason: "Moving",
				Message: clip(rep.Message, maxText)})
		}
		s.Attachments = nil
		return true
	}
	return false
}
