package etcd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/damage"
)

func TestDamagedFilesAreRefused(t *testing.T) {
	t.Parallel()
	for name, hurt := range map[string]func(t *testing.T, member string) (file string){
		"database's head": func(t *testing.T, member string) string {
			file := filepath.Join(member, "snap", "db")
			if err := damage.Bytes(file, 0, 8192); err != nil {
				t.Fatal(err)
			}
			return file
		},
		"database cut": func(t *testing.T, member string) string {
			file := filepath.Join(member, "snap", "db")
			if err := os.Truncate(file, 20000); err != nil {
				t.Fatal(err)
			}
			return file
		},
		"log's middle": func(t *testing.T, member string) string {
			logs, err := filepath.Glob(filepath.Join(member, "wal", "*.wal"))
			if err != nil || len(logs) == 0 {
				t.Fatal(logs, err)
			}
			if err := damage.Record(logs[0]); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(member, "wal")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t)
			s, stop := run(t, cfg)
			for range 20 {
				put(t, s, "key", strings.Repeat("x", 200))
			}
			stop()
			file := hurt(t, filepath.Join(cfg.Dir, "data", "member"))
			err := New(cfg).Run(t.Context(), func() { t.Error("it is ready") })
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("got %v, want %v", err, ErrDamaged)
			}
			for _, want := range []string{file, "backup"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

// TestTornLog cuts the log in the middle of its last record, as a power cut
// does: what was written before is there.
func TestTornLog(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	s, stop := run(t, cfg)
	put(t, s, "first", "1")
	stop()
	logs, err := filepath.Glob(filepath.Join(cfg.Dir, "data", "member", "wal", "*.wal"))
	if err != nil || len(logs) != 1 {
		t.Fatal(logs, err)
	}
	data, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	// The rest of the file is room made ahead: the length of a record that is
	// not there any more stands for one that was being written.
	end := len(strings.TrimRight(string(data), "\x00"))
	end += (8 - end%8) % 8
	data = append(data[:end], 0x40, 0, 0, 0, 0, 0, 0, 0x80, 'h', 'a', 'l', 'f')
	if err := os.WriteFile(logs[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ = run(t, cfg)
	if got := get(t, s, "first"); got != "1" {
		t.Errorf("got %q, want 1", got)
	}
}

func TestGuardDisk(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	s, _ := run(t, cfg)
	if tight, err := s.GuardDisk(t.Context()); err != nil || tight {
		t.Fatal(tight, err)
	}
	put(t, s, "before", "1") // there is room where this test runs
	client := s.root(t)
	status, err := client.Status(t.Context(), s.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	if err := alarm(t.Context(), client, status.Header.MemberId, pb.AlarmRequest_ACTIVATE); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Put(context.Background(), "key", "value"); err == nil {
		t.Error("a write was taken under the alarm")
	}
	if err := s.Health(t.Context()); !errors.Is(err, ErrFull) {
		t.Errorf("health is %v, want %v", err, ErrFull)
	}
	if _, err := s.GuardDisk(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, s, "after", "1")
	if err := s.Health(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRoom(t *testing.T) {
	t.Parallel()
	const block = 4096
	for _, row := range []struct {
		bytes        int64
		files, ffree uint64
		times        int64 // of what etcd needs
	}{
		{1 << 40, 1 << 20, 1 << 19, 3},
		{2 * minFreeDisk, 1 << 20, 1 << 19, 2},
		{2*minFreeDisk - block, 1 << 20, 1 << 19, 1},
		{minFreeDisk - block, 1 << 20, 1 << 19, 0},
		{1 << 40, 1 << 20, 2*minFreeFiles - 1, 1},
		{1 << 40, 1 << 20, minFreeFiles - 1, 0},
		{1 << 40, 1 << 20, 0, 0},
		{1 << 40, 0, 0, 3}, // btrfs counts none
	} {
		got := int64(0)
		for r := roomOf(unix.Statfs_t{Bsize: block, Bavail: uint64(row.bytes / block), Files: row.files, Ffree: row.ffree}); got < 3 && r.atLeast(got+1); got++ {
		}
		if got != row.times {
			t.Errorf("%+v: there is %d times what is needed", row, got)
		}
	}
}

// TestShrink: a database that has become large and empty again gives its pages back.
func TestShrink(t *testing.T) {
	t.Parallel()
	s, _ := run(t, testConfig(t))
	client := s.root(t)
	ctx := t.Context()
	var last int64
	for range 40 {
		resp, err := client.Put(ctx, "key", strings.Repeat("x", 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		last = resp.Header.Revision
	}
	if _, err := client.Compact(ctx, last, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	before, err := client.Status(ctx, s.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.shrink(ctx, client, quotaBytes); err != nil {
		t.Fatal(err)
	}
	after, err := client.Status(ctx, s.Endpoint())
	if err != nil || after.DbSize > before.DbSize/2 {
		t.Errorf("%d bytes, were %d, %v", after.DbSize, before.DbSize, err)
	}
	put(t, s, "after", "1")
}
