package lifecycle

import (
	"sync"
	"time"
)

// The states of a part, in the order it goes through them. Failed may follow on
// any of Starting, Ready and Stopping.
const (
	Waiting  = "waiting"
	Starting = "starting"
	Ready    = "ready"
	Stopping = "stopping"
	Stopped  = "stopped"
	Failed   = "failed"
)

// PartStatus is what is known of one part.
type PartStatus struct {
	Name  string    `json:"name"`
	State string    `json:"state"` // waiting, starting, ready, stopping, stopped or failed
	Since time.Time `json:"since"`
	// WaitingFor are the parts that this one waits for: to be ready if it is
	// waiting, to have stopped if it is stopping.
	WaitingFor []string `json:"waitingFor,omitempty"`
	Error      string   `json:"error,omitempty"`
}

// Status says how every part is, in the order they were added.
func (g *Graph) Status() []PartStatus {
	g.mu.Lock()
	nodes := g.nodes[:len(g.nodes):len(g.nodes)]
	g.mu.Unlock()
	parts := make([]PartStatus, len(nodes))
	for i, n := range nodes {
		p := n.status.get()
		switch p.State {
		case Waiting:
			p.WaitingFor = open(n.after, func(n *Node) chan struct{} { return n.ready })
		case Stopping:
			p.WaitingFor = open(n.before, func(n *Node) chan struct{} { return n.stopped })
		}
		parts[i] = p
	}
	return parts
}

// open names the nodes whose channel is not closed.
func open(nodes []*Node, ch func(*Node) chan struct{}) (names []string) {
	for _, n := range nodes {
		select {
		case <-ch(n):
		default:
			names = append(names, n.name)
		}
	}
	return names
}

type status struct {
	mu   sync.Mutex
	part PartStatus // without what it waits for
}

// set moves to a later state. A part may call ready only when it is already
// being stopped, which doesn't make it ready.
func (s *status) set(state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == Ready && s.part.State != Starting {
		return
	}
	s.part.State, s.part.Since = state, time.Now()
}

func (s *status) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.part.State, s.part.Since = Stopped, time.Now()
	if err != nil {
		s.part.State, s.part.Error = Failed, err.Error()
	}
}

func (s *status) get() PartStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.part
}
