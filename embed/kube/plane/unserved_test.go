package plane

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/multipaas/multipaas/embed/kube/volumes"
)

func TestWhyNobodyServes(t *testing.T) {
	address := []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
	for name, c := range map[string]struct {
		service corev1.Service
		waits   bool
	}{
		"load balancer": {corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}, true},
		"served":        {corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}, Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: address}}}, false},
		"of a class":    {corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: new("example.com/lb")}}, false},
		"cluster IP":    {corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP}}, false},
	} {
		if got := whyService(&c.service); (got != "") != c.waits {
			t.Errorf("service, %s: %q", name, got)
		}
	}
	classes := map[string]bool{"nginx": true}
	for name, c := range map[string]struct {
		ingress networkingv1.Ingress
		want    string
	}{
		"no class":      {networkingv1.Ingress{}, "Nobody serves this Ingress"},
		"a class":       {networkingv1.Ingress{Spec: networkingv1.IngressSpec{IngressClassName: new("nginx")}}, ""},
		"no such class": {networkingv1.Ingress{Spec: networkingv1.IngressSpec{IngressClassName: new("haproxy")}}, "There is no IngressClass haproxy"},
		"old class":     {networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"kubernetes.io/ingress.class": "x"}}}, ""},
		"served": {networkingv1.Ingress{Status: networkingv1.IngressStatus{LoadBalancer: networkingv1.IngressLoadBalancerStatus{
			Ingress: []networkingv1.IngressLoadBalancerIngress{{IP: "192.0.2.1"}}}}}, ""},
	} {
		if got := whyIngress(&c.ingress, classes); !strings.HasPrefix(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("ingress, %s: %q, want %q", name, got, c.want)
		}
	}
	provisioners := map[string]string{"fast": "acme.example/disks", "local": volumes.Driver}
	claim := func(class *string) corev1.PersistentVolumeClaim {
		return corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: class},
			Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}}
	}
	const none, only = "the platform gives out no volumes", "Only a PersistentVolume would do"
	for name, c := range map[string]struct {
		claim            corev1.PersistentVolumeClaim
		without, storage string
	}{
		"no class":      {claim(nil), none, only},
		"empty class":   {claim(new("")), none, only},
		"a class":       {claim(new("fast")), "", ""},
		"ours":          {claim(new("local")), none, ""},
		"no such class": {claim(new("slow")), "no StorageClass slow", "no StorageClass slow"},
		"a volume":      {corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "v"}}, "", ""},
		"bound":         {corev1.PersistentVolumeClaim{Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}}, "", ""},
	} {
		for storage, want := range map[bool]string{false: c.without, true: c.storage} {
			if got := newUnserved(storage).whyClaim(&c.claim, provisioners); (got == "") != (want == "") || !strings.Contains(got, want) {
				t.Errorf("claim, %s, with storage %t: %q, want %q", name, storage, got, want)
			}
		}
	}
}

// One event for an object's life: neither a change of it nor the next look makes
// another, and who serves it soon is not spoken of.
func TestUnservedTellsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnserved(false)
		client := fake.NewClientset()
		u.client = client
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); u.loop(ctx) }()
		make := func(name string) {
			t.Helper()
			s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name), CreationTimestamp: metav1.Now()},
				Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
			if _, err := client.CoreV1().Services("default").Create(ctx, s, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			u.wrote(servicesKind)
		}
		events := func() (out []corev1.Event) {
			t.Helper()
			list, err := client.CoreV1().Events("").List(ctx, metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return list.Items
		}
		make("first")
		if time.Sleep(5 * time.Second); len(events()) != 0 {
			t.Errorf("told after 5 s, while somebody may be about to serve it: %v", events())
		}
		for range 20 {
			u.wrote(servicesKind)
			time.Sleep(time.Minute)
		}
		got := events()
		if len(got) != 1 || got[0].InvolvedObject.Name != "first" || got[0].Reason != "NotServed" || got[0].Type != corev1.EventTypeWarning {
			t.Fatalf("got %+v, want one warning about it", got)
		}
		first := got[0].LastTimestamp
		make("second")
		time.Sleep(2 * time.Minute)
		if n := len(events()); n != 2 {
			t.Errorf("%d events, want one of each", n)
		}
		time.Sleep(2 * unservedAgain)
		got = events()
		if len(got) != 2 || !got[0].LastTimestamp.After(first.Time) {
			t.Errorf("after an hour: %+v, want the same two, renewed", got)
		}
		cancel()
		<-done
	})
}
