package plane

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/wait"
)

func TestPlane(t *testing.T) {
	ns := newNamespace(t)
	cfg := newConfig(t, ns)
	iss := newIssuer(t, ns)
	cfg.OIDC = iss.oidc()
	began := time.Now()
	p, stop := start(t, cfg)
	platform := clientFor(t, p.RESTConfig())

	wait.For(t, wait.Patience, "default service account", func(ctx context.Context) error {
		_, err := platform.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	t.Logf("default service account after %s", time.Since(began).Round(time.Millisecond))
	anon, file := memory(t, p.PID())
	t.Logf("memory: %s anonymous, %s files", anon, file)

	bind(t, platform, "org-admins", "cluster-admin", "multipaas:org-admin")
	bind(t, platform, "org-developers", "edit", "multipaas:org-developer")
	admin := clientFor(t, withToken(p, iss.token(t, "ann@acme.example", audience, "multipaas:org-admin")))

	t.Run("externalIPs", func(t *testing.T) {
		service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "brick"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: Port}}}}
		for _, address := range []string{cfg.Plan.Plane.String(), "172.30.0.11", "10.43.0.10", "10.42.1.2", "192.0.2.1"} {
			service.Spec.ExternalIPs = []string{address}
			if _, err := admin.CoreV1().Services("default").Create(t.Context(), service, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
				t.Errorf("a service with %s: %v", address, err)
			}
		}
	})
	t.Run("warnings", func(t *testing.T) {
		heard := &warnings{}
		rc := withToken(p, iss.token(t, "ann@acme.example", audience, "multipaas:org-admin"))
		rc.WarningHandler = heard
		labels := map[string]string{"app": "x"}
		deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "warned"}, Spec: appsv1.DeploymentSpec{Replicas: new(int32), Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "multipaas.internal/pause:1"}}}}}}
		apps := clientFor(t, rc).AppsV1().Deployments("default")
		if _, err := apps.Create(t.Context(), deployment, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil || len(*heard) > 0 {
			t.Errorf("harmless: %v, warned of %q", err, *heard)
		}
		privileged(&deployment.Spec.Template.Spec)
		if _, err := apps.Create(t.Context(), deployment, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil || len(*heard) == 0 || !strings.Contains((*heard)[0], "baseline") {
			t.Errorf("privileged: %v, warned of %q", err, *heard)
		}
	})
	t.Run("developers' role", func(t *testing.T) { developersRole(t, platform) })
	t.Run("version", func(t *testing.T) {
		v, err := platform.Discovery().ServerVersion()
		if err != nil || !strings.HasPrefix(v.GitVersion, "v1.36.") || v.Minor != "36" {
			t.Errorf("version %+v, %v; want v1.36.x", v, err)
		}
	})
	t.Run("one family", func(t *testing.T) {
		// [::] here makes the API server look for itself by DNS (embed/kube/plane).
		for file, want := range map[string]bool{"tcp": true, "tcp6": false} {
			table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", p.PID(), file))
			if err != nil && (want || !errors.Is(err, os.ErrNotExist)) {
				t.Fatal(err)
			}
			if got := strings.Contains(string(table), fmt.Sprintf(":%04X 00000000", Port)); got != want {
				t.Errorf("listening on port %d by %s is %v, want %v:\n%s", Port, file, got, want, table)
			}
		}
	})
	t.Run("tokens", func(t *testing.T) { testTokens(t, p, iss) })
	t.Run("pods", func(t *testing.T) { testPods(t, p, admin) })
	t.Run("developers", func(t *testing.T) { testDevelopers(t, p, platform, iss) })
	t.Run("volumes", func(t *testing.T) { testVolumes(t, p, platform, admin, iss) })
	t.Run("certificates", func(t *testing.T) { testSigning(t, p, admin) })
	t.Run("aggregation", func(t *testing.T) { testAggregation(t, admin) })
	t.Run("loopback", func(t *testing.T) { testLoopback(t, admin) })
	t.Run("secrets at rest", func(t *testing.T) { testSecretsAtRest(t, p, platform) })
	t.Run("renewal", func(t *testing.T) { testRenewal(t, p) })
	t.Run("walls", func(t *testing.T) { testWalls(t, p) })
	t.Run("share", func(t *testing.T) { testShare(t, p, platform) })

	kept := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}, Data: map[string]string{"a": "b"}}
	if _, err := platform.CoreV1().ConfigMaps("default").Create(t.Context(), kept, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Run("killed", func(t *testing.T) {
		killed := p.PID()
		if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		wait.For(t, wait.Patience, "another process, ready", func(ctx context.Context) error {
			if pid := p.PID(); pid == 0 || pid == killed {
				return fmt.Errorf("process is %d", pid)
			}
			return p.Ready(ctx)
		})
		t.Logf("ready again after %s", time.Since(began).Round(time.Millisecond))
		wantKept(t, platform)
		if p.Restarts() != 1 {
			t.Errorf("restarts = %d, want 1", p.Restarts())
		}
	})
	wait.For(t, wait.Patience, "the size of its datastore", func(context.Context) error {
		if used, limit, err := p.Room(); err != nil || used < 100<<10 || limit != MaxKineBytes {
			return fmt.Errorf("%d of %d bytes, %v", used, limit, err)
		}
		return nil
	})
	stop()
	if err := p.Ready(t.Context()); err == nil {
		t.Error("still answers after stop")
	}
	p, _ = start(t, cfg)
	wantKept(t, clientFor(t, p.RESTConfig()))
}

