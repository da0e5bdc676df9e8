package etcd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
)

// ErrDamaged is returned when the files of the datastore are not what was
// written to them.
var ErrDamaged = errors.New("damaged")

const damagedRemedy = "nothing was changed; put a backup of %s in its place, and look at the disk before you trust it again"

// undamaged looks at the files before etcd does. etcd panics over a damaged
// one in a goroutine of its own, where nobody can recover: the whole process
// ends, and says nothing that helps whoever runs it. What this doesn't see are
// damaged pages deep in the database: to find those, all of it would have to be
// read at each start.
//
// A log that ends in the middle of a record is none of it: that is what a
// power cut leaves, and etcd drops the half record, which nobody was told of.
func (s *Server) undamaged() error {
	member := filepath.Join(s.cfg.Dir, "data", "member")
	for _, f := range []struct {
		path  string
		check func(path string) error
	}{
		{filepath.Join(member, "snap", "db"), databaseUndamaged},
		{filepath.Join(member, "wal"), logUndamaged},
	} {
		if err := f.check(f.path); err != nil {
			return fmt.Errorf("etcd: %s is %w: %w: "+damagedRemedy, f.path, ErrDamaged, err, s.cfg.Dir)
		}
	}
	return nil
}

// databaseUndamaged checks the two meta pages, each with its checksum, and that
// the file holds as many pages as they say.
func databaseUndamaged(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(tx *bbolt.Tx) error {
		if tx.Size() > info.Size() {
			return fmt.Errorf("it has %d bytes of %d", info.Size(), tx.Size())
		}
		return nil
	})
}

// logUndamaged reads the write-ahead log from its last snapshot on, as etcd will.
func logUndamaged(dir string) (err error) {
	if !wal.Exist(dir) {
		return nil
	}
	// Records that can't be decoded are a panic here as well.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	quiet := zap.NewNop()
	snapshots, err := wal.ValidSnapshotEntries(quiet, dir)
	if err != nil {
		return err
	}
	if len(snapshots) == 0 {
		return wal.ErrSnapshotNotFound
	}
	_, err = wal.Verify(quiet, dir, snapshots[len(snapshots)-1])
	return err
}
