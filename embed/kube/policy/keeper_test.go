package policy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/knftables"
)

// desk is a keeper that serves, without an API server.
type desk struct {
	*keeper
	t    *testing.T
	nft  *knftables.Fake
	stop func()
}

func newDesk(t *testing.T, dir string, nft *knftables.Fake) *desk {
	t.Helper()
	k := newKeeper(Config{Dir: dir}, nil, nft)
	ctx, cancel := context.WithCancel(t.Context())
	end, err := k.listen(ctx)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.serve(ctx)
	}()
	d := &desk{keeper: k, t: t, nft: nft, stop: func() {
		cancel()
		end()
		<-done
	}}
	t.Cleanup(d.stop)
	return d
}

// know says what has been read of the API server's objects.
func (d *desk) know(policies, pods bool) {
	d.change(func(*world) { d.policies, d.pods, d.watching = policies, pods, true })
}

// note does what the CNI plugin does, and returns what is answered to it.
func note(t *testing.T, dir, id string, r resident, a string) <-chan string {
	t.Helper()
	data, err := json.Marshal(map[string]string{"namespace": r.Namespace, "name": r.Name, "uid": r.UID, "address": a})
	if err == nil {
		err = os.MkdirAll(filepath.Join(dir, podsDir), 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, podsDir, id), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	answer := make(chan string, 1)
	conn, err := net.Dial("unix", filepath.Join(dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer conn.Close()
		fmt.Fprintln(conn, id)
		line, _ := bufio.NewReader(conn).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	return answer
}

func waits(t *testing.T, answer <-chan string, what string) {
	t.Helper()
	select {
	case got := <-answer:
		t.Errorf("%s: answered %q, want that it waits", what, got)
	case <-time.After(50 * time.Millisecond):
	}
}

func ok(t *testing.T, answer <-chan string) {
	t.Helper()
	select {
	case got := <-answer:
		if got != "ok" {
			t.Errorf("answered %q", got)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no answer")
	}
}

// TestNoWindow: a pod is let go once its rules are in the kernel, not before; who
// comes after this process keeps what it wrote.
func TestNoWindow(t *testing.T) {
	dir := t.TempDir()
	nft := knftables.NewFake(knftables.IPv4Family, tableName)
	d := newDesk(t, dir, nft)
	first := resident{"x", "first", "u1"}
	answer := note(t, dir, "c1", first, "10.42.1.2")
	waits(t, answer, "before the policies are known")
	if !strings.Contains(d.reason(), "have not been read") {
		t.Errorf("the reason is %q", d.reason())
	}
	d.know(true, false)
	ok(t, answer) // there are none

	deny := &networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "deny"}}
	d.change(func(w *world) { w.setPolicy(read(deny)) })
	second := note(t, dir, "c2", resident{"x", "second", "u2"}, "10.42.1.3")
	waits(t, second, "before pods are known")
	d.know(true, true)
	waits(t, second, "a pod of a namespace with policies that the API server has not told of")
	ok(t, note(t, dir, "c3", resident{"y", "third", "u3"}, "10.42.1.4")) // no policies there
	if got := nft.Dump(); !strings.Contains(got, "10.42.1.3 : goto closed") {
		t.Errorf("a pod that isn't known is not shut:\n%s", got)
	}
	d.change(func(w *world) {
		w.setPod(&pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "second", UID: "u2"}})
	})
	ok(t, second)
	if got := nft.Dump(); !strings.Contains(got, "10.42.1.3 : goto "+podsPrefix) || strings.Contains(got, "ingress { 10.42.1.4") {
		t.Errorf("the rules are\n%s", got)
	}

	d.stop()
	before := nft.Dump()
	again := newDesk(t, dir, nft)
	waits(t, note(t, dir, "c4", resident{"x", "fourth", "u4"}, "10.42.1.5"), "a process that has just begun")
	if got := nft.Dump(); got != before {
		t.Errorf("before it knows better, a new process has changed\n%s\nto\n%s", before, got)
	}
	again.change(func(w *world) {
		w.setPolicy(read(deny))
		for i, name := range []string{"first", "second", "fourth"} {
			w.setPod(&pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name, UID: []types.UID{"u1", "u2", "u4"}[i]}})
		}
	})
	again.know(true, true)
	ok(t, note(t, dir, "c4", resident{"x", "fourth", "u4"}, "10.42.1.5"))
	for _, a := range []string{"10.42.1.2", "10.42.1.3", "10.42.1.5"} {
		if got := nft.Dump(); !strings.Contains(got, a+" : goto "+podsPrefix) {
			t.Errorf("%s is open:\n%s", a, got)
		}
	}
}

