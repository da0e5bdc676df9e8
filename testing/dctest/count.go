package dctest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Count leaves a suite's one line of counts, such as "attacks: 3 tried, 3
// blocked, 0 passed", for who runs it: in the file of the suite's name in the
// folder $MULTIPAAS_COUNTS, and in the test's log. make prints it last.
func Count(t testing.TB, suite, format string, values ...any) {
	t.Helper()
	line := fmt.Sprintf(format, values...)
	t.Log(line)
	dir := os.Getenv("MULTIPAAS_COUNTS")
	if dir == "" {
		return
	}
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, suite), []byte(line+"\n"), 0o644)
	}
	if err != nil {
		t.Errorf("leave the counts: %v", err)
	}
}
