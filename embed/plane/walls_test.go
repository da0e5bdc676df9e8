package plane

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// testWalls looks at what the process may do; package seal and appliance/child try it.
func testWalls(t *testing.T, p *Plane) {
	proc := fmt.Sprintf("/proc/%d", p.PID())
	tasks, err := os.ReadDir(proc + "/task")
	if err != nil || len(tasks) < 3 {
		t.Fatalf("%d threads, %v", len(tasks), err)
	}
	for _, task := range tasks {
		data, err := os.ReadFile(filepath.Join(proc, "task", task.Name(), "status"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{fmt.Sprintf("Uid:\t%d\t", p.cfg.UID), "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
			if !strings.Contains(string(data), want) {
				t.Errorf("thread %s: no %q in\n%s", task.Name(), want, data)
			}
		}
	}
	names := func(dir string) string {
		entries, err := os.ReadDir(proc + "/root" + dir)
		if err != nil {
			t.Error(err)
		}
		var all []string
		for _, e := range entries {
			all = append(all, e.Name())
		}
		return strings.Join(all, " ")
	}
	top := strings.Split(p.cfg.Dir, "/")[1]
	for dir, want := range map[string][]string{"/": {"dev", "etc", "proc", "sys", top}, "/dev": {"null", "urandom"},
		"/etc": {"hosts", "nsswitch.conf", "pki", "resolv.conf", "ssl"}, filepath.Dir(p.cfg.Dir): {filepath.Base(p.cfg.Dir)}} {
		for name := range strings.FieldsSeq(names(dir)) {
			// Above its folder stands the way to its executable too.
			if !slices.Contains(want, name) && !strings.HasPrefix(p.cfg.Binary, filepath.Join(dir, name)+"/") {
				t.Errorf("%s is shown to it in %s", name, dir)
			}
		}
	}
}

// testLoopback tries to make the API server a door to what listens on the
// loopback of its namespace: the issuer's keys on port 6444 would answer.
func testLoopback(t *testing.T, admin kubernetes.Interface) {
	const port = 6444
	if _, err := admin.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "forged"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// A patch, for the controllers write to a new node too.
	address := fmt.Appendf(nil, `{"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": %d}}}}`, port)
	if _, err := admin.CoreV1().Nodes().Patch(t.Context(), "forged", types.MergePatchType, address, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	forged, err := admin.CoreV1().Pods("default").Create(t.Context(), pod("forged", func(s *corev1.PodSpec) { s.NodeName = "forged" }), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	status := []byte(`{"status": {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}}`)
	if _, err := admin.CoreV1().Pods("default").Patch(t.Context(), forged.Name, types.MergePatchType, status, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	_, err = admin.DiscoveryV1().EndpointSlices("default").Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "forged"}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"127.0.0.1"}}}}, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) {
		t.Errorf("endpoint on the loopback: %v, want it refused", err)
	}
	for _, path := range []string{
		"/api/v1/nodes/forged/proxy/keys",
		"/api/v1/nodes/https:forged:6444/proxy/keys",
		"/api/v1/namespaces/default/pods/https:forged:6444/proxy/keys",
		"/api/v1/namespaces/default/pods/forged/log",
	} {
		if data, err := admin.CoreV1().RESTClient().Get().AbsPath(path).DoRaw(t.Context()); err == nil {
			t.Errorf("%s answers %q", path, data)
		}
	}
}

