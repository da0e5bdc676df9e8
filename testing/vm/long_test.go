package vm_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/vm"
	"github.com/multipaas/multipaas/testing/wait"
)

// workspace makes a tenant with a workspace of one machine and an app of one
// pod, which answers over TLS through the balancer.
func (p *platform) workspace(ctx context.Context, t *testing.T) {
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"account", p.built.MakeAccount},
		{"organization", p.built.MakeOrganization},
		{"workspace", p.built.MakeWorkspace},
		{"app", p.built.DeployApp},
	} {
		began := time.Now()
		if err := step.do(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s took %.0f s", step.name, time.Since(began).Seconds())
	}
	p.answers(ctx, t, p.node)
	p.well(ctx, t)
	p.limits(ctx, t)
}

// pods: what control groups version 1 will not have runs on version 2: a privileged
// pod, once pod security is lifted, and one that may use more processors than its
// machine has.
func (p *platform) pods(ctx context.Context, t *testing.T) {
	level := func(level string) {
		if _, err := p.built.Desk.MP(ctx, datacenter.Admin, "ws", "set", datacenter.Workspace, "--account", datacenter.Account,
			"--organization", datacenter.Organization, "--pod-security", level, "--timeout", "10m"); err != nil {
			t.Fatal(err)
		}
	}
	kubectl := func(args ...string) (string, error) {
		return p.server.Must(ctx, append([]string{"env", "MP_CONFIG=" + p.built.Desk.Path("mp-"+datacenter.Owner),
			"KUBECONFIG=" + p.built.Desk.Path(datacenter.KubeconfigFile), "multipaas", "kubectl"}, args...)...)
	}
	level("privileged")
	for name, container := range map[string]string{
		"privileged": `"securityContext":{"privileged":true}`, "generous": `"resources":{"requests":{"cpu":"10m"},"limits":{"cpu":"2500m"}}`,
	} {
		image := "multipaas.internal/hello:1"
		wait.For(t, patience, "a "+name+" pod is taken", func(context.Context) error { // once the plane has read its level
			_, err := kubectl("run", name, "--image", image, "--restart", "Never", "--overrides",
				fmt.Sprintf(`{"spec":{"containers":[{"name":%q,"image":%q,%s}]}}`, name, image, container))
			return err
		})
		if out, err := kubectl("wait", "--for=condition=Ready", "pod/"+name, "--timeout=20m"); err != nil {
			t.Errorf("a %s pod doesn't run: %v %s", name, err, out)
		}
		if _, err := kubectl("delete", "pod", name, "--grace-period=1"); err != nil {
			t.Error(err)
		}
	}
	level("baseline")
}

// limits: what bounds a machine is in force on control groups version 2, and
// what udev sets on new network devices has not weakened ours.
func (p *platform) limits(ctx context.Context, t *testing.T) {
	groups := strings.Fields(must(ctx, t, p.node, "find", "/sys/fs/cgroup/multipaas/machines", "-mindepth", "1", "-maxdepth", "1", "-type", "d"))
	if len(groups) != 1 {
		t.Fatalf("control groups of machines: got %v, want one", groups)
	}
	for file, want := range map[string]string{"memory.max": "2147483648", "cpu.max": "200000 100000"} {
		if got := must(ctx, t, p.node, "cat", groups[0]+"/"+file); got != want {
			t.Errorf("%s of the machine is %s, want %s", file, got, want)
		}
	}
	given := strings.Fields(must(ctx, t, p.node, "cat", groups[0]+"/cgroup.subtree_control"))
	for _, c := range []string{"cpu", "cpuset", "memory", "pids"} {
		if !slices.Contains(given, c) {
			t.Errorf("pods get the controllers %v, want %s too", given, c)
		}
	}
	wait.For(t, patience, "strict reverse path filter on the uplink", func(ctx context.Context) error {
		out, err := p.node.Must(ctx, "sh", "-c", "cat /proc/sys/net/ipv4/conf/mpu-*/rp_filter")
		if err == nil && out != "1" {
			err = fmt.Errorf("rp_filter is %q, want 1", out)
		}
		return err
	})
}

// answers waits until the app answers over TLS through the balancer, asked from
// one of the machines, which trusts the platform's authority only.
func (p *platform) answers(ctx context.Context, t *testing.T, from *vm.VM) {
	t.Helper()
	ca := p.built.Desk.Path(datacenter.CAFile)
	if from != p.server {
		if err := from.Write(ctx, ca, must(ctx, t, p.server, "cat", ca)); err != nil {
			t.Fatal(err)
		}
	}
	wait.For(t, patience, "the app answers, asked from "+from.Name(), func(ctx context.Context) error {
		out, err := from.Must(ctx, "curl", "-sS", "--fail", "--max-time", "60", "--cacert", ca,
			"--resolve", datacenter.AppHost+":443:"+p.server.Address().String(), "https://"+datacenter.AppHost+"/")
		if err == nil && out == "" {
			err = fmt.Errorf("an empty answer")
		}
		return err
	})
}

