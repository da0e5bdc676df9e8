// Package etcd runs the platform's datastore: one etcd member inside this
// process. It promises that clients reach it only over a unix socket with TLS
// in both directions, that every client is somebody (the common name of its
// certificate is its etcd user), and that a user other than root sees nothing
// but the prefix he was given.
//
// Parties: appliance starts it as a part and hands its root client to the
// store; planes of workspaces whose datastore is etcd reach it through the
// socket from their own network namespaces, which is why it is a unix socket
// and not a port. Only appliance may import this package.
package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"

	"github.com/multipaas/multipaas/appliance/logs"
	"github.com/multipaas/multipaas/appliance/pki"
)

// Config is what a member is started with.
type Config struct {
	// Dir holds the data and the member's own certificates. One process at a
	// time: a second one gets ErrInUse.
	Dir string
	// Name of the member, unique in its cluster and the same for its life.
	Name string
	// Socket is the unix socket for clients, an absolute path of at most 102
	// characters. Its last element is the TLS server name: that is what etcd's
	// client checks the certificate for when the endpoint is a unix socket.
	Socket string
	// CA signs the certificates of the member and of every client. It must sign
	// for nothing else: who has a certificate of it with the common name "root"
	// may do everything here.
	CA *pki.CA
	// PlaneBytes is what the objects of one user but root may take; half as much again is for
	// history. 0: 256 MiB.
	PlaneBytes int64
	// History is how long old revisions are kept, and so how far behind a watch
	// may fall before it has to list anew. 0 is 5 minutes, as Kubernetes has it.
	History time.Duration
	// NoSync leaves out fsync. For tests only: a power cut loses the data.
	NoSync bool
	Log    *slog.Logger
}

const (
	// quotaBytes is what may be in the database before it is Tight: 2 KiB per object,
	// 5,000 objects per workspace, 200 workspaces, and as much again for history: 4 GiB.
	// reserveBytes are left then for who makes room. At the size of both, etcd takes
	// no writes; it advises against more than 8 GiB.
	quotaBytes   = 4 << 30
	reserveBytes = 512 << 20
	// keptEntries of the log are kept in memory for members that are behind, and up to
	// 100 more until etcd's next look, of logBytes at most. etcd itself keeps 5,000.
	keptEntries = 50

	// peerAddress, with any free port: a single server has no peers to tell.
	peerAddress = "127.0.0.1"

	defaultHistory = 5 * time.Minute

	// etcd wants HTTP on another socket than gRPC: Socket with this behind it.
	httpSuffix = "-http"

	// sun_path holds 108 bytes, the last one 0 (unix(7)).
	maxSocketPath = 107 - len(httpSuffix)

	// Root is the user who may do everything. The platform itself is root.
	Root = "root"

	renewalCheck = time.Hour // certificates live 90 days and renew after 60
)

// Server is one etcd member.
type Server struct {
	cfg    Config
	statfs func(dir string, f *unix.Statfs_t) error // unix.Statfs, or a test's disk
	front  func() *front                            // newFront, or a test's

	prefixes sync.Map // of users that EnsureUser was called for: name -> prefix
}

// New returns a member that Run starts.
func New(cfg Config) *Server {
	cfg.History = cmp.Or(cfg.History, defaultHistory)
	cfg.PlaneBytes = cmp.Or(cfg.PlaneBytes, defaultPlaneBytes)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, statfs: unix.Statfs, front: newFront}
}

// Run serves until ctx is done. It is ready once the member has joined its
// cluster and every client has to be somebody. Run may be called again on the
// same directory once it has returned.
func (s *Server) Run(ctx context.Context, ready func()) error {
	if err := s.check(); err != nil {
		return err
	}
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	unlock, err := lock(s.cfg.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.prepareSocket(); err != nil {
		return err
	}
	if err := s.renew(ctx); err != nil {
		return err
	}
	if err := s.undamaged(); err != nil {
		return err
	}
	f := s.front()
	f.planeBytes, f.prefixes = s.cfg.PlaneBytes, &s.prefixes
	cfg, err := s.config(f)
	if err != nil {
		return err
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start etcd in %s: %w", s.cfg.Dir, err)
	}
	defer e.Close()
	f.log.member.Store(e.Server)
	// Planes, each a user of its own, come with certificates.
	if err := os.Chmod(s.cfg.Socket, 0o666); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}

	renewal := time.NewTicker(renewalCheck)
	defer renewal.Stop()
	joined := e.Server.ReadyNotify()
	for {
		select {
		case <-joined:
			joined = nil // a closed channel is always ready; nil never is
			if err := s.requireUsers(ctx); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
			ready()
		case <-renewal.C:
			// A member with an old certificate serves well for another 30 days,
			// so a failure here is no reason to stop.
			if err := s.renew(ctx); err != nil {
				s.cfg.Log.Error("renew etcd certificates", "err", err)
			}
		case <-e.Server.StopNotify():
			return errors.New("etcd stopped by itself: the member was removed from its cluster")
		case err := <-e.Err():
			return fmt.Errorf("etcd in %s: %w", s.cfg.Dir, err)
		case <-ctx.Done():
			return nil
		}
	}
}

