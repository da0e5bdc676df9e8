package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/testing/lab"
)

const (
	builtBinary = "dist/multipaas"
	domain      = "paas.internal"

	account      = "acme"
	owner        = "owner@acme.example"
	organization = "web"
	workspace    = "shop"
	app          = "hello"
	image        = "multipaas.internal/hello:1"
	instances    = "2"
	machines     = "2"
)

// datacenter is what `lab up` makes, step by step. Each step looks whether it
// is done already, so that `lab up` goes on where a former one ended.
type datacenter struct {
	dir    string // of the lab, absolute
	mp     string // the client
	lab    *lab.Lab
	server *lab.Host
	began  time.Time
}

func up(ctx context.Context, dir string) error {
	binary, err := filepath.Abs(builtBinary)
	if err != nil {
		return err
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	d := &datacenter{dir: abs, mp: binary, began: time.Now()}
	for _, s := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"hosts: a server and two nodes", d.hosts},
		{"the server", d.startServer},
		{"the nodes join", d.joinNodes},
		{"account " + account, d.account},
		{"organization " + organization, d.organization},
		{"workspace " + workspace + ": a Kubernetes cluster of " + machines + " machines", d.workspace},
		{"app " + app + " with " + instances + " instances", d.app},
		{"an answer over TLS", d.answer},
	} {
		say("==> %s", s.what)
		at := time.Now()
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("%s: %w\n\n%s", s.what, err, lookAround(d.dir))
		}
		say("    done in %s", time.Since(at).Round(100*time.Millisecond))
	}
	return d.finish()
}

// hosts makes the hosts, and boots those anew that run an older binary.
func (d *datacenter) hosts(ctx context.Context) (err error) {
	if d.lab, err = open(ctx, d.dir, d.mp); err != nil {
		return err
	}
	for _, name := range []string{"server", "node1", "node2"} {
		h, err := d.lab.AddHost(ctx, name)
		if err != nil {
			return err
		}
		if h.Running() && h.Binary() != "" && h.Binary() != lab.Fingerprint(d.mp) {
			say("    %s runs an older binary: it boots anew", name)
			services, err := h.Services(ctx)
			if err != nil {
				return err
			}
			for _, s := range services {
				if err := h.Stop(ctx, s.Name); err != nil {
					say("    %v", err)
				}
			}
			if err := h.Kill(ctx); err != nil {
				return err
			}
		}
		if err := h.Boot(ctx); err != nil {
			return err
		}
		say("    %s %s", h.Name(), h.Address())
	}
	d.server = d.lab.Host("server")
	return nil
}

func (d *datacenter) url() string { return fmt.Sprintf("https://%s:7443", d.server.Address()) }

// service starts a service unless it runs already.
func service(ctx context.Context, h *lab.Host, s lab.Service) error {
	all, err := h.Services(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(o lab.ServiceStatus) bool { return o.Name == s.Name && o.PID != 0 }) {
		return nil
	}
	return h.Start(ctx, s)
}

func (d *datacenter) startServer(ctx context.Context) error {
	config := fmt.Sprintf("name: %s\naddress: %s\ndomain: %s\n", d.server.Name(), d.server.Address(), domain)
	if err := d.server.WriteFile(ctx, "/etc/multipaas/config.yaml", []byte(config), 0o600); err != nil {
		return err
	}
	err := service(ctx, d.server, lab.Service{Name: "multipaas", Args: []string{"multipaas", "server", "--config", "/etc/multipaas/config.yaml"}})
	if err != nil {
		return err
	}
	if err := awaitParts(ctx, d.server, 5*time.Minute); err != nil {
		return err
	}
	ca, err := os.ReadFile(d.server.Data("pki", "ca.crt"))
	if err != nil {
		return err
	}
	return atomicfile.Write(d.caFile(), ca, 0o644)
}

// awaitParts waits until every part of a host's appliance is ready, and says
// what it waits for.
func awaitParts(ctx context.Context, h *lab.Host, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var said, last string
	for {
		st, err := status.Fetch(ctx, h.Root("run", "multipaas", "status.sock"))
		if err == nil {
			missing := st.Ready()
			if len(missing) == 0 {
				return nil
			}
			last = strings.Join(missing, "; ")
		} else {
			last = "it does not answer yet"
			services, serr := h.Services(ctx)
			if serr == nil && slices.ContainsFunc(services, func(s lab.ServiceStatus) bool { return s.Name == "multipaas" && s.Restarts >= 3 }) {
				return fmt.Errorf("multipaas on %s ends again and again:\n%s", h.Name(), tail(h.LogFile("multipaas"), 15))
			}
		}
		if last != said {
			say("    %s: %s", h.Name(), last)
			said = last
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %s\n%s", h.Name(), last, tail(h.LogFile("multipaas"), 15))
		}
	}
}

