package plane

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"

	clientv3 "go.etcd.io/etcd/client/v3"
	_ "modernc.org/sqlite" // the driver that kine has without cgo
)

// sqlite is kine's database seen beside kine, which knows no size on disk and
// gives nothing back to it.
type sqlite struct {
	db   *sql.DB
	kine *clientv3.Client
}

// prepareSQLite makes the file if there is none, in a way that pages can be
// given back later without writing all of it anew: that has to be said before
// the first table is made.
func prepareSQLite(file string) error {
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
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

// Reclaim drops all history but kine's minimum, and gives free pages back to
// the disk. Watches that are behind start over, as after any compaction.
func (s *sqlite) Reclaim(ctx context.Context) error {
	now, err := s.kine.Get(ctx, "compact_rev_key")
	if err != nil {
		return err
	}
	// Compacted already: nothing has been written since.
	if _, err := s.kine.Compact(ctx, now.Header.Revision); err != nil && ctx.Err() != nil {
		return err
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
