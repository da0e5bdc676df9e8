package attack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/wait"
)

// kept are volumes of class shared, one of each tenant's, with a pod that has it at /data: root there.
type kept struct{ ofB, ofA keptVolume }

type keptVolume struct {
	Name, UID string
	pod       pod
}

// keeper is a claim and the pod that has it.
const keeper = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: keeper, namespace: default}
spec: {accessModes: [ReadWriteMany], storageClassName: shared, resources: {requests: {storage: 320Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: keeper, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: "IMAGE"
    args: [wait]
    securityContext: {runAsUser: 0, runAsGroup: 0}
    volumeMounts: [{name: v, mountPath: /data}]
  volumes: [{name: v, persistentVolumeClaim: {claimName: keeper}}]
`

// beginToKeep has both tenants' volumes made, and returns what waits for them: while they are there, GlusterFS's ports are
// among those that A tries.
func (s *suite) beginToKeep(t *testing.T) (ready func()) {
	t.Helper()
	of := []struct {
		kubeconfig, image string
		is                *keptVolume
	}{{s.Kubeconfig(), "acme/web", &s.keeps.ofB}, {s.box, "beta/ops", &s.keeps.ofA}}
	for _, one := range of {
		wait.For(t, wait.Patience, "a volume is asked for", func(context.Context) error {
			if r := s.Kube(t, one.kubeconfig, strings.ReplaceAll(keeper, "IMAGE", s.Image(one.image, "tool")), "apply", "-f", "-"); r.Code != 0 {
				return errors.New(r.String())
			}
			return nil
		})
	}
	return func() {
		t.Helper()
		for _, one := range of {
			if r := s.Kube(t, one.kubeconfig, "", "wait", "--for=condition=Ready", "pod/keeper", "--timeout=5m"); r.Code != 0 {
				t.Fatal(r)
			}
			name := strings.TrimSpace(s.Kube(t, one.kubeconfig, "", "get", "pvc", "keeper", "-o", "jsonpath={.spec.volumeName}").Out)
			uid := strings.TrimSpace(s.Kube(t, one.kubeconfig, "", "get", "pv", name, "-o", "jsonpath={.spec.csi.volumeHandle}").Out)
			if name == "" || uid == "" {
				t.Fatalf("the volume is %q, with the UID %q", name, uid)
			}
			*one.is = keptVolume{name, uid, pod{kubeconfig: one.kubeconfig, name: "keeper"}}
			if r := s.in(t, one.is.pod, "/tool", "keep", "/data/keep", mark); r.Code != 0 {
				t.Fatal(r)
			}
		}
	}
}

// testVolumes has A, as root in a pod with a volume and as root in a machine, try what is GlusterFS's and what is B's.
func testVolumes(t *testing.T, s *suite) {
	a, b := s.keeps.ofA, s.keeps.ofB
	k := newKube(t, s.box)
	s.anothersHandle(t, k)
	r := s.in(t, a.pod, "/tool", "volume", "/data", b.UID)
	var err error
	if r.Code != 0 || !strings.Contains(r.Out, b.UID) {
		err = errors.New(r.String())
	}
	hosts := []string{b.UID}
	for _, h := range s.Lab.Hosts() {
		hosts = append(hosts, h.Name(), h.Address().String())
	}
	if s.control(t, "root in A's pod tries in its own volume", err) {
		for line := range strings.Lines(r.Out) {
			what, got, _ := strings.Cut(strings.TrimSpace(line), " ")
			want, blocked := "closed", strings.HasPrefix(got, "closed")
			switch {
			case what == "set:user.io-stats-dump":
				continue // what is called so is A's own, or the next row says what it is
			case strings.HasPrefix(what, "get:glusterfs."):
				// Of its own files it says the path, also that on the copy's disk.
				want, blocked = "nothing of hosts", !containsAny(got, hosts)
			}
			s.record(t, attempt{What: "in a shared volume: " + what, From: "pod of A, root", Want: want, Got: got, Blocked: blocked})
		}
	}
	for _, h := range s.Nodes {
		found, err := h.Run(t.Context(), "sh", "-c", "find /proc/[0-9]*/root/run/gluster /proc/[0-9]*/root/var/log/glusterfs -name '*dump*' 2>/dev/null; true")
		s.record(t, attempt{What: "have what serves volumes write a file by an xattr", From: "pod of A, root", Want: "none on " + h.Name(), Got: fmt.Sprint(string(found), err),
			Blocked: err == nil && len(found) == 0})
	}
	r = s.in(t, b.pod, "/tool", "open", "/data/keep")
	s.record(t, attempt{What: "have B's volume lose something by that", From: "pod of A, root", Want: "B reads it", Got: r.Out, Blocked: strings.Contains(r.Out, "open read")})
	s.fromMachine(t)
	s.pathsOfOthers(t)
	s.rawBlocks(t)
	s.copiesOfOthers(t)
	s.handleIsRefused(t, k)
	for _, kubeconfig := range []string{s.Kubeconfig(), s.box} { // what comes next is as it always was
		if r := s.Kube(t, kubeconfig, "", "delete", "pod/keeper", "pvc/keeper", "--wait=false"); r.Code != 0 {
			t.Error(r)
		}
	}
}

// fromMachine is root in A's machine, who has come out of a pod: it sees A's volumes, no other, and no daemon.
func (s *suite) fromMachine(t *testing.T) {
	a, b := s.keeps.ofA, s.keeps.ofB
	const from, volumes = "root in A's machine", "/run/volumes/"
	tool := s.toolInMachine(t)
	run := func(args ...string) (string, error) {
		out, err := s.inMachine(t.Context(), t, append([]string{tool}, args...)...).CombinedOutput()
		return string(out), err
	}
	ports := map[string]bool{}
	for _, h := range s.Nodes {
		out, err := h.Run(t.Context(), "ss", "-Hlntp")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); strings.Contains(line, `"gluster`) {
				ports["tcp:"+f[3]] = true
			}
		}
	}
	targets := []string{"tcp:172.30.0.1:6443"}
	for target := range ports {
		targets = append(targets, target)
	}
	out, err := run(append([]string{"try"}, targets...)...)
	if err == nil && (len(ports) < 2 || !strings.Contains(out, targets[0]+" open")) {
		err = fmt.Errorf("of %v it says %s", targets, out)
	}
	if s.control(t, "GlusterFS listens, and the machine reaches its plane", err) {
		for line := range strings.Lines(out) {
			target, got, _ := strings.Cut(strings.TrimSpace(line), " ")
			if target != targets[0] {
				s.record(t, attempt{What: "connect to GlusterFS at " + target, From: from, Want: "no answer", Got: got,
					Blocked: strings.HasPrefix(got, "closed") && !strings.Contains(got, "refused")})
			}
		}
	}
	out, err = run("open", volumes+a.UID+"/keep", volumes+b.UID+"/keep")
	if err == nil && !strings.Contains(out, a.UID+"/keep open") {
		err = errors.New(out)
	}
	if !s.control(t, "the machine has A's volume", err) {
		return
	}
	s.record(t, attempt{What: "open B's volume where volumes appear", From: from, Want: "closed", Got: out, Blocked: strings.Contains(out, b.UID+"/keep closed")})
	for _, command := range []string{"mkdir " + volumes + b.UID, "ln -s / " + volumes + b.UID, "mv " + volumes + a.UID + " " + volumes + b.UID,
		"mount -o remount,dev,suid " + volumes + a.UID, "mount -t glusterfs " + s.Nodes[0].Address().String() + ":/" + b.UID + " /mnt"} {
		out, err := s.inMachine(t.Context(), t, "sh", "-c", command).CombinedOutput()
		s.record(t, attempt{What: command, From: from, Want: "refused", Got: fmt.Sprint(string(out), err), Blocked: err != nil})
	}
}

