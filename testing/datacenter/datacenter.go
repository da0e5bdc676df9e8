package datacenter

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/testing/wait"
)

// Domain is below which the platform's names are.
const Domain = "paas.internal"

// The tenant and what is his.
const (
	Account      = "acme"
	OwnerEmail   = "owner@acme.example"
	Organization = "web"
	Workspace    = "shop"
	App          = "hello"
	AppHost      = App + "." + Workspace + "." + Organization + "." + Account + "." + Domain

	image = "multipaas.internal/hello:1"
)

// Who runs the client: each has a configuration of his own.
const (
	Admin = "admin"  // the first sysadmin
	Owner = "tenant" // owner of the account
)

// VolumesApp is the app with a volume of its own. Both apps have theirs by the claims of these names.
const (
	VolumesApp  = "notes"
	SharedClaim = "files"
	LocalClaim  = "notes"
	VolumesPath = "/data"
)

// Files at the desk.
const (
	CAFile         = "ca.crt" // the platform's authority
	KubeconfigFile = "kubeconfig"
	OwnerPassword  = "owner-password"
	FirstPassword  = "first-password" // of users who are made by others, until they change it
	adminPassword  = "admin-password"
)

const (
	caOnServer    = "/var/lib/multipaas/pki/ca.crt"
	adminOnServer = "/var/lib/multipaas/bootstrap-admin.json"
)

// Host is a machine that the appliance runs on.
type Host interface {
	Name() string
	Address() netip.Addr
	// Run runs a command as root and returns what it printed. The error holds
	// what it printed on standard error.
	Run(ctx context.Context, args ...string) ([]byte, error)
	// Serve starts the server, with its configuration where it belongs, unless it runs.
	Serve(ctx context.Context) error
	// Join makes the host a node of the platform at url, unless it is, and starts
	// what runs there. It asks for a token if it needs one.
	Join(ctx context.Context, url string, token func(context.Context) (string, error)) error
	// Status is how the appliance is. An error that wraps ErrFailed is final.
	Status(ctx context.Context) (*status.Status, error)
	// LastWords is the end of what the appliance has logged, for errors.
	LastWords(ctx context.Context) string
}

// ErrFailed is wrapped when an appliance ends again and again.
var ErrFailed = errors.New("multipaas ends again and again")

// Desk is where people sit: the client runs there.
type Desk interface {
	// MP runs `multipaas mp` as one of the people and returns what it printed.
	MP(ctx context.Context, who string, args ...string) (string, error)
	// Path is the path of a file there.
	Path(name string) string
	// Write puts a file there.
	Write(ctx context.Context, name string, data []byte, mode fs.FileMode) error
}

// Spec says how large things are.
type Spec struct {
	Nodes     int
	Machines  int // of the workspace
	CPU       string
	Memory    string
	Disk      string
	Instances int           // of the app
	Volumes   bool          // the app has a shared one, and another app one of its own
	Patience  time.Duration // for one step
}

// Usual is what the suites need; `lab up` adds volumes.
var Usual = Spec{
	Nodes:     2,
	Machines:  2,
	CPU:       "1",
	Memory:    "2Gi",
	Disk:      "10Gi",
	Instances: 2,
	Patience:  15 * time.Minute,
}

// Datacenter is what is built.
type Datacenter struct {
	Spec   Spec
	Server Host
	Nodes  []Host
	Desk   Desk
	// Say tells what happens. nil: nobody.
	Say func(format string, args ...any)
}

func (d *Datacenter) say(format string, args ...any) {
	if d.Say != nil {
		d.Say(format, args...)
	}
}

// URL is where the API answers.
func (d *Datacenter) URL() string { return fmt.Sprintf("https://%s:7443", d.Server.Address()) }

// Up builds all of it, on hosts that are up.
func (d *Datacenter) Up(ctx context.Context) error {
	workspace := fmt.Sprintf("workspace %s: a Kubernetes cluster of %d machines", Workspace, d.Spec.Machines)
	app := fmt.Sprintf("app %s with %d instances", App, d.Spec.Instances)
	type step struct {
		what string
		do   func(context.Context) error
	}
	steps := []step{
		{"the server", d.StartServer},
		{"the nodes join", d.JoinNodes},
		{"account " + Account, d.MakeAccount},
		{"organization " + Organization, d.MakeOrganization},
		{workspace, d.MakeWorkspace},
	}
	if d.Spec.Volumes {
		steps = append(steps,
			step{fmt.Sprintf("claims %s, which is shared, and %s", SharedClaim, LocalClaim), d.MakeClaims},
			step{"app " + VolumesApp + " with a volume of its own", d.DeployVolumesApp})
	}
	for _, s := range append(steps, step{app, d.DeployApp}, step{"an answer over TLS", d.awaitAnswer}) {
		if err := d.step(ctx, s.what, s.do); err != nil {
			return err
		}
	}
	return nil
}

