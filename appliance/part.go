package appliance

import (
	"slices"

	"github.com/multipaas/multipaas/appliance/lifecycle"
)

// part is something that others are made from. Its value can be had only in the
// name of what is being made (of), so that an argument is an edge of the graph,
// and no part runs before what it was made from is ready.
type part[T any] struct {
	value T
	nodes []*lifecycle.Node // ready before the value can be used
}

// needs gathers what something is made from.
type needs struct{ nodes []*lifecycle.Node }

// of returns p's value to what n is for.
func (p part[T]) of(n *needs) T {
	for _, node := range p.nodes {
		if !slices.Contains(n.nodes, node) {
			n.nodes = append(n.nodes, node)
		}
	}
	return p.value
}

// made is a value that runs nothing itself: who needs it needs what it was made
// from.
func made[T any](n *needs, value T) part[T] { return part[T]{value, n.nodes} }

// add adds a part that was made from n to the graph.
func add[T lifecycle.Component](g *lifecycle.Graph, name string, n *needs, value T) part[T] {
	return part[T]{value, []*lifecycle.Node{g.Add(name, value, n.nodes...)}}
}
