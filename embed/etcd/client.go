package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/logs"
)

// Client returns a new client that is root. It connects when it is first used,
// and again whenever it has to; the caller closes it.
func (s *Server) Client() (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{s.Endpoint()},
		TLS: &tls.Config{
			MinVersion: tls.VersionTLS13,
			RootCAs:    s.cfg.CA.Pool(),
			// No ServerName here: the client takes the last element of the
			// socket's path, which is what the member's certificate says.
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				cert, err := tls.LoadX509KeyPair(s.file("root.crt"), s.file("root.key"))
				return &cert, err
			},
		},
		Logger: logs.Zap(s.cfg.Log),
		// A restarted member is back within a second or two; the default backs
		// off to minutes after a while.
		BackoffWaitBetween: 100 * time.Millisecond,
	})
	if err != nil {
		return nil, fmt.Errorf("etcd client for %s: %w", s.cfg.Socket, err)
	}
	return c, nil
}

// Health returns nil if the cluster takes reads and writes now; otherwise why
// not, and what to do about it.
func (s *Server) Health(ctx context.Context) error {
	return s.withClient(func(c *clientv3.Client) error {
		// A linearizable read goes through consensus: no quorum, no answer.
		if _, err := c.Get(ctx, "health"); err != nil {
			return fmt.Errorf("etcd: read: %w", err)
		}
		alarms, err := c.AlarmList(ctx)
		if err != nil {
			return fmt.Errorf("etcd: list alarms: %w", err)
		}
		var errs []error
		for _, a := range alarms.Alarms {
			switch a.Alarm {
			case pb.AlarmType_NOSPACE:
				errs = append(errs, fmt.Errorf("etcd: %w: no writes are taken until less than %d bytes are in the database and %d are free on the disk of %s",
					ErrFull, int64(quotaBytes), 2*minFreeDisk, s.cfg.Dir))
			case pb.AlarmType_CORRUPT:
				errs = append(errs, fmt.Errorf("etcd: member %x differs from the others: restore it from a backup", a.MemberID))
			}
		}
		return errors.Join(errs...)
	})
}

// ErrFull is returned when the database has reached its quota, or its disk is
// nearly full.
var ErrFull = errors.New("the datastore is full")

// minFreeDisk: the log grows by files of 64 MB, of which two are there ahead,
// and the database by 16 MB at a time. Four times what one file takes leaves
// time to look, and room for what is being written. minFreeFiles is the same for
// the number of files that the disk can hold.
const (
	minFreeDisk  = 256 << 20
	minFreeFiles = 256
)

// room is what a disk has left.
type room struct{ bytes, files int64 }

func roomOf(f unix.Statfs_t) room {
	r := room{int64(f.Bavail) * f.Bsize, int64(f.Ffree)}
	if f.Files == 0 {
		r.files = math.MaxInt64 // it makes them as it needs them
	}
	return r
}

// atLeast says whether there is times what etcd needs.
func (r room) atLeast(times int64) bool {
	return r.bytes >= times*minFreeDisk && r.files >= times*minFreeFiles
}

// GuardDisk keeps a disk that fills up from ending the server: etcd panics when
// it can't write to its log. Below minFreeDisk it gives up the room that it holds (see
// reserve.go), and if that is not enough makes etcd take no more
// writes (reads go on); above twice that it takes them again, unless the database has
// reached its quota. Call it every few seconds.
//
// tight says that only the reserve is left, on the disk or in the database: who asks
// should make nothing new, so that what is there can still be changed and deleted.
func (s *Server) GuardDisk(ctx context.Context) (tight bool, err error) {
	free, spent, err := s.holdRoom()
	if err != nil {
		return false, err
	}
	err = s.withClient(func(c *clientv3.Client) error {
		status, err := c.Status(ctx, s.Endpoint())
		if err != nil {
			return fmt.Errorf("etcd: status: %w", err)
		}
		tight = spent || !free.atLeast(2) || status.DbSizeInUse > quotaBytes
		member := status.Header.MemberId
		full, err := isFull(ctx, c, member)
		if err != nil {
			return err
		}
		switch {
		case !full && !free.atLeast(1):
			s.cfg.Log.Error("etcd takes no more writes: its disk is nearly full",
				"dir", s.cfg.Dir, "free", free.bytes, "files", free.files)
			err = alarm(ctx, c, member, pb.AlarmRequest_ACTIVATE)
		case full && free.atLeast(2) && status.DbSizeInUse < quotaBytes-quotaBytes/8:
			if err := s.shrink(ctx, c, status.DbSize); err != nil {
				return err
			}
			s.cfg.Log.Info("etcd takes writes again", "dir", s.cfg.Dir, "free", free.bytes)
			err = alarm(ctx, c, member, pb.AlarmRequest_DEACTIVATE)
		}
		return err
	})
	return tight, err
}

// Left is how much more may be put into the database before it is Tight, in bytes, less an eighth for
// what has no bound of its own.
func (s *Server) Left(ctx context.Context) (bytes int64, err error) {
	_, used, err := s.DBSize(ctx)
	return quotaBytes - quotaBytes/8 - used, err
}

// shrinkTimeout: a database of 4.5 GiB is written anew, at 100 MB a second or more.
const shrinkTimeout = 2 * time.Minute

// shrink gives back what is free in a database whose file has reached the quota: etcd
// counts that, and raises the alarm again at the next write. Nobody can write
// meanwhile, which nobody could before either.
func (s *Server) shrink(ctx context.Context, c *clientv3.Client, file int64) error {
	if file < quotaBytes {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shrinkTimeout)
	defer cancel()
	if _, err := c.Defragment(ctx, s.Endpoint()); err != nil {
		return fmt.Errorf("etcd: give free pages back: %w", err)
	}
	return nil
}

// isFull says whether a member has raised the alarm for want of space.
func isFull(ctx context.Context, c *clientv3.Client, member uint64) (bool, error) {
	alarms, err := c.AlarmList(ctx)
	if err != nil {
		return false, fmt.Errorf("etcd: list alarms: %w", err)
	}
	return slices.ContainsFunc(alarms.Alarms, func(a *pb.AlarmMember) bool {
		return a.MemberID == member && a.Alarm == pb.AlarmType_NOSPACE
	}), nil
}

// alarm raises or ends the alarm for want of space. The client's own methods
// can only end one.
func alarm(ctx context.Context, c *clientv3.Client, member uint64, action pb.AlarmRequest_AlarmAction) error {
	_, err := pb.NewMaintenanceClient(c.ActiveConnection()).Alarm(ctx,
		&pb.AlarmRequest{Action: action, MemberID: member, Alarm: pb.AlarmType_NOSPACE})
	if err != nil {
		return fmt.Errorf("etcd: alarm: %w", err)
	}
	return nil
}

// DBSize returns the size of the database file and how much of it is in use,
// in bytes. The difference comes back at the next start.
func (s *Server) DBSize(ctx context.Context) (total, used int64, err error) {
	err = s.withClient(func(c *clientv3.Client) error {
		status, err := c.Status(ctx, s.Endpoint())
		if err != nil {
			return fmt.Errorf("etcd: status: %w", err)
		}
		total, used = status.DbSize, status.DbSizeInUse
		return nil
	})
	return total, used, err
}

func (s *Server) withClient(fn func(*clientv3.Client) error) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	defer c.Close()
	return fn(c)
}
