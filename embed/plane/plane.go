// Package plane runs the control plane of one workspace: a child process,
// command `kube plane` of the payload, in the workspace's network namespace.
//
// It promises that the plane is there while Run runs: its files are rendered
// anew at each start, its certificates are renewed at two thirds of their life
// without a restart, the process comes back when it dies, and no byte of a
// tenant's secrets lies in its datastore in the clear. It keeps no state of its
// own but Dir: with the same Keys and the same datastore the same cluster
// comes back.
//
// Parties: the controller of workspaces makes a Plane for each one that this
// server runs and stops it; through RESTConfig the platform's own controllers
// talk to it; the router in front of all planes dials it. The composition root
// adapts it for modules; embed/kube is the other side of the files written
// here. See DESIGN.md for what keeps a tenant from the platform.
package plane

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"

	"github.com/multipaas/multipaas/appliance/child"
	"github.com/multipaas/multipaas/appliance/failpoint"
)

// Port is where every plane listens in its namespace.
const Port = 6443

// platformUser is the platform's own name in every workspace. Its certificate
// also says group system:masters; embed/kube's guard sees to it that nobody else
// gets the two together.
const platformUser = "multipaas:platform"

// usageUser is as whom the plane asks kubelets what their pods use; embed/manifests
// gives it the right to, and no other.
const usageUser = "multipaas:usage"

// storageUser is as whom the plane looks after volumes; embed/manifests gives it the right to what
// that needs, and no other.
const storageUser = "multipaas:storage"

// stopTimeout: the process gives each of its four parts 5 s.
const stopTimeout = 22 * time.Second

// maxMemory is what one plane may take, ten times what an empty one does.
// Beyond, it is ended and started again, not the server with the planes of all.
const maxMemory = 4 << 30

// maxTasks is what one plane may have; some forty threads are usual.
const maxTasks = 2048

// The datastores.
const (
	Kine = "kine" // in the plane's process, with an SQLite file in Dir
	Etcd = "etcd"
)

// The levels of pod security.
const (
	Privileged = "privileged"
	Baseline   = "baseline"
	Restricted = "restricted"
)

// Config describes one plane.
type Config struct {
	ID     string // of the workspace; for the log
	Binary string // the executable kube
	Dir    string // all files of the plane; made if need be
	// UID is the user and group that the plane runs as, which has no capabilities and
	// belongs to it alone. 0: as we do.
	UID    int
	Netns  string // path of the workspace's network namespace; "": ours
	Cgroup string // as appliance/child takes it; "": ours

	Plan        Plan
	ServerNames []string // further DNS names of the API server: the SNI host
	Keys        Keys
	Datastore   Datastore
	OIDC        OIDC
	// StorageSocket is the path, in Dir, of the unix socket at which somebody answers CSI's
	// controller service for this workspace. It may be opened later, and again. "": no volumes.
	StorageSocket string
	// PodSecurity is the level in force when the plane starts; "" is baseline.
	PodSecurity string

	Log *slog.Logger
	// Dial opens connections inside the workspace's namespace. Nil: in ours.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Plan is the part of a workspace's address plan that its plane knows.
type Plan struct {
	Services netip.Prefix // of ClusterIPs; the first is the API's own
	Machines netip.Prefix // the addresses that machines may have
	Plane    netip.Addr   // where machines and pods reach the plane
}

// Keys is the key material that outlives any server. PEM, but for EncryptionKey.
type Keys struct {
	CACert, CAKey                     []byte
	FrontProxyCACert, FrontProxyCAKey []byte
	SigningCACert, SigningCAKey       []byte // of the cluster's CertificateSigningRequests
	ServiceAccountKey                 []byte
	EncryptionKey                     []byte // 32 bytes, for secrets at rest
}

// Datastore says where the plane keeps its objects.
type Datastore struct {
	Kind string // Kine or Etcd; "": Kine
	Etcd EtcdDatastore
	// MaxBytes is what it may grow to before the API server takes nothing new;
	// history counts. 0: MaxKineBytes or MaxEtcdBytes.
	MaxBytes int64
}

// What a datastore may grow to unless its Config says otherwise.
const (
	// 5,000 objects of 2 KiB with their history are 100 MiB; a server's disk is
	// shared by its planes.
	MaxKineBytes = 2 << 30
	// The platform's etcd takes 4 GiB (embed/etcd), and is shared by all.
	MaxEtcdBytes = 256 << 20
)

func (d Datastore) limit() int64 {
	if d.Kind == Etcd {
		return cmp.Or(d.MaxBytes, MaxEtcdBytes)
	}
	return cmp.Or(d.MaxBytes, MaxKineBytes)
}

// EtcdDatastore is how to reach an etcd: URLs, of unix sockets too
// ("unixs:///path"), and files, which are read again when they change.
type EtcdDatastore struct {
	Endpoints                 []string
	CAFile, CertFile, KeyFile string
	Prefix                    string // of all keys, "/planes/00002a"
}

// OIDC is the issuer whose tokens the plane takes. Zero: none.
type OIDC struct {
	Issuer       string // as in the tokens' iss
	DiscoveryURL string // whole URL of the discovery document, as seen in the namespace
	CAPEM        []byte // of the server behind DiscoveryURL
	Audience     string
}

// Plane is one control plane. Its methods are safe for concurrent use; Run is
// called once.
type Plane struct {
	cfg     Config
	process *child.Process
	check   *http.Client
	level   sync.Mutex // held while the level file is written

	machines sync.Mutex // held while the machines' file is written
	share    sync.Mutex // held while the share's file is written

	taken     atomic.Int64 // of the disk by its own folder, as last seen
	isReady   atomic.Bool  // since the process has begun last
	hadLimit  int64        // the largest that the datastore ever had, once Run has begun
	spare     int64        // spareBytes, or a test's
	lookEvery time.Duration
}

// New makes a Plane; Run starts it. What is wrong with cfg is said by Run.
func New(cfg Config) *Plane {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	cfg.Datastore.Kind = cmp.Or(cfg.Datastore.Kind, Kine)
	cfg.PodSecurity = cmp.Or(cfg.PodSecurity, Baseline)
	p := &Plane{cfg: cfg, spare: spareBytes, lookEvery: lookEvery}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cfg.Keys.CACert)
	p.check = &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			DialContext:       cfg.Dial,
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool},
		},
	}
	p.process = child.New(child.Config{
		Name:   "plane-" + cfg.ID,
		Path:   cfg.Binary,
		Args:   []string{"plane", "--config", p.path(configFile)},
		Env:    append(environment(), "TMPDIR="+p.path(ownFolder)), // of SQLite
		Dir:    cfg.Dir,
		Netns:  cfg.Netns,
		Cgroup: cfg.Cgroup,

		UID:         cfg.UID,
		Root:        cfg.root(),
		MemoryMax:   maxMemory,
		TasksMax:    maxTasks,
		LogFile:     p.path(logFile),
		Log:         cfg.Log,
		Ready:       p.Ready,
		OnStart:     func(int) { failpoint.Reach("workspace/create/process-started") },
		StopTimeout: stopTimeout,
	})
	return p
}

