package plane

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
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

// TestLogGoesIntoTheDatabase has kine write more than the log may have: what was
// written must be in the database at the end of each, new or not, and none of it in the log alone.
func TestLogGoesIntoTheDatabase(t *testing.T) {
	cfg := kineIn(t.TempDir())
	const puts = maxLog>>20 + 32
	for start := range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		k := newKine(cfg)
		ended := make(chan error, 1)
		go func() { ended <- k.run(ctx) }()
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-k.ready:
		}
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + cfg.Socket}})
		if err != nil {
			t.Fatal(err)
		}
		value := strings.Repeat("x", 1<<20)
		for i := range puts {
			key := fmt.Sprintf("/%d/%d", start, i)
			if _, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, value)).Commit(); err != nil {
				t.Fatal(err)
			}
		}
		s, err := newSQLite(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if n := s.logged(); n > 0 {
			t.Errorf("start %d: the log has %d MiB more than it may", start, n>>20)
		}
		var busy, pages, written int
		if err := s.db.QueryRow("PRAGMA wal_checkpoint(PASSIVE)").Scan(&busy, &pages, &written); err != nil || pages != written {
			t.Errorf("start %d: %d of %d pages of the log can be written into the database, %v", start, written, pages, err)
		}
		if used, err := s.Used(ctx); err != nil || used < int64(start+1)*puts<<20 || used > int64(start+2)*puts<<20 {
			t.Errorf("start %d: %d MiB used, %v", start, used>>20, err)
		}
		s.Close()
		_ = client.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
}

// TestLogWithAReader holds a read open while more is written than the log may have:
// that counts as used, and is cut when the read ends.
func TestLogWithAReader(t *testing.T) {
	file := kineIn(t.TempDir()).File
	if err := prepareSQLite(file); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file://"+file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	own, err := openSQLite(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &sqlite{db: own, log: file + "-wal"}
	defer own.Close()
	if _, err := db.Exec("CREATE TABLE t (v BLOB)"); err != nil {
		t.Fatal(err)
	}
	reading, err := db.Query("SELECT name FROM sqlite_master")
	if err != nil {
		t.Fatal(err)
	}
	defer reading.Close()
	// One row, written again and again: the log grows, the database does not.
	if _, err := db.Exec("INSERT INTO t VALUES (zeroblob(8388608))"); err != nil {
		t.Fatal(err)
	}
	for i := range maxLog>>23 + 4 {
		if _, err := db.Exec("UPDATE t SET v = zeroblob(8388608 - ?)", i); err != nil {
			t.Fatal(err)
		}
	}
	if used, err := s.Used(t.Context()); err != nil || used < 32<<20 || used > maxLog {
		t.Errorf("%d MiB used while somebody reads, %v; the row has 8, the log 40 more than it may", used>>20, err)
	}
	if err := s.cutLog(t.Context()); err == nil || !strings.Contains(err.Error(), "reads") {
		t.Errorf("the log was cut while somebody reads: %v", err)
	}
	if err := reading.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.cutLog(t.Context()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(s.log); err != nil || info.Size() != 0 {
		t.Errorf("the log has %v after it was cut, %v", info, err)
	}
	if used, err := s.Used(t.Context()); err != nil || used > 17<<20 {
		t.Errorf("%d MiB used at the end, %v", used>>20, err)
	}
}
