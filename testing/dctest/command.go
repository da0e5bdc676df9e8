package dctest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Result is how a command went.
type Result struct {
	Args     []string
	Code     int // exit status
	Out, Err string
}

func (r Result) String() string {
	return fmt.Sprintf("%s: exit %d\n%s%s", strings.Join(r.Args, " "), r.Code, r.Out, r.Err)
}

// patience is for one command, not for a test: what waits for the platform says
// --timeout itself.
const patience = 6 * time.Minute

func Run(t testing.TB, env []string, stdin string, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return Result{Args: args[1:], Code: cmd.ProcessState.ExitCode(), Out: out.String(), Err: errs.String()}
}

// MP runs the client as one of the people.
func (d *Datacenter) MP(t testing.TB, who string, args ...string) Result {
	t.Helper()
	return Run(t, []string{"MP_CONFIG=" + filepath.Join(d.Dir, "mp-"+who)}, "", append([]string{d.Binary, "mp"}, args...)...)
}

// Must runs the client and ends the test if that does not go well.
func (d *Datacenter) Must(t testing.TB, who string, args ...string) string {
	t.Helper()
	r := d.MP(t, who, args...)
	if r.Code != 0 {
		t.Fatal(r)
	}
	return r.Out
}

// Kube runs the payload's kubectl.
func (d *Datacenter) Kube(t testing.TB, kubeconfig, stdin string, args ...string) Result {
	t.Helper()
	return Run(t, []string{"KUBECONFIG=" + kubeconfig}, stdin, append([]string{d.Binary, "kubectl"}, args...)...)
}

// Kubectl runs kubectl in acme/web/shop as its owner; it must go well.
func (d *Datacenter) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	r := d.Kube(t, d.Kubeconfig(), "", args...)
	if r.Code != 0 {
		t.Fatal(r)
	}
	return strings.TrimSpace(r.Out)
}

// Apply applies manifests in acme/web/shop; they must be taken.
func (d *Datacenter) Apply(t testing.TB, manifests string) {
	t.Helper()
	if r := d.Kube(t, d.Kubeconfig(), manifests, "apply", "-f", "-"); r.Code != 0 {
		t.Fatal(r)
	}
}
