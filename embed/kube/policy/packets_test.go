package policy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/knftables"
)

// space is a network namespace: a pod's, the machine's, or the world outside.
type space struct {
	t    testing.TB
	file *os.File
	pid  int // of a thread that is in it

	mu    sync.Mutex
	heard map[string]bool // who sent to UDP port 53
}

// hears waits for a packet from an address.
func (s *space) hears(from string, wait time.Duration) bool {
	for end := time.Now().Add(wait); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		heard := s.heard[from]
		s.mu.Unlock()
		if heard {
			return true
		}
	}
	return false
}

// newSpace makes a namespace that lives as long as the test.
func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{t: t, heard: map[string]bool{}}
	made, gone := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.pid = unix.Gettid()
			s.file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", s.pid))
		}
		made <- err
		<-gone
	}()
	if err := <-made; err != nil {
		t.Skipf("network namespaces need root: %v", err)
	}
	t.Cleanup(func() {
		close(gone)
		s.file.Close()
	})
	return s
}

// in runs f in the namespace.
func (s *space) in(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
			s.t.Error(err)
			return
		}
		f()
	}()
	<-done
}

func (s *space) run(lines string) {
	s.t.Helper()
	s.in(func() {
		c := exec.Command("sh", "-ec", lines)
		if out, err := c.CombinedOutput(); err != nil {
			s.t.Errorf("%s: %v\n%s", lines, err, out)
		}
	})
}

// serve answers on ports.
func (s *space) serve() {
	s.in(func() {
		for _, port := range []int{80, 81} {
			l, err := net.Listen("tcp4", fmt.Sprintf(":%d", port))
			if err != nil {
				s.t.Error(err)
				return
			}
			s.t.Cleanup(func() { l.Close() })
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer conn.Close()
						buf := make([]byte, 64)
						for {
							n, err := conn.Read(buf)
							if err != nil {
								return
							}
							conn.Write(buf[:n])
						}
					}()
				}
			}()
		}
		c, err := net.ListenPacket("udp4", ":53")
		if err != nil {
			s.t.Error(err)
			return
		}
		s.t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 64)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				s.mu.Lock()
				s.heard[from.(*net.UDPAddr).IP.String()] = true
				s.mu.Unlock()
				c.WriteTo(buf[:n], from)
			}
		}()
	})
}

// dial opens a connection in the namespace.
func (s *space) dial(network, to string, wait time.Duration) (conn net.Conn, err error) {
	s.in(func() {
		d := net.Dialer{Timeout: wait}
		conn, err = d.DialContext(context.Background(), network, to)
	})
	return conn, err
}

// echo says whether what is sent comes back.
func echo(conn net.Conn, wait time.Duration) bool {
	conn.SetDeadline(time.Now().Add(wait))
	if _, err := conn.Write([]byte("hello")); err != nil {
		return false
	}
	_, err := conn.Read(make([]byte, 16))
	return err == nil
}

func (s *space) reaches(network, to string) bool {
	const wait = 250 * time.Millisecond
	conn, err := s.dial(network, to, wait)
	if err != nil {
		return false
	}
	defer conn.Close()
	return echo(conn, wait)
}

// machine is a router with pods behind links of their own, as the CNI plugin
// makes them, and a host outside.
type machine struct {
	router, outside *space
	pods            []*space // at 10.42.1.1.. + 2
	kernel          kernel
}

func newMachine(t testing.TB, pods int) *machine {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("no nft")
	}
	m := &machine{router: newSpace(t), outside: newSpace(t)}
	m.outside.run("ip link set lo up; ip link add eth0 type veth peer name eth0 netns " + fmt.Sprint(m.router.pid) + `
ip addr add 172.30.0.1/20 dev eth0; ip link set eth0 up; ip route add 10.42.0.0/16 via 172.30.0.11 dev eth0 onlink`)
	m.router.run("ip link set lo up; ip addr add 172.30.0.11/20 dev eth0; ip link set eth0 up; sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=1")
	for i := range pods {
		s := newSpace(t)
		s.run(fmt.Sprintf(`ip link set lo up; ip link add eth0 type veth peer name veth%[1]d netns %[2]d
ip addr add 10.42.1.%[1]d/32 dev eth0; ip link set eth0 up; ip route add 10.42.1.1 dev eth0; ip route add default via 10.42.1.1`, i+2, m.router.pid))
		m.router.run(fmt.Sprintf("ip addr add 10.42.1.1/32 dev veth%[1]d; ip link set veth%[1]d up; ip route add 10.42.1.%[1]d dev veth%[1]d", i+2))
		m.pods = append(m.pods, s)
		s.serve()
	}
	m.outside.serve()
	m.router.serve()
	m.router.in(func() {
		nft, err := knftables.New(knftables.IPv4Family, tableName)
		if err != nil {
			t.Error(err)
		}
		m.kernel.nft = nft
	})
	if t.Failed() {
		t.FailNow()
	}
	return m
}

