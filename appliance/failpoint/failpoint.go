// Package failpoint kills this process at a chosen point of an operation of
// many steps, as kill -9 or a power cut would, so that a test can walk all such
// points and see that each operation survives.
//
// It promises that the points cost nothing while none is chosen, one atomic
// load, and that a process that was told to die at a point does so there: by
// SIGKILL, which nothing catches, after a line on standard error that says where.
//
// Parties: modules and parts call Reach between two steps; main calls Arm with
// the variable; the walk in testing/e2e/faults sets the variable of one process
// of a datacenter. Any package may import it. A package that has points says what
// they are by a function Failpoints, which package appliance collects; a test
// there holds list and code together.
package failpoint

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Variable chooses where the process dies: NAME for the first time it gets to
// the point, NAME@3 for the third. Empty or unset is nowhere.
const Variable = "MULTIPAAS_FAULT"

// Where a point is reached.
const (
	Server = "server"
	Node   = "node"
	Both   = "server and node"
)

// Point is a place in the code between two steps of an operation.
type Point struct {
	Name string // OPERATION/WHAT-IS-DONE
	In   string // which process gets there: Server, Node or Both
	Cuts string // what is done, and what is not yet
}

// fault is the chosen point.
type fault struct {
	name string
	left atomic.Int64 // times to pass before it dies, this one included
	die  func(name string)
}

// armed belongs to the process, as its environment does: Reach is called from
// packages that share nothing else. Nil: none is chosen.
var armed atomic.Pointer[fault]

// Arm chooses by the value of Variable, and takes the variable out of the
// environment so that no child gets it. points are those there are; the error
// lists them.
func Arm(value string, points []Point) error {
	if value == "" {
		return nil
	}
	f, err := parse(value, points)
	if err != nil {
		return err
	}
	f.die = die
	armed.Store(f)
	return os.Unsetenv(Variable)
}

func parse(value string, points []Point) (*fault, error) {
	name, count, counted := strings.Cut(value, "@")
	n := int64(1)
	if counted {
		var err error
		if n, err = strconv.ParseInt(count, 10, 64); err != nil || n < 1 {
			return nil, fmt.Errorf("%s=%q: %q is no count: write NAME@2 for the second time", Variable, value, count)
		}
	}
	if !slices.ContainsFunc(points, func(p Point) bool { return p.Name == name }) {
		var names []string
		for _, p := range points {
			names = append(names, p.Name)
		}
		return nil, fmt.Errorf("%s=%q: no such point; there are:\n  %s", Variable, value, strings.Join(names, "\n  "))
	}
	f := &fault{name: name}
	f.left.Store(n)
	return f, nil
}

// Reach says that the process is at a point. If that is the chosen one, it does
// not return. It is safe for concurrent use.
func Reach(name string) {
	if f := armed.Load(); f != nil {
		f.reach(name)
	}
}

func (f *fault) reach(name string) {
	if name == f.name && f.left.Add(-1) == 0 {
		f.die(name)
	}
}

// Mark is what standard error has before the process dies at a point.
func Mark(name string) string { return "failpoint: killed at " + name }

func die(name string) {
	// One write, unbuffered: what follows leaves no time for a second.
	_, _ = os.Stderr.WriteString(Mark(name) + "\n")
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // other threads get a moment before the signal ends them; this one goes no further
}
