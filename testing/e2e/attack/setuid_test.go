package attack

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/multipaas/multipaas/testing/dctest"
)

// somebody is the user that the pods with such images run as.
const somebody = 65532

// granted are the programs of the image, all of them the tool, and what their
// files give to who runs them.
var granted = []struct {
	name, what   string
	mode         int64
	capabilities []int
}{
	{"suid", "a setuid file of root's", 0o4755, nil},
	{"sgid", "a setgid file of root's", 0o2755, nil},
	{"both", "a setuid and setgid file of root's", 0o6755, nil},
	{"caps", "a file with capabilities that pods have", 0o755, []int{unix.CAP_DAC_OVERRIDE, unix.CAP_CHOWN, unix.CAP_FOWNER, unix.CAP_SETUID, unix.CAP_MKNOD, unix.CAP_SYS_CHROOT, unix.CAP_NET_RAW}},
	{"admin", "a file with every capability", 0o755, []int{unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_SYS_ADMIN, unix.CAP_SYS_MODULE, unix.CAP_SYS_PTRACE,
		unix.CAP_SYS_RAWIO, unix.CAP_NET_ADMIN, unix.CAP_SYS_BOOT, unix.CAP_SYS_TIME, unix.CAP_SYSLOG, unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_RESOURCE}},
}

