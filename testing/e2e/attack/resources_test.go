package attack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"

	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/wait"
)

const (
	wastePods = "/api/v1/namespaces/waste/pods"
	wasteMaps = "/api/v1/namespaces/waste/configmaps"

	// A's machine, as BeginBox makes it, and what it may have of each thing.
	boxMemory = 2 << 30
	boxDisk   = 4 << 30
	// boxTasks is how many tasks one pod may have: half of the machine's, which are
	// 1024 for each GiB.
	boxTasks = 1024
	// planeMemory is what any plane may take before it is ended and started again.
	planeMemory = 4 << 30
	// tracked is how many connections a host keeps in mind for a workspace
	// (modules/network, MaxConnections), of the 262,144 that it can, and some that
	// were made within its network.
	tracked = 16384 + 1024
	// logRoom is what the log of one pod may take of A's disk: three files of 10 MiB,
	// and what comes between two of kubelet's looks, three seconds apart and the time
	// that it compresses the former file, which is bounded by A's CPU alone: 0.6 GiB
	// here. At 90 % of the disk others in A's workspace begin to feel it.
	logRoom = boxDisk * 85 / 100
)

// long is the long form: nothing ends before it is refused.
func long() bool { return os.Getenv("MULTIPAAS_LONG") != "" }

// testResources lets A use up what there is, from its pods, by its API and from
// outside, one thing after the other, while B goes on; what that must be like for
// B stands above bystander. Each attack must end with a refusal in words that
// A's owner sees. The last ones leave A's workspace unusable for minutes.
//
// Run alone on two cores, it found no request of B's slower than a second; with
// as much other work on them, none slower than four.
func testResources(t *testing.T, s *suite) {
	k := newKube(t, s.box)
	k.must(t, "/api/v1/namespaces", `{"metadata":{"name":"waste"}}`)
	w := &waste{suite: s, kube: k, by: s.newBystander(t), id: s.workspaceID(t, dctest.Rival, "box")}
	w.findMachine(t)
	if w.planeWas = w.planeProcess(w.id); w.planeWas == "" {
		t.Fatal("A's plane has no process")
	}
	if !s.control(t, "B's things are within their bounds when nobody attacks", w.by.alone(t, 10*time.Second)) {
		return
	}
	before, err := w.footprints(t.Context(), true)
	if !w.control(t, "the server and the agents say what they take", err) {
		return
	}
	for _, part := range []struct {
		name string
		test func(*testing.T)
	}{
		{"tasks", w.tasks},
		{"log", w.log},
		{"connections", w.connections},
		{"outside", w.outside},
		{"inside", w.inside},
		{"fair", w.fair},
		{"server", w.server},
		{"objects", w.objects},
		{"watches", w.watches},
		{"memory", w.memory},
		{"disk", w.disk},
		{"datastore", w.datastore},
	} {
		began := time.Now()
		t.Run(part.name, part.test)
		w.settled(t, before, part.name)
		t.Logf("%s took %s", part.name, time.Since(began).Round(time.Second))
	}
}

// waste is A, using things up.
type waste struct {
	*suite
	kube     *kube
	by       *bystander
	id       string // of A's workspace
	machine  space  // A's
	planeWas string // the process of A's plane, as the server sees it
}

const owner, podOfA = "owner of A, cluster-admin", "pod of A, root"

func (w *waste) findMachine(t *testing.T) {
	t.Helper()
	all := w.machineSpaces(t, w.id)
	if len(all) != 1 {
		t.Fatalf("A has the machines %v, want one", all)
	}
	w.machine = all[0]
}

// uid of A's machine.
func (w *waste) uid() string { return strings.TrimPrefix(w.machine.name, "mpm-") }

// ofMachine is a file of A's machine as its host has it, seen from here.
func (w *waste) ofMachine(name string) string {
	return w.machine.host.Root("var/lib/multipaas/machines", w.uid(), name)
}

// outcome is how a pod ended.
type outcome struct {
	reason string // of the pod or of its container: "Evicted", "OOMKilled", "Completed"
	words  string // what Kubernetes says
	log    string
}

func (o outcome) String() string { return strings.TrimSpace(o.reason + " " + o.words + " " + o.log) }

