package guard

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration"
	certificates "k8s.io/kubernetes/pkg/apis/certificates"
	_ "k8s.io/kubernetes/pkg/apis/certificates/install"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/storage"

	"github.com/multipaas/multipaas/embed/kube/volumes"
)

const platform, reserved = "multipaas:platform", "multipaas:storage"

var tenant = &user.DefaultInfo{Name: "multipaas:ann@acme.example", Groups: []string{"multipaas:org-admin", "system:authenticated"}}

// newGuard makes a guard with a level file of this content; "-" is none.
func newGuard(t testing.TB, level string) *Guard {
	t.Helper()
	file := filepath.Join(t.TempDir(), "level")
	if level != "-" {
		if err := os.WriteFile(file, []byte(level), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g, err := New(Config{LevelFile: file, MachinesFile: file + ".machines", PlatformUser: platform, Reserved: []string{reserved}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func newPod(change func(*api.PodSpec)) *api.Pod {
	p := &api.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n"},
		Spec: api.PodSpec{
			SecurityContext: &api.PodSecurityContext{},
			Containers:      []api.Container{{Name: "c", Image: "i"}},
		},
	}
	if change != nil {
		change(&p.Spec)
	}
	return p
}

func privileged(s *api.PodSpec) {
	yes := true
	s.Containers[0].SecurityContext = &api.SecurityContext{Privileged: &yes}
}

func withVolume(source api.VolumeSource) func(*api.PodSpec) {
	return func(s *api.PodSpec) { s.Volumes = []api.Volume{{Name: "v", VolumeSource: source}} }
}

func validate(g *Guard, resource, subresource string, obj, old runtime.Object, who user.Info) error {
	group, op := "", admission.Create
	switch resource {
	case "certificatesigningrequests":
		group = "certificates.k8s.io"
	case "apiservices":
		group = "apiregistration.k8s.io"
	case "storageclasses":
		group = "storage.k8s.io"
	}
	if old != nil {
		op = admission.Update
	}
	return g.Validate(context.Background(), admission.NewAttributesRecord(obj, old, schema.GroupVersionKind{}, "n", "x",
		schema.GroupVersionResource{Group: group, Version: "v1", Resource: resource}, subresource, op, nil, false, who), nil)
}

func TestPods(t *testing.T) {
	for name, c := range map[string]struct {
		level  string
		change func(*api.PodSpec)
		want   string // in the refusal; "": let through
	}{
		"plain":          {"baseline", nil, ""},
		"plain, no file": {"-", nil, ""},
		"host network": {"baseline", func(s *api.PodSpec) {
			s.SecurityContext.HostNetwork = true
		}, "host namespaces"},
		"host PID": {"baseline", func(s *api.PodSpec) {
			s.SecurityContext.HostPID = true
		}, "host namespaces"},
		"host port": {"baseline", func(s *api.PodSpec) {
			s.Containers[0].Ports = []api.ContainerPort{{ContainerPort: 80, HostPort: 80, Protocol: api.ProtocolTCP}}
		}, "hostPort"},
		"capability": {"baseline", func(s *api.PodSpec) {
			s.Containers[0].SecurityContext = &api.SecurityContext{Capabilities: &api.Capabilities{Add: []api.Capability{"SYS_ADMIN"}}}
		}, "SYS_ADMIN"},
		"host path":           {"baseline", withVolume(api.VolumeSource{HostPath: &api.HostPathVolumeSource{Path: "/"}}), "hostPath"},
		"iscsi":               {"baseline", withVolume(api.VolumeSource{ISCSI: &api.ISCSIVolumeSource{}}), "iscsi"},
		"fc":                  {"baseline", withVolume(api.VolumeSource{FC: &api.FCVolumeSource{}}), "fc"},
		"flex":                {"baseline", withVolume(api.VolumeSource{FlexVolume: &api.FlexVolumeSource{Driver: "x/y"}}), "flexVolume"},
		"git":                 {"baseline", withVolume(api.VolumeSource{GitRepo: &api.GitRepoVolumeSource{}}), "gitRepo"},
		"empty dir":           {"baseline", withVolume(api.VolumeSource{EmptyDir: &api.EmptyDirVolumeSource{}}), ""},
		"no source":           {"baseline", withVolume(api.VolumeSource{}), ""},
		"claim":               {"baseline", withVolume(api.VolumeSource{PersistentVolumeClaim: &api.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}), ""},
		"csi":                 {"baseline", withVolume(api.VolumeSource{CSI: &api.CSIVolumeSource{Driver: "d.example"}}), ""},
		"csi, ours":           {"baseline", withVolume(api.VolumeSource{CSI: &api.CSIVolumeSource{Driver: volumes.Driver}}), "PersistentVolumeClaim"},
		"nfs":                 {"baseline", withVolume(api.VolumeSource{NFS: &api.NFSVolumeSource{Server: "172.30.0.9"}}), ""},
		"init container":      {"baseline", func(s *api.PodSpec) { s.InitContainers = s.Containers; privileged(s) }, "privileged"},
		"privileged":          {"baseline", privileged, "privileged"},
		"privileged, no file": {"-", privileged, "privileged"},
		"privileged, damaged": {"priv", privileged, "privileged"},
		"privileged, empty":   {"", privileged, "privileged"},
		"privileged, long":    {strings.Repeat("privileged ", 10), privileged, "privileged"},
		"privileged, lifted":  {"privileged\n", privileged, ""},
		"plain, restricted":   {"restricted", nil, "runAsNonRoot"},
		"host path, lifted":   {"privileged", withVolume(api.VolumeSource{HostPath: &api.HostPathVolumeSource{Path: "/"}}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := validate(newGuard(t, c.level), "pods", "", newPod(c.change), nil, tenant)
			want(t, err, c.want)
			if c.want != "" && !strings.Contains(err.Error(), "ask a sysadmin") {
				t.Errorf("no remedy in %q", err)
			}
		})
	}
}

func want(t *testing.T, err error, words string) {
	t.Helper()
	switch {
	case words == "" && err != nil:
		t.Errorf("refused: %v", err)
	case words != "" && (err == nil || !strings.Contains(err.Error(), words)):
		t.Fatalf("got %v, want a refusal with %q", err, words)
	}
}

func TestPodUpdates(t *testing.T) {
	g := newGuard(t, "baseline")
	old := newPod(privileged)
	labelled := newPod(privileged)
	labelled.Labels = map[string]string{"a": "b"}
	want(t, validate(g, "pods", "", labelled, old, tenant), "")
	image := newPod(privileged)
	image.Spec.Containers[0].Image = "other"
	want(t, validate(g, "pods", "", image, old, tenant), "privileged")

	yes := true
	debug := newPod(nil)
	debug.Spec.EphemeralContainers = []api.EphemeralContainer{{EphemeralContainerCommon: api.EphemeralContainerCommon{
		Name: "d", Image: "i", SecurityContext: &api.SecurityContext{Privileged: &yes}}}}
	want(t, validate(g, "pods", "ephemeralcontainers", debug, newPod(nil), tenant), "--profile=baseline")
	want(t, validate(g, "pods", "status", newPod(privileged), newPod(nil), tenant), "") // status can't change the spec
}

func TestLevelChangesWithoutRestart(t *testing.T) {
	g := newGuard(t, "baseline")
	want(t, validate(g, "pods", "", newPod(privileged), nil, tenant), "privileged")
	for _, c := range []struct{ level, want string }{{"privileged", ""}, {"baseline", "privileged"}} {
		if err := os.WriteFile(g.cfg.LevelFile, []byte(c.level), 0o600); err != nil {
			t.Fatal(err)
		}
		want(t, validate(g, "pods", "", newPod(privileged), nil, tenant), c.want)
	}
}

func TestPersistentVolumes(t *testing.T) {
	host := api.PersistentVolumeSource{HostPath: &api.HostPathVolumeSource{Path: "/"}}
	volume := func(s api.PersistentVolumeSource) *api.PersistentVolume {
		return &api.PersistentVolume{Spec: api.PersistentVolumeSpec{PersistentVolumeSource: s}}
	}
	masters := []string{user.SystemPrivilegedGroup}
	for name, c := range map[string]struct {
		level  string
		source api.PersistentVolumeSource
		who    user.Info
		want   string
	}{
		"hostPath":           {"baseline", host, tenant, "hostPath"},
		"local":              {"baseline", api.PersistentVolumeSource{Local: &api.LocalVolumeSource{Path: "/"}}, tenant, "local"},
		"fc":                 {"baseline", api.PersistentVolumeSource{FC: &api.FCVolumeSource{}}, tenant, "fc"},
		"iscsi":              {"baseline", api.PersistentVolumeSource{ISCSI: &api.ISCSIPersistentVolumeSource{}}, tenant, "iscsi"},
		"rbd":                {"baseline", api.PersistentVolumeSource{RBD: &api.RBDPersistentVolumeSource{}}, tenant, "rbd"},
		"flexVolume":         {"baseline", api.PersistentVolumeSource{FlexVolume: &api.FlexPersistentVolumeSource{}}, tenant, "flexVolume"},
		"none":               {"baseline", api.PersistentVolumeSource{}, tenant, "unknown"},
		"csi":                {"baseline", api.PersistentVolumeSource{CSI: &api.CSIPersistentVolumeSource{}}, tenant, ""},
		"nfs":                {"baseline", api.PersistentVolumeSource{NFS: &api.NFSVolumeSource{Server: "nfs.acme.example", Path: "/x"}}, tenant, ""},
		"hostPath, lifted":   {"privileged", host, tenant, ""},
		"hostPath, platform": {"baseline", host, &user.DefaultInfo{Name: platform, Groups: masters}, ""},
		"name only":          {"baseline", host, &user.DefaultInfo{Name: platform}, "hostPath"},
		"group only":         {"baseline", host, &user.DefaultInfo{Name: "ann", Groups: masters}, "hostPath"},
		"nobody":             {"baseline", host, nil, "hostPath"},
	} {
		t.Run(name, func(t *testing.T) {
			want(t, validate(newGuard(t, c.level), "persistentvolumes", "", volume(c.source), nil, c.who), c.want)
		})
	}
	g := newGuard(t, "baseline")
	released := volume(host)
	released.Spec.PersistentVolumeReclaimPolicy = api.PersistentVolumeReclaimRetain
	want(t, validate(g, "persistentvolumes", "", released, volume(host), tenant), "")
	want(t, validate(g, "persistentvolumes", "", volume(host), volume(api.PersistentVolumeSource{}), tenant), "hostPath")
}

// TestOwnVolumes: who makes a PersistentVolume or a class of the platform's driver hears at once
// what can't be.
func TestOwnVolumes(t *testing.T) {
	g := newGuard(t, "baseline")
	for name, c := range map[string]struct {
		fsType  string
		options []string
		want    string
	}{
		"plain":       {"", nil, ""},
		"as it is":    {"xfs", []string{"ro"}, ""},
		"file system": {"ext4", nil, `"ext4"`},
		"option":      {"", []string{"ro", "bind"}, `"bind"`},
	} {
		t.Run(name, func(t *testing.T) {
			source := &api.CSIPersistentVolumeSource{Driver: volumes.Driver, VolumeHandle: "x", FSType: c.fsType}
			pv := &api.PersistentVolume{Spec: api.PersistentVolumeSpec{MountOptions: c.options, PersistentVolumeSource: api.PersistentVolumeSource{CSI: source}}}
			want(t, validate(g, "persistentvolumes", "", pv, nil, tenant), c.want)
			class := &storage.StorageClass{Provisioner: volumes.Driver, MountOptions: c.options, Parameters: map[string]string{"csi.storage.k8s.io/fstype": c.fsType}}
			want(t, validate(g, "storageclasses", "", class, nil, tenant), c.want)
			source.Driver, class.Provisioner = "d.example", "d.example"
			want(t, validate(g, "persistentvolumes", "", pv, nil, tenant), "")
			want(t, validate(g, "storageclasses", "", class, nil, tenant), "")
		})
	}
}

// TestMountOptions: kubelet hands a volume's server and options to mount(8),
// which can do more than NFS.
func TestMountOptions(t *testing.T) {
	const own = "/var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/v/x"
	volume := func(server, annotation string, options ...string) *api.PersistentVolume {
		pv := &api.PersistentVolume{Spec: api.PersistentVolumeSpec{MountOptions: options,
			PersistentVolumeSource: api.PersistentVolumeSource{NFS: &api.NFSVolumeSource{Server: server, Path: "/../../../.."}}}}
		if annotation != "" {
			pv.Annotations = map[string]string{corev1.MountOptionAnnotation: annotation}
		}
		return pv
	}
	g := newGuard(t, "baseline")
	for name, c := range map[string]struct {
		pv   *api.PersistentVolume
		want string
	}{
		"plain":             {volume("172.30.0.11", "", "nfsvers=4.2", "hard", "timeo=600"), ""},
		"IPv6":              {volume("[fd00::1]", ""), ""},
		"annotation":        {volume("nfs", "ro,soft"), ""},
		"bind":              {volume("nfs", "", "bind"), `"bind"`},
		"bind by another":   {volume("nfs", "", "ro,bind"), `"ro,bind"`},
		"bind, annotated":   {volume("nfs", "ro,bind"), `"bind"`},
		"helper":            {volume("nfs", "", "X-mount.subdir=/"), "X-mount"},
		"folder for server": {volume(own, "", "ro"), "neither a name nor an address"},
		"option for server": {volume("-BT"+own, ""), "neither a name nor an address"},
	} {
		t.Run(name, func(t *testing.T) {
			want(t, validate(g, "persistentvolumes", "", c.pv, nil, tenant), c.want)
		})
	}
	// What was harmless when it was made must stay so.
	want(t, validate(g, "persistentvolumes", "", volume("nfs", "", "bind"), volume("nfs", ""), tenant), `"bind"`)
	want(t, validate(g, "persistentvolumes", "", volume("nfs", "bind"), volume("nfs", ""), tenant), `"bind"`)
	want(t, validate(g, "pods", "", newPod(withVolume(api.VolumeSource{NFS: &api.NFSVolumeSource{Server: "-BT" + own, Path: "/fstab"}})), nil, tenant),
		"neither a name nor an address")
}

func TestAPIServices(t *testing.T) {
	service := func(group string, to *apiregistration.ServiceReference) *apiregistration.APIService {
		return &apiregistration.APIService{Spec: apiregistration.APIServiceSpec{Group: group, Version: "v1", Service: to}}
	}
	mine := &apiregistration.ServiceReference{Namespace: "n", Name: "s"}
	g := newGuard(t, "privileged") // it holds whatever the level
	for group, refused := range map[string]bool{
		"": true, "certificates.k8s.io": true, "apiregistration.k8s.io": true, "apiextensions.k8s.io": true,
		"metrics.k8s.io": false, "wardle.example.com": false,
	} {
		words := ""
		if refused {
			words = "served by Kubernetes itself"
		}
		want(t, validate(g, "apiservices", "", service(group, mine), nil, tenant), words)
		want(t, validate(g, "apiservices", "", service(group, mine), service(group, nil), tenant), words)
		want(t, validate(g, "apiservices", "", service(group, nil), nil, tenant), "")
	}
}

func TestCertificateRequests(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		signer  string
		subject pkix.Name
		want    string
	}{
		"plain":          {"kubernetes.io/kube-apiserver-client", pkix.Name{CommonName: "ann"}, ""},
		"platform":       {"kubernetes.io/kube-apiserver-client", pkix.Name{CommonName: platform}, "belong to the platform"},
		"reserved":       {"kubernetes.io/kube-apiserver-client", pkix.Name{CommonName: reserved}, "belongs to the platform"},
		"masters":        {"kubernetes.io/legacy-unknown", pkix.Name{CommonName: "ann", Organization: []string{"a", "system:masters"}}, "system:masters"},
		"another signer": {"acme.example/signer", pkix.Name{CommonName: platform}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: c.subject}, key)
			if err != nil {
				t.Fatal(err)
			}
			csr := &certificates.CertificateSigningRequest{Spec: certificates.CertificateSigningRequestSpec{
				SignerName: c.signer, Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}}
			// Lifted or not: what is signed today is valid tomorrow.
			want(t, validate(newGuard(t, "privileged"), "certificatesigningrequests", "", csr, nil, tenant), c.want)
		})
	}
}

