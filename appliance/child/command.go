package child

import (
	"os/exec"
	"runtime"
	"syscall"
)

// Command runs a command to its end, and returns its error. It dies with us: an orphan
// would go on making what the next of us, which knows nothing of it, makes or takes away at
// the same time. What it has let go of, as a container that runs, is not ours to end.
func Command(cmd *exec.Cmd) error {
	// The kernel sends the signal when the *thread* that forked ends
	// (golang/go#27505).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return cmd.Run()
}
