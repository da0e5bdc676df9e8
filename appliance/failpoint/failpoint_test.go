package failpoint

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// points stand for those of the program.
var points = []Point{
	{Name: "store/committed", In: Server, Cuts: "a commit"},
	{Name: "file/written", In: Both, Cuts: "a file"},
}

func TestArmRefusesWhatIsNoPoint(t *testing.T) {
	for value, want := range map[string]string{
		"no/such/point":       "store/committed", // the list
		"store/committed@0":   "no count",
		"store/committed@two": "no count",
		"store/committed@":    "no count",
	} {
		err := Arm(value, points)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), value) {
			t.Errorf("Arm(%q): %v, want one that names it and says %q", value, err, want)
		}
	}
	if armed.Load() != nil {
		t.Error("a refused value has armed something")
	}
}

// TestReachCounts passes other points and the first times, and dies at the n-th.
func TestReachCounts(t *testing.T) {
	f, err := parse("store/committed@3", points)
	if err != nil {
		t.Fatal(err)
	}
	died := 0
	f.die = func(name string) {
		if died++; name != "store/committed" {
			t.Errorf("died at %s", name)
		}
	}
	for i, name := range []string{"store/committed", "file/written", "store/committed", "file/written"} {
		if f.reach(name); died != 0 {
			t.Fatalf("died at call %d, %s", i, name)
		}
	}
	if f.reach("store/committed"); died != 1 {
		t.Fatalf("died %d times at the third, want once", died)
	}
	if f.reach("store/committed"); died != 1 {
		t.Error("died at the fourth too")
	}
}

// TestDies runs this test anew as a child that reaches the point.
func TestDies(t *testing.T) {
	if value := os.Getenv("FAILPOINT_TEST"); value != "" {
		t.Setenv(Variable, value)
		if err := Arm(value, points); err != nil {
			t.Fatal(err)
		}
		if got := os.Getenv(Variable); got != "" {
			t.Fatalf("children would inherit %s=%s", Variable, got)
		}
		defer os.WriteFile(os.Getenv("FAILPOINT_AFTER"), nil, 0o600) // what SIGTERM, or a panic, would still do
		Reach("file/written")
		Reach("store/committed")
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	after := filepath.Join(t.TempDir(), "after")
	cmd := exec.Command(exe, "-test.run", "^TestDies$")
	cmd.Env = append(os.Environ(), "FAILPOINT_TEST=store/committed", "FAILPOINT_AFTER="+after)
	var errs strings.Builder
	cmd.Stderr = &errs
	err = cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("it ended with %v, want a signal: %s", err, errs.String())
	}
	if status := exit.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v, want SIGKILL: %s", exit, errs.String())
	}
	if !strings.Contains(errs.String(), Mark("store/committed")+"\n") {
		t.Errorf("it said %q, not where it died", errs.String())
	}
	if _, err := os.Stat(after); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it did something after it died: %v", err)
	}
}

// BenchmarkReach is what a point costs while none is chosen.
func BenchmarkReach(b *testing.B) {
	for b.Loop() {
		Reach("store/committed")
	}
}
