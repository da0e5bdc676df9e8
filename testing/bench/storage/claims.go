package storage

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/multipaas/multipaas/testing/bench/measure"
	"github.com/multipaas/multipaas/testing/bench/site"
	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/wait"
)

// classes are those of claims, each with how many seconds longer than a pod without one it may take.
var classes = []struct {
	name string
	goal float64
	mode corev1.PersistentVolumeAccessMode
}{
	{"local", 1, corev1.ReadWriteOnce},
	{"shared", 3, corev1.ReadWriteMany},
}

const claimRounds = 5

// claims is how much longer a pod with a new claim takes to run than one without.
func claims(ctx context.Context, env *measure.Env) (results []measure.Result, err error) {
	s, err := site.Up(ctx, env)
	if err != nil {
		return nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(s.Dir, datacenter.KubeconfigFile))
	if err != nil {
		return nil, err
	}
	config.Dial, config.QPS = s.Dial, -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	env.Logf("storage: pods with claims")
	took := map[string][]float64{}
	// The first round is not counted: images are fetched, and the first shared volume has its host begin to serve them.
	for round := range env.Rounds(claimRounds) + 1 {
		without, err := start(ctx, client, "plain", "", "")
		if err != nil {
			return results, err
		}
		for _, c := range classes {
			with, err := start(ctx, client, c.name, c.name, c.mode)
			if err != nil {
				return results, err
			}
			if round > 0 {
				took[c.name] = append(took[c.name], (with - without).Seconds())
			}
		}
	}
	for _, c := range classes {
		results = append(results, measure.Result{Name: "storage/pod with a new claim, " + c.name, Unit: "s", Better: measure.Lower,
			Ours: measure.Summarize(took[c.name]...), Goal: measure.Goal{Value: c.goal},
			Note: "longer than a pod without: until it runs; shared ones have one copy, for there are two nodes"})
	}
	return results, nil
}

// start makes a pod, with a claim of a class unless that is empty, waits until it runs, and takes both away.
func start(
	ctx context.Context, client *kubernetes.Clientset, name, class string, mode corev1.PersistentVolumeAccessMode,
) (time.Duration, error) {
	const namespace = "default"
	name = "bench-" + name
	pods, pvcs := client.CoreV1().Pods(namespace), client.CoreV1().PersistentVolumeClaims(namespace)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{TerminationGracePeriodSeconds: new(int64(1)),
		Containers: []corev1.Container{{Name: "c", Image: "multipaas.internal/hello:1"}}}}
	began := time.Now()
	if class != "" {
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{mode},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse("1Gi")}}}}
		if _, err := pvcs.Create(ctx, claim, metav1.CreateOptions{}); err != nil {
			return 0, err
		}
		pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
		pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}}
	}
	if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return 0, err
	}
	err := wait.Until(ctx, patience, "pod "+name+" runs", func(ctx context.Context) error {
		p, err := pods.Get(ctx, name, metav1.GetOptions{})
		if err == nil && p.Status.Phase != corev1.PodRunning {
			err = fmt.Errorf("it is %s", p.Status.Phase)
		}
		return err
	})
	took := time.Since(began)
	for _, remove := range []func() error{
		func() error { return pods.Delete(ctx, name, metav1.DeleteOptions{}) },
		func() error { return pvcs.Delete(ctx, name, metav1.DeleteOptions{}) },
	} {
		err = errors.Join(err, wait.Until(ctx, patience, name+" is gone", func(context.Context) error {
			if err := remove(); !apierrors.IsNotFound(err) {
				return errors.Join(errors.New("it is there still"), err)
			}
			return nil
		}))
	}
	return took, err
}