// root is what the process sees: what we have written for it, what it writes, the way
// to its datastore, and of the host how names are resolved, whose certificates are
// trusted, by webhooks outside, and the size of huge pages, for Go's allocator.
func (c Config) root() *child.Root {
	r := &child.Root{
		Read: []string{c.Dir, "/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/ssl/certs", "/etc/pki",
			"/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"},
		Write: []string{filepath.Join(c.Dir, ownFolder)},
	}
	etcd := c.Datastore.Etcd
	for _, file := range []string{etcd.CAFile, etcd.CertFile, etcd.KeyFile} {
		// Folders: a file that is renewed is another.
		if folder := filepath.Dir(file); file != "" && !slices.Contains(r.Read, folder) {
			r.Read = append(r.Read, folder)
		}
	}
	for _, endpoint := range etcd.Endpoints {
		if u, err := url.Parse(endpoint); err == nil && u.Scheme == "unixs" {
			r.Read = append(r.Read, u.Path)
		}
	}
	return r
}

// environment of the process: nothing of ours that could change how it works.
func environment() []string {
	return []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		// Until it rests (see restPercent) it makes much garbage: with half the usual
		// room for it, it takes 153 MB, not 182.
		"GOGC=50",
		// Near the bound of the control group garbage goes first: at 3 GiB of live heap
		// the collector would else wait for 4, and the kernel end the process.
		fmt.Sprintf("GOMEMLIMIT=%d", maxMemory/10*9),
	}
}

func (p *Plane) path(elem ...string) string {
	return filepath.Join(append([]string{p.cfg.Dir}, elem...)...)
}

// Run keeps the plane running until ctx is done, then stops it within bounds, or kills
// it, if the cause is child.ErrUnneeded.
// A process that dies is started again. Run calls ready whenever the API server
// has come to say that it is ready, and died, which may be nil, whenever the
// process has died by itself. Neither should block.
func (p *Plane) Run(ctx context.Context, ready func(), died func(error)) error {
	if err := p.cfg.validate(); err != nil {
		return fmt.Errorf("plane %s: %w", p.cfg.ID, err)
	}
	certificates, err := p.render(ctx)
	if err != nil {
		return fmt.Errorf("plane %s: %w", p.cfg.ID, err)
	}
	if err := cmp.Or(p.noteLimit(), p.look()); err != nil {
		return fmt.Errorf("plane %s: %w", p.cfg.ID, err)
	}
	failpoint.Reach("workspace/create/files-written")

	var wg sync.WaitGroup
	defer wg.Wait()
	renewing, stop := context.WithCancel(ctx)
	defer stop()
	for _, c := range certificates {
		wg.Go(func() {
			if err := c.Run(renewing, func() {}); err != nil && renewing.Err() == nil {
				p.cfg.Log.Error("renewal of a certificate ended", "err", err)
			}
		})
	}
	running, overgrown := context.WithCancelCause(ctx)
	wg.Go(func() { p.watchDisk(renewing, overgrown) })
	isReady := func() { p.isReady.Store(true); ready() }
	hasDied := func(err error) {
		p.isReady.Store(false)
		if died != nil {
			died(err)
		}
	}
	p.isReady.Store(false)
	if err := p.process.Run(running, isReady, hasDied); err != nil {
		return err
	}
	if cause := context.Cause(running); errors.Is(cause, ErrOvergrown) {
		return fmt.Errorf("plane %s: %w", p.cfg.ID, cause)
	}
	return nil
}

