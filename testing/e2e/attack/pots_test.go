package attack

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/wait"
)

// potter is A, taking what the kernel counts once for all tenants, or once for each
// user, as root in a pod and as root in a machine.
type potter struct {
	*suite
	home space // A's machine
	way  space // A's place on its host
	from []potFrom
}

type potFrom struct {
	name    string
	command func(ctx context.Context, args ...string) *exec.Cmd
}

// testPots shares the kernel with whatever else runs here: A takes no more than the
// kernel has by itself, most of it for some seconds.
func testPots(t *testing.T, s *suite) {
	id := s.workspaceID(t, dctest.Rival, "box")
	home := s.machineSpaces(t, id)[0]
	p := &potter{suite: s, home: home, way: space{home.host, "mp-" + id}}
	s.putTool(t)
	tool := s.toolInMachine(t)
	p.from = []potFrom{
		{"root in A's machine", func(ctx context.Context, args ...string) *exec.Cmd {
			return s.inMachine(ctx, t, append([]string{tool}, args...)...)
		}},
		{podOfA, func(ctx context.Context, args ...string) *exec.Cmd {
			cmd := exec.CommandContext(ctx, s.Binary, append([]string{"kubectl", "exec", "-i", s.attacker.name, "--", "/tool"}, args...)...)
			cmd.Env = append(os.Environ(), "KUBECONFIG="+s.box)
			return cmd
		}},
	}
	t.Run("kernel", p.kernel)
	t.Run("sizes", p.sizes)
	t.Run("tracking", p.tracking)
	t.Run("neighbours", p.neighbours) // whose packets are flows that A's place is full of
	t.Run("served", p.served)
	t.Run("hoarded", p.hoarded) // ends A's machine
	t.Run("silent", p.silent)   // too
}

// kernel has A take from each pot and B use them meanwhile.
func (p *potter) kernel(t *testing.T) {
	for _, from := range p.from {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		cmd := from.command(ctx, "take")
		in, err1 := cmd.StdinPipe()
		out, err2 := cmd.StdoutPipe()
		if err := errors.Join(err1, err2, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		took, ready := map[string]string{}, false
		for lines := bufio.NewScanner(out); !ready && lines.Scan(); {
			if ready = lines.Text() == "taken"; !ready {
				name, how, _ := strings.Cut(lines.Text(), " ")
				took[name] = how
			}
		}
		var err error
		if !ready || took["aio"] == "" {
			err = fmt.Errorf("it says %v", took)
		}
		if p.control(t, from.name+" takes what it can", err) {
			for _, v := range p.victims {
				r := p.in(t, v, "/tool", "use")
				got := map[string]string{}
				for line := range strings.Lines(r.Out) {
					name, how, _ := strings.Cut(strings.TrimSpace(line), " ")
					got[name] = how
				}
				for name, how := range took {
					if name == "keyring" { // pods may make none; who starts them must
						got[name] = "open, a command runs in the pod"
						if r.Code != 0 {
							got[name] = r.String()
						}
					}
					p.record(t, attempt{What: "use up what all share: " + name, From: from.name, Want: "B's pod on " + v.node + " gets what it needs",
						Got: fmt.Sprintf("A took %s; B: %s", how, got[name]), Blocked: strings.HasPrefix(got[name], "open")})
				}
			}
			if from.name != podOfA {
				p.control(t, "a machine has keyrings for 250 containers", said(took["keyring"], "250 "))
			}
		}
		err = errors.Join(in.Close(), cmd.Wait())
		cancel()
		if err != nil {
			t.Logf("%s: %v", from.name, err)
		}
	}
}

func said(got, want string) error {
	if !strings.HasPrefix(got, want) {
		return errors.New(got)
	}
	return nil
}

// sizes of what A could only use up with more memory than it has.
func (p *potter) sizes(t *testing.T) {
	for name, bytes := range map[string]int{ // that one costs at least
		"fs/aio-max-nr": 64, "fs/file-max": 176, "kernel/pty/max": 1100, "kernel/pid_max": 1 << 10, "kernel/keys/maxkeys": 1 << 18,
	} {
		out, err := p.home.host.Run(t.Context(), "cat", "/proc/sys/"+name)
		n, err2 := strconv.Atoi(strings.TrimSpace(string(out)))
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		p.record(t, attempt{What: "use up what all share, by all memory of A's machine: " + name, From: "root in A's machine",
			Want: fmt.Sprintf("at least %d", boxMemory/bytes), Got: strconv.Itoa(n), Blocked: n >= boxMemory/bytes})
	}
}

// neighbours has A look for everybody.
func (p *potter) neighbours(t *testing.T) {
	networks := []string{"172.30.0.0/20", "10.42.0.0/20", "10.42.240.0/20", "10.43.0.0/20", "100.64.0.0/20", "169.254.0.0/20", "198.51.100.0/24", p.Lab.Subnet().String()}
	passing := func() map[netip.Prefix]int {
		n := map[netip.Prefix]int{}
		for _, at := range []space{p.home, p.way, {host: p.home.host}} {
			out, err := at.command(t.Context(), "ip", "-4", "neigh", "show", "nud", "all").Output()
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(out)) {
				a, err := netip.ParseAddr(strings.Fields(line)[0])
				if err != nil || strings.Contains(line, "PERMANENT") || strings.Contains(line, "NOARP") {
					continue
				}
				for _, network := range networks {
					if network := netip.MustParsePrefix(network); network.Contains(a) {
						n[network]++
					}
				}
			}
		}
		return n
	}
	for _, from := range p.from {
		before := passing()
		out, err := from.command(t.Context(), append([]string{"scan"}, networks...)...).CombinedOutput()
		after := passing()
		for i, line := range slices.Collect(strings.Lines(string(out))) {
			if i >= len(networks) || !p.control(t, from.name+" looks for "+networks[i], errors.Join(err, said(line, networks[i]))) {
				continue
			}
			got := after[netip.MustParsePrefix(networks[i])] - before[netip.MustParsePrefix(networks[i])]
			p.record(t, attempt{What: "fill the kernel's table of neighbours, looking for all of " + networks[i], From: from.name, Want: "at most 8 more",
				Got: fmt.Sprintf("%d more; %s", got, line), Blocked: got <= 8})
		}
	}
}

