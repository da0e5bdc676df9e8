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
	"testing"
	"time"

	networking "k8s.io/api/networking/v1"
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