func (d *datacenter) joinNodes(ctx context.Context) error {
	for _, name := range []string{"node1", "node2"} {
		h := d.lab.Host(name)
		s := lab.Service{Name: "multipaas", Args: []string{"multipaas", "node", "join", "--address", h.Address().String(), "--name", name, d.url()}}
		if _, err := os.Stat(h.Data("node", "identity.json")); errors.Is(err, fs.ErrNotExist) {
			token, err := d.token(ctx)
			if err != nil {
				return err
			}
			s.Env = []string{"MULTIPAAS_JOIN_TOKEN=" + token}
			// One that waits with a token that is used up would wait for ever.
			if err := h.Stop(ctx, s.Name); err != nil {
				return err
			}
		}
		if err := service(ctx, h, s); err != nil {
			return err
		}
	}
	for _, name := range []string{"node1", "node2"} {
		if err := awaitParts(ctx, d.lab.Host(name), 5*time.Minute); err != nil {
			return err
		}
	}
	return nil
}

func (d *datacenter) token(ctx context.Context) (string, error) {
	out, err := d.server.Run(ctx, "multipaas", "token", "create", "--role", "node", "--ttl", "1h", "-o", "json", "--server", d.url(),
		"--credentials", "/var/lib/multipaas/bootstrap-admin.json", "--ca", "/var/lib/multipaas/pki/ca.crt")
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

func (d *datacenter) caFile() string     { return filepath.Join(d.dir, "ca.crt") }
func (d *datacenter) kubeconfig() string { return filepath.Join(d.dir, "kubeconfig") }
func (d *datacenter) password() string   { return filepath.Join(d.dir, "owner-password") }

// config is the client's folder of the tenant, or of the sysadmin.
func (d *datacenter) config(who string) string { return filepath.Join(d.dir, "mp-"+who) }

// client runs `multipaas mp ...` as one of them, from our own namespace, as a
// developer would. What it tells goes to the terminal.
func (d *datacenter) client(ctx context.Context, who string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, d.mp, append([]string{"mp"}, args...)...)
	cmd.Env = append(os.Environ(), "MP_CONFIG="+d.config(who))
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &indent{out: os.Stderr, copy: &errs}
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("mp %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// has says whether a list of names that the client prints holds one.
func (d *datacenter) has(ctx context.Context, who, name string, args ...string) (bool, error) {
	out, err := d.client(ctx, who, append(args, "-o", "name")...)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(strings.Fields(out), func(n string) bool { return n == name || strings.HasSuffix(n, "/"+name) }), nil
}

// loggedIn logs one of them in unless he is.
func (d *datacenter) loggedIn(ctx context.Context, who, email, passwordFile string) error {
	if _, err := d.client(ctx, who, "init", d.url(), "--ca", d.caFile()); err != nil {
		return err
	}
	quiet := exec.CommandContext(ctx, d.mp, "mp", "session", "--check")
	quiet.Env = append(os.Environ(), "MP_CONFIG="+d.config(who))
	if quiet.Run() == nil {
		return nil
	}
	_, err := d.client(ctx, who, "login", email, "--password-file", passwordFile)
	return err
}

func (d *datacenter) account(ctx context.Context) error {
	if err := d.admin(ctx); err != nil {
		return err
	}
	there, err := d.has(ctx, "admin", account, "accounts", "list")
	if err != nil {
		return err
	}
	if !there {
		if err := os.WriteFile(d.password(), []byte(rand.Text()+"\n"), 0o600); err != nil {
			return err
		}
		if _, err := d.client(ctx, "admin", "register", account, "--email", owner, "--password-file", d.password()); err != nil {
			return err
		}
	}
	if err := d.loggedIn(ctx, "tenant", owner, d.password()); err != nil {
		return err
	}
	_, err = d.client(ctx, "tenant", "accounts", "use", account)
	return err
}

// admin logs the first sysadmin in.
func (d *datacenter) admin(ctx context.Context) error {
	data, err := os.ReadFile(d.server.Data("bootstrap-admin.json"))
	if err != nil {
		return err
	}
	var admin struct{ Email, Password string }
	if err := json.Unmarshal(data, &admin); err != nil {
		return err
	}
	file := filepath.Join(d.dir, "admin-password")
	if err := os.WriteFile(file, []byte(admin.Password+"\n"), 0o600); err != nil {
		return err
	}
	return d.loggedIn(ctx, "admin", admin.Email, file)
}

func (d *datacenter) organization(ctx context.Context) error {
	there, err := d.has(ctx, "tenant", organization, "org", "list")
	if err != nil {
		return err
	}
	if !there {
		if _, err := d.client(ctx, "tenant", "org", "create", organization); err != nil {
			return err
		}
	}
	_, err = d.client(ctx, "tenant", "org", "use", organization)
	return err
}

func (d *datacenter) workspace(ctx context.Context) error {
	there, err := d.has(ctx, "tenant", workspace, "ws", "list")
	if err != nil {
		return err
	}
	if !there {
		_, err = d.client(ctx, "tenant", "ws", "create", workspace, "--machines", machines, "--timeout", "15m",
			"--cpu", "1", "--memory", "2Gi", "--disk", "10Gi")
	} else {
		// Waits, if an earlier run did not; asks for nothing that is not so already.
		_, err = d.client(ctx, "tenant", "cluster", "scale", workspace, "--machines", machines, "--timeout", "15m")
	}
	if err != nil {
		return err
	}
	if _, err := d.client(ctx, "tenant", "ws", "use", workspace); err != nil {
		return err
	}
	_, err = d.client(ctx, "tenant", "cluster", "config-kubectl", workspace, "--file", d.kubeconfig())
	return err
}

func (d *datacenter) app(ctx context.Context) error {
	// Of an app that is there, deploy changes what differs: nothing.
	_, err := d.client(ctx, "tenant", "apps", "deploy", app, "--image", image, "--instances", instances, "--port", "8080", "--timeout", "10m")
	return err
}

// appHost is the name by which the app is reached.
func appHost() string {
	return strings.Join([]string{app, workspace, organization, account, domain}, ".")
}

// answer asks the app over HTTPS, trusting only the appliance's authority. It
// asks the server's address by the app's name: no resolver knows that one here.
func (d *datacenter) answer(ctx context.Context) error {
	ca, err := os.ReadFile(d.caFile())
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	client := &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{RootCAs: pool},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				var dialer net.Dialer
				return dialer.DialContext(ctx, network, net.JoinHostPort(d.server.Address().String(), "443"))
			},
		},
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var last error
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+appHost()+"/", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("https://%s/ does not answer: %w", appHost(), last)
		}
	}
}