// testAggregation: kubelets run the pods that the API names, so the tenant must
// not be the one who answers for it.
func testAggregation(t *testing.T, admin kubernetes.Interface) {
	api := admin.Discovery().RESTClient()
	const path = "/apis/apiregistration.k8s.io/v1/apiservices"
	handOn := []byte(`{"metadata": {"labels": null}, "spec": {"insecureSkipTLSVerify": true, "service": {"namespace": "default", "name": "mine", "port": 443}}}`)
	for _, name := range []string{"v1.", "v1.certificates.k8s.io", "v1.apps"} {
		err := api.Patch(types.MergePatchType).AbsPath(path, name).Body(handOn).Do(t.Context()).Error()
		wantRefused(t, "APIService "+name+" handed to a service", err, "served by Kubernetes itself")
	}
	own := []byte(`{"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.acme.example"},
		"spec": {"group": "acme.example", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 100,
			"insecureSkipTLSVerify": true, "service": {"namespace": "default", "name": "mine", "port": 443}}}`)
	if err := api.Post().AbsPath(path).SetHeader("Content-Type", "application/json").Body(own).Do(t.Context()).Error(); err != nil {
		t.Errorf("APIService of the tenant's own group: %v", err)
	}
	if err := api.Delete().AbsPath(path, "v1.acme.example").Do(t.Context()).Error(); err != nil {
		t.Error(err)
	}
}

func testSecretsAtRest(t *testing.T, p *Plane, platform kubernetes.Interface) {
	const word = "correct-horse-battery-staple"
	for _, err := range []error{
		createSecret(t.Context(), platform, word),
		createConfigMap(t.Context(), platform, word+"-in-the-clear"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var stored []byte
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(p.path(databaseFile) + suffix)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		stored = append(stored, data...)
	}
	if !bytes.Contains(stored, []byte(word+"-in-the-clear")) {
		t.Fatal("the config map is not in the files that were searched")
	}
	if bytes.Count(stored, []byte(word)) != bytes.Count(stored, []byte(word+"-in-the-clear")) {
		t.Error("a secret lies in the database in the clear")
	}
	for _, file := range []string{"", databaseFile, socketFile, configFile, logFile, filepath.Join("pki", "platform.key")} {
		info, err := os.Stat(p.path(file))
		if err != nil {
			t.Error(err)
			continue
		}
		mode, gid := info.Mode().Perm(), info.Sys().(*syscall.Stat_t).Gid
		if (mode&0o007 != 0 || int(gid) != p.cfg.UID) && file != databaseFile && file != logFile {
			t.Errorf("%q has mode %o and group %d, want it for root and the plane alone", file, mode, gid)
		}
	}
}

// TestGive: what root has put in the place of the database becomes the plane's, and
// nothing else does that the plane may have put there.
func TestGive(t *testing.T) {
	const uid = 0x0fff_1002
	dir := t.TempDir()
	p := New(Config{ID: "x", Dir: dir, UID: uid})
	if err := os.WriteFile(filepath.Join(dir, "state.db"), []byte("x"), 0o600); err != nil { // of an earlier version
		t.Fatal(err)
	}
	if err := p.makeFolders(); err != nil {
		t.Fatal(err)
	}
	owner := func(file string) uint32 {
		t.Helper()
		info, err := os.Lstat(file)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Uid
	}
	if got := owner(p.path(databaseFile)); got != uid {
		t.Errorf("the database of an earlier version is %d's, want the plane's", got)
	}
	secret := filepath.Join(dir, "pki", "secret")
	if err := cmp.Or(os.WriteFile(secret, []byte("x"), 0o600), os.Link(secret, p.path(databaseFile)+"-wal"), os.Symlink(secret, p.path(databaseFile)+"-shm")); err != nil {
		t.Fatal(err)
	}
	if err := p.makeFolders(); err != nil {
		t.Fatal(err)
	}
	if got := owner(secret); got != 0 {
		t.Errorf("a file that a name of the plane's leads to is %d's", got)
	}
	if got := owner(dir); got != 0 {
		t.Errorf("the plane's folder is %d's, want root's", got)
	}
}

func createSecret(ctx context.Context, c kubernetes.Interface, word string) error {
	_, err := c.CoreV1().Secrets("default").Create(ctx,
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"word": word}}, metav1.CreateOptions{})
	return err
}

func createConfigMap(ctx context.Context, c kubernetes.Interface, word string) error {
	_, err := c.CoreV1().ConfigMaps("default").Create(ctx,
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Data: map[string]string{"word": word}}, metav1.CreateOptions{})
	return err
}
