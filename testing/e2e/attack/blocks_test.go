package attack

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// raw is a claim of raw blocks and the pod that has it at /dev/xvda: root there.
const raw = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: raw, namespace: default}
spec: {accessModes: [ReadWriteOnce], storageClassName: local, volumeMode: Block, resources: {requests: {storage: 320Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: raw, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: "IMAGE"
    args: [wait]
    securityContext: {runAsUser: 0, runAsGroup: 0}
    volumeDevices: [{name: v, devicePath: /dev/xvda}]
  volumes: [{name: v, persistentVolumeClaim: {claimName: raw}}]
`

// rawBlocks has A, who has raw blocks on the host where B has some, try to get at B's, or at the device beneath.
func (s *suite) rawBlocks(t *testing.T) {
	t.Helper()
	const volumes = "/run/volumes/"
	uids := map[string]string{}
	for _, one := range []struct{ kubeconfig, image string }{{s.Kubeconfig(), "acme/web"}, {s.box, "beta/ops"}} {
		text := strings.ReplaceAll(raw, "IMAGE", s.Image(one.image, "tool"))
		if r := s.Kube(t, one.kubeconfig, text, "apply", "-f", "-"); r.Code != 0 {
			t.Fatal(r)
		}
		if r := s.Kube(t, one.kubeconfig, "", "wait", "--for=condition=Ready", "pod/raw", "--timeout=5m"); r.Code != 0 {
			t.Fatal(r)
		}
		name := strings.TrimSpace(s.Kube(t, one.kubeconfig, "", "get", "pvc", "raw", "-o", "jsonpath={.spec.volumeName}").Out)
		uids[one.kubeconfig] = strings.TrimSpace(s.Kube(t, one.kubeconfig, "", "get", "pv", name, "-o", "jsonpath={.spec.csi.volumeHandle}").Out)
	}
	a, b := uids[s.box], uids[s.Kubeconfig()]
	r := s.in(t, pod{kubeconfig: s.box, name: "raw"}, "/tool", "loops", "/dev/xvda")
	var err error
	if r.Code != 0 || !strings.Contains(r.Out, "control: write <nil>") {
		err = errors.New(r.String())
	}
	if s.control(t, "root in A's pod writes to its own raw blocks", err) {
		for line := range strings.Lines(r.Out) {
			if what, got, ok := strings.Cut(strings.TrimSpace(line), " closed"); ok {
				s.record(t, attempt{What: "on raw blocks: " + what, From: "pod of A, root", Want: "closed", Got: got, Blocked: true})
			} else if what, got, ok := strings.Cut(strings.TrimSpace(line), " open"); ok {
				s.record(t, attempt{What: "on raw blocks: " + what, From: "pod of A, root", Want: "closed", Got: "open" + got})
			}
		}
	}

	const from = "root in A's machine"
	sh := func(command string) (string, error) {
		out, err := s.inMachine(t.Context(), t, "sh", "-c", command).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	node := volumes + a + "/device"
	number, err := sh("stat -c '%t:%T' " + node + " && head -c 1 " + node + " >/dev/null && touch /root/bound && mount --bind " + node + " /root/bound")
	if !s.control(t, "the machine has A's raw blocks, and binds them elsewhere", err) {
		return
	}
	tries := []string{"head -c 1 " + volumes + b + "/device", "mv " + node + " " + node + "2", "rm " + node,
		"touch " + volumes + a + "/more", "ln " + node + " /root/linked", "head -c 1 /dev/loop-control"}
	for _, minor := range []int{0, 1, 100_000, 100_001} {
		tries = append(tries, fmt.Sprintf("mknod /root/n%d b 7 %[1]d && head -c 1 /root/n%[1]d", minor))
	}
	tries = append(tries, "mknod "+volumes+a+"/n b 7 100001", "mount -t devtmpfs none /mnt", "mount -o remount,dev,bind / && mknod /root/n b 7 100000")
	for _, command := range tries {
		out, err := sh(command)
		s.record(t, attempt{What: command, From: from, Want: "refused", Got: fmt.Sprint(out, err), Blocked: err != nil})
	}
	if r := s.Kube(t, s.box, "", "delete", "pod/raw", "pvc/raw", "--timeout=2m"); r.Code != 0 {
		t.Fatal(r)
	}
	out, err := sh("head -c 1 /root/bound")
	s.record(t, attempt{What: "open device " + number + " by a node that A bound elsewhere, once its volume is gone", From: from, Want: "refused",
		Got: fmt.Sprint(out, err), Blocked: err != nil})
	if out, err := sh("umount /root/bound && rm /root/bound"); err != nil {
		t.Error(out, err)
	}
	if r := s.Kube(t, s.Kubeconfig(), "", "delete", "pod/raw", "pvc/raw", "--timeout=2m"); r.Code != 0 {
		t.Error(r)
	}
}