func wantKept(t *testing.T, c kubernetes.Interface) {
	t.Helper()
	got, err := c.CoreV1().ConfigMaps("default").Get(t.Context(), "kept", metav1.GetOptions{})
	if err != nil || got.Data["a"] != "b" {
		t.Fatalf("config map: %v, %v; want it as it was", got, err)
	}
}

func bind(t *testing.T, c kubernetes.Interface, name, role, group string) {
	t.Helper()
	_, err := c.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: group}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func whoAmI(ctx context.Context, cfg *rest.Config) (authenticationv1.UserInfo, error) {
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return authenticationv1.UserInfo{}, err
	}
	review, err := c.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.UserInfo{}, err
	}
	return review.Status.UserInfo, nil
}

func testTokens(t *testing.T, p *Plane, iss *issuer) {
	me, err := whoAmI(t.Context(), withToken(p, iss.token(t, "ann@acme.example", audience, "multipaas:org-admin")))
	if err != nil || me.Username != "multipaas:ann@acme.example" || !slices.Contains(me.Groups, "multipaas:org-admin") {
		t.Errorf("I am %+v, %v; want multipaas:ann@acme.example, an org-admin", me, err)
	}
	for name, token := range map[string]string{
		"another workspace's": iss.token(t, "ann@acme.example", "other-workspace", "multipaas:org-admin"),
		"one of the masters":  iss.token(t, "ann@acme.example", audience, "system:masters"),
		"none":                "",
		"garbage":             "a.b.c",
	} {
		if me, err := whoAmI(t.Context(), withToken(p, token)); !apierrors.IsUnauthorized(err) {
			t.Errorf("with token %s I am %+v, %v; want unauthorized", name, me, err)
		}
	}
	developer := clientFor(t, withToken(p, iss.token(t, "dev@acme.example", audience, "multipaas:org-developer")))
	// ClusterRole edit has that from view, by a controller that adds roles up.
	wait.For(t, wait.Patience, "developer lists config maps", func(ctx context.Context) error {
		_, err := developer.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
		return err
	})
	if _, err := developer.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("developer lists nodes: %v, want forbidden", err)
	}
}

func pod(name string, change func(*corev1.PodSpec)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "multipaas.internal/pause:1"}}},
	}
	if change != nil {
		change(&p.Spec)
	}
	return p
}

func privileged(s *corev1.PodSpec) {
	yes := true
	s.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes}
}

func hostPath(s *corev1.PodSpec) {
	s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}}}
}

