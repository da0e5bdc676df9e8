package plane

import (
	"cmp"
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
	log   string // path of the write-ahead log
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
	statements := []string{noMigration}
	_, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		statements = []string{"PRAGMA auto_vacuum = INCREMENTAL", "VACUUM", "PRAGMA journal_mode = WAL", noMigration}
	} else if err = cmp.Or(err, undamaged(file)); err != nil {
		return err
	}
	db, err := openSQLite(file)
	if err != nil {
		return err
	}
	defer db.Close()
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			return fmt.Errorf("prepare %s: %s: %w", file, statement, damaged(file, err))
		}
	}
	return nil
}

// noMigration keeps kine 0.16 from a read that never ends. At its start it counts the
// rows of key_value, a table of its first versions, and of its own, and never closes the second
// answer if there is no such table. This driver begins to read when it is asked, so that
// nothing that was written later went from the log (-wal) into the database: the log of a plane
// grew by all that it wrote, until the plane was started again. Here is such a table, with one
// row that nothing is made of. kine 0.17 doesn't look for it, but needs Kubernetes 1.37.
const noMigration = "CREATE VIEW IF NOT EXISTS key_value AS SELECT NULL AS id, NULL AS name, NULL AS value, 0 AS ttl"

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
	// Who had it open may be about to close it: that locks it for a moment.
	db, err := sql.Open("sqlite", "file://"+file+"?mode=ro&_pragma=busy_timeout(30000)")
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
	return &sqlite{db: db, log: cfg.File + "-wal", kine: client}, nil
}

func (s *sqlite) Close() { _ = errors.Join(s.kine.Close(), s.db.Close()) }

// Used is what tables and indexes take, and the log beyond what it ordinarily has. Free
// pages are used again first.
func (s *sqlite) Used(ctx context.Context) (bytes int64, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT (page_count - freelist_count) * page_size
		FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()`).Scan(&bytes)
	return bytes + s.logged(), err
}

// maxLog is what the log may have, in bytes, without being counted or cut: some
// thousand pages beside the largest transactions. The endpoint's journal_size_limit says the
// same.
const maxLog = 64 << 20

// logged is what the log has beyond maxLog. It grows while somebody reads at all times,
// for then SQLite never comes to begin it anew.
func (s *sqlite) logged() int64 {
	info, err := os.Stat(s.log)
	if err != nil {
		return 0 // there is none
	}
	return max(0, info.Size()-maxLog)
}

// cutLog has the log written into the database, and cut. It waits for those who read, and
// holds up writers meanwhile: not as long as they would wait themselves.
func (s *sqlite) cutLog(ctx context.Context) error {
	if _, err := s.db.ExecContext(ctx, "PRAGMA busy_timeout = 5000"); err != nil {
		return err
	}
	var busy, pages, written int64
	err := s.db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &pages, &written)
	if _, errBack := s.db.ExecContext(context.WithoutCancel(ctx), "PRAGMA busy_timeout = 30000"); err == nil {
		err = errBack
	}
	if err == nil && busy != 0 {
		err = fmt.Errorf("the log of %d MiB can't be cut: somebody reads from it all the time", s.logged()>>20)
	}
	return err
}

const (
	// freePages is how many are given back to the disk in one transaction, which
	// holds up writers: 16 MiB.
	freePages = 4096
	// freeFor is how long one call gives pages back, about. A write near the limit waits for
	// the end of it.
	freeFor = 2 * time.Second
)

// Reclaim drops history, but for the last keep of it, or kine's minimum, gives
// free pages back to the disk, and cuts the log if it is long. Watches that are behind start over, as after any
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
	begun := time.Now()
	for before := int64(math.MaxInt64); time.Since(begun) < freeFor; {
		var free int64
		if err := s.db.QueryRowContext(ctx, "PRAGMA freelist_count").Scan(&free); err != nil {
			return err
		}
		if free < freePages || free >= before { // the latter: a file that can't shrink
			break
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
	if s.logged() == 0 {
		return nil
	}
	return s.cutLog(ctx)
}
