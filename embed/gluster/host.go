package gluster

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/child"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/rootfs"
	"github.com/multipaas/multipaas/appliance/runc"
)

// Ports that others reach on a host: glusterd's, and those of bricks. All bricks of a host are
// one process, with one port, unless their volumes' options are of different kinds.
const (
	Port           = 24007
	FirstBrickPort = 49152
	LastBrickPort  = FirstBrickPort + 1023
)

// HostConfig says where GlusterFS stands on a host.
type HostConfig struct {
	ID      string // the host's; no other that runs on this kernel has it
	Dir     string // state, logs, mounts; survives a reboot
	Images  string // unpacked root file systems of the image storage, and no other; survives a reboot
	Runc    string // runc's state; does not survive a reboot
	Payload string // the payload: runtime/runc, runtime/init, images/storage
	// Network is the file of the network namespace that it speaks in; "": ours.
	Network string
	// Address is the host's that the others reach, and the only one that is listened at.
	Address netip.Addr
	// Memory bounds glusterd, all bricks and the daemon that heals, together; 0: 4 GiB. Beyond
	// it the kernel ends one of them.
	Memory int64
	// ClientMemory bounds one mount; 0: 1 GiB.
	ClientMemory int64
	Log          *slog.Logger
}

// What storage takes on a host, in bytes, with room above what was measured after fio on volumes with three copies: glusterd,
// the daemon that heals and the process of all bricks 77 MB (Pss) with two bricks, and 5 for each more; a mount, which is a
// process of its own, 43 MB.
const (
	serverMemory = 128 << 20
	brickMemory  = 8 << 20
	mountMemory  = 48 << 20
)

// Host is GlusterFS on this host: glusterd and its bricks in one container, and each mount of a
// volume in one of its own. They outlive us: a Host that is made with the same configuration finds
// them. Its methods may be called by several goroutines; those of Ensure and Stop, and those for
// one mount, follow one another.
type Host struct {
	cfg    HostConfig
	runc   runc.Runc
	images rootfs.Store

	patience time.Duration // with a mount

	mu    sync.Mutex
	found map[Mount]*found     // that were, and may be no more; see find
	looks map[Mount]chan error // that wait; see ask
}

// patience is more than it takes until a host that is gone is given up.
const patience = 30 * time.Second

// NewHost changes nothing on the host.
func NewHost(cfg HostConfig) *Host {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Host{cfg: cfg,
		runc:     runc.Runc{Binary: filepath.Join(cfg.Payload, "runtime", "runc"), Root: cfg.Runc},
		images:   rootfs.Store{Dir: cfg.Images},
		found:    map[Mount]*found{},
		looks:    map[Mount]chan error{},
		patience: patience}
}

func (h *Host) at(elem ...string) string {
	return filepath.Join(append([]string{h.cfg.Dir}, elem...)...)
}

func (h *Host) imageLayout() string { return filepath.Join(h.cfg.Payload, "images", "storage") }

// Image is the root file system that storage runs from, unpacked for it. It may block for seconds.
func (h *Host) Image(ctx context.Context) (root string, err error) {
	return h.images.Unpack(ctx, h.imageLayout())
}

// BrickDir is the folder below which bricks' file systems are to be mounted, where all of the host
// sees it, each at a folder of its own. It is there after Ensure. It is in memory and small: what
// is written beside a file system that isn't mounted fills no disk. What is mounted there as ID is
// /bricks/ID in a Brick's Path.
func (h *Host) BrickDir() string { return h.at("bricks") }

// Identity is how hosts know each other. The authority ought to have no other use: who has a
// certificate of it may ask a glusterd for its volumes.
type Identity struct {
	Cert, Key, CA []byte // PEM
}

// Trust has all connections that are made from now on, of whatever runs, use this identity. Those
// that are made already go on: each reads the files when it is made, so nothing has to be started
// again. One that can't be used is an error, and changes nothing.
func (h *Host) Trust(id Identity) error {
	pair, err := tls.X509KeyPair(id.Cert, id.Key)
	if err != nil {
		return fmt.Errorf("identity of a storage host: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(id.CA) {
		return errors.New("identity of a storage host: no certificate of its authority")
	}
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fmt.Errorf("identity of a storage host %q: %w", pair.Leaf.Subject.CommonName, err)
	}
	if err := os.MkdirAll(h.at("etc"), 0o700); err != nil {
		return err
	}
	// The authority first: whom a new one has certified would not be known yet.
	if err := writeIfOther(h.at("etc", "ca.pem"), id.CA); err != nil {
		return err
	}
	return writeIfOther(h.at("etc", "identity.pem"), bytes.Join([][]byte{id.Cert, id.Key}, []byte("\n")))
}

