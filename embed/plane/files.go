package plane

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/pki"
)

// Files in Dir that more than one function names.
const (
	configFile   = "plane.json"
	levelFile    = "pod-security"
	machinesFile = "machines.json"
	shareFile    = "share.json"
	limitFile    = "largest-limit.json" // that the datastore ever had
	logFile      = "log/plane.log"
	ownFolder    = "own" // the plane's, what it writes
	databaseFile = ownFolder + "/state.db"
	socketFile   = ownFolder + "/kine.sock"
	roomFile     = ownFolder + "/datastore.json"
)

// object is a piece of a configuration file; JSON is YAML enough for upstream.
type object = map[string]any

// render writes every file of the plane and returns the certificates, which
// want to be kept valid. What is there from an earlier run is written over, but
// for certificates that are still good and the database.
func (p *Plane) render(ctx context.Context) ([]*pki.Renewer, error) {
	if err := p.makeFolders(); err != nil {
		return nil, err
	}
	certificates, err := p.certificates()
	if err != nil {
		return nil, err
	}
	for _, c := range certificates {
		if err := c.Ensure(ctx); err != nil {
			return nil, err
		}
	}
	if err := p.SetPodSecurity(p.cfg.PodSecurity); err != nil {
		return nil, err
	}
	for name, content := range map[string]object{
		"authentication.json":           p.authentication(),
		"encryption.json":               p.encryption(),
		"admission.json":                p.admission(),
		"controller-manager.kubeconfig": p.kubeconfig("controller-manager"),
		"scheduler.kubeconfig":          p.kubeconfig("scheduler"),
		"storage.kubeconfig":            p.kubeconfig("storage"),
		configFile:                      p.kubeConfig(),
	} {
		data, err := json.MarshalIndent(content, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := p.write(name, data); err != nil {
			return nil, err
		}
	}
	return certificates, nil
}

// makeFolders makes the folders. The plane's user reads what we write, and writes in
// a folder of its own, where we write nothing: it could put links in our way.
func (p *Plane) makeFolders() error {
	for _, f := range []struct {
		name string
		uid  int
		mode fs.FileMode
	}{{".", 0, 0o750}, {"pki", 0, 0o750}, {filepath.Dir(logFile), 0, 0o700}, {ownFolder, p.cfg.UID, 0o700}} {
		dir := p.path(f.name)
		if err := cmp.Or(os.MkdirAll(dir, 0o700), os.Chown(dir, f.uid, p.cfg.UID), os.Chmod(dir, f.mode)); err != nil {
			return err
		}
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		file := p.path(databaseFile) + suffix
		// Where an earlier version had it.
		if err := os.Rename(p.path(filepath.Base(file)), file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := p.give(file); err != nil {
			return err
		}
	}
	return nil
}

// give makes a database that root put there, from a backup say, the plane's: a
// plain file of that one name, for in that folder the plane may have put anything.
func (p *Plane) give(file string) error {
	fd, err := unix.Open(file, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", file, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", file, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 || st.Uid != 0 {
		return nil
	}
	if err := unix.Fchownat(fd, "", p.cfg.UID, p.cfg.UID, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("give %s to the plane: %w", file, err)
	}
	return nil
}

// write writes a file for the plane to read.
func (p *Plane) write(name string, data []byte) error {
	return atomicfile.WriteGroup(p.path(name), p.cfg.UID, data)
}

// kubeConfig is what `kube plane` reads: package plane of embed/kube has the type.
func (p *Plane) kubeConfig() object {
	config := object{
		"apiserver":         p.apiServerFlags(),
		"controllerManager": p.controllerManagerFlags(),
		"scheduler":         p.clientFlags("scheduler"),
		"readyURL":          p.url("/readyz"),
		"readyCA":           p.path("pki", "ca.crt"),
		"guard": object{
			"levelFile":    p.path(levelFile),
			"machinesFile": p.path(machinesFile),
			"platformUser": platformUser,
			"reserved":     []string{usageUser, storageUser},
		},
		"usage": object{
			"caFile":   p.path("pki", "ca.crt"),
			"certFile": p.path("pki", "usage.crt"),
			"keyFile":  p.path("pki", "usage.key"),
			"machines": p.cfg.Plan.Machines.Masked().String(),
		},
		"budget": object{"limitBytes": p.cfg.Datastore.limit(), "shareFile": p.path(shareFile), "statusFile": p.path(roomFile)},
	}
	if socket := p.cfg.StorageSocket; socket != "" {
		config["storage"] = object{"socket": socket, "kubeconfig": p.path("storage.kubeconfig")}
	}
	if p.cfg.Datastore.Kind == Etcd {
		// The platform's etcd keeps 5 minutes of history and compacts every 5.
		config["budget"].(object)["historySeconds"] = 600
	} else {
		config["kine"] = object{"socket": p.path(socketFile), "endpoint": p.sqlite(), "file": p.path(databaseFile)}
	}
	return config
}

// sqlite is kine's endpoint of a file. Without _busy_timeout and _txlock the API server sees
// SQLITE_BUSY, and a start takes a minute. NORMAL with a write-ahead log loses
// nothing when the process is killed; a power cut may take the last moments, and
// controllers do them again. No VACUUM at the start: it writes all of the file,
// and the process gives pages back while it runs.
func (p *Plane) sqlite() string {
	return "sqlite://" + p.path(databaseFile) +
		"?_journal_mode=WAL&_busy_timeout=30000&_synchronous=NORMAL&_txlock=immediate&cache=shared" +
		"&_pragma=journal_size_limit(67108864)&_kine_disable_startup_vacuum=1"
}

func (p *Plane) apiServerFlags() []string {
	in := func(name string) string { return p.path("pki", name) }
	flags := []string{
		"--bind-address=0.0.0.0",
		fmt.Sprintf("--secure-port=%d", Port),
		"--advertise-address=" + p.cfg.Plan.Plane.String(),
		"--service-cluster-ip-range=" + p.cfg.Plan.Services.Masked().String(),
		"--allow-privileged=true", // the guard decides, by the workspace's level
		"--profiling=false",

		"--tls-cert-file=" + in("apiserver.crt"),
		"--tls-private-key-file=" + in("apiserver.key"),
		"--tls-min-version=VersionTLS12",
		"--client-ca-file=" + in("client-ca.crt"),
		"--authentication-config=" + p.path("authentication.json"),
		"--authorization-mode=Node,RBAC",
		// A local volume that moves to another host takes its PersistentVolume along. (Alpha since 1.35; all
		// it does is to let that field change.)
		"--feature-gates=MutablePVNodeAffinity=true",
		// With externalIPs a Service takes any address, the plane's own too: the machines
		// would not reach it any more, nor hear that the Service was deleted.
		"--enable-admission-plugins=NodeRestriction,DenyServiceExternalIPs",
		"--admission-control-config-file=" + p.path("admission.json"),
		"--encryption-provider-config=" + p.path("encryption.json"),

		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + in("service-account.key"),
		"--service-account-signing-key-file=" + in("service-account.key"),

		"--kubelet-certificate-authority=" + in("ca.crt"),
		"--kubelet-client-certificate=" + in("kubelet-client.crt"),
		"--kubelet-client-key=" + in("kubelet-client.key"),
		// Names of machines are known to no resolver.
		"--kubelet-preferred-address-types=InternalIP",

		"--enable-aggregator-routing=true", // ClusterIPs lead nowhere in the plane's namespace
		"--proxy-client-cert-file=" + in("front-proxy-client.crt"),
		"--proxy-client-key-file=" + in("front-proxy-client.key"),
		"--requestheader-client-ca-file=" + in("front-proxy-ca.crt"),
		"--requestheader-allowed-names=" + frontProxyName,
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
	}
	if p.cfg.Datastore.Kind == Kine {
		return append(flags, "--etcd-servers=unix://"+p.path(socketFile))
	}
	etcd := p.cfg.Datastore.Etcd
	flags = append(flags, "--etcd-servers="+strings.Join(etcd.Endpoints, ","), "--etcd-prefix="+etcd.Prefix,
		// The platform's etcd compacts itself; a workspace's user may not.
		"--etcd-compaction-interval=0")
	for flag, file := range map[string]string{"--etcd-cafile": etcd.CAFile, "--etcd-certfile": etcd.CertFile, "--etcd-keyfile": etcd.KeyFile} {
		if file != "" {
			flags = append(flags, flag+"="+file)
		}
	}
	return flags
}

// clientFlags are what the API server's two clients in the process share. They
// serve nothing: that would be one more thing on the namespace's loopback, and
// a self-signed certificate each, for metrics that the API server shows too.
// Nobody else runs a second one of them, so there is no leader to elect.
func (p *Plane) clientFlags(name string) []string {
	return []string{
		"--kubeconfig=" + p.path(name+".kubeconfig"),
		"--secure-port=0",
		"--leader-elect=false",
		"--profiling=false",
		// The default, 20 a second, is for sharing a big API server. Here half of a
		// new cluster's start was waiting for it: 8.7 s against 4.6 s to the first
		// bound pod.
		"--kube-api-qps=500",
		"--kube-api-burst=1000",
	}
}

func (p *Plane) controllerManagerFlags() []string {
	in := func(name string) string { return p.path("pki", name) }
	return append(p.clientFlags("controller-manager"),
		"--use-service-account-credentials=true",
		"--service-account-private-key-file="+in("service-account.key"),
		"--root-ca-file="+in("ca.crt"),
		"--cluster-signing-cert-file="+in("signing-ca.crt"),
		"--cluster-signing-key-file="+in("signing-ca.key"),
		"--allocate-node-cidrs=false", // the platform gives each machine its range
		// The default, 12500, is for clusters of thousands of nodes; terminated
		// pods are most of what a small one would keep.
		"--terminated-pod-gc-threshold=200",
		"--controller-shutdown-timeout=4s", // less than the 5 s that the part gets
	)
}

func (p *Plane) kubeconfig(name string) object {
	return object{
		"apiVersion": "v1", "kind": "Config", "current-context": "plane",
		"clusters": []object{{"name": "plane", "cluster": object{
			"server": p.url(""), "certificate-authority": p.path("pki", "ca.crt")}}},
		// Files, not their content: client-go reads them again when they change.
		"users": []object{{"name": name, "user": object{
			"client-certificate": p.path("pki", name+".crt"), "client-key": p.path("pki", name+".key")}}},
		"contexts": []object{{"name": "plane", "context": object{"cluster": "plane", "user": name}}},
	}
}

// authentication is who may call the API server, besides holders of client
// certificates and service account tokens.
func (p *Plane) authentication() object {
	config := object{
		"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
		"anonymous": object{"enabled": true, "conditions": []object{{"path": "/livez"}, {"path": "/readyz"}, {"path": "/healthz"}}},
	}
	if oidc := p.cfg.OIDC; oidc.Issuer != "" {
		config["jwt"] = []object{{
			"issuer": object{
				"url": oidc.Issuer, "discoveryURL": oidc.DiscoveryURL, "certificateAuthority": string(oidc.CAPEM),
				"audiences": []string{oidc.Audience},
			},
			"claimMappings": object{
				"username": object{"claim": "email", "prefix": "multipaas:"},
				"groups":   object{"claim": "groups", "prefix": ""},
			},
			// Whatever the issuer says, it can't make a part of Kubernetes of anybody.
			"userValidationRules": []object{{
				"expression": "!user.groups.exists(g, g.startsWith('system:'))",
				"message":    "groups of Kubernetes itself are not given by tokens",
			}},
		}}
	}
	return config
}

// admission has whoever applies a workload warned of pods that the guard will
// refuse: a Deployment is taken, and nobody looks at its ReplicaSet's events. It
// only warns, by the level at the plane's start; what is enforced is the guard's,
// whatever the namespaces' labels say.
func (p *Plane) admission() object {
	return object{
		"apiVersion": "apiserver.config.k8s.io/v1",
		"kind":       "AdmissionConfiguration",
		"plugins": []object{{
			"name": "PodSecurity",
			"configuration": object{
				"apiVersion": "pod-security.admission.config.k8s.io/v1",
				"kind":       "PodSecurityConfiguration",
				"defaults":   object{"enforce": "privileged", "audit": "privileged", "warn": p.cfg.PodSecurity},
			},
		}},
	}
}

// encryption is how secrets stand in the datastore. What was written before
// there was a key is still read.
func (p *Plane) encryption() object {
	return object{
		"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
		"resources": []object{{
			"resources": []string{"secrets"},
			"providers": []object{
				{"secretbox": object{"keys": []object{{
					"name": "workspace", "secret": base64.StdEncoding.EncodeToString(p.cfg.Keys.EncryptionKey)}}}},
				{"identity": object{}},
			},
		}},
	}
}