// tracking has A fill the table of connections of its host, and B connect to the same
// place from the same host.
func (p *potter) tracking(t *testing.T) {
	const nobody = "198.51.100.2"
	host := space{host: p.home.host}
	neighbour := p.neighbour(t)
	server := space{host: p.Server}
	run := func(at space, ignore bool, args ...string) {
		if out, err := at.command(context.WithoutCancel(t.Context()), args...).CombinedOutput(); err != nil && !ignore {
			t.Fatalf("%s: %v: %v: %s", at, args, err, out)
		}
	}
	run(server, false, "ip", "route", "add", "blackhole", nobody+"/32")
	defer run(server, true, "ip", "route", "del", "blackhole", nobody+"/32")
	run(host, false, "ip", "route", "add", nobody+"/32", "via", p.Server.Address().String())
	defer run(host, true, "ip", "route", "del", nobody+"/32")
	address := strings.TrimPrefix(p.besides(t), "tcp:")
	for _, flood := range []struct {
		what string
		args []string
	}{
		{"connections that are over", []string{"churn", address, "2"}},
		{"connections that nobody answers", []string{"half", nobody + ":80", "2"}},
		{"flows of UDP", []string{"udp", nobody, "2"}},
	} {
		for _, from := range p.from {
			before := p.tracked(t, host)
			met := neighbour.command(t.Context(), hostTool, "meet", address, "2")
			answers, err := met.StdoutPipe()
			if err := errors.Join(err, met.Start()); err != nil {
				t.Fatal(err)
			}
			said, err := from.command(t.Context(), flood.args...).CombinedOutput()
			inTable, inWay := p.tracked(t, host)-before, p.tracked(t, p.way)
			answer, _ := io.ReadAll(answers)
			_ = met.Wait()
			if strings.Contains(string(said), "made 0,") {
				err = errors.Join(err, errors.New(string(said)))
			}
			if !p.control(t, from.name+" makes "+flood.what, err) {
				continue
			}
			const most = connectionsOfOne
			p.record(t, attempt{What: "fill the host's table of connections with " + flood.what, From: from.name, Want: fmt.Sprintf("at most %d, and as many on A's way", most),
				Got: fmt.Sprintf("%d more, %d on A's way; %s", inTable, inWay, said), Blocked: inTable <= most && inWay <= most})
			// Now and then one of them begins a second late, for its first packet is lost: then fewer
			// are made in this time. Where the table is full, none is.
			var made, refused int
			_, _ = fmt.Sscanf(string(answer), "connected %d, refused %d,", &made, &refused)
			p.record(t, attempt{What: "starve new connections of B from the same host: " + flood.what, From: from.name, Want: "all but one are made",
				Got: string(answer), Blocked: made >= 8 && refused <= 1})
		}
	}
}

