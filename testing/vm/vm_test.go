package vm_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/vm"
	"github.com/multipaas/multipaas/testing/wait"
)

const data = "/var/lib/multipaas"

// patience is for one step. An idle machine takes a tenth of it; one that
// builds beside may take half.
const patience = 30 * time.Minute

// platform is a server and a node, each a virtual machine.
type platform struct {
	server, node *vm.VM
	built        *datacenter.Datacenter // of the two; people sit at the server
	checks       int                    // that went well
}

// small is what emulated processors run in the time that there is.
var small = datacenter.Spec{
	Nodes:     1,
	Machines:  1,
	CPU:       "2",
	Memory:    "2Gi",
	Disk:      "10Gi",
	Instances: 1,
	Patience:  25 * time.Minute,
}

// TestDebian runs the platform on Debian as it is: its kernel, systemd and
// control groups version 2. The steps build on each other.
func TestDebian(t *testing.T) {
	p := &platform{}
	defer func() {
		dctest.Count(t, "vm", "vm: %d steps on Debian's kernel, %d failed", p.checks+failures(t), failures(t))
	}()
	type step struct {
		name string
		test func(context.Context, *testing.T)
	}
	p.make(t)
	steps := []step{
		{"boot", p.boot},
		{"networks", p.networks},
		{"preflight", p.preflight},
		{"server", p.startServer},
		{"join", p.join},
		{"reboot", p.reboot},
	}
	if os.Getenv("MULTIPAAS_LONG") != "" {
		steps = append(steps,
			step{"workspace", p.workspace},
			step{"pods", p.pods},
			step{"encrypted", p.encrypted},
			step{"restart", p.restart},
			step{"agent away", p.agentAway},
			step{"clock", p.clock},
			step{"power", p.power},
		)
	}
	for _, s := range steps {
		began, worked := time.Now(), p.worked()
		ok := t.Run(s.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			defer p.tell(t)
			s.test(ctx, t)
		})
		t.Logf("%s took %.0f s, %.0f s of them work", s.name, time.Since(began).Seconds(), (p.worked() - worked).Seconds())
		if !ok {
			return
		}
		p.checks++
	}
}

// worked is how long processors have worked for the machines.
func (p *platform) worked() time.Duration { return p.server.Processor() + p.node.Processor() }

func failures(t *testing.T) int {
	if t.Failed() {
		return 1
	}
	return 0
}

// make makes both machines and what they run from. They are off.
func (p *platform) make(t *testing.T) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	image, booted := filepath.Join(root, ".cache", "vm"), filepath.Join(root, ".cache", "vm-booted")
	binary := filepath.Join(root, "dist", "multipaas")
	for _, file := range []string{filepath.Join(image, "root.qcow2"), booted, binary} {
		if _, err := os.Stat(file); err != nil {
			t.Fatalf("%v: make test-vm makes it", err)
		}
	}
	// Not t.TempDir: the path of a socket is at most 107 bytes long.
	dir, err := os.MkdirTemp("", "mpvm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	files := filepath.Join(dir, "files")
	put(t, binary, filepath.Join(files, "multipaas"))
	for _, unit := range []string{"multipaas-server.service", "multipaas-node.service"} {
		put(t, filepath.Join(root, "installer", "units", unit), filepath.Join(files, unit))
	}
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", filepath.Join(files, "network.test"), "./modules/network")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	disk := filepath.Join(dir, "disk")
	if err := vm.NewDisk(t.Context(), disk, files); err != nil {
		t.Fatal(err)
	}
	p.server, p.node, err = vm.Pair(t.Context(), dir, vm.Image(image), vm.Booted(booted), disk)
	if err != nil {
		t.Fatal(err)
	}
	p.built = &datacenter.Datacenter{
		Spec:   small,
		Server: host{p.server},
		Nodes:  []datacenter.Host{host{p.node}},
		Desk:   desk{p.server},
		Say:    t.Logf,
	}
	t.Cleanup(p.server.Cut)
	t.Cleanup(p.node.Cut)
}