func writeIfOther(name string, data []byte) error {
	if have, err := os.ReadFile(name); err == nil && bytes.Equal(have, data) {
		return nil
	}
	return atomicfile.Write(name, data, 0o600)
}

// quorumOption says how many of a volume's bricks have to be there.
const quorumOption = "cluster.quorum-type"

// VolumeOptions are what volumes are to have: only these hosts, by the common names of their
// certificates, get at what is in them; what a program has closed is written; and a host that is
// gone keeps nobody waiting for longer than it takes to be sure, 10 s and some more.
func VolumeOptions(hosts []string) map[string]string {
	return map[string]string{
		"client.ssl": "on", "server.ssl": "on", "auth.ssl-allow": strings.Join(hosts, ","),
		"performance.flush-behind": "off",
		// Of itself it is so with three copies. While a volume gets its second one, the first has to be there: what has
		// not all yet would be read, and written to, alone (tried with 10.3).
		quorumOption:           "auto",
		"network.ping-timeout": "10",
		// What a brick has missed without having been away, for want of room, is looked for as often: seconds.
		// Where there is nothing it is a folder that is read. Of itself it is 600.
		"cluster.heal-timeout": "60",
		// How many names a file has is for the file system of the bricks to bound. Of itself it is 100: package
		// managers that link what several programs have meet that. 0 is no bound.
		"storage.max-hardlinks": "0",
	}
}

// clusterOptions are for all of a cluster's hosts. 13 bricks are 71 MB in one process, and 136
// MB in 13.
var clusterOptions = map[string]string{"cluster.brick-multiplex": "on"}

// Ensure has glusterd and the bricks run, and returns once glusterd answers. What runs is
// adopted, and started if it doesn't. What runs by another image or with other settings than it would be
// started with now is left alone, for who uses its bricks, and old is true then; with replace it is
// started anew. Trust comes first.
func (h *Host) Ensure(ctx context.Context, replace bool) (old bool, err error) {
	old, err = h.ensure(ctx, replace)
	if err != nil {
		return old, fmt.Errorf("storage of this host: %w", err)
	}
	return old, nil
}