// envFile stands beside the lab's folder: .lab/up.env.
func envFile(dir string) string { return filepath.Clean(dir) + ".env" }

func removeEnv(dir string) error {
	if err := os.Remove(envFile(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (d *datacenter) finish() error {
	address := d.server.Address().String()
	vars := []struct{ key, value string }{
		{"URL", "https://" + appHost()}, {"ADDRESS", address}, {"CA", d.caFile()},
		{"KUBECONFIG", d.kubeconfig()}, {"MP_CONFIG", d.config("tenant")},
	}
	var env strings.Builder
	for _, v := range vars {
		fmt.Fprintf(&env, "%s=%s\n", v.key, v.value)
	}
	if err := atomicfile.Write(envFile(d.dir), []byte(env.String()), 0o644); err != nil {
		return err
	}
	fmt.Printf("\nThe datacenter is up (%s).\n\n%s\nThe same stands in %s. What to try next:\n\n", time.Since(d.began).Round(time.Second), env.String(), envFile(d.dir))
	fmt.Printf("  curl --cacert %s --resolve %s:443:%s https://%[2]s/\n", d.caFile(), appHost(), address)
	fmt.Printf("  KUBECONFIG=%s %s kubectl get nodes,pods -A\n", d.kubeconfig(), builtBinary)
	fmt.Printf("  MP_CONFIG=%s %s mp apps list\n", d.config("tenant"), builtBinary)
	fmt.Printf("  MP_CONFIG=%s %s mp nodes list    # as the sysadmin\n", d.config("admin"), builtBinary)
	fmt.Print(whatNext(d.dir))
	return nil
}

// labIn is the command that works on the lab in a folder, which is absolute.
func labIn(dir string) string {
	if usual, err := filepath.Abs(usualDir); err == nil && dir == usual {
		return usualLab
	}
	return usualLab + " -C " + dir
}

// usualLab is the command that works on the lab in usualDir.
const usualLab = "dist/lab"

// whatNext is what one may do with a datacenter that is up.
func whatNext(dir string) string {
	command := labIn(dir)
	down := command + " down"
	if command == usualLab {
		down = "make down"
	}
	return fmt.Sprintf(`  %[1]s exec server -- multipaas status
  %[1]s kill node1; %[1]s boot node1
  %[2]s
`, command, down)
}

// lookAround is what one may do with a datacenter that did not come up.
func lookAround(dir string) string {
	return fmt.Sprintf(`What is there stays, and "%[1]s up" goes on from it. To look around:
  %[1]s ls
  %[1]s logs server
  %[1]s exec server -- multipaas status
  %[1]s exec node1 -- bash`, labIn(dir))
}

// tail is the end of a file, a few lines.
func tail(file string, lines int) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return "    " + strings.Join(all[max(0, len(all)-lines):], "\n    ")
}

// indent writes lines on, moved in, and keeps a copy.
type indent struct {
	out  *os.File
	copy *strings.Builder
	mid  bool // in the middle of a line
}

func (w *indent) Write(p []byte) (int, error) {
	w.copy.Write(p)
	for line := range strings.Lines(string(p)) {
		if !w.mid {
			line = "    " + line
		}
		w.mid = !strings.HasSuffix(line, "\n")
		if _, err := w.out.WriteString(line); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