// Of the machine and its kernel: files that are read, devices, of which the image
// has the nodes, and files that are written.
var (
	machineFiles = []string{secret, up + secret, "/proc/1/root" + secret, "/proc/self/cwd/" + up + secret, "/proc/1/root/" + up + secret,
		"/run/containerd/containerd.sock", "/proc/kcore", "/proc/kmsg", "/proc/1/task/1/root" + secret, "/sys/firmware/acpi/tables/DSDT"}
	deviceFiles = []string{"/mem", "/port", "/kmsg", "/loop0", "/loop-control", "/sda", "/vda", "/fuse", "/kvm"}
	kernelFiles = []string{"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hostname", "/proc/sys/vm/overcommit_memory", "/proc/sys/net/ipv4/ip_forward",
		"/proc/sys/fs/binfmt_misc/register", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper", "/sys/kernel/mm/ksm/run", "/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/*/release_agent", "/sys/fs/cgroup/devices/devices.allow",
		"/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/*/cgroup.procs", "/sys/fs/cgroup/pids/pids.max", "/sys/class/net/eth0/mtu"}
)

// fileCapabilities is a file's xattr security.capability: the second revision, in
// force as soon as the file runs.
func fileCapabilities(all []int) string {
	var permitted [2]uint32
	for _, c := range all {
		permitted[c/32] |= 1 << (c % 32)
	}
	const revision2, effective = 0x02000000, 1
	var out []byte
	for _, word := range []uint32{revision2 | effective, permitted[0], 0, permitted[1], 0} {
		out = binary.LittleEndian.AppendUint32(out, word)
	}
	return string(out)
}

// grantingImage pushes the image with all of them, some device nodes, and a file
// that only root may read.
func (w *waste) grantingImage(t *testing.T) {
	t.Helper()
	program, err := os.ReadFile(filepath.Join(w.Dir, "tool", "tool"))
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	a := tar.NewWriter(&archive)
	put := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		err := a.WriteHeader(&h)
		if err == nil {
			_, err = a.Write(content)
		}
		if err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
	}
	for _, g := range granted {
		h := tar.Header{Name: g.name, Typeflag: tar.TypeReg, Mode: g.mode}
		if g.capabilities != nil {
			h.Format, h.PAXRecords = tar.FormatPAX, map[string]string{"SCHILY.xattr.security.capability": fileCapabilities(g.capabilities)}
		}
		put(h, program)
	}
	put(tar.Header{Name: "roots", Typeflag: tar.TypeReg, Mode: 0o600}, []byte(mark))
	put(tar.Header{Name: "room", Typeflag: tar.TypeDir, Mode: 0o777}, nil)
	for _, h := range badImages[0].layers[0] {
		put(h, nil)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	image := w.withLayer(t, w.tool, archive.Bytes())
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.Config.User = fmt.Sprintf("%d:%d", somebody, somebody)
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	w.pushImage(t, "granting", image)
}

// testSetuid runs an image whose files give more to who runs them than he has. A
// pod that says that nobody in it may gain anything must hold to that; in others
// root is root of the container, which is nobody in the machine.
func testSetuid(t *testing.T, s *suite) {
	k := newKube(t, s.box)
	k.must(t, "/api/v1/namespaces", `{"metadata":{"name":"setuid"}}`)
	s.Login(t, "auth-beta", "owner@beta.example", filepath.Join(s.Dir, "password"))
	w := &waste{suite: s, kube: k, id: s.workspaceID(t, dctest.Rival, "box")}
	w.grantingImage(t)

	pods := map[string]string{
		"usual":      ``,
		"dropped":    `"capabilities":{"drop":["ALL"]},`,
		"locked":     `"allowPrivilegeEscalation":false,`,
		"restricted": `"allowPrivilegeEscalation":false,"runAsNonRoot":true,"capabilities":{"drop":["ALL"]},"seccompProfile":{"type":"RuntimeDefault"},`,
	}
	for name, context := range pods {
		k.must(t, "/api/v1/namespaces/setuid/pods", fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"terminationGracePeriodSeconds":0,"nodeName":%q,
			"containers":[{"name":"c","image":%q,"args":["wait"],"securityContext":{%s"runAsUser":%d,"runAsGroup":%[5]d},
			"readinessProbe":{"httpGet":{"port":8080,"path":"/healthz"},"periodSeconds":1}}]}}`,
			name, s.attacker.node, s.Image("beta/ops", "granting"), context, somebody))
	}
	defer k.do(t.Context(), http.MethodDelete, "/api/v1/namespaces/setuid/pods?gracePeriodSeconds=0", "", "")
	if r := s.Kube(t, s.box, "", "wait", "-n", "setuid", "--for=condition=Ready", "pod", "--all", "--timeout=5m"); r.Code != 0 {
		s.control(t, "the image runs", errors.New(r.String()))
		return
	}
	in := func(pod string, args ...string) dctest.Result {
		return s.exec(t, s.box, "setuid", pod, "", args...)
	}
	// byProcess is who one is by a program that a process in the pod runs, byRuntime by
	// one that the runtime starts in the pod: all at once, since kubectl takes its time.
	byProcess, byRuntime := map[string]map[string]string{}, map[string]map[string]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	places := make(chan struct{}, 4)
	programs := []string{"/tool"}
	for _, g := range granted {
		programs = append(programs, "/"+g.name)
	}
	for pod := range pods {
		byRuntime[pod] = map[string]string{}
		wg.Go(func() {
			got := answers(in(pod, append([]string{"/tool", "run"}, programs...)...).Out)
			mu.Lock()
			defer mu.Unlock()
			byProcess[pod] = got
		})
		for _, g := range granted {
			if g.mode == 0o755 || g.name == "both" {
				places <- struct{}{}
				wg.Go(func() {
					defer func() { <-places }()
					got := in(pod, "/"+g.name, "who")
					mu.Lock()
					defer mu.Unlock()
					byRuntime[pod]["/"+g.name] = strings.TrimSpace(got.Out + got.Err)
				})
			}
		}
	}
	wg.Wait()
	// The controls: each file gives what it says where that is not forbidden, so
	// its mode and its capabilities have come through the registry and containerd.
	for program, gained := range map[string]func(whoami) bool{
		"suid": func(is whoami) bool { return is.EUID == 0 && is.EGID == somebody && is.powers() },
		"sgid": func(is whoami) bool { return is.EUID == somebody && is.EGID == 0 },
		"both": func(is whoami) bool { return is.EUID == 0 && is.EGID == 0 && is.powers() },
		"caps": func(is whoami) bool { return is.EUID == somebody && is.powers() },
	} {
		got := byProcess["usual"]["/"+program]
		is, err := asWhom(got)
		if err == nil && !gained(is) {
			err = errors.New(got)
		}
		if !s.control(t, "/"+program+" gives what it says in a pod that allows it", err) {
			return
		}
	}
	for _, pod := range slices.Sorted(maps.Keys(pods)) {
		got := byProcess[pod]["/tool"]
		is, err := asWhom(got)
		if err == nil && !is.nobody() {
			err = errors.New(got)
		}
		if !s.control(t, "without such a file one is nobody in the pod "+pod, err) {
			return
		}
	}
	for _, g := range granted {
		for _, pod := range []string{"locked", "restricted"} {
			got := byProcess[pod]["/"+g.name]
			is, err := asWhom(got)
			s.record(t, attempt{What: "gain by " + g.what + " where nobody may (" + pod + ")", From: "pod of A, nobody", Want: "is nobody still, or is not run",
				Got: got, Blocked: err == nil && is.nobody() || notRun(got)})
		}
		// What a pod has not, no file of it can give, also not to the process that
		// the runtime starts: that one may keep what the pod has.
		for pod, most := range map[string]uint64{"usual": ordinary, "locked": ordinary, "dropped": 0, "restricted": 0} {
			for how, results := range map[string]map[string]string{"by a process of the pod": byProcess[pod], "by the runtime": byRuntime[pod]} {
				got, tried := results["/"+g.name]
				if !tried {
					continue
				}
				is, err := asWhom(got)
				s.record(t, attempt{What: "gain capabilities that the pod has not by " + g.what + ", run " + how + " (" + pod + ")", From: "pod of A, nobody",
					Want: fmt.Sprintf("none but %016x, or is not run", most), Got: got, Blocked: err == nil && is.capabilities()&^most == 0 || notRun(got)})
			}
		}
	}
	for _, program := range []string{"both", "caps"} {
		wg.Go(func() { s.insideOnly(t, in, program) })
	}
	wg.Wait()
}

// asWhom reads what `tool who` has printed.
func asWhom(got string) (is whoami, err error) {
	if json.Unmarshal([]byte(got), &is) != nil {
		return is, errors.New(got)
	}
	return is, nil
}

// notRun says that the kernel refused to run a program, which gives more than it
// may.
func notRun(got string) bool { return strings.Contains(got, "operation not permitted") }

// insideOnly takes what was gained by a program for what it is worth: root of the container.
func (s *suite) insideOnly(t *testing.T, in func(pod string, args ...string) dctest.Result, program string) {
	files := slices.Concat(machineFiles, deviceFiles)
	from := "pod of A, nobody, by /" + program
	result := func(args ...string) map[string]string {
		all := map[string]string{}
		r := in("usual", append([]string{"/" + program}, args...)...)
		for line := range strings.Lines(r.Out) {
			name, got, _ := strings.Cut(strings.TrimSpace(line), " ")
			all[name] = got
		}
		return all
	}
	var err error
	if r := in("usual", "/tool", "open", "/roots"); !strings.Contains(r.Out, "closed open /roots: permission denied") {
		err = errors.New(r.String())
	} else if got := result("open", "/roots")["/roots"]; !strings.HasPrefix(got, "open") {
		err = errors.New(got)
	}
	if !s.control(t, "/"+program+" opens a file of root's in the container, and the tool does not", err) {
		return
	}
	opened, written, gained := result(append([]string{"open"}, files...)...), result(append([]string{"write"}, kernelFiles...)...), result("gain")
	for _, path := range files {
		s.record(t, attempt{What: "open " + path + " as root of a container", From: from, Want: "refused, or nothing of the machine", Got: opened[path],
			Blocked: shut(opened[path])})
	}
	for _, path := range kernelFiles {
		if strings.Contains(written[path], "no such file") {
			continue // of another version of control groups, or of a kernel's part that is not built in
		}
		s.record(t, attempt{What: "open " + path + " for writing as root of a container", From: from, Want: "refused", Got: written[path],
			Blocked: shut(written[path])})
	}
	err = nil
	if len(gained) < 20 {
		err = fmt.Errorf("%d things", len(gained))
	}
	if !s.control(t, "what a machine's root may do is tried by /"+program, err) {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(gained)) {
		s.record(t, attempt{What: name + " as root of a container", From: from, Want: "not permitted", Got: gained[name], Blocked: notGained(name, gained[name])})
	}
}

// shut says whether a line of `tool open` or `tool write` is a refusal. One about a
// read is none: what cannot be read then, a device above all, has been opened.
func shut(got string) bool {
	if strings.HasPrefix(got, "closed masked by ") {
		return true
	}
	for _, why := range []string{"no such file or directory", "permission denied", "operation not permitted", "read-only file system"} {
		if strings.HasPrefix(got, "closed open ") && strings.HasSuffix(got, ": "+why) {
			return true
		}
	}
	return false
}

// notGained says whether a line of `tool gain` is a refusal for want of a right.
// What would be refused anyway, for other reasons, is no attempt.
func notGained(name, got string) bool {
	if !strings.HasPrefix(got, "closed") {
		return false
	}
	if name == "chroot" { // it may, within its own root
		return strings.Contains(got, "no such file")
	}
	return strings.Contains(got, "operation not permitted") || strings.Contains(got, "permission denied") || strings.Contains(got, "read-only file system")
}

// whoami is what `tool who` prints.
type whoami struct {
	UID, EUID, GID, EGID             int
	Groups                           []int
	Effective, Permitted, NoNewPrivs string
}

func (w whoami) capabilities() uint64 {
	var effective, permitted uint64
	_, err := fmt.Sscanf(w.Effective+" "+w.Permitted, "%x %x", &effective, &permitted)
	if err != nil {
		return ^uint64(0)
	}
	return effective | permitted
}

func (w whoami) powers() bool { return w.capabilities() != 0 }

// nobody says that there is nothing of root's about it.
func (w whoami) nobody() bool {
	return w.UID == somebody && w.EUID == somebody && w.GID == somebody && w.EGID == somebody && !slices.Contains(w.Groups, 0) && !w.powers()
}

// ordinary are the capabilities of any pod.
const ordinary uint64 = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FSETID | 1<<unix.CAP_FOWNER | 1<<unix.CAP_MKNOD | 1<<unix.CAP_NET_RAW |
	1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETFCAP | 1<<unix.CAP_SETPCAP | 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_SYS_CHROOT |
	1<<unix.CAP_KILL | 1<<unix.CAP_AUDIT_WRITE
