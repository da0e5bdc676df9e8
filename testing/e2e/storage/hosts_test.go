package storage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// copied is a shared volume with a copy on each of three hosts. A pod on one machine writes records to it and syncs
// each; pods there and on another machine read them.
type copied struct {
	*trial
	machines []string // of the writer and of the reader
	told     int64    // records of which the writer was told that they are on the disk
}

const (
	recordSize = 4096 // of the probe
	logFile    = "/data/log"
)

// threeHosts: whatever happens to one of three hosts, the writer goes on; without two of them nothing is read or
// written, rather than something old. What the writer was told is in each copy afterwards.
func (d *trial) threeHosts(t *testing.T) {
	c := &copied{trial: d}
	c.addHost(t, "node3")
	c.machines = strings.Fields(d.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
	if len(c.machines) < 2 {
		t.Fatalf("the workspace has machines %v, want two", c.machines)
	}
	wait.For(t, wait.Patience, "a volume with three copies", func(context.Context) error {
		r := d.MP(t, datacenter.Owner, "volumes", "create", "safe", "--class", "shared", "--replicas", "3", "--size", "2Gi", "--timeout", "4m")
		if r.Code != 0 && r.Code != 4 { // made already
			return errors.New(r.String()) // a host has joined, and has not said that it has room
		}
		return nil
	})
	d.Must(t, datacenter.Owner, "volumes", "bind", "safe", "--timeout", "4m")
	c.pods(t)
	c.goesOn(t, 10)
	c.everywhere(t)
	for _, day := range []struct {
		name string
		test func(*testing.T)
	}{
		{"snapshot", c.snapshot},
		{"bit flipped", c.flipped},
		{"renewed", c.renewed},
		{"bricks killed", c.bricksKilled},
		{"management killed", c.managementKilled},
		{"agents killed", c.agentsKilled},
		{"client killed", c.clientKilled},
		{"full disk", c.fullDisk},
		{"host cut off", c.hostCutOff},
		{"writer cut off", c.writerCutOff},
		{"power of one", c.powerOfOne},
		{"power of two", c.powerOfTwo},
		{"power of all", c.powerOfAll},
		{"host removed", c.hostRemoved},
		{"host lost", c.hostLost},
		{"balanced", c.balanced},
	} {
		began := time.Now()
		t.Run(day.name, func(t *testing.T) {
			defer d.Tell(t)
			day.test(t)
			c.everywhere(t)
		})
		t.Logf("%s took %s, %d records", day.name, time.Since(began).Round(time.Second), c.told)
	}
	d.delete(t, "pod/writer", "pod/beside", "pod/reader")
	wait.For(t, wait.Patience, "the claim lets go", func(context.Context) error {
		if r := d.MP(t, datacenter.Owner, "volumes", "unbind", "safe", "--yes"); r.Code != 0 {
			return errors.New(r.String())
		}
		return nil
	})
	d.Must(t, datacenter.Owner, "volumes", "delete", "safe", "--purge", "--yes", "--timeout", "4m")
	wait.For(t, wait.Patience, "no copy is left", func(context.Context) error {
		for _, h := range d.Nodes {
			if left := logsOf(h); len(left) > 0 {
				return fmt.Errorf("%s has %v", h.Name(), left)
			}
		}
		return nil
	})
}

// addHost adds a node, which has no machine.
func (c *copied) addHost(t *testing.T, name string) {
	t.Helper()
	h, err := c.Lab.AddHost(t.Context(), name)
	if err == nil {
		err = h.Boot(t.Context())
	}
	if err == nil && c.NodeStates(t)[name] == "" {
		service := c.JoinService(h, name, c.Token(t).Token)
		service.Once = false
		err = h.Start(t.Context(), service)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.PartsReady(t, h)
	c.Nodes = append(c.Nodes, h)
}

// pods makes those that aren't there.
func (c *copied) pods(t *testing.T) {
	t.Helper()
	at := func(machine, pod string, args ...string) string {
		return strings.Replace(c.pod(pod, "safe", args...), "spec:\n", "spec:\n  nodeSelector: {kubernetes.io/hostname: "+machine+"}\n", 1)
	}
	c.Apply(t, at(c.machines[0], "writer", "write", logFile)+at(c.machines[0], "beside", "wait")+at(c.machines[1], "reader", "wait"))
	for _, pod := range []string{"writer", "beside", "reader"} {
		c.runs(t, pod)
	}
}

// again has pods that may have seen an end of the volume's mount begin anew. The former ones are gone before: one whose
// container is started anew would be a second writer, and two take each other's records away.
func (c *copied) again(t *testing.T, pods ...string) {
	t.Helper()
	for i, p := range pods {
		pods[i] = "pod/" + p
	}
	c.delete(t, pods...)
	c.pods(t)
}

// learns takes what the writer was told last.
func (c *copied) learns(t *testing.T) {
	t.Helper()
	c.told = max(c.told, c.trial.told(t, "writer"))
	r := c.Kube(t, c.Kubeconfig(), "", "logs", "writer", "--previous", "--tail", "1")
	if number, ok := strings.CutPrefix(r.Out, "wrote "); ok && strings.HasSuffix(r.Out, "\n") {
		if n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64); err == nil {
			c.told = max(c.told, n)
		}
	}
}

// goesOn waits until the writer has written n records more.
func (c *copied) goesOn(t *testing.T, n int64) {
	t.Helper()
	c.told = c.writes(t, "writer", c.told+n)
}

// read checks that pods have all that the writer was told.
func (c *copied) read(t *testing.T, pods ...string) {
	t.Helper()
	for _, p := range pods {
		wait.For(t, wait.Patience, p+" reads", func(context.Context) error {
			if r := c.Kube(t, c.Kubeconfig(), "", "exec", p, "--", "/probe", "read", logFile); r.Code != 0 {
				return errors.New(r.String())
			}
			return nil
		})
		c.kept(t, t.Name(), p, logFile, c.told)
	}
}

// logsOf are the copies of the writer's file that a host has. There is no other volume with one.
func logsOf(h *lab.Host) (found []string) {
	const in = "*/mount/volume/brick"
	for _, dir := range []string{"var/lib/multipaas/volumes", "var/lib/multipaas/pools/*"} {
		some, _ := filepath.Glob(h.Root(dir, in, filepath.Base(logFile)))
		found = append(found, some...)
	}
	return found
}

// everywhere waits until each host's copy has what the writer was told, byte by byte as the reader reads it.
func (c *copied) everywhere(t *testing.T) {
	t.Helper()
	c.read(t, "reader")
	c.checks++
	size := c.told * recordSize
	wait.For(t, wait.Patience, "all copies are the same", func(context.Context) error {
		var first []byte
		copies := 0
		for _, h := range c.Nodes {
			logs := logsOf(h)
			if len(logs) == 0 && len(c.Nodes) > 3 {
				continue
			}
			if copies++; len(logs) != 1 {
				return fmt.Errorf("%s has the copies %v", h.Name(), logs)
			}
			f, err := os.Open(logs[0])
			if err != nil {
				return err
			}
			sum := sha256.New()
			_, err = io.CopyN(sum, f, size)
			f.Close()
			if err != nil {
				return fmt.Errorf("the copy of %s has not all of %d records: %w", h.Name(), c.told, err)
			}
			if first == nil {
				first = sum.Sum(nil)
			} else if !bytes.Equal(sum.Sum(nil), first) {
				return fmt.Errorf("the copy of %s differs within %d records", h.Name(), c.told)
			}
		}
		if copies != 3 {
			return fmt.Errorf("there are %d copies", copies)
		}
		return nil
	})
	// Equal as they are, GlusterFS takes a copy for none to read from until it has looked at all that it may have missed.
	wait.For(t, wait.Patience, "it is said that another may fail", func(context.Context) error {
		if out := c.Must(t, datacenter.Owner, "volumes", "show", "safe"); strings.Contains(out, "no other may fail") {
			return errors.New(out)
		}
		return nil
	})
}

// hostOf is the host that a machine runs on.
func (c *copied) hostOf(t *testing.T, machine string) *lab.Host {
	t.Helper()
	for _, h := range c.Nodes {
		for pid := range c.Processes(t, h, "/opt/multipaas/init --config") {
			name, err := os.ReadFile(h.Root("proc", pid, "root/etc/multipaas/hostname"))
			if err == nil && strings.TrimSpace(string(name)) == machine {
				return h
			}
		}
	}
	t.Fatalf("machine %s is nowhere", machine)
	return nil
}

// third is the host without a machine.
func (c *copied) third() *lab.Host { return c.Nodes[2] }

// killAll kills processes of a host, of which there has to be one.
func (c *copied) killAll(t *testing.T, h *lab.Host, words string) {
	t.Helper()
	found := c.Processes(t, h, words)
	c.check(t, len(found) > 0, "%s: on %s no %q runs", t.Name(), h.Name(), words)
	for pid := range found {
		c.Kill(t, h, pid)
	}
}

// steady checks that the writer has never ended while what does something.
func (c *copied) steady(t *testing.T, do func()) {
	t.Helper()
	before := c.Pods(t, "app=writer")["writer"]
	do()
	c.goesOn(t, 10)
	now := c.Pods(t, "app=writer")["writer"]
	c.check(t, now == before, "%s: the writer was %+v, is %+v", t.Name(), before, now)
}

func (c *copied) bricksKilled(t *testing.T) {
	for _, h := range c.Nodes {
		c.steady(t, func() {
			c.killAll(t, h, "/usr/sbin/glusterfsd -s")
			c.goesOn(t, 10)
		})
		c.everywhere(t) // before the next one
	}
}

func (c *copied) managementKilled(t *testing.T) {
	for _, h := range c.Nodes {
		c.steady(t, func() { c.killAll(t, h, "/usr/sbin/glusterd") })
		c.everywhere(t)
	}
}

func (c *copied) agentsKilled(t *testing.T) {
	c.steady(t, func() {
		for _, h := range c.Nodes {
			if err := h.Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		for _, h := range c.Nodes {
			c.PartsReady(t, h)
		}
	})
}

// clientKilled: pods whose client died are told so at once; those that begin then have the volume, on the machine
// that has run all the time.
func (c *copied) clientKilled(t *testing.T) {
	before := c.MachineStarts(t)
	h := c.hostOf(t, c.machines[0])
	killed := 0
	for pid := range c.Processes(t, h, "/usr/sbin/glusterfs --") {
		// Each client has a cgroup of its own; what heals has none.
		group, err := os.ReadFile(h.Root("proc", pid, "cgroup"))
		if err == nil && strings.Contains(string(group), "/client-") {
			c.Kill(t, h, pid)
			killed++
		}
	}
	c.check(t, killed > 0, "no client of a volume runs on %s", h.Name())
	began := time.Now()
	r := c.Kube(t, c.Kubeconfig(), "", "exec", "beside", "--", "/probe", "read", logFile)
	c.check(t, r.Code != 0 && time.Since(began) < 20*time.Second, "after %s a pod whose client died reads: %s", time.Since(began), r)
	c.learns(t)
	c.again(t, "writer", "beside")
	c.goesOn(t, 10)
	c.read(t, "beside")
	now := c.MachineStarts(t)
	for machine, started := range before {
		c.check(t, now[machine] == started, "machine %s was started anew", machine)
	}
}

// fullDisk: what is full is the disk of one copy, by something that is not the volume's.
func (c *copied) fullDisk(t *testing.T) {
	root := filepath.Dir(filepath.Dir(filepath.Dir(logsOf(c.third())[0])))
	filler := filepath.Join(root, "filler")
	defer os.Remove(filler)
	c.steady(t, func() {
		f, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for block := make([]byte, mib); err == nil; {
			_, err = f.Write(block)
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		c.goesOn(t, 300) // more than is set aside for the file beforehand
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
}

// shows waits until people are told something about the volume.
func (c *copied) shows(t *testing.T, text string) {
	t.Helper()
	c.checks++
	wait.For(t, wait.Patience, "it is said", func(context.Context) error {
		if out := c.Must(t, datacenter.Owner, "volumes", "show", "safe"); !strings.Contains(out, text) {
			return fmt.Errorf("no %q in:\n%s", text, out)
		}
		return nil
	})
}

// cut cuts a host off while do does something.
func (c *copied) cut(t *testing.T, h *lab.Host, do func()) {
	t.Helper()
	healed := false
	heal := func() {
		if err := c.Lab.Heal(context.WithoutCancel(t.Context())); err != nil && !healed {
			t.Fatal(err)
		}
		healed = true
	}
	defer heal()
	if err := c.Lab.Isolate(t.Context(), h.Name()); err != nil {
		t.Fatal(err)
	}
	do()
	heal()
	c.PartsReady(t, h)
}

func (c *copied) hostCutOff(t *testing.T) {
	c.steady(t, func() {
		c.cut(t, c.third(), func() {
			began := time.Now()
			c.goesOn(t, 10)
			t.Logf("10 records after %s", time.Since(began).Round(100*time.Millisecond))
			c.shows(t, "1 of 3 copies is missing")
			c.goesOn(t, 100)
		})
	})
}

// writerCutOff: what is written on the side of one is refused, so both sides never differ.
func (c *copied) writerCutOff(t *testing.T) {
	h := c.hostOf(t, c.machines[0])
	c.cut(t, h, func() {
		c.shows(t, "1 of 3 copies is missing")
		c.read(t, "reader")
	})
	c.NodesReady(t, len(c.machines))
	c.learns(t)
	c.read(t, "reader")
	c.again(t, "writer")
	c.goesOn(t, 10)
}

// off pulls the plug of hosts: what they had in memory is lost, as nothing but a file system that is shut down
// shows, since the kernel outlives a lab's host.
func (c *copied) off(t *testing.T, hosts ...*lab.Host) {
	t.Helper()
	for _, h := range hosts {
		c.shutDown(t, filepath.Dir(logsOf(h)[0]))
		if err := h.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func (c *copied) powerOn(t *testing.T, hosts ...*lab.Host) {
	t.Helper()
	for _, h := range hosts {
		if err := h.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range hosts {
		c.PartsReady(t, h)
	}
	c.NodesReady(t, len(c.machines))
}

func (c *copied) powerOfOne(t *testing.T) {
	c.steady(t, func() {
		c.off(t, c.third())
		c.goesOn(t, 100)
		c.powerOn(t, c.third())
	})
}

func (c *copied) powerOfTwo(t *testing.T) {
	lost := []*lab.Host{c.third(), c.hostOf(t, c.machines[1])}
	c.off(t, lost...)
	c.shows(t, "nothing is read or written")
	r := c.Kube(t, c.Kubeconfig(), "", "exec", "beside", "--", "/probe", "read", logFile)
	c.check(t, r.Code != 0 && !strings.Contains(r.Out, "has"), "with one of three copies a pod reads: %s", r)
	c.learns(t)
	c.powerOn(t, lost...)
	c.read(t, "beside")
	c.again(t, "writer", "reader")
	c.goesOn(t, 10)
}

func (c *copied) powerOfAll(t *testing.T) {
	all := slices.Clone(c.Nodes)
	c.learns(t)
	c.off(t, all...)
	c.powerOn(t, all...)
	c.again(t, "writer", "beside", "reader")
	c.read(t, "beside", "reader")
	c.goesOn(t, 10)
}
