package dctest

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// PartsReady waits until a host's appliance says that all its parts are ready.
func (d *Datacenter) PartsReady(t testing.TB, h *lab.Host) {
	t.Helper()
	wait.For(t, wait.Patience, h.Name()+" is ready", func(ctx context.Context) error {
		st, err := status.Fetch(ctx, h.Root("run", "multipaas", "status.sock"))
		if err == nil && len(st.Ready()) > 0 {
			err = errors.New(strings.Join(st.Ready(), "; "))
		}
		return err
	})
}

// Tell prints what the hosts have to say about a test that failed.
func (d *Datacenter) Tell(t testing.TB) {
	if t.Failed() {
		d.Logs(t)
	}
}

func (d *Datacenter) Logs(t testing.TB) {
	for _, h := range d.Lab.Hosts() {
		data, err := os.ReadFile(h.LogFile("multipaas"))
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
		t.Logf("the end of what %s logged:\n%s", h.Name(), strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
}

// Processes returns the ids, as the host sees them, of processes whose command
// line holds some words, with when each was started. A child that has not executed
// its own program yet still shows its parent's command line: it is left out.
func (d *Datacenter) Processes(t testing.TB, h *lab.Host, words string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(h.Root("proc", "[0-9]*", "cmdline"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	parents, lines := map[string]string{}, map[string]string{}
	for _, file := range files {
		cmdline, err := os.ReadFile(file)
		if err != nil || !strings.Contains(strings.ReplaceAll(string(cmdline), "\x00", " "), words) {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(file), "stat"))
		if err != nil {
			continue
		}
		// The name in parentheses may hold anything: count from its end.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		pid := filepath.Base(filepath.Dir(file))
		all[pid], parents[pid], lines[pid] = fields[19], fields[1], string(cmdline)
	}
	maps.DeleteFunc(all, func(pid, _ string) bool { return lines[parents[pid]] == lines[pid] })
	return all
}

func (d *Datacenter) Kill(t testing.TB, h *lab.Host, pid string) {
	t.Helper()
	if _, err := h.Run(t.Context(), "kill", "-9", pid); err != nil {
		t.Fatal(err)
	}
}

// MachineStarts is the process 1 of each machine, and when it was started.
func (d *Datacenter) MachineStarts(t testing.TB) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, h := range d.Nodes {
		found := d.Processes(t, h, "/opt/multipaas/init --config")
		if len(found) == 0 {
			t.Fatalf("no machine runs on %s", h.Name())
		}
		for pid, started := range found {
			all[h.Name()+" "+pid] = started
		}
	}
	return all
}

// Restart stops the appliance of a host and starts it again.
func (d *Datacenter) Restart(t testing.TB, h *lab.Host) {
	t.Helper()
	d.Stop(t, h)()
}

// Stop stops the appliance of a host by SIGTERM, and returns what starts it
// again as it was.
func (d *Datacenter) Stop(t testing.TB, h *lab.Host) (start func()) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(h.Dir(), "services", "multipaas.json"))
	var service lab.Service
	if err == nil {
		err = json.Unmarshal(data, &service)
	}
	if err == nil {
		err = h.Stop(t.Context(), service.Name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := h.Start(t.Context(), service); err != nil {
			t.Fatal(err)
		}
		d.PartsReady(t, h)
	}
}

// JoinToken is what the sysadmin hands to who sets up a host.
type JoinToken struct{ ID, Token string }

func (d *Datacenter) Token(t testing.TB) JoinToken {
	t.Helper()
	r := Run(t, []string{"MP_CONFIG=" + d.Dir + "/mp-" + datacenter.Admin}, "", d.Binary, "token", "create", "--role", "node", "--ttl", "1h", "-o", "json")
	var made JoinToken
	if err := json.Unmarshal([]byte(r.Out), &made); r.Code != 0 || err != nil || made.Token == "" {
		t.Fatal(r)
	}
	made.ID, _, _ = strings.Cut(made.Token, ".")
	return made
}

// node joins: the command that a host runs as a service.
func (d *Datacenter) JoinService(h *lab.Host, name, token string) lab.Service {
	return lab.Service{Name: "multipaas", Env: []string{"MULTIPAAS_JOIN_TOKEN=" + token}, Once: true,
		Args: []string{"multipaas", "node", "join", "--address", h.Address().String(), "--name", name, d.URL()}}
}

// NodeStates maps each node to its phase, as the sysadmin sees it.
func (d *Datacenter) NodeStates(t testing.TB) map[string]string {
	t.Helper()
	var nodes struct {
		Items []struct {
			Name   string
			Status struct{ Phase string }
		}
	}
	if err := json.Unmarshal([]byte(d.Must(t, datacenter.Admin, "nodes", "list", "-o", "json")), &nodes); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, n := range nodes.Items {
		all[n.Name] = n.Status.Phase
	}
	return all
}
