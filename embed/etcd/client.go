package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

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
				cert, err := tls.LoadX509KeyPair(s.files.rootCert, s.files.rootKey)
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
				errs = append(errs, fmt.Errorf("etcd: the database is full (quota %d bytes): no writes are taken; delete what is not needed, or raise the quota, then restart the server", s.cfg.QuotaBytes))
			case pb.AlarmType_CORRUPT:
				errs = append(errs, fmt.Errorf("etcd: member %x differs from the others: restore it from a backup", a.MemberID))
			}
		}
		return errors.Join(errs...)
	})
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

// Snapshot writes a consistent copy of the whole database to w.
func (s *Server) Snapshot(ctx context.Context, w io.Writer) error {
	return s.withClient(func(c *clientv3.Client) error {
		r, err := c.Snapshot(ctx)
		if err != nil {
			return fmt.Errorf("etcd: snapshot: %w", err)
		}
		defer r.Close()
		if _, err := io.Copy(w, r); err != nil {
			return fmt.Errorf("etcd: snapshot: %w", err)
		}
		return nil
	})
}

func (s *Server) withClient(fn func(*clientv3.Client) error) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	defer c.Close()
	return fn(c)
}

// Metrics gives out the metrics of etcd, and only those. etcd registers them
// with Prometheus' default registry, which other upstreams fill as well.
func (s *Server) Metrics() prometheus.Gatherer {
	return prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		all, err := prometheus.DefaultGatherer.Gather()
		var own []*dto.MetricFamily
		for _, family := range all {
			if name := family.GetName(); strings.HasPrefix(name, "etcd_") || strings.HasPrefix(name, "grpc_server_") {
				own = append(own, family)
			}
		}
		return own, err
	})
}
