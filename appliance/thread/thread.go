// Package thread runs what changes an OS thread: its namespaces, its privileges.
//
// Parties: netns, hostmount and child. Any package may import it; it imports
// nothing of ours.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Do runs fn on a goroutine of its own that is locked to its OS thread, and returns
// its error; goroutines that fn starts are elsewhere. If fn says that the thread is
// not clean, or panics, the thread ends with the goroutine instead of going on in the
// wrong place under somebody else's code.
//
// It is never the process's first thread: the runtime can't end that one, and
// /proc/PID, by which others find our namespaces and mounts, shows it.
func Do(fn func() (clean bool, err error)) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Held until the other is done, so that it gets another thread.
			done <- Do(fn)
			runtime.UnlockOSThread()
			return
		}
		clean, err := fn()
		if clean {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
