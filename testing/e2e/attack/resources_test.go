package attack

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"

	"github.com/multipaas/multipaas/testing/datacenter"
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
	// and what comes between two of kubelet's looks, ten seconds apart, which is
	// bounded by A's CPU alone. Half of the disk is where others in A's workspace
	// would begin to feel it.
	logRoom = boxDisk / 2
)

// long is the long form: nothing ends before it is refused.
func long() bool { return os.Getenv("MULTIPAAS_LONG") != "" }

// testResources lets A use up what there is, from its pods, by its API and from
// outside, one thing after the other, while B goes on; what that must be like for
// B stands above bystander. Each attack must end with a refusal in words that
// A's owner sees. The last ones leave A's workspace unusable for minutes.
//
// Run alone on two cores, it found no request of B's slower than a second.
func testResources(t *testing.T, s *suite) {
	k := newKube(t, s.box)
	k.must(t, "/api/v1/namespaces", `{"metadata":{"name":"waste"}}`)
	w := &waste{suite: s, kube: k, by: s.newBystander(t), id: s.workspaceID(t, datacenter.Rival, "box")}
	w.findMachine(t)
	if !s.control(t, "B's things are within their bounds when nobody attacks", w.by.alone(t)) {
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
		{"objects", w.objects},
		{"watches", w.watches},
		{"memory", w.memory},
		{"disk", w.disk},
		{"datastore", w.datastore},
	} {
		began := time.Now()
		t.Run(part.name, part.test)
		t.Logf("%s took %s", part.name, time.Since(began).Round(time.Second))
	}
}

