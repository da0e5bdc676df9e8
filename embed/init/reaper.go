package main

import (
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// reaper starts processes and collects every child that ends, also those
// that this process was handed because their parents died. It takes the place
// of os/exec, whose Wait would race with it for exit statuses.
type reaper struct {
	mu      sync.Mutex
	waiting map[int]chan syscall.WaitStatus
}

func newReaper() *reaper {
	return &reaper{waiting: map[int]chan syscall.WaitStatus{}}
}

// Start starts a process. Its exit status comes on the channel.
func (r *reaper) Start(argv []string, attr *syscall.ProcAttr) (int, <-chan syscall.WaitStatus, error) {
	// Held over the fork: a child that ends at once must not be collected
	// before it is known.
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(argv[0], argv, attr)
	if err != nil {
		return 0, nil, err
	}
	ended := make(chan syscall.WaitStatus, 1)
	r.waiting[pid] = ended
	return pid, ended, nil
}

// Run collects until done is closed.
func (r *reaper) Run(done <-chan struct{}) {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	defer signal.Stop(children)
	for {
		r.collect()
		select {
		case <-children:
		case <-done:
			return
		}
	}
}

// collect takes all that have ended: signals of the same kind merge. It says
// whether there are children left.
func (r *reaper) collect() (left bool) {
	for {
		r.mu.Lock()
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if pid > 0 {
			if ended, ok := r.waiting[pid]; ok {
				delete(r.waiting, pid)
				ended <- status
			}
		}
		r.mu.Unlock()
		if pid <= 0 && !errors.Is(err, syscall.EINTR) {
			return err == nil
		}
	}
}