func (h *Host) ensure(ctx context.Context, replace bool) (old bool, err error) {
	if !h.cfg.Address.Is4() || h.cfg.Address.IsLoopback() || h.cfg.Address.IsUnspecified() {
		return false, fmt.Errorf("address %v: want an IPv4 address that the other hosts reach", h.cfg.Address)
	}
	if _, err := os.Stat(h.at("etc", "identity.pem")); err != nil {
		return false, fmt.Errorf("no identity: %w", err)
	}
	for _, dir := range []string{"server", "lib", "log/init", "log/bricks"} {
		if err := os.MkdirAll(h.at(dir), 0o700); err != nil {
			return false, err
		}
	}
	if err := h.shareBricks(); err != nil {
		return false, err
	}
	image, err := h.Image(ctx)
	if err != nil {
		return false, err
	}
	files, err := h.serverFiles()
	if err != nil {
		return false, err
	}
	b := h.server()
	spec, err := h.serverSpec(b, image, files)
	if err != nil {
		return false, err
	}
	began := time.Now()
	// What is adopted may be ending: who asked it to was killed. It is started anew then.
	started, err := false, errEnded
	for try := 0; try < 2 && errors.Is(err, errEnded); try++ {
		started, old, err = b.ensure(ctx, spec, image, replace, func() error {
			// glusterd's own switch for TLS: what is in its state is over the image's.
			files[h.at("lib", "secure-access")] = nil
			for name, data := range files {
				if err := writeIfOther(name, data); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			err = h.answers(ctx)
		}
	}
	if err != nil {
		return old, err
	}
	if started {
		h.cfg.Log.Info("storage of this host started", "took", time.Since(began).Round(time.Millisecond))
	}
	return old, h.Client().SetAll(ctx, clusterOptions)
}

var errEnded = errors.New("its container has ended")

// answers waits until glusterd does, or has ended.
func (h *Host) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		_, err := h.Client().Peers(ctx)
		if err == nil {
			return nil
		}
		if running, errState := h.Running(ctx); errState == nil && !running {
			return fmt.Errorf("glusterd does not answer: %w: %w", errEnded, err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("glusterd does not answer: %w", err)
		}
	}
}

// Stop ends glusterd and the bricks. Mounts go on, as far as other hosts have what is in them.
// None that runs is no error.
func (h *Host) Stop(ctx context.Context) error {
	if err := h.server().end(ctx); err != nil {
		return fmt.Errorf("storage of this host: %w", err)
	}
	h.prune()
	return nil
}

// Forget is Stop, and takes away what glusterd knows of the cluster, which has to have forgotten the
// host. Mounts go on, and Trust holds.
func (h *Host) Forget(ctx context.Context) error {
	if err := h.Stop(ctx); err != nil {
		return err
	}
	if err := hostmount.Unmount(h.at("bricks")); err != nil {
		return err
	}
	for _, name := range []string{"server", "bricks", "lib"} { // what Served looks at last
		if err := os.RemoveAll(h.at(name)); err != nil {
			return err
		}
	}
	return nil
}

// Left says what of GlusterFS is on this host: something that Forget takes away, and any that
// Clear does. It asks nothing that might hang.
func (h *Host) Left() (served, any bool, err error) {
	for _, at := range []struct {
		name string
		is   *bool
	}{{h.at("lib"), &served}, {h.cfg.Dir, &any}} {
		switch _, err := os.Lstat(at.name); {
		case err == nil:
			*at.is = true
		case !errors.Is(err, fs.ErrNotExist):
			return false, false, err
		}
	}
	return served, any, nil
}

// ShareBricks makes BrickDir, so that what is mounted there is so before bricks are started.
func (h *Host) ShareBricks() error { return h.shareBricks() }

// Clear takes away all of GlusterFS that is on this host, with mounts, and what glusterd knows of
// the cluster, which has to have forgotten the host. Bricks' images are not in Dir; what is mounted
// of them there is unmounted. Nothing there is no error.
func (h *Host) Clear(ctx context.Context) error {
	mounted, err := h.mounts()
	if err != nil {
		return err
	}
	for _, m := range mounted {
		if err := h.Unmount(ctx, m); err != nil {
			return err
		}
	}
	if err := h.Stop(ctx); err != nil {
		return err
	}
	for _, name := range []string{"bricks", "dev"} {
		if err := hostmount.Unmount(h.at(name)); err != nil {
			return err
		}
	}
	if err := cgroup.Remove(h.group("")); err != nil {
		return err
	}
	if left, err := hostmount.Below(h.cfg.Dir); err != nil || len(left) > 0 {
		return fmt.Errorf("storage of this host: still mounted: %v: %w", left, err)
	}
	return os.RemoveAll(h.cfg.Dir)
}

// Running says whether Ensure would find glusterd's container running.
func (h *Host) Running(ctx context.Context) (bool, error) {
	c, ok, err := h.runc.State(ctx, h.server().id)
	return ok && c.Running(), err
}

// Began is when glusterd's container was started, with all bricks; zero: it doesn't run.
func (h *Host) Began(ctx context.Context) (time.Time, error) {
	c, ok, err := h.runc.State(ctx, h.server().id)
	if !ok || !c.Running() {
		return time.Time{}, err
	}
	return c.Created, err
}

// Memory is how much of the host's memory storage takes, in bytes: by what there is of it, so that it changes with that only,
// and not with what is cached. The bounds of its containers are far beyond, for one that has much to do; not all have at
// once. It asks nothing that might hang.
func (h *Host) Memory() (bytes int64, err error) {
	mounts, err := h.Mounted()
	bytes = int64(len(mounts)) * mountMemory
	served, _, errLeft := h.Left()
	if served {
		bricks, errBricks := os.ReadDir(h.BrickDir())
		if errors.Is(errBricks, fs.ErrNotExist) {
			errBricks = nil
		}
		bytes, err = bytes+serverMemory+int64(len(bricks))*brickMemory, cmp.Or(err, errBricks)
	}
	return bytes, cmp.Or(err, errLeft)
}

// Client asks this host's glusterd, while it runs.
func (h *Host) Client() Client {
	return Client{Run: func(ctx context.Context, args ...string) ([]byte, error) {
		cmd := h.runc.Command(ctx, append([]string{"exec", h.server().id, "/usr/sbin/gluster"}, args...)...)
		// It passes the signal on; killed, it would leave the command running.
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 2 * time.Second
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		err := child.Command(cmd)
		if err != nil && errOut.Len() > 0 {
			err = fmt.Errorf("%w: %s", err, runc.LastLine(errOut.String()))
		}
		return out.Bytes(), err
	}}
}

// shareBricks makes the folder whose mounts appear in the server's container.
func (h *Host) shareBricks() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return h.tmpfs("bricks", flags, "size=1m,nr_inodes=16k,mode=700", func(dir string) error {
		return unix.Mount("", dir, "", unix.MS_SHARED, "") // what is shared stays so; we may have been killed before
	})
}