// connectionsOfOne is how many connections a host keeps in mind for a workspace
// (modules/network: open ones, and those that are over for a minute), and
// some that were made within its network.
const connectionsOfOne = 8192 + 2000 + 60*100 + 1024

// neighbour is a machine of B's on the host of A's.
func (p *potter) neighbour(t *testing.T) space {
	t.Helper()
	all := p.machineSpaces(t, p.workspaceID(t, datacenter.Owner, "shop"))
	i := slices.IndexFunc(all, func(m space) bool { return m.host.Name() == p.home.host.Name() })
	if i < 0 {
		t.Fatalf("B has machines on %v, none on %s", all, p.home.host.Name())
	}
	return all[i]
}

// tracked is how many connections a namespace keeps in mind.
func (p *potter) tracked(t *testing.T, at space) int {
	t.Helper()
	out, err := at.command(t.Context(), "cat", "/proc/sys/net/netfilter/nf_conntrack_count").Output()
	n, err2 := strconv.Atoi(strings.TrimSpace(string(out)))
	if err := errors.Join(err, err2); err != nil {
		t.Fatalf("%s: %v", at, err)
	}
	return n
}

// served has anybody fill the server's table by what it serves.
func (p *potter) served(t *testing.T) {
	server := space{host: p.Server}
	for _, port := range []int{80, 443, 5000, 6443, 7443} {
		address := net.JoinHostPort(p.Server.Address().String(), strconv.Itoa(port))
		before, made := p.tracked(t, server), 0
		for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
			if conn, err := net.DialTimeout("tcp", address, time.Second); err == nil {
				conn.Close()
				made++
			}
		}
		var err error
		if made < 50 {
			err = fmt.Errorf("%d in half a second", made)
		}
		if p.control(t, "anybody connects to "+address, err) {
			got := p.tracked(t, server) - before
			p.record(t, attempt{What: "fill the server's table of connections by " + address, From: "outside", Want: "they take no place in it",
				Got: fmt.Sprintf("%d more by %d", got, made), Blocked: got < made/4})
		}
	}
}

// hoarded has root in A's machine fill the kernel's table of neighbours for good, from
// namespaces of its own making.
func (p *potter) hoarded(t *testing.T) {
	host, server := space{host: p.home.host}, space{host: p.Server}
	root := p.from[0]
	ctx, cancel := context.WithTimeout(t.Context(), wait.Patience)
	defer cancel()
	for i, how := range [][]string{{"hoard", "hidden"}, {"hoard"}} {
		if i > 0 {
			p.back(t)
		}
		cmd := root.command(ctx, how...)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		began := time.Now()
		out, err := cmd.CombinedOutput()
		took := time.Since(began).Round(time.Millisecond)
		p.record(t, attempt{What: "fill the kernel's table of neighbours for good: " + strings.Join(how, " "), From: root.name, Want: "the machine is ended",
			Got: fmt.Sprintf("%v after %s: %s", err, took, out), Blocked: err != nil && ctx.Err() == nil})
	}
	// An address of the host's network that it has not spoken to yet.
	fresh := p.Lab.Subnet().Addr()
	for range 240 {
		fresh = fresh.Next()
	}
	place := func(what string) {
		if out, err := server.command(t.Context(), "ip", "address", what, fresh.String()+"/32", "dev", "lo").CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v: %s", what, fresh, err, out)
		}
	}
	place("add")
	defer place("del")
	said, err := host.command(t.Context(), hostTool, "meet", net.JoinHostPort(fresh.String(), "443"), "0").CombinedOutput()
	answered := err == nil && (strings.HasPrefix(string(said), "connected 10,") || strings.Contains(string(said), "connection refused"))
	p.record(t, attempt{What: "starve a host of neighbours", From: root.name, Want: "it finds who it has not spoken to yet", Got: string(said), Blocked: answered})
	p.back(t)
}

