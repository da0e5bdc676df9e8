package apps

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/testing/planetest"
	"github.com/multipaas/multipaas/testing/wait"
)

// startPlane runs a real control plane until the test ends.
func startPlane(t *testing.T) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(planetest.Start(t))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// actAsKubelet makes two nodes, which take pods when it returns, keeps them alive,
// and says of every pod there that it runs well, or that it crashes if its image is
// called so. What runs pods is no part of this package.
func actAsKubelet(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	nodes := []string{"shop-1", "shop-2"}
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for pass := 0; ; pass++ {
			if pass%100 == 0 { // each 10 s: nodes that say nothing for 40 s lose their pods
				for _, name := range nodes {
					_ = sayReady(ctx, client, name)
				}
			}
			pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
			if err == nil {
				for i := range pods.Items {
					playPod(ctx, client, &pods.Items[i])
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	for _, name := range nodes {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
		if _, err := client.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := sayReady(ctx, client, name); err != nil {
			t.Fatal(err)
		}
	}
	// A new node is tainted until the node controller has seen that it is ready. With
	// one of two left, the scheduler would put all pods there.
	wait.For(t, wait.Patience, "both nodes take pods", func(context.Context) error {
		for _, name := range nodes {
			n, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if len(n.Spec.Taints) > 0 {
				return fmt.Errorf("%s is tainted: %v", name, n.Spec.Taints)
			}
		}
		return nil
	})
}

// sayReady is a node's report. It is a patch, for controllers write to a new node too.
func sayReady(ctx context.Context, client kubernetes.Interface, node string) error {
	now := metav1.Now()
	room := corev1.ResourceList{corev1.ResourceCPU: apiresource.MustParse("4"), corev1.ResourceMemory: apiresource.MustParse("8Gi"), corev1.ResourcePods: apiresource.MustParse("100")}
	status, err := json.Marshal(map[string]any{"status": corev1.NodeStatus{Capacity: room, Allocatable: room,
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: now, LastTransitionTime: now}}}})
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, status, metav1.PatchOptions{}, "status")
	return err
}