func (d *Datacenter) step(ctx context.Context, what string, do func(context.Context) error) error {
	d.say("==> %s", what)
	at := time.Now()
	if err := do(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	d.say("    done in %s", time.Since(at).Round(100*time.Millisecond))
	return nil
}

// StartServer returns when all parts of the server are ready.
func (d *Datacenter) StartServer(ctx context.Context) error {
	if err := d.Server.Serve(ctx); err != nil {
		return err
	}
	if err := d.awaitParts(ctx, d.Server); err != nil {
		return err
	}
	ca, err := d.Server.Run(ctx, "cat", caOnServer)
	if err != nil {
		return err
	}
	return d.Desk.Write(ctx, CAFile, ca, 0o644)
}

// JoinNodes returns when all parts of all nodes are ready.
func (d *Datacenter) JoinNodes(ctx context.Context) error {
	for _, h := range d.Nodes {
		if err := h.Join(ctx, d.URL(), d.token); err != nil {
			return err
		}
	}
	for _, h := range d.Nodes {
		if err := d.awaitParts(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

// awaitParts waits until every part of a host's appliance is ready, and says
// what it waits for.
func (d *Datacenter) awaitParts(ctx context.Context, h Host) error {
	var said string
	err := wait.Until(ctx, d.Spec.Patience, h.Name()+" is ready", func(ctx context.Context) error {
		err := Healthy(ctx, h)
		if errors.Is(err, ErrFailed) {
			return wait.Final(err)
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			d.say("    %s: %s", h.Name(), said)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, h.LastWords(ctx))
	}
	return nil
}

// Healthy says of a host's appliance which parts are not ready.
func Healthy(ctx context.Context, h Host) error {
	st, err := h.Status(ctx)
	if errors.Is(err, ErrFailed) {
		return err
	}
	if err != nil {
		return errors.New("it does not answer yet")
	}
	if missing := st.Ready(); len(missing) > 0 {
		return errors.New(strings.Join(missing, "; "))
	}
	return nil
}

// token makes one for a node that joins.
func (d *Datacenter) token(ctx context.Context) (string, error) {
	out, err := d.Server.Run(ctx, "multipaas", "token", "create", "--role", "node", "--ttl", "1h", "-o", "json",
		"--server", d.URL(), "--credentials", adminOnServer, "--ca", caOnServer)
	if err != nil {
		return "", err
	}
	var made struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(out, &made); err != nil || made.Token == "" {
		return "", fmt.Errorf("token create printed no token: %q, %w", out, err)
	}
	return made.Token, nil
}

// has says whether a list of names that the client prints holds one.
func (d *Datacenter) has(ctx context.Context, who, name string, args ...string) (bool, error) {
	out, err := d.Desk.MP(ctx, who, append(args, "-o", "name")...)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(strings.Fields(out), func(n string) bool { return n == name || strings.HasSuffix(n, "/"+name) }), nil
}

// logIn logs somebody in unless he is. If he has never been, he sets the password
// in passwordFile in place of the first one, that of who made him.
func (d *Datacenter) logIn(ctx context.Context, who, email, passwordFile, first string) error {
	if _, err := d.Desk.MP(ctx, who, "init", d.URL(), "--ca", d.Desk.Path(CAFile)); err != nil {
		return err
	}
	if _, err := d.Desk.MP(ctx, who, "session", "--check"); err == nil {
		return nil
	}
	_, err := d.Desk.MP(ctx, who, "login", email, "--password-file", d.Desk.Path(passwordFile))
	if err != nil && first != "" {
		_, err = d.Desk.MP(ctx, who, "login", email,
			"--password-file", d.Desk.Path(first), "--new-password-file", d.Desk.Path(passwordFile))
	}
	return err
}

// LogInAdmin logs the first sysadmin in.
func (d *Datacenter) LogInAdmin(ctx context.Context) error {
	data, err := d.Server.Run(ctx, "cat", adminOnServer)
	if err != nil {
		return err
	}
	var admin struct{ Email, Password string }
	if err := json.Unmarshal(data, &admin); err != nil {
		return err
	}
	if err := d.Desk.Write(ctx, adminPassword, []byte(admin.Password+"\n"), 0o600); err != nil {
		return err
	}
	return d.logIn(ctx, Admin, admin.Email, adminPassword, "")
}

// MakeAccount makes the tenant's account, and logs its owner in.
func (d *Datacenter) MakeAccount(ctx context.Context) error {
	if err := d.LogInAdmin(ctx); err != nil {
		return err
	}
	there, err := d.has(ctx, Admin, Account, "accounts", "list")
	if err != nil {
		return err
	}
	if !there {
		for _, file := range []string{FirstPassword, OwnerPassword} {
			if err := d.Desk.Write(ctx, file, []byte(rand.Text()+"\n"), 0o600); err != nil {
				return err
			}
		}
		first := d.Desk.Path(FirstPassword)
		if _, err := d.Desk.MP(ctx, Admin, "register", Account, "--email", OwnerEmail, "--password-file", first); err != nil {
			return err
		}
	}
	if err := d.logIn(ctx, Owner, OwnerEmail, OwnerPassword, FirstPassword); err != nil {
		return err
	}
	_, err = d.Desk.MP(ctx, Owner, "accounts", "use", Account)
	return err
}

// MakeOrganization makes the owner's organization.
func (d *Datacenter) MakeOrganization(ctx context.Context) error {
	there, err := d.has(ctx, Owner, Organization, "org", "list")
	if err != nil {
		return err
	}
	if !there {
		if _, err := d.Desk.MP(ctx, Owner, "org", "create", Organization); err != nil {
			return err
		}
	}
	_, err = d.Desk.MP(ctx, Owner, "org", "use", Organization)
	return err
}

// MakeWorkspace makes the owner's workspace and a kubeconfig for it.
func (d *Datacenter) MakeWorkspace(ctx context.Context) error {
	there, err := d.has(ctx, Owner, Workspace, "ws", "list")
	if err != nil {
		return err
	}
	machines := strconv.Itoa(d.Spec.Machines)
	if !there {
		_, err = d.Desk.MP(ctx, Owner, "ws", "create", Workspace, "--machines", machines, "--timeout", d.Spec.Patience.String(),
			"--cpu", d.Spec.CPU, "--memory", d.Spec.Memory, "--disk", d.Spec.Disk)
	} else {
		// Waits, if an earlier run did not; asks for nothing that is not so already.
		_, err = d.Desk.MP(ctx, Owner, "cluster", "scale", Workspace, "--machines", machines, "--timeout", d.Spec.Patience.String())
	}
	if err != nil {
		return err
	}
	if _, err := d.Desk.MP(ctx, Owner, "ws", "use", Workspace); err != nil {
		return err
	}
	_, err = d.Desk.MP(ctx, Owner, "cluster", "config-kubectl", Workspace, "--file", d.Desk.Path(KubeconfigFile))
	return err
}

// MakeClaims makes the claims of both apps.
func (d *Datacenter) MakeClaims(ctx context.Context) error {
	for claim, class := range map[string]string{SharedClaim: "shared", LocalClaim: "local"} {
		if _, err := d.Desk.MP(ctx, Owner, "pvc", "create", claim, "--size", "1Gi", "--class", class); err != nil {
			return err
		}
	}
	return nil
}

// DeployApp deploys the app. Of one that is there, what differs is changed: nothing.
func (d *Datacenter) DeployApp(ctx context.Context) error {
	if d.Spec.Volumes {
		return d.deploy(ctx, App, d.Spec.Instances, "--volume", SharedClaim+":"+VolumesPath)
	}
	return d.deploy(ctx, App, d.Spec.Instances)
}

// DeployVolumesApp deploys the app with a volume of its own.
func (d *Datacenter) DeployVolumesApp(ctx context.Context) error {
	return d.deploy(ctx, VolumesApp, 1, "--volume", LocalClaim+":"+VolumesPath)
}

func (d *Datacenter) deploy(ctx context.Context, app string, instances int, more ...string) error {
	_, err := d.Desk.MP(ctx, Owner, append([]string{"apps", "deploy", app, "--image", image, "--port", "8080",
		"--instances", strconv.Itoa(instances), "--timeout", d.Spec.Patience.String()}, more...)...)
	return err
}

// awaitAnswer asks the app over HTTPS, trusting only the platform's authority.
func (d *Datacenter) awaitAnswer(ctx context.Context) error {
	ca, err := d.Server.Run(ctx, "cat", caOnServer)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return errors.New("the platform's authority has no certificate")
	}
	client := Client(d.Server.Address(), pool)
	return wait.Until(ctx, 2*time.Minute, "https://"+AppHost+"/ answers", func(ctx context.Context) error {
		return Answers(ctx, client, "https://"+AppHost+"/")
	})
}

// Answers asks once, and is an error unless the answer is 200.
func Answers(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}