// pathsOfOthers is root in A's machine, and in A's pod, who asks the kernel of what file a loop device is. Others' are beside it,
// also those of other labs of this computer: so it is the one that the machine's own disk is on.
func (s *suite) pathsOfOthers(t *testing.T) {
	out, err := s.inMachine(t.Context(), t, "sh", "-c", `grep -o '^/dev/loop[0-9]*' /proc/mounts | sort -u`).CombinedOutput()
	if err == nil && len(out) == 0 {
		err = errors.New("it has no loop device mounted")
	}
	if !s.control(t, "A's machine knows the loop device of its disk", err) {
		return
	}
	var files []string
	for name := range strings.FieldsSeq(string(out)) {
		folder := "/sys/block/" + strings.TrimPrefix(name, "/dev/") + "/loop/"
		files = append(files, folder+"autoclear", folder+"backing_file")
	}
	machine, err := s.inMachine(t.Context(), t, append([]string{s.toolInMachine(t), "open"}, files...)...).CombinedOutput()
	if err != nil {
		t.Error(err)
	}
	for from, out := range map[string]string{"root in A's machine": string(machine),
		"pod of A, root": s.in(t, s.keeps.ofA.pod, append([]string{"/tool", "open"}, files...)...).Out} {
		if err = nil; !strings.Contains(out, files[0]+" open read") {
			err = errors.New(out)
		}
		s.control(t, from+" reads what isn't hidden of it", err)
		for line := range strings.Lines(out) {
			if what, got, _ := strings.Cut(strings.TrimSpace(line), " "); strings.HasSuffix(what, "/backing_file") {
				s.record(t, attempt{What: "read " + what, From: from, Want: "closed", Got: got, Blocked: strings.HasPrefix(got, "closed")})
			}
		}
	}
}