// TestNotes: what is half written is nobody's, and what goes is gone.
func TestNotes(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"whole": `{"namespace":"x","name":"p","uid":"u","address":"10.42.1.2"}`, "half": `{"namespace":"x","na`,
		"empty": "", "six": `{"namespace":"x","name":"q","uid":"v","address":"fd00::1"}`, "none": `{"namespace":"x","name":"r","uid":"w"}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	byID, byAddress, err := readResidents(dir)
	want := resident{"x", "p", "u"}
	if err != nil || len(byID) != 1 || byID["whole"] != want || byAddress[netip.MustParseAddr("10.42.1.2")] != want {
		t.Errorf("read %v, %v, %v", byID, byAddress, err)
	}
	if byID, _, err := readResidents(filepath.Join(dir, "missing")); err != nil || len(byID) != 0 {
		t.Errorf("no folder: %v, %v", byID, err)
	}
}

// TestWatchBehind: a pod waits for the policies that were there when it was made, also
// when the watch of them is behind, and not for an API server that doesn't answer.
func TestWatchBehind(t *testing.T) {
	dir := t.TempDir()
	d := newDesk(t, dir, knftables.NewFake(knftables.IPv4Family, tableName))
	d.know(true, true)
	deny := &networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "deny", ResourceVersion: "9"}}
	d.change(func(w *world) { w.setPolicy(read(deny)) })
	d.change(func(w *world) {
		for i := range 9 {
			name := fmt.Sprint("p", i)
			w.setPod(&pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name, UID: types.UID(name)}})
		}
	})
	var there atomic.Pointer[map[string]string]
	var away atomic.Pointer[error]
	d.list = func(_ context.Context, namespace string) (map[string]string, error) {
		if err := away.Load(); err != nil {
			return nil, *err
		}
		return *there.Load(), nil
	}
	n := 0
	start := func() <-chan string {
		n++
		name := fmt.Sprint("p", n)
		return note(t, dir, "c"+name, resident{"x", name, name}, fmt.Sprint("10.42.1.", 10+n))
	}
	there.Store(&map[string]string{"deny": "9"})
	ok(t, start())
	there.Store(&map[string]string{"deny": "10"})
	changed := start()
	waits(t, changed, "a policy was changed since")
	deny.ResourceVersion = "11"
	d.change(func(w *world) { w.setPolicy(read(deny)) })
	ok(t, changed)
	there.Store(&map[string]string{"deny": "10", "more": "12"})
	made := start()
	waits(t, made, "a policy was made since")
	there.Store(&map[string]string{"deny": "10"}) // it went before the watch saw it
	ok(t, made)

	refused := apierrors.NewServiceUnavailable("the API server is starting")
	away.Store(new(error(refused)))
	starting := start()
	waits(t, starting, "the API server is starting")
	for why := d.reason(); !strings.Contains(why, "is starting"); why = d.reason() {
		select {
		case got := <-starting:
			t.Fatalf("answered %q, the reason was %q", got, why)
		case <-time.After(time.Millisecond):
		}
	}
	away.Store(new(fmt.Errorf("dial: %w", syscall.ECONNREFUSED)))
	ok(t, starting)
	ok(t, start())
}

// TestAddressesThatAreBelieved: a pod has an address of its node's range, and none that
// another pod of this machine has by now.
func TestAddressesThatAreBelieved(t *testing.T) {
	w := newWorld()
	add := func(name, node, told string) {
		p := &pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name, UID: types.UID(name)}, node: node}
		if told != "" {
			p.told = netip.MustParseAddr(told)
		}
		w.setPod(p)
	}
	want := func(when string, all map[string]string) {
		t.Helper()
		for name, address := range all {
			got := ""
			if a := w.pods[name].address; a.IsValid() {
				got = a.String()
			}
			if got != address {
				t.Errorf("%s %s has %q, want %q", when, name, got, address)
			}
		}
	}
	add("own", "m1", "10.42.1.2")
	add("stranger's", "m1", "10.42.2.2")
	add("plane's", "m1", "172.30.0.1")
	add("stale", "m2", "10.42.2.9")
	add("new", "m2", "")
	want("before nodes are known", map[string]string{"own": "", "stranger's": "", "stale": "", "new": ""})
	for i, name := range []string{"m1", "m2"} {
		slim, err := slim(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: []string{fmt.Sprintf("10.42.%d.0/24", i+1)}}})
		if err != nil {
			t.Fatal(err)
		}
		w.setNode(name, slim.(*node))
	}
	want("then", map[string]string{"own": "10.42.1.2", "stranger's": "", "plane's": "", "stale": "10.42.2.9", "new": ""})
	w.setLocal(map[netip.Addr]resident{netip.MustParseAddr("10.42.2.9"): {"x", "new", "new"}})
	want("when its address is another's", map[string]string{"stale": "", "new": "10.42.2.9"})
	w.setLocal(map[netip.Addr]resident{})
	want("when that has gone", map[string]string{"stale": "10.42.2.9", "new": ""})
	w.setNode("m1", nil)
	want("without its node", map[string]string{"own": "", "stale": "10.42.2.9"})
}
