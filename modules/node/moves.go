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
	// sendPatience is how long one host waits for the other: for it to begin, and in between.
	sendPatience = 20 * time.Second // less than agents wait for the head of an answer
)

// sends are the volumes that hosts wait for. Who asks waits here, the host that has the volume is told by
// its state, and its answer is what the first one reads. A server that ends cuts both off.
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

// sending is a volume that one host waits for and another has.
type sending struct {
	wire.Send
	account string
	from    string             // UID of the node that has it
	come    chan io.ReadCloser // what that one sends; one is taken
	end     chan struct{}      // closed when nobody waits any more
}

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
	own := 0
	for _, other := range s.all {
		if other.account == now.account {
			own++
		}
	}
	if own >= maxOwnSends || len(s.all) >= maxSends {
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
func (s *sends) of(node string) (all []wire.Send) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.all {
		if one.from == node {
			all = append(all, one.Send)
		}
	}
	return all
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

// fetch gives a node a volume that it shall have, from the node that has put it away.
func (h *Hub) fetch(w http.ResponseWriter, r *http.Request, node *resource.Node) {
	one, err := h.wanted(r, node)
	if err == nil {
		err = h.sends.begin(one)
	}
	if err != nil {
		h.answer(w, nil, err)
		return
	}
	defer h.sends.over(one)
	select {
	case in := <-one.come:
		defer in.Close()
		defer context.AfterFunc(r.Context(), func() { _ = in.Close() })()
		w.Header().Set("Content-Type", "application/octet-stream")
		out := http.NewResponseController(w)
		if err := passOn(in, w, out.SetWriteDeadline); err != nil {
			panic(http.ErrAbortHandler) // or who reads would take it for the end
		}
	case <-one.end:
		h.answer(w, nil, refuse(http.StatusConflict, "it was asked for once more"))
	case <-time.After(sendPatience):
		h.answer(w, nil, refuse(http.StatusConflict, "the host that has it does not send it"))
	case <-r.Context().Done():
	}
}

// passOn copies to the end, giving one side a time for each piece: of two hosts one may stop without a word.
func passOn(in io.Reader, out io.Writer, deadline func(time.Time) error) error {
	chunk := make([]byte, 64<<10)
	for {
		if err := deadline(time.Now().Add(sendPatience)); err != nil {
			return err
		}
		n, err := in.Read(chunk)
		if errors.Is(err, io.EOF) {
			err = nil
			if n == 0 {
				return deadline(time.Time{})
			}
		}
		if err == nil {
			_, err = out.Write(chunk[:n])
		}
		if err != nil {
			return err
		}
	}
}

// wanted is what a node asks for, if it shall have that.
func (h *Hub) wanted(r *http.Request, node *resource.Node) (*sending, error) {
	q := r.URL.Query()
	from, err := strconv.ParseInt(q.Get("from"), 10, 64)
	if err != nil || from < 0 {
		return nil, refuse(http.StatusBadRequest, "from is no number of octets")
	}
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

// send takes a volume that another node waits for.
func (h *Hub) send(w http.ResponseWriter, r *http.Request, node *resource.Node) {
	gone := refuse(http.StatusNotFound, "nobody waits for that any more")
	one := h.sends.find(node.UID, r.URL.Query().Get("id"))
	if one == nil {
		h.answer(w, nil, gone)
		return
	}
	// Each side is timed by its own request, of which nothing may be touched once that is over.
	theirs, ours := io.Pipe()
	select {
	case one.come <- theirs:
		err := passOn(r.Body, ours, http.NewResponseController(w).SetReadDeadline)
		_ = ours.CloseWithError(err) // nil is the end
		h.answer(w, nothing{}, nil)
	case <-one.end:
		h.answer(w, nil, gone)
	case <-time.After(sendPatience):
		h.answer(w, nil, refuse(http.StatusConflict, "it is sent already"))
	case <-r.Context().Done():
	}
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