// machine is what stays of a machine whatever happens to its host: name, uid
// and address of the cluster's node.
func (p *platform) machine(ctx context.Context, t *testing.T) string {
	t.Helper()
	var found string
	wait.For(t, patience, "the cluster's node is ready", func(ctx context.Context) error {
		out, err := p.server.Must(ctx, "env", "MP_CONFIG="+p.built.Desk.Path("mp-"+datacenter.Owner),
			"KUBECONFIG="+p.built.Desk.Path(datacenter.KubeconfigFile), "multipaas", "kubectl", "get", "nodes", "-o",
			`jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.status.addresses[?(@.type=="InternalIP")].address} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
		if err != nil {
			return err
		}
		identity, ready := strings.CutSuffix(strings.TrimSpace(out), " True")
		if !ready || len(strings.Fields(identity)) != 3 {
			return fmt.Errorf("the nodes are %q", out)
		}
		found = identity
		return nil
	})
	return found
}

// firstProcess is the host's id of the machine's process 1, with when it started.
func (p *platform) firstProcess(ctx context.Context, t *testing.T) string {
	t.Helper()
	pid := strings.Fields(must(ctx, t, p.node, "pgrep", "-o", "-x", "-f", "/opt/multipaas/init .*"))
	if len(pid) != 1 {
		t.Fatalf("init of the machine: got processes %v, want one", pid)
	}
	stat := strings.Fields(must(ctx, t, p.node, "cat", "/proc/"+pid[0]+"/stat"))
	return pid[0] + " since " + stat[21]
}

// agentAway: the machine runs on while the node's unit is stopped, and systemd
// can start the unit again.
func (p *platform) agentAway(ctx context.Context, t *testing.T) {
	before := p.firstProcess(ctx, t)
	must(ctx, t, p.node, "systemctl", "stop", "multipaas-node")
	p.answers(ctx, t, p.server)
	// Not by what runs in it: by its name, and by the machine's mounts.
	if names := must(ctx, t, p.node, "ip", "netns", "list"); len(strings.Split(names, "\n")) < 2 {
		t.Errorf("without the agent the host sees the networks %q, want the workspace's and the machine's", names)
	}
	for _, dir := range []string{"disk", "root"} {
		must(ctx, t, p.node, "sh", "-c", "mountpoint "+data+"/machines/*/"+dir)
	}
	must(ctx, t, p.node, "systemctl", "daemon-reload")
	must(ctx, t, p.node, "systemctl", "start", "multipaas-node")
	must(ctx, t, p.node, "systemctl", "restart", "multipaas-node")
	p.well(ctx, t)
	if after := p.firstProcess(ctx, t); after != before {
		t.Errorf("the machine's first process is %s, was %s: it has been started again", after, before)
	}
}

// clock sets the clock of one machine and then the other a day on, and a day
// back. The app goes on answering to those whose clock is right, and everything
// is well again when the clock is.
func (p *platform) clock(ctx context.Context, t *testing.T) {
	machine, process := p.machine(ctx, t), p.firstProcess(ctx, t)
	for _, c := range []struct {
		wrong, right *vm.VM
		jump         time.Duration
	}{
		{p.server, p.node, 24 * time.Hour}, {p.server, p.node, -24 * time.Hour},
		{p.node, p.server, 24 * time.Hour}, {p.node, p.server, -24 * time.Hour},
	} {
		t.Run(fmt.Sprintf("%s %s", c.wrong.Name(), c.jump), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			shift(ctx, t, c.wrong, c.jump)
			p.answers(ctx, t, c.right)
			for range 3 { // as long as the platform looks at everything once and again
				must(ctx, t, c.wrong, "sleep", "40")
				p.answers(ctx, t, c.right)
			}
			p.units(ctx, t)
			shift(ctx, t, c.wrong, -c.jump)
			p.answers(ctx, t, c.right)
			p.answers(ctx, t, c.wrong)
			p.well(ctx, t)
			if got := p.machine(ctx, t); got != machine {
				t.Errorf("the machine is %s, was %s", got, machine)
			}
			if got := p.firstProcess(ctx, t); got != process {
				t.Errorf("the machine's first process is %s, was %s: it has been started again", got, process)
			}
		})
	}
}

// shift moves the clock of a machine.
func shift(ctx context.Context, t *testing.T, v *vm.VM, by time.Duration) {
	t.Helper()
	now, err := strconv.ParseInt(must(ctx, t, v, "date", "+%s"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	must(ctx, t, v, "date", "-s", fmt.Sprintf("@%d", now+int64(by.Seconds())))
}

// power takes the power from the node, then from both: what was there is there
// again, under the same names and addresses.
func (p *platform) power(ctx context.Context, t *testing.T) {
	machine := p.machine(ctx, t)
	for _, off := range [][]*vm.VM{{p.node}, {p.server, p.node}} {
		for _, v := range off {
			v.Cut()
		}
		for _, v := range off {
			if err := v.Power(); err != nil {
				t.Fatal(err)
			}
		}
		p.answers(ctx, t, p.server)
		p.well(ctx, t)
		if got := p.machine(ctx, t); got != machine {
			t.Errorf("after a power loss the machine is %s, was %s", got, machine)
		}
	}
}