func TestFilter(t *testing.T) {
	g := newGuard(t, "privileged")
	handler := g.Filter(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	for who, want := range map[string]int{"": http.StatusTeapot, "ann": http.StatusTeapot, platform: http.StatusForbidden, reserved: http.StatusForbidden} {
		r := httptest.NewRequest(http.MethodGet, "/api", nil)
		if who != "" {
			r.Header.Set("impersonate-user", who)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("as %q: status %d, want %d", who, w.Code, want)
		}
	}
}

// TestVolumeSources makes sure that each source the API knows is decided on,
// and that a new one is refused before somebody has thought about it.
func TestVolumeSources(t *testing.T) {
	for name, source := range map[string]corev1.VolumeSource{
		"hostPath": {HostPath: &corev1.HostPathVolumeSource{}},
		"rbd":      {RBD: &corev1.RBDVolumeSource{}},
		"cephfs":   {CephFS: &corev1.CephFSVolumeSource{}},
		"scaleIO":  {ScaleIO: &corev1.ScaleIOVolumeSource{}},
	} {
		if kind, ok := podVolumeAllowed(source); ok || kind != name {
			t.Errorf("%s: %q, %t; want it refused by this name", name, kind, ok)
		}
	}
}

func TestForbidsNothingForGoodWhileStarting(t *testing.T) {
	g := newGuard(t, "baseline")
	answer := func(code int) *httptest.ResponseRecorder {
		h := g.Filter(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			w.WriteHeader(code)
			_, _ = w.Write([]byte("words"))
		}))
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/api/v1/pods", nil)
		h.ServeHTTP(w, r)
		return w
	}
	w := answer(http.StatusForbidden)
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || strings.Contains(w.Body.String(), "words") {
		t.Errorf("forbidden while starting: %d, Retry-After %q, %s; want 503", w.Code, w.Header().Get("Retry-After"), w.Body)
	}
	if w := answer(http.StatusOK); w.Code != http.StatusOK || w.Body.String() != "words" {
		t.Errorf("allowed while starting: %d %s", w.Code, w.Body)
	}
	g.Started()
	if w := answer(http.StatusForbidden); w.Code != http.StatusForbidden || w.Body.String() != "words" {
		t.Errorf("forbidden: %d %s, want what was answered", w.Code, w.Body)
	}
}
