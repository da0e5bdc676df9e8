package volume

import (
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUsersComeLater: what was made when the host had no users to give is the machine's all the
// same, once it has users of its own.
func TestUsersComeLater(t *testing.T) {
	r := newRig(t)
	r.cfg.HostUser = func(uint32) (uint32, error) { return 0, nil }
	r.ensure(300 * mib)
	r.cfg.HostUser = func(first uint32) (uint32, error) { return first, nil }
	r.ensure(300 * mib)
	r.write("file", "from before")
	r.machine("old")
	r.machine("new")
	r.cfg.MachineUser = func(machine string) (uint32, error) {
		if machine == "old" {
			return 0, nil
		}
		return testFirst, nil
	}
	for machine, first := range map[string]uint32{"old": 0, "new": testFirst} {
		for range 2 {
			r.must(r.Attach(testUID, machine))
		}
		made := exec.Command("touch", r.shown(machine, testUID, "made-"+machine))
		made.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: first, Gid: first}} // root in there
		if out, err := made.CombinedOutput(); err != nil {
			t.Fatalf("root in machine %s: %v: %s", machine, err, out)
		}
		for path, want := range map[string]uint32{
			r.shown(machine, testUID):                      first,
			r.shown(machine, testUID, "file"):              first,
			r.shown(machine, testUID, "made-"+machine):     first,
			filepath.Join(r.disk().Mount, "made-"+machine): 0,
		} {
			var st unix.Stat_t
			r.must(unix.Stat(path, &st))
			if st.Uid != want || st.Gid != want {
				t.Errorf("machine %s: %s is of %d:%d, want %d", machine, path, st.Uid, st.Gid, want)
			}
		}
	}
}