func testPods(t *testing.T, p *Plane, admin kubernetes.Interface) {
	// The tenant does what he can: labels that ask Kubernetes for nothing.
	labels := map[string]string{}
	for _, mode := range []string{"enforce", "warn", "audit"} {
		labels["pod-security.kubernetes.io/"+mode] = "privileged"
	}
	_, err := admin.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "loose", Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wait.For(t, wait.Patience, "service account of the namespace", func(ctx context.Context) error {
		_, err := admin.CoreV1().ServiceAccounts("loose").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	pods := admin.CoreV1().Pods("loose")
	for name, change := range map[string]func(*corev1.PodSpec){
		"host-network": func(s *corev1.PodSpec) { s.HostNetwork = true },
		"host-pid":     func(s *corev1.PodSpec) { s.HostPID = true },
		"host-path":    hostPath,
		"privileged":   privileged,
		"iscsi": func(s *corev1.PodSpec) {
			s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
				ISCSI: &corev1.ISCSIVolumeSource{TargetPortal: "10.0.0.1", IQN: "iqn.2026-01.example:x"}}}}
		},
	} {
		_, err := pods.Create(t.Context(), pod(name, change), metav1.CreateOptions{})
		wantRefused(t, "pod "+name, err, "ask a sysadmin")
	}
	if _, err := pods.Create(t.Context(), pod("plain", nil), metav1.CreateOptions{}); err != nil {
		t.Fatalf("plain pod: %v", err)
	}
	// A patch, for the scheduler writes to a new pod too.
	debug := []byte(`{"spec": {"ephemeralContainers": [{"name": "debug", "image": "multipaas.internal/pause:1", "securityContext": {"privileged": true}}]}}`)
	_, err = pods.Patch(t.Context(), "plain", types.StrategicMergePatchType, debug, metav1.PatchOptions{}, "ephemeralcontainers")
	wantRefused(t, "privileged ephemeral container", err, "ask a sysadmin")

	if err := p.SetPodSecurity("loose"); err == nil {
		t.Error("unknown level accepted")
	}
	if err := p.SetPodSecurity(Privileged); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Create(t.Context(), pod("lifted", privileged), metav1.CreateOptions{}); err != nil {
		t.Errorf("privileged pod with the level lifted: %v", err)
	}
	if err := p.SetPodSecurity(Baseline); err != nil {
		t.Fatal(err)
	}
	_, err = pods.Create(t.Context(), pod("late", privileged), metav1.CreateOptions{})
	wantRefused(t, "privileged pod with the level back", err, "ask a sysadmin")
	label := []byte(`{"metadata": {"labels": {"still": "editable"}}}`)
	if _, err := pods.Patch(t.Context(), "lifted", types.MergePatchType, label, metav1.PatchOptions{}); err != nil {
		t.Errorf("label on a pod from before: %v", err)
	}
}

func wantRefused(t *testing.T, what string, err error, words string) {
	t.Helper()
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: %v; want it refused with %q", what, err, words)
	}
}

func volume(name string, source corev1.PersistentVolumeSource) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
		Capacity:               corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
		AccessModes:            []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany},
		PersistentVolumeSource: source,
	}}
}

func testVolumes(t *testing.T, p *Plane, platform, admin kubernetes.Interface, iss *issuer) {
	onHost := corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc"}}
	_, err := admin.CoreV1().PersistentVolumes().Create(t.Context(), volume("host", onHost), metav1.CreateOptions{})
	wantRefused(t, "hostPath volume", err, "hostPath")
	for _, ok := range []*corev1.PersistentVolume{
		volume("nfs", corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{Server: "172.30.0.9", Path: "/x"}}),
		volume("csi", corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d.example", VolumeHandle: "1"}}),
	} {
		if _, err := admin.CoreV1().PersistentVolumes().Create(t.Context(), ok, metav1.CreateOptions{}); err != nil {
			t.Errorf("volume %s: %v", ok.Name, err)
		}
	}
	// cluster-admin may impersonate anybody, but not the platform.
	posing := withToken(p, iss.token(t, "ann@acme.example", audience, "multipaas:org-admin"))
	posing.Impersonate = rest.ImpersonationConfig{UserName: platformUser, Groups: []string{"system:masters"}}
	_, err = clientFor(t, posing).CoreV1().PersistentVolumes().Create(t.Context(), volume("posing", onHost), metav1.CreateOptions{})
	wantRefused(t, "impersonating the platform", err, "can't be impersonated")
	posing.Impersonate.UserName = "somebody"
	_, err = clientFor(t, posing).CoreV1().PersistentVolumes().Create(t.Context(), volume("master", onHost), metav1.CreateOptions{})
	wantRefused(t, "impersonating system:masters", err, "hostPath")
	if _, err := platform.CoreV1().PersistentVolumes().Create(t.Context(), volume("platform", onHost), metav1.CreateOptions{}); err != nil {
		t.Errorf("volume of the platform: %v", err)
	}
}

