package attack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/multipaas/multipaas/testing/dctest"
)

// attempt is one row of the table.
type attempt struct {
	What    string // what was tried, in words: "TCP to 10.0.0.1:2379 (etcd of server)"
	From    string // who tried: "pod of A, root"
	Want    string // what should happen: "no answer"
	Got     string // what happened
	Blocked bool   // what happened is what should: A got nothing
}

// table holds all attempts of a run. It is safe for concurrent use.
type table struct {
	mu   sync.Mutex
	rows []row
}

type row struct {
	part string
	attempt
}

// record adds an attempt; one that wasn't blocked is an error of the test.
func (s *suite) record(t testing.TB, a attempt) {
	t.Helper()
	a.Got = oneLine(a.Got)
	part := strings.TrimPrefix(t.Name(), "TestAttack/")
	s.table.mu.Lock()
	s.table.rows = append(s.table.rows, row{part, a})
	s.table.mu.Unlock()
	if !a.Blocked {
		t.Errorf("PASSED: %s\n  from: %s\n  want: %s\n  got:  %s", a.What, a.From, a.Want, a.Got)
	}
}

// control is what must work, so that the attempts beside it mean something. The
// attempts that it stands for must not be recorded if it returns false.
func (s *suite) control(t testing.TB, what string, err error) bool {
	t.Helper()
	if err != nil {
		t.Errorf("control: %s: %v; the attempts beside it prove nothing and aren't counted", what, err)
	}
	return err == nil
}

// report prints and saves the table, and leaves the counts, true ones also when
// the suite has failed.
func (s *suite) report(t testing.TB) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	var all strings.Builder
	blocked := 0
	for _, r := range s.table.rows {
		word := "PASSED "
		if r.Blocked {
			word = "blocked"
			blocked++
		}
		line := fmt.Sprintf("%s  %-10s  %s  | from %s | want %s | got %s", word, r.part, r.What, r.From, r.Want, r.Got)
		fmt.Fprintln(&all, line)
		if !r.Blocked {
			t.Log(line) // once more, among the last lines
		}
	}
	tried := len(s.table.rows)
	if testing.Verbose() {
		t.Log("\n" + all.String())
	}
	if dir := os.Getenv("MULTIPAAS_COUNTS"); dir != "" {
		err := os.MkdirAll(dir, 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "..", "attacks.txt"), []byte(all.String()), 0o644)
		}
		if err != nil {
			t.Errorf("save the table: %v", err)
		}
	}
	if tried == 0 {
		t.Error("nothing was tried")
	}
	dctest.Count(t, "attacks", "attacks: %d tried, %d blocked, %d passed", tried, blocked, tried-blocked)
}

// oneLine keeps the beginning of what somebody said.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 300 {
		s = s[:300] + "..."
	}
	return s
}
