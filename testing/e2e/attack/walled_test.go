package attack

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
)

// testWalled tries the walls around A's plane, as if A had come to run code in it: as the
// plane's user, in its network and its file system, through its own filter of system calls.
func testWalled(t *testing.T, s *suite) {
	s.putTool(t)
	plane := func(account, name string) (id, pid string) {
		id = s.workspaceID(t, account, name)
		pids := slices.Collect(maps.Keys(s.Processes(t, s.Server, "kube plane --config /var/lib/multipaas/planes/"+id+"/")))
		if len(pids) != 1 {
			t.Fatalf("%s has the planes %v, want one", name, pids)
		}
		return id, pids[0]
	}
	id, pid := plane(dctest.Rival, "box")
	victim, victimPID := plane(datacenter.Owner, "shop")
	own := "/var/lib/multipaas/planes/" + id
	run := func(walls ...string) (map[string]string, error) {
		out, err := s.Server.Run(t.Context(), append([]string{hostTool, "walled", pid, own + "/own"}, walls...)...)
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, out)
		}
		got := map[string]string{}
		for line := range strings.Lines(string(out)) {
			wall, what, _ := strings.Cut(strings.TrimSpace(line), " ")
			got[wall] = what
		}
		return got, nil
	}

	// The controls: what the plane needs is open.
	datastore := "talk:/run/multipaas/etcd.sock" // A's is there, with a user of its own
	needs := []string{"read:" + own + "/plane.json", "read:" + own + "/own", "write:/dev/null", datastore, "socket:2", "signal:" + pid, "seen:self"}
	got, err := run(needs...)
	for _, need := range needs {
		if err == nil && got[need] != "open" {
			err = fmt.Errorf("%s is %s", need, got[need])
		}
	}
	if !s.control(t, "A's plane does what it must", err) {
		return
	}

	var walls []string
	kinds := rows[map[string][]string](t, "walls.yaml")
	delete(kinds, "shown") // to machines
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		for _, what := range kinds[kind] {
			walls = append(walls, kind+":"+what)
		}
	}
	for _, family := range []string{"17"} {
		walls = append(walls, "socket:"+family)
	}
	for protocol := 1; protocol < 23; protocol++ {
		walls = append(walls, fmt.Sprint("netlink:", protocol))
	}
	server := slices.Collect(maps.Keys(s.Processes(t, s.Server, "multipaas server")))
	for _, p := range append(server, victimPID, "1") {
		for _, kind := range []string{"signal", "trace", "memory", "seen", "root"} {
			walls = append(walls, kind+":"+p)
		}
	}
	walls = append(walls, "trace:"+pid, "run:/proc/self/exe", "run:/bin/sh")
	// Whatever the server has on its disk, but for the way to the plane's own.
	for _, pattern := range []string{"/var/lib/multipaas/*", "/var/lib/multipaas/*/*", "/var/lib/multipaas/planes/" + victim + "/*",
		"/var/lib/multipaas/planes/" + victim + "/*/*", own + "/log/*", "/run/multipaas/*", "/run/netns/*", "/etc/multipaas/*", "/etc/shadow", "/etc/passwd", "/bin/sh"} {
		found, err := filepath.Glob(s.Server.Root(pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range found {
			name := "/" + strings.TrimLeft(strings.TrimPrefix(file, s.Server.Root("/")), "/")
			if strings.HasPrefix(own, name) || strings.HasPrefix(name, "/var/lib/multipaas/payload") {
				continue
			}
			info, err := os.Stat(file)
			if err != nil {
				continue
			}
			walls = append(walls, "read:"+name)
			switch {
			case info.Mode()&os.ModeSocket != 0:
				walls = append(walls, "talk:"+name)
			case info.Mode().IsRegular():
				walls = append(walls, "write:"+name)
			}
		}
	}
	// What it is shown to read it can't write.
	for _, name := range []string{"/plane.json", "/machines.json", "/pod-security", "/share.json", "/pki/ca.crt", "/pki/platform.key"} {
		walls = append(walls, "write:"+own+name)
	}
	walls = slices.DeleteFunc(walls, func(wall string) bool { return wall == datastore })
	walls = slices.Compact(slices.Sorted(slices.Values(walls)))
	got, err = run(walls...)
	if err != nil {
		t.Fatal(err)
	}
	for _, wall := range walls {
		s.record(t, attempt{What: "reach what is the server's: " + wall, From: "code of A in A's plane", Want: "closed",
			Got: got[wall], Blocked: strings.HasPrefix(got[wall], "closed")})
	}
	if r := s.Kube(t, s.box, "", "get", "--raw", "/readyz"); r.Code != 0 {
		t.Errorf("A's plane afterwards: %s", r)
	}
}