// start runs the tool in a new pod of A's, as root, on A's machine, with a volume
// at /room.
func (w *waste) start(t *testing.T, name string, args ...string) {
	t.Helper()
	text, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	w.kube.must(t, wastePods, fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"terminationGracePeriodSeconds":0,"restartPolicy":"Never","nodeName":%q,
		"volumes":[{"name":"room","emptyDir":{}}],"containers":[{"name":"c","image":%q,"args":%s,"volumeMounts":[{"name":"room","mountPath":"/room"}],
		"resources":{"requests":{"memory":"16Mi"}},"securityContext":{"runAsUser":0,"runAsGroup":0}}]}}`,
		name, w.attacker.node, w.Image("beta/ops", "tool"), text))
}

// await waits until a pod has ended, and takes it away.
func (w *waste) await(t *testing.T, name string, patience time.Duration) (o outcome) {
	t.Helper()
	wait.For(t, patience, "pod "+name+" has ended", func(ctx context.Context) error {
		var pod struct {
			Status struct {
				Phase, Reason, Message string
				ContainerStatuses      []struct {
					State struct {
						Terminated *struct {
							Reason   string
							ExitCode int
						}
					}
				}
			}
		}
		r := w.kube.do(ctx, http.MethodGet, wastePods+"/"+name, "", "")
		if err := errors.Join(r.good(), json.Unmarshal([]byte(r.body), &pod)); err != nil {
			return err
		}
		if p := pod.Status.Phase; p != "Succeeded" && p != "Failed" {
			return fmt.Errorf("it is %s: %s", p, r.body[max(0, len(r.body)-300):])
		}
		o.reason, o.words = pod.Status.Reason, pod.Status.Message
		for _, c := range pod.Status.ContainerStatuses {
			if x := c.State.Terminated; x != nil && o.reason == "" {
				o.reason, o.words = x.Reason, fmt.Sprintf("exit status %d", x.ExitCode)
			}
		}
		return nil
	})
	// A kubelet whose machine has just been used up may need a moment for an answer.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	o.log = decided(ctx, func() reply {
		return w.kube.do(ctx, http.MethodGet, wastePods+"/"+name+"/log?tailLines=3&limitBytes=2000", "", "")
	}).body
	w.remove(t, name)
	return o
}

// remove takes a pod away, and waits until it is.
func (w *waste) remove(t *testing.T, name string) {
	t.Helper()
	wait.For(t, 5*time.Minute, "pod "+name+" is gone", func(ctx context.Context) error {
		r := w.kube.do(ctx, http.MethodDelete, wastePods+"/"+name+"?gracePeriodSeconds=0", "", "")
		if r.code != http.StatusNotFound {
			return errors.New(r.String())
		}
		return nil
	})
}

// refusal records whether A was told.
func (w *waste) refusal(t *testing.T, what, from, want, got string, words ...string) {
	t.Helper()
	told := false
	for _, word := range words {
		told = told || strings.Contains(got, word)
	}
	w.record(t, attempt{What: what, From: from, Want: want, Got: got, Blocked: told})
}

// tasks is a fork bomb.
func (w *waste) tasks(t *testing.T) {
	var o outcome
	most := 0
	w.by.during(t, "fork bomb", podOfA, func() {
		w.start(t, "fork", "fork", "15")
		stop := w.watch(&most, func() int { return w.numberOf("pids", "pids.current") })
		o = w.await(t, "fork", 2*time.Minute)
		stop()
	})
	w.refusal(t, "make tasks without end", podOfA, "fork: resource temporarily unavailable", o.String(), "resource temporarily unavailable")
	w.record(t, attempt{What: "make more tasks than A's machine has", From: podOfA, Want: fmt.Sprintf("at most %d in the machine", 2*boxTasks),
		Got: fmt.Sprintf("%d", most), Blocked: most > boxTasks/2 && most <= 2*boxTasks})
}

// watch asks for a number until it is stopped, and keeps the highest.
func (w *waste) watch(most *int, ask func() int) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			*most = max(*most, ask())
			select {
			case <-end:
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	return func() { close(end); <-ended }
}

// numberOf reads a number of the control group of A's machine.
func (w *waste) numberOf(controller, file string) int {
	return groupNumber(w.machine.host.PID(), "machines/"+w.uid(), controller, file)
}

// groupNumber reads a number of a control group, seen from a host's process 1. -1:
// there is none.
func groupNumber(pid int, group, controller, file string) int {
	for _, dir := range []string{controller, ""} {
		data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "root/sys/fs/cgroup", dir, "multipaas", group, file))
		if err == nil {
			n, err := strconv.Atoi(strings.TrimSpace(string(data)))
			if err != nil {
				return -1
			}
			return n
		}
	}
	return -1
}

// memoryOf is what a control group takes, in bytes.
func memoryOf(pid int, group string) int {
	if n := groupNumber(pid, group, "memory", "memory.usage_in_bytes"); n >= 0 {
		return n
	}
	return groupNumber(pid, group, "memory", "memory.current")
}

// log is a flood of the pod's own output.
func (w *waste) log(t *testing.T) {
	most := 0
	w.by.during(t, "log flood", podOfA, func() {
		w.start(t, "log", "log", "25")
		stop := w.watch(&most, func() int {
			size := 0
			files, _ := filepath.Glob(w.ofMachine("disk/log/pods/waste_log_*/c/*"))
			for _, f := range files {
				if info, err := os.Stat(f); err == nil {
					size += int(info.Size())
				}
			}
			return size
		})
		w.await(t, "log", 2*time.Minute)
		stop()
	})
	w.record(t, attempt{What: "fill the disk by a pod's output", From: podOfA, Want: fmt.Sprintf("old output goes; at most %d MiB on A's disk", logRoom>>20),
		Got: fmt.Sprintf("at most %d MiB", most>>20), Blocked: most > 30<<20 && most <= logRoom})
}

// connections opens as many as it can to what A may reach, and beyond.
func (w *waste) connections(t *testing.T) {
	for _, target := range []struct{ address, what string }{
		{"169.254.20.10:5000", "the registry's endpoint in A's machine"},
		{"169.254.20.10:53", "the resolver in A's machine"},
		{"172.30.0.1:6443", "A's own plane"},
	} {
		var o outcome
		fds := w.openFiles()
		most := 0
		w.by.during(t, "flood of connections to "+target.what, podOfA, func() {
			w.start(t, "connect", "connect", target.address, "4000", "10")
			stop := w.watch(&most, func() int { return w.openFiles() - fds })
			o = w.await(t, "connect", 2*time.Minute)
			stop()
		})
		// The endpoints are the agent's own process, which looks after B's machines
		// too: it takes 256 and 64 of them, and leaves the rest to the kernel.
		w.record(t, attempt{What: "take the files of the agents and of the server by connections to " + target.what, From: podOfA,
			Want: "at most 1024 more are open", Got: fmt.Sprintf("%d more; %s", most, o), Blocked: most <= 1024 && strings.Contains(o.log, "at once")})
	}
	var o outcome
	most := 0
	inside := space{w.machine.host, "mp-" + w.id}
	count := func() int {
		// A namespace's own, for who reads it there.
		data, err := inside.command(t.Context(), "cat", "/proc/sys/net/netfilter/nf_conntrack_count").Output()
		n, err2 := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil || err2 != nil {
			return -1
		}
		return n
	}
	w.by.during(t, "flood of new flows to the outside", podOfA, func() {
		w.start(t, "udp", "udp", "198.51.100.0", "10")
		stop := w.watch(&most, count)
		o = w.await(t, "udp", 2*time.Minute)
		stop()
	})
	var err error
	if most < 1000 {
		err = fmt.Errorf("%d; %s", most, o)
	}
	if w.control(t, "A's flows are kept track of", err) {
		w.record(t, attempt{What: "fill the host's table of connections", From: podOfA, Want: fmt.Sprintf("at most %d on A's way out", tracked),
			Got: fmt.Sprintf("%d; %s", most, o), Blocked: most <= tracked})
	}
}

// openFiles is how many files the agent beside A's machine and the server have
// open.
func (w *waste) openFiles() int {
	n := 0
	for _, h := range []interface {
		Root(...string) string
	}{w.machine.host, w.Server} {
		files, _ := filepath.Glob(h.Root("proc", "[0-9]*", "cmdline"))
		for _, file := range files {
			line, err := os.ReadFile(file)
			if err != nil || !strings.HasPrefix(string(line), "multipaas\x00") && !strings.Contains(string(line[:min(len(line), 64)]), "/multipaas\x00") {
				continue
			}
			if fds, err := os.ReadDir(filepath.Join(filepath.Dir(file), "fd")); err == nil {
				n += len(fds)
			}
		}
	}
	return n
}

// memory is a balloon.
func (w *waste) memory(t *testing.T) {
	var o outcome
	most := 0
	w.by.during(t, "memory balloon", podOfA, func() {
		w.start(t, "memory", "memory")
		stop := w.watch(&most, func() int {
			return memoryOf(w.machine.host.PID(), "machines/"+w.uid())
		})
		o = w.await(t, "memory", 2*time.Minute)
		stop()
	})
	for _, file := range []string{"memory.max_usage_in_bytes", "memory.peak"} { // a balloon may fill between two looks
		most = max(most, w.numberOf("memory", file))
	}
	w.refusal(t, "take memory without end", podOfA, "killed for lack of memory, or evicted", o.String(), "OOMKilled", "low on resource: memory")
	w.record(t, attempt{What: "take more memory than A's machine has", From: podOfA, Want: fmt.Sprintf("at most %d MiB", boxMemory>>20),
		Got: fmt.Sprintf("%d MiB", most>>20), Blocked: most > boxMemory/2 && most <= boxMemory+16<<20}) // the kernel charges what it can't do without above the limit
}

// disk fills A's disk with files, then with a file. Afterwards A's machine is
// under pressure and takes no pods for five minutes.
func (w *waste) disk(t *testing.T) {
	time1 := "20"
	if long() {
		time1 = "600"
	}
	var o outcome
	w.by.during(t, "inode fill", podOfA, func() {
		w.start(t, "inodes", "inodes", "/room", time1)
		o = w.await(t, "inodes", 15*time.Minute)
	})
	const want = "no space left on device, or evicted"
	told := []string{"no space left on device", "low on resource"}
	if !strings.Contains(o.log, "not refused") {
		// The kernel's memory for files counts as the pod's, and may be full first.
		w.refusal(t, "make files without end", podOfA, want+", or killed for lack of memory", o.String(), append(told, "OOMKilled")...)
	} else {
		t.Logf("the short form does not wait for the end of the files: %s", o)
	}
	if long() {
		w.relieved(t)
	}
	w.by.during(t, "disk fill", podOfA, func() {
		w.start(t, "disk", "disk", "/room", "300")
		o = w.await(t, "disk", 7*time.Minute)
	})
	w.refusal(t, "fill the disk", podOfA, want, o.String(), told...)
	if long() {
		w.bomb(t)
	}
	info, err := os.Stat(w.ofMachine("disk.img"))
	if err != nil {
		t.Error(err)
		return
	}
	w.record(t, attempt{What: "take more disk than A's machine has", From: podOfA, Want: fmt.Sprintf("at most %d MiB", boxDisk>>20),
		Got: fmt.Sprintf("%d MiB", info.Size()>>20), Blocked: info.Size() <= boxDisk})
}

// bomb is an image of some megabytes that unpacks to more than A's disk. Its digest
// is right; that of what it unpacks to is not known before it is too late.
func (w *waste) bomb(t *testing.T) {
	w.relieved(t)
	var head, packed, zeros bytes.Buffer
	const size = 8 << 30
	if err := tar.NewWriter(&head).WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Mode: 0o644, Size: size}); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[*bytes.Buffer]*bytes.Buffer{&head: &packed, bytes.NewBuffer(make([]byte, 64<<20)): &zeros} {
		z := gzip.NewWriter(to)
		_, err := from.WriteTo(z)
		if err = errors.Join(err, z.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for range size / (64 << 20) {
		packed.Write(zeros.Bytes())
	}
	t.Logf("%d KiB unpack to %d GiB", packed.Len()>>10, size>>30)
	image, err := mutate.AppendLayers(w.tool, static.NewLayer(packed.Bytes(), "application/vnd.oci.image.layer.v1.tar+gzip"))
	if err != nil {
		t.Fatal(err)
	}
	w.pushImage(t, "evil-bomb", image)
	w.kube.must(t, "/api/v1/namespaces", `{"metadata":{"name":"images"}}`)
	got := ""
	w.by.during(t, "image that unpacks to more than A's disk", podOfA, func() { got, _ = w.runImage(t, badImage{name: "bomb"}) })
	w.refusal(t, "pull an image that unpacks to more than A's disk", podOfA, "no space left on device", got, "no space left on device", "low on resource")
}

// relieved waits until A's machine takes pods again: it takes none for five minutes
// after there was too little of its disk or memory. What it said before is of no use:
// it may not have noticed yet.
func (w *waste) relieved(t *testing.T) {
	began := time.Now()
	wait.For(t, 15*time.Minute, "A's machine is without pressure", func(ctx context.Context) error {
		r := w.Kube(t, w.box, "", "get", "nodes", "-o", `jsonpath={range .items[*].status.conditions[*]}{.type}={.status}={.lastHeartbeatTime} {end}`)
		good := 0
		for condition := range strings.FieldsSeq(r.Out) {
			f := strings.Split(condition, "=")
			if len(f) != 3 {
				continue
			}
			if said, err := time.Parse(time.RFC3339, f[2]); err == nil && said.After(began) && slices.Contains([]string{"DiskPressure False", "MemoryPressure False", "Ready True"}, f[0]+" "+f[1]) {
				good++
			}
		}
		if good != 3 {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}