// tmpfs has one be mounted at a folder that nobody but root enters, and done with as then says, each time.
func (h *Host) tmpfs(name string, flags uintptr, options string, then func(dir string) error) error {
	dir := h.at(name)
	there, err := hostmount.Has(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return hostmount.Do(func() error {
		// Not what is there bound to itself: on a host whose mounts are shared, all would be mounted
		// at both.
		if !there {
			err = unix.Mount("tmpfs", dir, "tmpfs", flags, options)
		}
		if err = cmp.Or(err, os.Chmod(dir, 0o700)); err == nil {
			err = then(dir)
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
		return nil
	})
}

func (h *Host) prune() {
	if err := h.images.Prune(h.imageLayout()); err != nil {
		h.cfg.Log.Warn("remove unused images of storage", "err", err)
	}
}

// logBytes bounds each log file; there are at most two of a name.
const logBytes = 8 << 20

// keepLogs bounds the logs of all daemons, for they don't themselves. They append, so
// what is cut goes on at its beginning. It is no part of ours, which may be away.
const keepLogs = `while :; do
	find /var/log/glusterfs -type f -name '*.log' -size +%dk | while read -r f; do
		tail -c %d "$f" >"$f.1" && : >"$f"
	done
	sleep 5
done
`

// serverFiles are what the container of glusterd is configured by, by name on the host.
func (h *Host) serverFiles() (map[string][]byte, error) {
	type service struct {
		Name  string   `json:"name"`
		Argv  []string `json:"argv"`
		Ready string   `json:"ready,omitempty"`
	}
	init, err := json.MarshalIndent(map[string]any{
		"plain":   true,
		"log_dir": "/var/log/glusterfs/init",
		// Bricks end in a moment when they are asked to.
		"stop_timeout": "8s",
		"services": []service{
			{Name: "logs", Argv: []string{"/bin/sh", "/etc/multipaas/logs.sh"}},
			{Name: "glusterd", Argv: []string{"/usr/sbin/glusterd", "--no-daemon", "--volfile=/etc/multipaas/glusterd.vol"},
				Ready: "unix:/run/glusterd.socket"},
		},
	}, "", "  ")
	if err != nil {
		return nil, err
	}
	// Its own connections come from ports above 1023, which are no host's services. Debian's file has ping-timeout 0: a
	// node that went without a word while it was asked something is then waited for until TCP gives up, a quarter of an
	// hour, and so is each command (keepalive counts only while nothing was sent). One that is slow is there again in 3 s.
	volfile := fmt.Sprintf(`volume management
    type mgmt/glusterd
    option working-directory /var/lib/glusterd
    option transport-type socket
    option transport.address-family inet
    option transport.socket.bind-address %v
    option transport.socket.listen-port %d
    option transport.socket.keepalive-time 10
    option transport.socket.keepalive-interval 2
    option transport.socket.read-fail-log off
    option rpc-auth-allow-insecure on
    option ping-timeout 15
    option event-threads 1
    option base-port %d
    option max-port %d
end-volume
`, h.cfg.Address, Port, FirstBrickPort, LastBrickPort)
	return map[string][]byte{
		h.at("etc", "init.json"):    init,
		h.at("etc", "glusterd.vol"): []byte(volfile),
		h.at("etc", "logs.sh"):      fmt.Appendf(nil, keepLogs, logBytes>>10, logBytes),
	}, nil
}

// digest is of what files hold.
func digest(files map[string][]byte) string {
	text, err := json.Marshal(files) // in the order of their names
	if err != nil {
		panic(err) // a map of bytes
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
