package runc

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/wait"
)

// TestEnding: the first process of a container that waits for others' end does not run.
func TestEnding(t *testing.T) {
	if ending(os.Getpid()) {
		t.Error("this process ends")
	}
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait.True(t, wait.Patience, "it has ended", func() bool { return ending(cmd.Process.Pid) })
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if ending(cmd.Process.Pid) {
		t.Error("one that is no more ends")
	}
}

// TestNone: of a container that there isn't, or of which a killed runc left a folder, nothing
// is known, and it can be deleted.
func TestNone(t *testing.T) {
	r := Runc{Binary: "/bin/false", Root: t.TempDir()}
	if err := os.Mkdir(filepath.Join(r.Root, "half"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"none", "half"} {
		if c, ok, err := r.State(t.Context(), id); ok || err != nil || c.Running() {
			t.Errorf("%s: %+v, %v, %v", id, c, ok, err)
		}
		if err := r.Delete(t.Context(), id); err != nil {
			t.Errorf("delete %s: %v", id, err)
		}
	}
	if left, err := os.ReadDir(r.Root); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

func TestInNetwork(t *testing.T) {
	c := Container{PID: os.Getpid()}
	if in, err := c.InNetwork("/proc/self/ns/net"); err != nil || !in {
		t.Errorf("it is not in its own: %v", err)
	}
	if in, err := c.InNetwork("/proc/self/ns/uts"); err != nil || in {
		t.Errorf("it is in another: %v", err)
	}
	if _, err := c.InNetwork(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("it is where nothing is")
	}
}

func TestLastLine(t *testing.T) {
	for text, want := range map[string]string{"": "", "one": "one", "one\n two\n\n": " two", strings.Repeat("x", 900): strings.Repeat("x", 500)} {
		if got := LastLine(text); got != want {
			t.Errorf("of %.20q: %q, want %q", text, got, want)
		}
	}
}