// Endpoint is the URL for clients of any namespace on this machine.
func (s *Server) Endpoint() string { return "unixs://" + s.cfg.Socket }

// ServerName is what the member's certificate is issued for.
func (s *Server) ServerName() string { return filepath.Base(s.cfg.Socket) }

func (s *Server) check() error {
	var errs []error
	for field, value := range map[string]string{"Dir": s.cfg.Dir, "Name": s.cfg.Name, "Socket": s.cfg.Socket} {
		if value == "" {
			errs = append(errs, fmt.Errorf("etcd: %s is not set", field))
		}
	}
	if s.cfg.CA == nil {
		errs = append(errs, errors.New("etcd: CA is not set"))
	}
	if s.cfg.Socket != "" && !filepath.IsAbs(s.cfg.Socket) {
		errs = append(errs, fmt.Errorf("etcd: socket %q: not an absolute path", s.cfg.Socket))
	}
	if n := len(s.cfg.Socket); n > maxSocketPath {
		errs = append(errs, fmt.Errorf("etcd: socket %q: the path has %d characters, at most %d are possible: use a shorter run directory", s.cfg.Socket, n, maxSocketPath))
	}
	return errors.Join(errs...)
}

// prepareSocket makes the folder of the sockets and refuses sockets that
// somebody serves: etcd removes whatever is in its way.
func (s *Server) prepareSocket() error {
	if err := os.MkdirAll(filepath.Dir(s.cfg.Socket), 0o711); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	conn, err := net.DialTimeout("unix", s.cfg.Socket, time.Second)
	if err != nil {
		return nil // nobody there, or a socket left by a process that is gone
	}
	_ = conn.Close()
	return fmt.Errorf("etcd: socket %s: %w: another process answers on it", s.cfg.Socket, ErrInUse)
}

func (s *Server) config(f *front) (*embed.Config, error) {
	peer := url.URL{Scheme: "https", Host: peerAddress + ":0"}
	client := url.URL{Scheme: "unixs", Path: s.cfg.Socket}

	c := embed.NewConfig()
	c.Name = s.cfg.Name
	c.Dir = filepath.Join(s.cfg.Dir, "data")
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logs.Zap(s.cfg.Log))
	c.Metrics = "basic"

	c.ListenClientUrls = []url.URL{client}
	c.AdvertiseClientUrls = []url.URL{client}
	// A socket of its own for HTTP lets gRPC have the other one natively. Shared,
	// etcd serves gRPC through net/http, which starves watches under load.
	c.ListenClientHttpUrls = []url.URL{{Scheme: "unixs", Path: s.cfg.Socket + httpSuffix}}
	c.EnableGRPCGateway = false
	c.ListenPeerUrls = []url.URL{peer}
	c.AdvertisePeerUrls = []url.URL{peer}

	member := &c.ClientTLSInfo
	member.CertFile, member.KeyFile, member.TrustedCAFile = s.file("server.crt"), s.file("server.key"), s.file("ca.crt")
	member.ClientCertAuth = true
	c.PeerTLSInfo = *member
	// A client's certificate of the same authority must not make it a peer.
	c.PeerTLSInfo.AllowedCNs = []string{peerName}
	c.TlsMinVersion = "TLS1.3"

	c.InitialClusterToken = "multipaas"
	c.InitialCluster = s.cfg.Name + "=" + peer.String()
	c.ClusterState = embed.ClusterStateFlagNew

	c.QuotaBackendBytes = quotaBytes + reserveBytes
	// The last entries of the log lie in memory, whatever they have in them: up to
	// 1.5 MiB each, and planes write here what their tenants do. A member that was away
	// for longer gets the datastore whole. What is behind the last snapshot on disk is
	// read into memory at a start.
	c.SnapshotCatchUpEntries, c.SnapshotCount = keptEntries, 10*keptEntries
	c.AutoCompactionMode = embed.CompactorModePeriodic
	c.AutoCompactionRetention = s.cfg.History.String()
	// At start-up, when nobody waits for a write, give back what compaction left
	// free, if that is worth the time.
	c.BootstrapDefragThresholdMegabytes = 128
	// An idle watch learns this often how far history has moved on, so that it
	// resumes behind the last compaction and not before it.
	c.WatchProgressNotifyInterval = s.cfg.History / 5
	c.UnsafeNoFsync = s.cfg.NoSync
	front, err := c.ClientTLSInfo.ServerConfig()
	if err != nil {
		return nil, fmt.Errorf("etcd: certificates of the member: %w", err)
	}
	front.MinVersion = tls.VersionTLS13
	c.GRPCAdditionalServerOptions = f.options(credentials.NewTLS(front))
	// A plane that stands still would hold what it is sent: its connections end then. One
	// that is alive asks as often itself.
	c.GRPCKeepAliveInterval, c.GRPCKeepAliveTimeout = 30*time.Second, 20*time.Second
	return c, nil
}
