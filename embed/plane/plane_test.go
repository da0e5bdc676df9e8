package plane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

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
