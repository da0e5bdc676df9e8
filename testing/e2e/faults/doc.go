// Package faults kills a datacenter at every step of everything it does, and
// breaks what is around it: each time all comes back by itself, nothing that was
// promised is lost, nothing stays behind.
//
// The walk starts each operation with MULTIPAAS_FAULT in the environment of the
// server or of a node's agent, sees that process die there by SIGKILL, starts it
// again, often with the next point of the same operation, and in the end looks at
// the state that was wanted. A point at which nothing dies fails the walk, so
// does one that no operation of the walk has. The kills end processes by kill -9
// from outside, in the middle of writes that are counted when they are acknowledged.
//
// `make faults` runs it; MULTIPAAS_LONG=1 adds repetitions. What the tests find is
// counted in one line: faults: N points walked, N lost, N leaked.
package faults