// put hands a file on under another name.
func put(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Link(from, to) == nil {
		return
	}
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// both does something on both machines at once.
func (p *platform) both(t *testing.T, do func(*vm.VM) error) {
	t.Helper()
	both(t, do, p.server, p.node)
}

func both(t *testing.T, do func(*vm.VM) error, machines ...*vm.VM) {
	t.Helper()
	var wg sync.WaitGroup
	for _, v := range machines {
		wg.Go(func() {
			began := time.Now()
			if err := do(v); err != nil {
				t.Errorf("%s: %v", v.Name(), err)
				return
			}
			t.Logf("%s: %.1f s", v.Name(), time.Since(began).Seconds())
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// must runs a command that has to do well and returns its output.
func must(ctx context.Context, t *testing.T, v *vm.VM, args ...string) string {
	t.Helper()
	out, err := v.Must(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (p *platform) boot(ctx context.Context, t *testing.T) {
	p.both(t, func(v *vm.VM) error {
		if err := v.Wake(ctx); err != nil {
			return err
		}
		return v.Settled(ctx)
	})
	for _, v := range []*vm.VM{p.server, p.node} {
		if got := must(ctx, t, v, "stat", "-f", "-c", "%T", "/sys/fs/cgroup"); got != "cgroup2fs" {
			t.Errorf("%s: /sys/fs/cgroup is %s, want cgroup2fs", v.Name(), got)
		}
		if got := must(ctx, t, v, "hostname"); got != v.Name() {
			t.Errorf("the host name is %s, want %s", got, v.Name())
		}
	}
	must(ctx, t, p.server, "ping", "-c", "1", "-W", "20", p.node.Address().String())
}

// networks runs the tests of modules/network: of what they ask of a kernel,
// Debian's has more than the one that builds. A bridge's entries for VLANs, for one.
func (p *platform) networks(ctx context.Context, t *testing.T) {
	t.Log(must(ctx, t, p.node, "/opt/multipaas/network.test", "-test.v", "-test.timeout", "20m"))
}

// preflight: a plain Debian server has all that the appliance needs.
func (p *platform) preflight(ctx context.Context, t *testing.T) {
	p.both(t, func(v *vm.VM) error {
		if err := v.Write(ctx, "/etc/multipaas/config.yaml", "domain: "+datacenter.Domain+"\n"); err != nil {
			return err
		}
		r, err := v.Run(ctx, "", "multipaas", "preflight", v.Name())
		if err != nil {
			return err
		}
		if r.Code != 0 || strings.Contains(r.Out, "skipped") || strings.Contains(r.Out, "warning") {
			return fmt.Errorf("not all is well with plain Debian: %v", r)
		}
		// Copied, as the installer's README says: systemd reads units before it
		// mounts anything.
		unit := "multipaas-" + v.Name() + ".service"
		if _, err := v.Must(ctx, "cp", "/opt/multipaas/"+unit, "/etc/systemd/system/"+unit); err != nil {
			return err
		}
		if _, err = v.Must(ctx, "systemctl", "enable", unit); err != nil {
			return err
		}
		_, err = v.Must(ctx, "sh", "-c", "systemd-analyze security --no-pager --threshold=$(sed -n s/^X-Exposure=//p /etc/systemd/system/"+unit+") "+unit)
		return err
	})
}

// confined: the units can't write to the system, and know where the host's mounts are.
func (p *platform) confined(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, v := range []*vm.VM{p.server, p.node} {
		pid := must(ctx, t, v, "systemctl", "show", "-P", "MainPID", "multipaas-"+v.Name())
		r, err := v.Run(ctx, "", "nsenter", "-m", "-t", pid, "sh", "-c",
			"for dir in /etc /usr /usr/local/bin /root /boot /home /var/log; do touch $dir/escaped 2>/dev/null && echo $dir; done; "+
				"ls /lib/modules/* 2>/dev/null; touch "+data+"/own /run/multipaas/own || echo nothing; rm -f "+data+"/own /run/multipaas/own")
		if err != nil {
			t.Fatal(err)
		}
		if r.Out != "" {
			t.Errorf("multipaas-%s writes to or sees %s", v.Name(), r)
		}
	}
}

// startServer: systemctl returns when the server is ready.
func (p *platform) startServer(ctx context.Context, t *testing.T) {
	if err := p.built.StartServer(ctx); err != nil {
		t.Fatal(err)
	}
	// The first look at the datastore is in the middle of the start.
	wait.For(t, patience, "all is well with the server", func(ctx context.Context) error { return healthy(ctx, p.server) })
}

// healthy says that all parts of an appliance are ready and nothing is wrong.
func healthy(ctx context.Context, v *vm.VM) error {
	s, err := host{v}.Status(ctx)
	if err != nil {
		return err
	}
	if missing := s.Ready(); len(missing) > 0 {
		return fmt.Errorf("%s: %s", v.Name(), strings.Join(missing, "; "))
	}
	for _, problem := range s.Problems {
		return fmt.Errorf("%s has a problem: %+v", v.Name(), problem)
	}
	if s.Role != v.Name() || len(s.Parts) == 0 {
		return fmt.Errorf("%s: the status is of %q with %d parts", v.Name(), s.Role, len(s.Parts))
	}
	return nil
}

func (p *platform) join(ctx context.Context, t *testing.T) {
	if err := p.built.JoinNodes(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.built.LogInAdmin(ctx); err != nil {
		t.Fatal(err)
	}
	p.well(ctx, t)
	p.confined(ctx, t)
}

// well waits until server and node are healthy and the server says so of the
// node, and then nothing else may have failed.
func (p *platform) well(ctx context.Context, t *testing.T) {
	t.Helper()
	p.both(t, func(v *vm.VM) error {
		return wait.Until(ctx, patience, "healthy", func(ctx context.Context) error { return healthy(ctx, v) })
	})
	wait.For(t, patience, "the node is ready", func(ctx context.Context) error {
		out, err := p.built.Desk.MP(ctx, datacenter.Admin, "nodes", "list")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "node" && f[1] == "Ready" {
				return nil
			}
		}
		return fmt.Errorf("the nodes are\n%s", out)
	})
	p.both(t, func(v *vm.VM) error { return v.Settled(ctx) })
	p.units(ctx, t)
}

// units: neither has ended and been started again by systemd.
func (p *platform) units(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, v := range []*vm.VM{p.server, p.node} {
		if got := must(ctx, t, v, "systemctl", "show", "-P", "NRestarts", "multipaas-"+v.Name()); got != "0" {
			t.Errorf("multipaas-%s was started again %s times, want none", v.Name(), got)
		}
	}
}

// restart: what systemd does with a unit besides starting it. Planes start again,
// machines go on, and who looks for them, in new mounts of its own, finds them.
func (p *platform) restart(ctx context.Context, t *testing.T) {
	machine, process := p.machine(ctx, t), p.firstProcess(ctx, t)
	p.both(t, func(v *vm.VM) error {
		_, err := v.Must(ctx, "systemctl", "restart", "multipaas-"+v.Name())
		return err
	})
	p.well(ctx, t)
	p.answers(ctx, t, p.node)
	if got := p.machine(ctx, t); got != machine {
		t.Errorf("the machine is %s, was %s", got, machine)
	}
	if got := p.firstProcess(ctx, t); got != process {
		t.Errorf("the machine's first process is %s, was %s: it has been started again", got, process)
	}
}

// reboot: both units end well before the machine does, and are among what boots.
func (p *platform) reboot(ctx context.Context, t *testing.T) {
	p.both(t, func(v *vm.VM) error {
		if err := v.Reboot(ctx); err != nil {
			return err
		}
		if err := v.Settled(ctx); err != nil {
			return err
		}
		unit := "multipaas-" + v.Name() + ".service"
		if _, err := v.Must(ctx, "systemctl", "is-active", unit); err != nil {
			return err
		}
		said, err := v.Must(ctx, "journalctl", "--no-pager", "-q", "-b", "-1", "-o", "cat", "UNIT="+unit)
		if err != nil {
			return err
		}
		if !strings.Contains(said, unit+": Deactivated successfully.") || strings.Contains(said, "Killing process") {
			return fmt.Errorf("%s did not end well before the reboot: %s", unit, said)
		}
		return nil
	})
	p.well(ctx, t)
}

// tell shows what the units have said, when a step has failed.
func (p *platform) tell(t *testing.T) {
	if !t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Minute)
	defer cancel()
	for _, v := range []*vm.VM{p.server, p.node} {
		for _, args := range [][]string{
			{"journalctl", "--no-pager", "-n", "60", "-o", "cat", "-u", "multipaas-" + v.Name()},
			{"multipaas", "status"},
			// Who is there, and in which control group; what each network knows of its members.
			{"ps", "-eo", "pid,ppid,stat,cgroup:60,args", "--cols", "220"},
			{"sh", "-c", "for n in $(ip netns list | cut -d' ' -f1); do echo \"== $n\"; for c in 'ip -br address' 'ip route' 'ip neighbour' 'bridge -statistics fdb'; do ip netns exec $n $c; done; done"},
			{"sh", "-c", "for log in " + data + "/machines/*/disk/log/*; do [ -e $log ] && tail -n 20 $log; done; true"},
			// Of what started and died again and again, the first and the last words.
			{"sh", "-c", "for log in " + data + "/planes/*/log/plane.log; do [ -e $log ] && grep -hE '^F|panic|died' $log | head -n 20; tail -n 40 $log; done; true"},
		} {
			r, err := v.Run(ctx, "", args...)
			if err != nil {
				t.Log(err)
				break
			}
			t.Log(r)
		}
	}
}
