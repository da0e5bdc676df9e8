package plane

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/multipaas/multipaas/testing/wait"
)

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

func volume(name string, source corev1.PersistentVolumeSource) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
		Capacity:               corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
		AccessModes:            []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany},
		PersistentVolumeSource: source,
	}}
}

func wantRefused(t *testing.T, what string, err error, words string) {
	t.Helper()
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: %v; want it refused with %q", what, err, words)
	}
}
