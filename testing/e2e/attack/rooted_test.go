package attack

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/dctest"
)

// inMachine is a command as root in A's machine, with all that its first process
// may do: as if A had come out of a pod.
func (s *suite) inMachine(ctx context.Context, t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	all := s.machineSpaces(t, s.workspaceID(t, dctest.Rival, "box"))
	if len(all) != 1 {
		t.Fatalf("A has the machines %v, want one", all)
	}
	h := all[0].host
	found, err := filepath.Glob(h.Root("var/lib/multipaas/payload/trees/*/runtime/runc"))
	if err != nil || len(found) == 0 {
		t.Fatalf("no runc on %s: %v", h.Name(), err)
	}
	return h.Command(ctx, append([]string{strings.TrimPrefix(found[0], h.Root()), "--root", "/run/multipaas/runc",
		"exec", strings.TrimPrefix(all[0].name, "mpm-")}, args...)...)
}

// toolInMachine puts the tool into A's machine until the test ends, and returns where.
func (s *suite) toolInMachine(t *testing.T) string {
	t.Helper()
	const tool = "/root/attack-tool"
	program, err := os.Open(filepath.Join(s.Dir, "tool", "tool"))
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	put := s.inMachine(t.Context(), t, "sh", "-c", "cat >"+tool+" && chmod 755 "+tool)
	put.Stdin = program
	if out, err := put.CombinedOutput(); err != nil {
		t.Fatalf("put the tool into A's machine: %v: %s", err, out)
	}
	// Made here: the test's context, by which A's machine is found, is done when cleanup begins.
	remove := s.inMachine(context.WithoutCancel(t.Context()), t, "rm", tool)
	t.Cleanup(func() { _ = remove.Run() })
	return tool
}

// testRooted has A try the walls between a machine and its host, as root in the
// machine, and as root in a pod of it.
func testRooted(t *testing.T, s *suite) {
	tool := s.toolInMachine(t)
	var walls []string
	kinds := rows[map[string][]string](t, "walls.yaml")
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		for _, what := range kinds[kind] {
			walls = append(walls, kind+":"+what)
		}
	}
	inMachine := func(args ...string) (string, error) {
		out, err := s.inMachine(t.Context(), t, append([]string{tool}, args...)...).CombinedOutput()
		return string(out), err
	}
	inPod := func(args ...string) (string, error) {
		r := s.in(t, s.attacker, append([]string{"/tool"}, args...)...)
		if r.Code != 0 {
			return "", fmt.Errorf("%s", r)
		}
		return r.Out, nil
	}
	s.rootBesideTheDoor(t, inMachine)
	for _, from := range []struct {
		name string
		run  func(args ...string) (string, error)
		own  string // what it may do
		not  string // a kind of walls that is not there: what a pod is shown is its own
	}{
		{"root in A's machine", inMachine, "mount-tmpfs open", "none"},
		{"pod of A, root", inPod, "ports closed", "shown"},
	} {
		walls := slices.DeleteFunc(slices.Clone(walls), func(wall string) bool { return strings.HasPrefix(wall, from.not+":") })
		gained, err := from.run("gain", strings.Fields(from.own)[0])
		if err == nil && !strings.HasPrefix(gained, from.own) {
			err = fmt.Errorf("it says %q", gained)
		}
		if !s.control(t, from.name+" tries what it may do", err) {
			continue
		}
		out, err := from.run(append([]string{"break"}, walls...)...)
		if err != nil {
			t.Fatalf("%s: %v: %s", from.name, err, out)
		}
		tried := map[string]bool{}
		for line := range strings.Lines(out) {
			wall, got, _ := strings.Cut(strings.TrimSpace(line), " ")
			tried[wall] = true
			s.record(t, attempt{What: "reach what is the host's: " + wall, From: from.name, Want: "closed", Got: got, Blocked: strings.HasPrefix(got, "closed")})
		}
		if len(tried) != len(walls) {
			t.Errorf("%s tried %d of %d walls:\n%s", from.name, len(tried), len(walls), out)
		}
	}
}