// back waits until A's machine and its pod run again.
func (p *potter) back(t *testing.T) {
	t.Helper()
	wait.For(t, wait.Patience, "A's machine is back", func(ctx context.Context) error { return p.inMachine(ctx, t, "true").Run() })
	wait.For(t, wait.Patience, "A's pod is back", func(context.Context) error {
		if r := p.in(t, p.attacker, "/tool", "who"); r.Code != 0 {
			return errors.New(r.String())
		}
		return nil
	})
}

// silent has root in A's machine keep waiting whoever looks into it, for ever and beyond any
// signal, and be ended then.
func (p *potter) silent(t *testing.T) {
	root := p.from[0]
	// As udev makes it, which a lab has not: for everybody.
	fuse := p.home.host.Root("dev/fuse")
	info, err := os.Stat(fuse)
	if err := cmp.Or(err, os.Chmod(fuse, 0o666)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Chmod(fuse, info.Mode().Perm()) }()
	cmd := root.command(context.WithoutCancel(t.Context()), "silent", "mounted", "nowhere")
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	var words strings.Builder
	cmd.Stderr = &words
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = cmd.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		err = said(line, "silent")
	}
	if err != nil {
		_ = cmd.Wait()
		err = fmt.Errorf("%w: %s", err, words.String())
	}
	if !p.control(t, "the root of A's machine is a file system that does not answer", err) {
		return
	}
	began := time.Now()
	fresh := func(after time.Time) error {
		var nodes struct {
			Items []struct {
				Name   string
				Status struct {
					Phase       string
					HeartbeatAt time.Time
				}
			}
		}
		if err := json.Unmarshal([]byte(p.Must(t, datacenter.Admin, "nodes", "list", "-o", "json")), &nodes); err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes.Items {
			if n.Name == p.home.host.Name() && (n.Status.Phase != "Ready" || !n.Status.HeartbeatAt.After(after)) {
				return fmt.Errorf("%s is %s, last heard of at %v", n.Name, n.Status.Phase, n.Status.HeartbeatAt)
			}
		}
		return nil
	}
	// One report may have been under way.
	for range 2 {
		after := time.Now()
		err = errors.Join(err, wait.Until(t.Context(), wait.Patience, "A's host reports", func(context.Context) error { return fresh(after) }))
	}
	p.record(t, attempt{What: "keep the host from reporting, by a root that does not answer", From: root.name, Want: "its reports go on",
		Got: fmt.Sprintf("%v after %v", err, time.Since(began).Round(time.Second)), Blocked: err == nil})

	// It is ended, though no signal ends it, and started again.
	uid := strings.TrimPrefix(p.home.name, "mpm-")
	began = time.Now()
	runc, err := filepath.Glob(p.home.host.Root("var/lib/multipaas/payload/trees/*/runtime/runc"))
	if err != nil || len(runc) == 0 {
		t.Fatalf("no runc: %v", err)
	}
	if out, err := p.home.host.Run(t.Context(), strings.TrimPrefix(runc[0], p.home.host.Root()), "--root", "/run/multipaas/runc", "kill", uid, "KILL"); err != nil {
		t.Fatalf("end A's machine: %v: %s", err, out)
	}
	err = wait.Until(t.Context(), wait.Patience, "A's machine runs", func(ctx context.Context) error { return p.inMachine(ctx, t, "true").Run() })
	p.record(t, attempt{What: "live on beyond the machine's end, waiting for an answer of its own", From: root.name, Want: "the machine is started again",
		Got: fmt.Sprintf("%v after %v", err, time.Since(began).Round(time.Second)), Blocked: err == nil})
	p.back(t)
}