// copiesOfOthers asks the API for a volume in A's workspace that is made from B's.
func (s *suite) copiesOfOthers(t *testing.T) {
	people := s.people(t)
	b := s.keeps.ofB
	const own = "/v1/accounts/beta/organizations/ops/workspaces/box/volumes/stolen"
	for what, source := range map[string]map[string]string{
		"its name":                  {"volume": b.Name},
		"its name and UID":          {"volume": b.Name, "uid": b.UID},
		"a path":                    {"volume": "../../../acme/web/shop/" + b.Name},
		"its UID, as a snapshot":    {"snapshot": b.UID, "uid": b.UID},
		"its name, as a snapshot's": {"snapshot": b.Name},
	} {
		body, err := json.Marshal(map[string]any{"spec": map[string]any{"sizeBytes": 1 << 30, "source": source}})
		if err != nil {
			t.Fatal(err)
		}
		got := people.ask(t, ownerA, http.MethodPut, own, string(body))
		s.record(t, attempt{What: "make a volume from B's by " + what, From: ownerA, Want: "4xx", Got: got.String(), Blocked: got.status >= 400 && got.status < 500})
	}
}

// anothersHandle makes a PersistentVolume of B's volume in A's cluster, and a pod that uses it. handleIsRefused is what comes of it.
func (s *suite) anothersHandle(t *testing.T, k *kube) {
	k.must(t, "/api/v1/persistentvolumes", fmt.Sprintf(`{"metadata":{"name":"stolen"},"spec":{"capacity":{"storage":"320Mi"},"accessModes":["ReadWriteMany"],
		"storageClassName":"shared","persistentVolumeReclaimPolicy":"Retain","csi":{"driver":"storage.multipaas.internal","volumeHandle":%q}}}`, s.keeps.ofB.UID))
	k.must(t, "/api/v1/namespaces/default/persistentvolumeclaims", `{"metadata":{"name":"stolen"},"spec":{"accessModes":["ReadWriteMany"],
		"storageClassName":"shared","volumeName":"stolen","resources":{"requests":{"storage":"320Mi"}}}}`)
	k.must(t, "/api/v1/namespaces/default/pods", fmt.Sprintf(`{"metadata":{"name":"thief"},"spec":{"terminationGracePeriodSeconds":0,"nodeName":%q,
		"containers":[{"name":"c","image":%q,"args":["wait"],"volumeMounts":[{"name":"v","mountPath":"/data"}]}],
		"volumes":[{"name":"v","persistentVolumeClaim":{"claimName":"stolen"}}]}}`, s.attacker.node, s.Image("beta/ops", "tool")))
}

func (s *suite) handleIsRefused(t *testing.T, k *kube) {
	defer func() {
		for _, path := range []string{"/api/v1/namespaces/default/pods/thief?gracePeriodSeconds=0", "/api/v1/namespaces/default/persistentvolumeclaims/stolen",
			"/api/v1/persistentvolumes/stolen"} {
			k.do(context.WithoutCancel(t.Context()), http.MethodDelete, path, "", "")
		}
	}()
	said := ""
	wait.For(t, wait.Patience, "kubelet says what comes of it", func(context.Context) error {
		r := s.Kube(t, s.box, "", "get", "pod", "thief", "-o", "jsonpath={.status.phase}")
		events := s.Kube(t, s.box, "", "get", "events", "--field-selector", "involvedObject.name=thief", "-o", `jsonpath={range .items[*]}{.reason}: {.message}{"\n"}{end}`)
		if said = r.Out + ": " + events.Out; r.Out != "Running" && !strings.Contains(events.Out, "FailedMount") {
			return errors.New(said)
		}
		return nil
	})
	s.record(t, attempt{What: "a PersistentVolume of B's volume, in A's cluster, in a pod", From: "owner of A, cluster-admin", Want: "it is not mounted", Got: said,
		Blocked: strings.HasPrefix(said, "Pending") && strings.Contains(said, "FailedMount")})
}