// waste is A, using things up.
type waste struct {
	*suite
	kube    *kube
	by      *bystander
	id      string // of A's workspace
	machine space  // A's
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
	datacenter.Eventually(t, patience, "pod "+name+" has ended", func(ctx context.Context) error {
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
	o.log = w.kube.do(t.Context(), http.MethodGet, wastePods+"/"+name+"/log?tailLines=3&limitBytes=2000", "", "").body
	w.remove(t, name)
	return o
}

// remove takes a pod away, and waits until it is.
func (w *waste) remove(t *testing.T, name string) {
	t.Helper()
	datacenter.Eventually(t, 5*time.Minute, "pod "+name+" is gone", func(ctx context.Context) error {
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

// outside floods what the platform shows to everybody, from one address that is
// neither B's nor a host's.
func (w *waste) outside(t *testing.T) {
	from := w.anotherAddress(t)
	dialer := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	w.Must(t, datacenter.Rival, "apps", "deploy", "never", "--image", "tool:1", "--port", "8080", "--timeout", "2m")
	const host = "never.box.ops.beta." + datacenter.Domain
	for _, port := range []struct {
		number int
		what   string
	}{
		{443, "the balancer"}, {80, "the balancer's plain port"}, {7443, "the platform's API"}, {5000, "the registry"}, {6443, "the planes' router"},
	} {
		address := net.JoinHostPort(w.Server.Address().String(), strconv.Itoa(port.number))
		const tries = 4000
		var open, ended atomic.Int64
		files, most := w.openFiles(), 0
		w.by.during(t, "flood of connections to "+port.what, "one address outside", func() {
			stop := w.watch(&most, func() int { return w.openFiles() - files })
			defer stop()
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
			defer cancel()
			var wg sync.WaitGroup
			for range tries {
				wg.Go(func() {
					conn, err := dialer.DialContext(ctx, "tcp", address)
					if err != nil {
						ended.Add(1)
						return
					}
					defer conn.Close()
					open.Add(1)
					stop := context.AfterFunc(ctx, func() { conn.Close() })
					defer stop()
					if _, err := conn.Read(make([]byte, 1)); err != nil && ctx.Err() == nil {
						ended.Add(1)
					}
				})
			}
			wg.Wait()
		})
		w.record(t, attempt{What: fmt.Sprintf("hold %d connections to %s", tries, port.what), From: "one address outside",
			Want: "most are ended at once; at most 2000 more files of the server", Got: fmt.Sprintf("%d were taken, %d of %d ended early; %d more files", open.Load(), ended.Load(), tries, most),
			Blocked: open.Load() > 0 && ended.Load() >= tries/2 && most <= 2000})
	}
	// Requests that A's own app never answers: over HTTP/2 a connection carries
	// hundreds.
	const enough = 50
	var asked, busy atomic.Int64
	var words atomic.Value
	files, most := w.openFiles(), 0
	w.by.during(t, "flood of requests that A's app leaves waiting", "one address outside, and A's app", func() {
		stop := w.watch(&most, func() int { return w.openFiles() - files })
		defer stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() { // what was refused is; the others would wait for ever
			for ctx.Err() == nil && busy.Load() < enough {
				time.Sleep(100 * time.Millisecond)
			}
			time.Sleep(5 * time.Second)
			cancel()
		})
		for range 16 {
			client := w.Client()
			transport := client.Transport.(*http.Transport)
			transport.DisableKeepAlives = false
			transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, network, net.JoinHostPort(w.Server.Address().String(), "443"))
			}
			for range 100 {
				wg.Go(func() {
					req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/never", nil)
					if err != nil {
						return
					}
					asked.Add(1)
					resp, err := client.Do(req)
					if err != nil {
						return
					}
					defer resp.Body.Close()
					body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
					if resp.StatusCode == http.StatusServiceUnavailable {
						busy.Add(1)
						words.Store(resp.Status + ": " + string(body))
					}
				})
			}
			defer transport.CloseIdleConnections()
		}
		wg.Wait()
	})
	// 1250 may wait, of the 20,000 files that a host of the lab has; while they are
	// being made, connections take a second file each.
	w.record(t, attempt{What: "have 1600 requests wait for A's own app", From: "one address outside, and A's app", Want: "503 for what is too much; at most 2600 more files of the server",
		Got: fmt.Sprintf("%d asked, %d answered by 503; %d more files; %v", asked.Load(), busy.Load(), most, words.Load()), Blocked: busy.Load() >= enough && most <= 2600})
	w.Must(t, datacenter.Rival, "apps", "delete", "never", "--yes", "--timeout", "2m")
}

// anotherAddress gives this machine one more address in the lab's network.
func (w *waste) anotherAddress(t *testing.T) netip.Addr {
	t.Helper()
	address := w.Lab.Address()
	for range 200 {
		address = address.Next()
	}
	if !w.Lab.Subnet().Contains(address) {
		t.Fatalf("%s is not in %s", address, w.Lab.Subnet())
	}
	links, err := exec.Command("ip", "-o", "addr", "show", "to", w.Lab.Address().String()).Output()
	f := strings.Fields(string(links))
	if err != nil || len(f) < 2 {
		t.Fatalf("the lab's bridge: %q, %v", links, err)
	}
	whole := address.String() + "/32"
	if out, err := exec.Command("ip", "addr", "replace", whole, "dev", f[1]).CombinedOutput(); err != nil {
		t.Fatalf("add %s: %v: %s", whole, err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "addr", "del", whole, "dev", f[1]).Run() })
	return address
}

// objects writes very many, and very large ones.
func (w *waste) objects(t *testing.T) {
	k := w.kube
	big := func(n int) string { return strings.Repeat("x", n) }
	deep := strings.Repeat(`{"a":`, 200_000) + "1" + strings.Repeat("}", 200_000)
	aliases := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'j'; c++ {
		p := string(c - 1)
		aliases += fmt.Sprintf("%c: &%c [*%s,*%s,*%s,*%s,*%s,*%s,*%s,*%s,*%s]\n", c, c, p, p, p, p, p, p, p, p, p)
	}
	k.must(t, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", `{"metadata":{"name":"blobs.attack.test"},"spec":{"group":"attack.test","scope":"Namespaced",
		"names":{"plural":"blobs","singular":"blob","kind":"Blob"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`)
	const blobs = "/apis/attack.test/v1/namespaces/waste/blobs"
	datacenter.Eventually(t, time.Minute, "A's own kind is served", func(ctx context.Context) error { return k.do(ctx, http.MethodGet, blobs, "", "").good() })
	blob := func(name, data string) string {
		return fmt.Sprintf(`{"apiVersion":"attack.test/v1","kind":"Blob","metadata":{"name":%q},"data":%q}`, name, data)
	}
	type giant struct {
		what, want string
		do         func(context.Context) reply
		codes      []int
	}
	giants := []giant{
		{"a ConfigMap of 1.2 MB", "422: may not be more than 1048576 bytes", func(ctx context.Context) reply {
			return k.post(ctx, wasteMaps, `{"metadata":{"name":"giant"},"data":{"a":"`+big(1_200_000)+`"}}`)
		}, []int{http.StatusUnprocessableEntity}},
		{"an object of its own kind of 2 MB", "413 or 500: request is too large", func(ctx context.Context) reply { return k.post(ctx, blobs, blob("giant", big(2_000_000))) },
			[]int{http.StatusRequestEntityTooLarge, http.StatusInternalServerError}},
		{"a body of 64 MB", "413", func(ctx context.Context) reply {
			return k.post(ctx, wasteMaps, `{"metadata":{"name":"giant"},"data":{"a":"`+big(64_000_000)+`"}}`)
		},
			[]int{http.StatusRequestEntityTooLarge}},
		{"annotations of 1 MB", "422", func(ctx context.Context) reply {
			return k.post(ctx, wasteMaps, `{"metadata":{"name":"giant","annotations":{"a":"`+big(1_000_000)+`"}}}`)
		}, []int{http.StatusUnprocessableEntity}},
		{"JSON 200,000 deep", "400", func(ctx context.Context) reply {
			return k.post(ctx, wasteMaps, `{"metadata":{"name":"deep"},"data":`+deep+`}`)
		},
			[]int{http.StatusBadRequest, http.StatusRequestEntityTooLarge}},
		{"a patch of YAML that grows by aliases", "400", func(ctx context.Context) reply {
			return k.patch(ctx, "apply", blobs+"/aliases?fieldManager=attack", "apiVersion: attack.test/v1\nkind: Blob\nmetadata: {name: aliases}\n"+aliases)
		}, []int{http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity}},
		{"a JSON patch of 20,000 operations", "413: the allowed maximum is 10000", func(ctx context.Context) reply {
			return k.patch(ctx, "json", "/api/v1/namespaces/waste?fieldManager=attack", "["+strings.TrimSuffix(strings.Repeat(`{"op":"test","path":"/metadata/name","value":"waste"},`, 20_000), ",")+"]")
		}, []int{http.StatusRequestEntityTooLarge}},
	}
	w.by.during(t, "giant objects", owner, func() {
		for _, g := range giants {
			r := g.do(t.Context())
			ok := false
			for _, code := range g.codes {
				ok = ok || r.code == code
			}
			w.record(t, attempt{What: "write " + g.what, From: owner, Want: g.want, Got: r.String(), Blocked: ok})
		}
	})

	// 10 MB either way.
	many, size := 10_000, 1000
	if !long() {
		many, size = 2000, 5000
	}
	var taken atomic.Int64
	began := time.Now()
	w.by.during(t, fmt.Sprintf("%d ConfigMaps", many), owner, func() {
		w.each(many, func(i int) {
			r := w.patient(t.Context(), func(ctx context.Context) reply {
				return k.post(ctx, wasteMaps, fmt.Sprintf(`{"metadata":{"name":"many-%d","labels":{"waste":"many"}},"data":{"a":"%s"}}`, i, big(size)))
			})
			if r.code/100 == 2 || r.code == http.StatusConflict {
				taken.Add(1)
			}
		})
	})
	t.Logf("%d ConfigMaps of %d bytes in %s", taken.Load(), size, time.Since(began).Round(time.Second))
	w.control(t, "A's ConfigMaps are within its bounds and taken", func() error {
		if taken.Load() != int64(many) {
			return fmt.Errorf("%d of %d were", taken.Load(), many)
		}
		return nil
	}())
	w.by.during(t, "lists of all of them, 16 at once", owner, func() {
		w.each(16, func(int) { k.drain(t.Context(), wasteMaps) })
	})
	w.by.during(t, "100 kinds of its own", owner, func() {
		w.each(100, func(i int) {
			w.patient(t.Context(), func(ctx context.Context) reply {
				return k.post(ctx, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", fmt.Sprintf(`{"metadata":{"name":"k%[1]ds.waste.test"},"spec":{"group":"waste.test","scope":"Namespaced",
				"names":{"plural":"k%[1]ds","singular":"k%[1]d","kind":"K%[1]d"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`, i))
			})
		})
	})
	w.by.during(t, "2,000 events", owner, func() {
		w.each(2000, func(i int) {
			w.patient(t.Context(), func(ctx context.Context) reply {
				return k.post(ctx, "/api/v1/namespaces/waste/events", fmt.Sprintf(`{"metadata":{"name":"e-%d"},"involvedObject":{"namespace":"waste"},"message":"%s"}`, i, big(900)))
			})
		})
	})
	w.planeBound(t, "objects, kinds and events")
	for _, path := range []string{wasteMaps + "?labelSelector=waste%3Dmany", "/api/v1/namespaces/waste/events"} {
		k.do(t.Context(), http.MethodDelete, path, "", "")
	}
	for i := range 100 {
		k.do(t.Context(), http.MethodDelete, fmt.Sprintf("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/k%ds.waste.test", i), "", "")
	}
}

// patient asks again while the API says that it is busy.
func (w *waste) patient(ctx context.Context, do func(context.Context) reply) (r reply) {
	for range 20 {
		if r = do(ctx); r.code != http.StatusTooManyRequests && r.code != 0 && r.code < 500 {
			return r
		}
		time.Sleep(500 * time.Millisecond)
	}
	return r
}

// each does something n times, 32 at once.
func (w *waste) each(n int, do func(i int)) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 32 {
		wg.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				do(i)
			}
		})
	}
	wg.Wait()
}

// drain reads an answer and throws it away.
func (k *kube) drain(ctx context.Context, path string) (int, int64) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url+path, nil)
	if err != nil {
		return 0, 0
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return 0, 0
	}
	defer resp.Body.Close()
	n, _ := io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, n
}

// planeBound records what A's plane takes.
func (w *waste) planeBound(t *testing.T, by string) {
	t.Helper()
	n := memoryOf(w.Server.PID(), "planes/"+w.id)
	w.record(t, attempt{What: "take the server's memory by " + by, From: owner, Want: fmt.Sprintf("A's plane takes at most %d MiB", planeMemory>>20),
		Got: fmt.Sprintf("%d MiB", n>>20), Blocked: n > 0 && n <= planeMemory})
}

// watches opens thousands of them, and then changes what they watch.
func (w *waste) watches(t *testing.T) {
	const many, changes = 3000, 30
	var open, told, refused atomic.Int64
	var words atomic.Value
	w.by.during(t, fmt.Sprintf("%d watches and %d changes", many, changes), owner, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		client := *w.kube.client
		client.Timeout = 0
		var wg, begun sync.WaitGroup
		for range many {
			begun.Add(1)
			wg.Go(func() {
				once := sync.OnceFunc(begun.Done)
				defer once()
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.kube.url+wasteMaps+"?watch=1&resourceVersion=0&labelSelector=waste%3Dwatched", nil)
				if err != nil {
					return
				}
				resp, err := client.Do(req)
				if err != nil {
					refused.Add(1)
					words.Store(err.Error())
					return
				}
				defer resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					refused.Add(1)
					words.Store(resp.Status)
					return
				}
				open.Add(1)
				once()
				lines := bufio.NewScanner(resp.Body)
				lines.Buffer(nil, 1<<20)
				for lines.Scan() {
					told.Add(1)
				}
			})
		}
		begun.Wait()
		for i := range changes {
			name := wasteMaps + "/watched"
			if i == 0 {
				w.kube.post(ctx, wasteMaps, `{"metadata":{"name":"watched","labels":{"waste":"watched"}}}`)
			}
			w.kube.patch(ctx, "merge", name, fmt.Sprintf(`{"data":{"a":"%d %s"}}`, i, strings.Repeat("x", 1000)))
		}
		cancel()
		wg.Wait()
	})
	w.record(t, attempt{What: fmt.Sprintf("open %d watches", many), From: owner, Want: "each is served by A's own plane or refused",
		Got: fmt.Sprintf("%d were served and told %d changes, %d refused: %v", open.Load(), told.Load(), refused.Load(), words.Load()), Blocked: open.Load() > 0 && open.Load()+refused.Load() == many})
	w.planeBound(t, "watches")
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
	w.refusal(t, "take memory without end", podOfA, "killed for lack of memory, or evicted", o.String(), "OOMKilled", "low on resource: memory")
	w.record(t, attempt{What: "take more memory than A's machine has", From: podOfA, Want: fmt.Sprintf("at most %d MiB", boxMemory>>20),
		Got: fmt.Sprintf("%d MiB", most>>20), Blocked: most > boxMemory/2 && most <= boxMemory})
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
		w.refusal(t, "make files without end", podOfA, want, o.String(), told...)
	} else {
		t.Logf("the short form does not wait for the end of the files: %s", o)
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
	datacenter.Eventually(t, 10*time.Minute, "A's machine has room again", func(ctx context.Context) error {
		r := w.Kube(t, w.box, "", "get", "nodes", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="DiskPressure")].status}`)
		if strings.TrimSpace(r.Out) != "False" {
			return fmt.Errorf("pressure on its disk: %s", r)
		}
		return nil
	})
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

// datastore fills what A's workspace may have of the platform's etcd.
func (w *waste) datastore(t *testing.T) {
	var taken atomic.Int64
	var refused atomic.Pointer[reply]
	data := strings.Repeat("x", 1_000_000)
	w.by.during(t, "fill of the datastore", owner, func() {
		w.each(1000, func(i int) {
			if refused.Load() != nil {
				return
			}
			r := w.patient(t.Context(), func(ctx context.Context) reply {
				return w.kube.post(ctx, wasteMaps, fmt.Sprintf(`{"metadata":{"name":"fill-%d","labels":{"waste":"fill"}},"data":{"a":"%s"}}`, i, data))
			})
			if r.code/100 == 2 {
				taken.Add(1)
			} else {
				refused.CompareAndSwap(nil, &r)
			}
		})
	})
	got := "never refused"
	if r := refused.Load(); r != nil {
		got = r.String()
	}
	w.refusal(t, fmt.Sprintf("fill the platform's etcd; %d MB were taken", taken.Load()), owner, "403: the workspace's datastore is full", got, "datastore is full")
	r := w.kube.do(t.Context(), http.MethodDelete, wasteMaps+"?labelSelector=waste%3Dfill", "", "")
	w.control(t, "A can delete what fills its datastore", r.good())
}
