package attack

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/lab"
)

// space is a network namespace of a host, "" for the host's own.
type space struct {
	host *lab.Host
	name string
}

func (p space) String() string {
	if p.name == "" {
		return p.host.Name()
	}
	return p.host.Name() + " " + p.name
}

// command runs in the namespace. The file system is the host's.
func (p space) command(ctx context.Context, args ...string) *exec.Cmd {
	if p.name != "" {
		args = append([]string{"nsenter", "--net=/run/netns/" + p.name, "--"}, args...)
	}
	return p.host.Command(ctx, args...)
}

// workspaceID is the id of a workspace, which names its namespaces.
func (s *suite) workspaceID(t testing.TB, who, name string) string {
	t.Helper()
	var ws struct{ Status struct{ ID string } }
	if err := json.Unmarshal([]byte(s.Must(t, who, "ws", "show", name, "-o", "json")), &ws); err != nil || ws.Status.ID == "" {
		t.Fatalf("id of %s: %q, %v", name, ws.Status.ID, err)
	}
	return ws.Status.ID
}

// spaces are the network namespaces of all hosts: the hosts' own, and those of
// workspaces and machines.
func (s *suite) spaces(t testing.TB) []space {
	t.Helper()
	var all []space
	for _, h := range s.Lab.Hosts() {
		all = append(all, space{host: h})
		out, err := h.Run(t.Context(), "ls", "/run/netns")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range strings.Fields(string(out)) {
			all = append(all, space{h, name})
		}
	}
	return all
}

// machineSpaces are the namespaces of the machines of a workspace.
func (s *suite) machineSpaces(t testing.TB, id string) []space {
	t.Helper()
	var all []space
	for _, p := range s.spaces(t) {
		if p.name != "mp-"+id {
			continue
		}
		out, err := p.command(t.Context(), "ip", "-o", "link").Output()
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		for line := range strings.Lines(string(out)) {
			// The alias of a port begins with the machine's UID.
			if _, alias, ok := strings.Cut(line, "alias "); ok {
				all = append(all, space{p.host, "mpm-" + strings.Fields(alias)[0]})
			}
		}
	}
	return all
}

// watchPort is where packets for hosts go: something listens there.
const watchPort = 40404

// hostTool is where the tool is on hosts.
const hostTool = "/run/attack-tool"

// putTool puts the tool on all hosts.
func (s *suite) putTool(t testing.TB) {
	t.Helper()
	program, err := os.ReadFile(filepath.Join(s.Dir, "tool", "tool"))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range s.Lab.Hosts() {
		if err := h.WriteFile(t.Context(), hostTool, program, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// view sees every packet that passes any interface of any namespace.
type view struct {
	mu   sync.Mutex
	seen map[string][]string // mark -> places, "node1 mp-abc br0"
	stop []func()
}

// look begins to watch all namespaces of all hosts.
func (s *suite) look(t testing.TB) *view {
	t.Helper()
	v := &view{seen: map[string][]string{}}
	for _, p := range s.spaces(t) {
		cmd := p.command(context.WithoutCancel(t.Context()), hostTool, "watch", fmt.Sprint(watchPort))
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatalf("watch %s: %v", p, err)
		}
		lines := bufio.NewScanner(out)
		if !lines.Scan() || lines.Text() != "watching" {
			_ = cmd.Process.Kill()
			t.Fatalf("watch %s: it says %q and %q", p, lines.Text(), errs.String())
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for lines.Scan() {
				mark, where, _ := strings.Cut(lines.Text(), " ")
				v.mu.Lock()
				v.seen[mark] = append(v.seen[mark], p.String()+" "+where)
				v.mu.Unlock()
			}
		}()
		v.stop = append(v.stop, func() {
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
			<-done
			_ = cmd.Wait()
		})
	}
	t.Cleanup(v.close)
	return v
}

func (v *view) close() {
	for _, stop := range v.stop {
		stop()
	}
	v.stop = nil
}

// where says in which places a mark was seen.
func (v *view) where(mark string) []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.seen[mark])
}

// newMark is what a packet carries so that it is known wherever it comes up.
func newMark() string {
	b := make([]byte, 4)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// place is what `tool where` prints.
type place struct {
	Link, MAC, Address, Gateway, GatewayMAC string
}

// sender sends frames from somewhere.
type sender struct {
	place
	who string
	run func(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error)
}

// podSender sends from a pod.
func (s *suite) podSender(t testing.TB, who string, p pod) *sender {
	t.Helper()
	x := &sender{who: who, run: func(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
		data, err := io.ReadAll(stdin)
		if err != nil {
			return nil, err
		}
		r := s.exec(t, p.kubeconfig, "default", p.name, string(data), append([]string{"/tool"}, args...)...)
		if r.Code != 0 {
			return nil, errors.New(r.String())
		}
		return []byte(r.Out), nil
	}}
	x.learn(t)
	return x
}

// spaceSender sends from a namespace of a host, as its root.
func (s *suite) spaceSender(t testing.TB, who string, p space) *sender {
	t.Helper()
	x := &sender{who: who, run: func(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
		cmd := p.command(ctx, append([]string{hostTool}, args...)...)
		cmd.Stdin = stdin
		return cmd.Output()
	}}
	x.learn(t)
	return x
}

func (x *sender) learn(t testing.TB) {
	t.Helper()
	out, err := x.run(t.Context(), strings.NewReader(""), "where")
	if err == nil {
		err = json.Unmarshal(out, &x.place)
	}
	if err != nil {
		t.Fatalf("%s: how it sends: %v", x.who, err)
	}
}

func (x *sender) address() netip.Addr { return netip.MustParseAddr(x.Address) }

// send sends the frames in their order. All must have been taken by the kernel.
func (x *sender) send(ctx context.Context, frames ...[]byte) error {
	var in strings.Builder
	for _, f := range frames {
		in.WriteString(base64.StdEncoding.EncodeToString(f) + "\n")
	}
	out, err := x.run(ctx, strings.NewReader(in.String()), "send", x.Link)
	if err == nil && strings.TrimSpace(string(out)) != fmt.Sprintf("sent %d", len(frames)) {
		err = fmt.Errorf("%s: %s", x.who, out)
	}
	return err
}

// settle waits until a packet that was sent last has been seen where it must
// come: everything sent before it on the same way is through by then.
func (v *view) settle(t testing.TB, mark string, within time.Duration, arrived func(where string) bool) error {
	t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if slices.ContainsFunc(v.where(mark), arrived) {
			return nil
		}
	}
	return fmt.Errorf("the last packet did not arrive, it was seen at %q", v.where(mark))
}