func request(t *testing.T, name string, organizations ...string) (csr *certificatesv1.CertificateSigningRequest, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: name, Organization: organizations}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			SignerName: certificatesv1.KubeAPIServerClientSignerName,
			Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
		},
	}, key
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

func testSigning(t *testing.T, p *Plane, admin kubernetes.Interface) {
	requests := admin.CertificatesV1().CertificateSigningRequests()
	posing, _ := request(t, platformUser)
	_, err := requests.Create(t.Context(), posing, metav1.CreateOptions{})
	wantRefused(t, "request in the platform's name", err, "belong to the platform")
	master, _ := request(t, "ann", "system:masters")
	_, err = requests.Create(t.Context(), master, metav1.CreateOptions{})
	wantRefused(t, "request for system:masters", err, "system:masters")

	plain, key := request(t, "ann", "friends")
	plain, err = requests.Create(t.Context(), plain, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	plain.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{
		{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test"}}
	if _, err := requests.UpdateApproval(t.Context(), plain.Name, plain, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	var cert []byte
	wait.For(t, wait.Patience, "certificate", func(ctx context.Context) error {
		got, err := requests.Get(ctx, plain.Name, metav1.GetOptions{})
		if err == nil && len(got.Status.Certificate) == 0 {
			err = errors.New("not signed yet")
		}
		if err == nil {
			cert = got.Status.Certificate
		}
		return err
	})
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cfg := withToken(p, "")
	cfg.CertData, cfg.KeyData = cert, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	if me, err := whoAmI(t.Context(), cfg); err != nil || me.Username != "ann" || !slices.Contains(me.Groups, "friends") {
		t.Errorf("with the certificate I am %+v, %v; want ann, of friends", me, err)
	}
	parsed, err := pki.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(p.cfg.Keys.CACert)
	if _, err := parsed.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
		t.Error("the cluster's signer signs with the authority that the platform's clients trust")
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

// testRenewal replaces the files as a renewal does.
func testRenewal(t *testing.T, p *Plane) {
	before, err := servedSerial(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.ParseCA(p.cfg.Keys.CACert, p.cfg.Keys.CAKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(pki.Request{CommonName: "kube-apiserver", Server: true, Hosts: p.serverNames()})
	if err != nil {
		t.Fatal(err)
	}
	if err := cmp.Or(pki.WriteFiles(p.path("pki", "apiserver.crt"), p.path("pki", "apiserver.key"), cert, key),
		os.Chmod(p.path("pki", "apiserver.key"), 0o640), os.Chown(p.path("pki", "apiserver.key"), 0, p.cfg.UID)); err != nil {
		t.Fatal(err)
	}
	pid := p.PID()
	wait.For(t, wait.Patience, "the new certificate", func(ctx context.Context) error {
		now, err := servedSerial(ctx, p)
		if err == nil && now == before {
			err = errors.New("still the old one")
		}
		return err
	})
	if p.PID() != pid {
		t.Error("the process was restarted")
	}
}

func TestRunRefusesBadConfig(t *testing.T) {
	err := New(Config{ID: "x", Datastore: Datastore{Kind: "paper"}, PodSecurity: "none"}).Run(t.Context(), func() {}, nil)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"binary", "dir", "services", "CA certificate", "encryption key", `"paper"`, `"none"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not mention %s: %v", want, err)
		}
	}
}

// warnings keeps what the API server warns of.
type warnings []string

func (w *warnings) HandleWarningHeader(_ int, _, text string) { *w = append(*w, text) }

// developersRole asks what a workspace's developers may do by the role that
// embed/manifests has for them.
func developersRole(t *testing.T, platform kubernetes.Interface) {
	data, err := os.ReadFile(filepath.Join("..", "manifests", "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		var role rbacv1.ClusterRole
		if !strings.Contains(doc, "kind: ClusterRole\n") || !strings.Contains(doc, "developer\n") || !strings.Contains(doc, "  name: multipaas:") {
			continue
		}
		if err := yaml.Unmarshal([]byte(doc), &role); err != nil {
			t.Fatal(err)
		}
		if role.Kind != "ClusterRole" {
			continue
		}
		if _, err := platform.RbacV1().ClusterRoles().Create(t.Context(), &role, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	// As a custom resource's chart does.
	widgets := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "widgets-edit", Labels: map[string]string{"rbac.authorization.k8s.io/aggregate-to-edit": "true"}},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{"widgets.example"}, Resources: []string{"widgets"}, Verbs: []string{"*"}}}}
	if _, err := platform.RbacV1().ClusterRoles().Create(t.Context(), widgets, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	const group = "the-developers"
	binding := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: group}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "multipaas:developer"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: group}}}
	if _, err := platform.RbacV1().RoleBindings("default").Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	may := func(what string) (bool, error) { // VERB GROUP/RESOURCE[/SUBRESOURCE]
		verb, kind, _ := strings.Cut(what, " ")
		parts := append(strings.Split(kind, "/"), "")
		review, err := platform.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "dev", Groups: []string{group}, ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: "default", Verb: verb, Group: parts[0], Resource: parts[1], Subresource: parts[2]}}},
			metav1.CreateOptions{})
		if err != nil {
			return false, err
		}
		return review.Status.Allowed, nil
	}
	for _, what := range []string{"create apps/deployments", "patch apps/deployments/scale", "create /pods/exec", "get /pods/log", "get /secrets", "create /secrets", "create /services", "list /events",
		"create batch/cronjobs", "create networking.k8s.io/networkpolicies", "create autoscaling/horizontalpodautoscalers", "create widgets.example/widgets", "create /serviceaccounts", "list discovery.k8s.io/endpointslices"} {
		wait.For(t, wait.Patience, "the role has come together: "+what, func(context.Context) error {
			if ok, err := may(what); err != nil || !ok {
				return fmt.Errorf("%v, %w", ok, err)
			}
			return nil
		})
	}
	for _, what := range []string{"create /serviceaccounts/token", "impersonate /serviceaccounts", "impersonate /users", "impersonate /groups", "update /services/status", "patch /pods/ephemeralcontainers",
		"create rbac.authorization.k8s.io/rolebindings", "create rbac.authorization.k8s.io/roles", "escalate rbac.authorization.k8s.io/roles", "bind rbac.authorization.k8s.io/clusterroles",
		"patch /namespaces", "create /endpoints", "update discovery.k8s.io/endpointslices", "create /persistentvolumes", "get /nodes/proxy", "update /resourcequotas", "create certificates.k8s.io/certificatesigningrequests"} {
		if ok, err := may(what); ok || err != nil {
			t.Errorf("developers may %s: %v, %v", what, ok, err)
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

// testShare: what others need of the room is taken at once, and given back.
func testShare(t *testing.T, p *Plane, c kubernetes.Interface) {
	if err := p.SetShare(64<<10, "others have the rest"); err != nil {
		t.Fatal(err)
	}
	n := 0
	wait.For(t, wait.Patience, "the share is heard of", func(ctx context.Context) error {
		n++
		err := createNamed(ctx, c, fmt.Sprint("share-", n))
		if err == nil {
			return errors.New("it takes new objects")
		}
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "as others have the rest") {
			return fmt.Errorf("refused with %w, want why", err)
		}
		return nil
	})
	if err := c.CoreV1().ConfigMaps("default").Delete(t.Context(), "share-1", metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Errorf("deleting: %v", err)
	}
	if err := p.SetShare(0, ""); err != nil {
		t.Fatal(err)
	}
	wait.For(t, wait.Patience, "room again", func(ctx context.Context) error { return createNamed(ctx, c, "share-again") })
}