// Ready asks the API server whether it is ready, and says what it answers if
// it is not.
func (p *Plane) Ready(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url("/readyz"), nil)
	if err != nil {
		return err
	}
	resp, err := p.check.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 8<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("API server: %s: %s", resp.Status, body)
	}
	return nil
}

// url is on the loopback of the namespace: no machine of the tenant can put
// itself in between there.
func (p *Plane) url(path string) string { return fmt.Sprintf("https://127.0.0.1:%d%s", Port, path) }

// PID is the id of the plane's process, 0 if none runs now.
func (p *Plane) PID() int { return p.process.PID() }

// Restarts counts how often the process was started again.
func (p *Plane) Restarts() int { return p.process.Restarts() }

// exitDamaged is how `kube plane` ends if its database is damaged.
const exitDamaged = 65

// ErrDamaged is returned by Died for a plane whose database is damaged.
var ErrDamaged = errors.New("its database is damaged")

// Died says when and of what the process died last by itself; ErrDamaged. No
// error: it never did.
func (p *Plane) Died() (at time.Time, err error) {
	at, err = p.process.LastExit()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == exitDamaged {
		err = ErrDamaged
	}
	if err != nil {
		err = fmt.Errorf("%w: the end of %s says more", err, p.path(logFile))
	}
	return at, err
}

// RESTConfig is how the platform talks to this plane, as a user who may do
// everything. The files in it are there once Run is ready and renewed while it
// runs; client-go reads them again. Make one client of it and keep that: each
// new one has connections of its own.
func (p *Plane) RESTConfig() *rest.Config {
	return &rest.Config{
		Host:      p.url(""),
		UserAgent: "multipaas",
		Dial:      p.cfg.Dial,
		TLSClientConfig: rest.TLSClientConfig{
			CAData:   p.cfg.Keys.CACert,
			CertFile: p.path("pki", "platform.crt"),
			KeyFile:  p.path("pki", "platform.key"),
		},
		QPS:   100,
		Burst: 200,
	}
}

// SetPodSecurity changes the level that is enforced on every pod written from
// now on. It needs no restart. Pods that run stay as they are.
func (p *Plane) SetPodSecurity(level string) error {
	if err := checkLevel(level); err != nil {
		return err
	}
	p.level.Lock()
	defer p.level.Unlock()
	return p.write(levelFile, []byte(level+"\n"))
}

// SetMachines says which machines the plane listens to, by their UIDs, from the
// next request on; what others have under way ends within seconds. Until it was
// called, and if the file that holds them is lost, that is none: it is called
// before Run, for what is there is of an earlier run.
func (p *Plane) SetMachines(uids []string) error {
	p.machines.Lock()
	defer p.machines.Unlock()
	data, err := json.Marshal(uids)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.cfg.Dir, 0o700); err != nil {
		return err
	}
	return p.write(machinesFile, data)
}

func checkLevel(level string) error {
	if !slices.Contains([]string{Privileged, Baseline, Restricted}, level) {
		return fmt.Errorf("pod security level %q: have %s, %s, %s", level, Privileged, Baseline, Restricted)
	}
	return nil
}

// SetShare says how much of its own limit the datastore may take, in bytes, because
// of what others take of the same room; the plane hears of it within seconds. why, a clause for users,
// says what for. Of an earlier run the last share stands. A limit of 0: all of its own.
func (p *Plane) SetShare(limit int64, why string) error {
	p.share.Lock()
	defer p.share.Unlock()
	data, err := json.Marshal(struct {
		LimitBytes int64  `json:"limitBytes"`
		Why        string `json:"why,omitempty"`
	}{limit, why})
	if err != nil {
		return err
	}
	return p.write(shareFile, data)
}

// Limit is what the datastore may take if nobody else needs the room, in bytes.
func (p *Plane) Limit() int64 { return p.cfg.Datastore.limit() }

// Room is what the datastore takes and what it may grow to, in bytes, as the
// plane has last seen it: that is less than a minute old while it matters. Both
// are 0 if the plane has not looked yet, or if nothing bounds the datastore. If the plane's
// files take much more than it says, that counts.
func (p *Plane) Room() (used, limit int64, err error) {
	data, err := readOwn(p.path(roomFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	var room struct{ UsedBytes, LimitBytes int64 }
	if err == nil {
		err = json.Unmarshal(data, &room)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("plane %s: room in its datastore: %w", p.cfg.ID, err)
	}
	return max(room.UsedBytes, p.taken.Load()-p.spare), room.LimitBytes, nil
}

// readOwn reads a small file that the plane has written. It is its word: a link may
// lead anywhere, and a file may be of any size.
func readOwn(file string) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 4<<10))
}
