package thread

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/wait"
)

// TestDo: what was done to a thread that is not clean is no other goroutine's, and the
// first thread is left alone.
func TestDo(t *testing.T) {
	wrong := errors.New("wrong")
	for _, clean := range []bool{true, false} {
		var tid int
		err := Do(func() (bool, error) {
			tid = unix.Gettid()
			return clean, wrong
		})
		if !errors.Is(err, wrong) || tid == os.Getpid() {
			t.Errorf("got %v on thread %d of process %d, want what fn returned", err, tid, os.Getpid())
		}
		if !clean {
			wait.True(t, wait.Patience, "the thread has ended", func() bool {
				return errors.Is(unix.Tgkill(os.Getpid(), tid, 0), unix.ESRCH)
			})
		}
	}
}

// The main goroutine is on the first thread.
func init() { runtime.LockOSThread() }

// TestMain calls Do there, where the goroutine that Do starts begins as well: on the
// thread of who waits for it.
func TestMain(m *testing.M) {
	runtime.UnlockOSThread()
	for range 20 {
		err := Do(func() (bool, error) {
			if unix.Gettid() == os.Getpid() {
				return true, errors.New("on the process's first thread")
			}
			return false, nil
		})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}