func (m *machine) write(t testing.TB, r *rules) {
	t.Helper()
	m.router.in(func() {
		if err := m.kernel.write(context.Background(), r); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		m.router.run("nft list ruleset >&2; false")
		t.FailNow()
	}
}

// TestPackets: in random clusters, real packets pass a real kernel as the model says.
func TestPackets(t *testing.T) {
	const pods = 3
	machine := newMachine(t, pods)
	addresses := map[netip.Addr]*space{netip.MustParseAddr("172.30.0.1"): machine.outside}
	for i, s := range machine.pods {
		addresses[netip.AddrFrom4([4]byte{10, 42, 1, byte(i + 2)})] = s
	}
	r := rand.New(rand.NewPCG(7, 7))
	w := newWorld()
	for round := range 12 {
		m := &model{namespaces: map[string]*corev1.Namespace{}, pods: map[string]*corev1.Pod{}, policies: map[string]*networking.NetworkPolicy{}, local: map[string]bool{}}
		for _, name := range spaces {
			m.namespaces[name] = &corev1.Namespace{}
			m.namespaces[name].Name, m.namespaces[name].Labels = name, randomLabels(r)
			w.setNamespace(name, &namespace{m.namespaces[name].ObjectMeta})
			for _, p := range []string{"p", "q"} {
				w.deletePolicy(name, p)
				if r.IntN(3) > 0 {
					m.policies[name+"/"+p] = randomPolicy(r, name, p)
					w.setPolicy(read(m.policies[name+"/"+p]))
				}
			}
		}
		for i := range pods {
			uid := fmt.Sprint("pod", i)
			p := randomPod(r, uid, i+2)
			p.UID, p.Spec.HostNetwork, p.Status.Phase = types.UID(uid), false, corev1.PodRunning
			m.pods[uid], m.local[uid] = p, true
		}
		w.setLocal(m.residents())
		for _, p := range m.pods {
			w.setPod(slimPod(p))
		}
		machine.write(t, w.rules())
		var wg sync.WaitGroup
		for from, s := range addresses {
			for to := range addresses {
				for target, p := range map[string]packet{
					"tcp:80": {from, to, corev1.ProtocolTCP, 80}, "tcp:81": {from, to, corev1.ProtocolTCP, 81}, "udp:53": {from, to, corev1.ProtocolUDP, 53},
				} {
					network, port, _ := strings.Cut(target, ":")
					wg.Go(func() {
						want := m.passes(p)
						got := s.reaches(network, net.JoinHostPort(to.String(), port))
						for tries := 0; want && !got && tries < 4; tries++ {
							got = s.reaches(network, net.JoinHostPort(to.String(), port))
						}
						if got != want {
							t.Errorf("round %d: %s reaches %s %s: %v, want %v", round, from, to, target, got, want)
						}
					})
				}
			}
		}
		wg.Wait()
		if t.Failed() {
			machine.router.run("nft list ruleset >&2; false")
			t.FailNow()
		}
	}
}

// TestConnections: a policy cuts what it forbids, not what it doesn't mean, and
// the machine's own probes always pass.
func TestConnections(t *testing.T) {
	const soon = 2 * time.Second
	machine := newMachine(t, 2)
	a, b := machine.pods[0], machine.pods[1]
	first, second := netip.MustParseAddr("10.42.1.2"), netip.MustParseAddr("10.42.1.3")
	w := newWorld()
	w.setNamespace("x", &namespace{})
	local := map[netip.Addr]resident{}
	for name, at := range map[string]netip.Addr{"a": first, "b": second} {
		o := randomPod(rand.New(rand.NewPCG(1, 1)), name, int(at.As4()[3]))
		o.Namespace, o.Spec.HostNetwork, o.Status.Phase, o.Labels = "x", false, corev1.PodRunning, map[string]string{"app": name}
		w.setPod(slimPod(o))
		local[at] = resident{"x", name, name}
	}
	w.setLocal(local)
	machine.write(t, w.rules())
	must := func(network, to string, from *space) net.Conn {
		t.Helper()
		conn, err := from.dial(network, to, soon)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if !echo(conn, soon) {
			t.Fatal("no answer")
		}
		return conn
	}
	toB, toA := must("tcp4", "10.42.1.3:80", a), must("tcp4", "10.42.1.2:80", b)
	udp := must("udp4", "10.42.1.3:53", a)

	deny := &networking.NetworkPolicy{}
	deny.Namespace, deny.Name = "x", "deny"
	deny.Spec.PodSelector.MatchLabels = map[string]string{"app": "b"}
	deny.Spec.PolicyTypes = []networking.PolicyType{networking.PolicyTypeIngress}
	w.setPolicy(read(deny))
	machine.write(t, w.rules())
	if echo(toB, 300*time.Millisecond) {
		t.Error("a TCP connection that a new policy forbids goes on")
	}
	if echo(udp, 300*time.Millisecond) {
		t.Error("what was sent by UDP before a policy forbids it goes on")
	}
	if !echo(toA, soon) {
		t.Error("a connection the other way, which no policy forbids, is cut")
	}
	if !machine.router.reaches("tcp4", "10.42.1.3:80") {
		t.Error("the machine's own probe of a pod that lets nobody in is dropped")
	}
	if machine.outside.reaches("tcp4", "10.42.1.3:80") || !machine.outside.reaches("tcp4", "10.42.1.2:80") {
		t.Error("from outside: want the pod that no policy selects, and not the other")
	}

	deny.Spec.PolicyTypes = []networking.PolicyType{networking.PolicyTypeEgress}
	w.setPolicy(read(deny))
	machine.write(t, w.rules())
	if echo(toA, 300*time.Millisecond) || b.reaches("tcp4", "172.30.0.1:80") || b.reaches("tcp4", "172.30.0.11:80") || b.reaches("udp4", "10.42.1.1:53") {
		t.Error("a pod that may send nothing reaches a pod, what is outside or its machine")
	}
	if !machine.outside.reaches("tcp4", "10.42.1.3:80") || !b.reaches("tcp4", "10.42.1.3:80") {
		t.Error("a pod that may open no connection doesn't answer, or doesn't reach itself")
	}
	w.deletePolicy("x", "deny")

	// An address that nobody has noted, and one that is another's.
	delete(local, second)
	w.setLocal(local)
	machine.write(t, w.rules())
	if b.reaches("tcp4", "10.42.1.2:80") || machine.outside.reaches("tcp4", "10.42.1.3:80") {
		t.Error("a pod that isn't known has a network")
	}
	local[second] = resident{"x", "b", "b"}
	w.setLocal(local)
	machine.write(t, w.rules())
	for _, as := range []string{"10.42.1.2", "10.42.1.77", "172.30.0.1", "10.42.1.3"} {
		to, by := "172.30.0.1:53", machine.outside
		if as == "172.30.0.1" {
			to, by = "10.42.1.2:53", a
		}
		if as != "10.42.1.3" {
			b.run("ip addr add " + as + "/32 dev lo")
		}
		b.in(func() {
			conn, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(as)}}).Dial("udp4", to)
			if err == nil {
				_, err = conn.Write([]byte("hello"))
				conn.Close()
			}
			if err != nil {
				t.Error(err)
			}
		})
		if as != "10.42.1.3" {
			b.run("ip addr del " + as + "/32 dev lo")
		}
		switch own := as == "10.42.1.3"; {
		case own && !by.hears(as, soon):
			t.Error("a pod's own packets are dropped")
		case !own && by.hears(as, 100*time.Millisecond):
			t.Errorf("a pod's packet from the address %s, which is another's, arrives", as)
		}
	}
}
