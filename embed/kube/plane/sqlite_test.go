package plane

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// unclean makes a database as a process leaves it that was killed: with a log.
func unclean(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "state.db")
	if err := prepareSQLite(file); err != nil {
		t.Fatal(err)
	}
	db, err := openSQLite(file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, statement := range []string{"CREATE TABLE t (v BLOB)", "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 100) INSERT INTO t SELECT randomblob(3000) FROM n",
		"PRAGMA wal_checkpoint(TRUNCATE)", "INSERT INTO t VALUES (randomblob(3000))"} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(statement, err)
		}
	}
	left := filepath.Join(t.TempDir(), "state.db")
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(file + suffix)
		if err == nil {
			err = os.WriteFile(left+suffix, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return left
}

func TestDamagedDatabase(t *testing.T) {
	whole := unclean(t)
	if err := prepareSQLite(whole); err != nil {
		t.Errorf("one that is whole: %v", err)
	}
	for name, damage := range map[string]func(data []byte) []byte{
		"pages": func(data []byte) []byte { copy(data[4096*3:], strings.Repeat("junk", 4096)); return data },
		"cut":   func(data []byte) []byte { return data[:len(data)/2] },
	} {
		t.Run(name, func(t *testing.T) {
			file := unclean(t)
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			data = damage(data)
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			err = prepareSQLite(file)
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "backup") {
				t.Errorf("got %v", err)
			}
			if now, err := os.ReadFile(file); err != nil || string(now) != string(data) {
				t.Errorf("the file was changed, %v", err)
			}
		})
	}
}
