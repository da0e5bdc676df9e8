package plane

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	driver "modernc.org/sqlite" // what kine has without cgo
	sqlite3 "modernc.org/sqlite/lib"
)

// sqlite is kine's database seen beside kine, which knows no size on disk and
// gives nothing back to it.
type sqlite struct {
	db    *sql.DB
	kine  *clientv3.Client
	marks []mark // of Reclaim, the oldest first
}

// mark says which revision there was at a time.
type mark struct {
	at       time.Time
	revision int64
}

// prepareSQLite makes the file if there is none, in a way that pages can be
// given back later without writing all of it anew: that has to be said before
// the first table is made.
func prepareSQLite(file string) error {
	_, err := os.Stat(file)
	if err == nil {
		return undamaged(file)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := openSQLite(file)
	if err != nil {
		return err
	}
	defer db.Close()
	for _, statement := range []string{"PRAGMA auto_vacuum = INCREMENTAL", "VACUUM", "PRAGMA journal_mode = WAL"} {
		if _, err := db.Exec(statement); err != nil {
			return fmt.Errorf("prepare %s: %s: %w", file, statement, err)
		}
	}
	return nil
}

// ErrDamaged is returned when the database is not what was written to it.
var ErrDamaged = errors.New("damaged")

// undamaged reads the database, all of it, if the process that had it open
// died. It opens it for reading only, so that nothing is changed before somebody
// could look: kine starts with a VACUUM, which writes the file anew and drops the
// log. After an orderly end there is no log, and nothing is read ahead: kine
// itself finds most damage (see damaged), and a read of 2 GiB takes seconds.
func undamaged(file string) error {
	if log, err := os.Stat(file + "-wal"); err != nil || log.Size() == 0 {
		return nil
	}
	db, err := sql.Open("sqlite", "file://"+file+"?mode=ro")
	if err != nil {
		return err
	}
	defer db.Close()
	var said string
	err = db.QueryRow("PRAGMA quick_check(1)").Scan(&said)
	if err == nil && said != "ok" {
		err = errors.Join(ErrDamaged, errors.New(said))
	}
	return damaged(file, err)
}

// damaged makes of what SQLite says of a file that isn't what it was one error
// that says what to do; others it passes on.
func damaged(file string, err error) error {
	var code *driver.Error
	isCode := errors.As(err, &code) && (code.Code()&0xff == sqlite3.SQLITE_CORRUPT || code.Code()&0xff == sqlite3.SQLITE_NOTADB)
	if err == nil || !isCode && !errors.Is(err, ErrDamaged) {
		return err
	}
	return fmt.Errorf("%s is %w: %w: put a backup of it in its place, without its -wal and -shm", file, ErrDamaged, err)
}

// openSQLite opens one connection with a small cache: nothing is read by it.
func openSQLite(file string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", "file://"+file+"?_pragma=busy_timeout(30000)&_pragma=cache_size(-64)&_pragma=synchronous(normal)")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// newSQLite returns what looks after the file that kine behind socket has open.
func newSQLite(cfg KineConfig) (*sqlite, error) {
	db, err := openSQLite(cfg.File)
	if err != nil {
		return nil, err
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + cfg.Socket}})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &sqlite{db: db, kine: client}, nil
}

func (s *sqlite) Close() { _ = errors.Join(s.kine.Close(), s.db.Close()) }

// Used is what tables and indexes take. Free pages are used again first.
func (s *sqlite) Used(ctx context.Context) (bytes int64, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT (page_count - freelist_count) * page_size
		FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()`).Scan(&bytes)
	return bytes, err
}

// freePages is how many are given back to the disk in one transaction, which
// holds up writers: 16 MiB.
const freePages = 4096

// Reclaim drops history, but for the last keep of it, or kine's minimum, and gives
// free pages back to the disk. Watches that are behind start over, as after any
// compaction.
func (s *sqlite) Reclaim(ctx context.Context, keep time.Duration) error {
	now, err := s.kine.Get(ctx, "compact_rev_key")
	if err != nil {
		return err
	}
	s.marks = append(s.marks, mark{time.Now(), now.Header.Revision})
	until := int64(0)
	for len(s.marks) > 0 && time.Since(s.marks[0].at) >= keep {
		until, s.marks = s.marks[0].revision, s.marks[1:]
	}
	if until > 0 {
		// Compacted already: nothing has been written since.
		if _, err := s.kine.Compact(ctx, until); err != nil && ctx.Err() != nil {
			return err
		}
	}
	for before := int64(math.MaxInt64); ; {
		var free int64
		if err := s.db.QueryRowContext(ctx, "PRAGMA freelist_count").Scan(&free); err != nil {
			return err
		}
		if free < freePages || free >= before { // the latter: a file that can't shrink
			return nil
		}
		before = free
		// Each row that it returns is a page: Exec would stop at the first.
		rows, err := s.db.QueryContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", freePages))
		if err != nil {
			return err
		}
		for rows.Next() {
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
	}
}
