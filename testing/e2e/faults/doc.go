// Package faults kills a datacenter at every step of everything it does, and
// breaks what is around it: each time all comes back by itself, nothing that was
// promised is lost, nothing stays behind.
//
// TestWalk starts each operation with MULTIPAAS_FAULT in the environment of the
// server or of a node's agent, sees that process die there by SIGKILL, starts it
// again, often with the next point of the same operation, and in the end looks at
// the state that was wanted. A point at which nothing dies fails the walk, so does
// one that no operation of the walk has, and so does whatever `multipaas doctor`'s
// inventory has more of on any host and in etcd when all is gone again.
//
// TestFaults does the same at the points for which a workspace needs machines on two hosts (storage), ends processes by kill -9
// from outside, in the middle of writes that
// are counted when they are acknowledged, cuts networks, damages files and fills
// disks. Each of its parts can be run alone, `-run TestFaults/network`. Those of the
// walk follow each other: `-run 'TestWalk/(bootstrap|people|accounts)'`.
//
// `make faults` runs both at once, each with hosts of its own; MULTIPAAS_LONG=1 adds
// repetitions. What they find is counted in one line: faults: N points walked, N
// lost, N leaked.
package faults
