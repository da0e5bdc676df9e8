package dctest

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// Who runs a command, beside the sysadmin and the owner of acme: each has a
// configuration of the client of his own.
const (
	Developer = "developer" // in acme/web
	Rival     = "rival"     // owner of the account beta
)

// Datacenter is a server, two nodes and the tenant that `lab up` makes, and
// beside them the account beta. Its methods end the test when something that
// must go well doesn't.
type Datacenter struct {
	Lab    *lab.Lab
	Root   string // of the repository
	Dir    string // of the lab
	Binary string // the one file
	Server *lab.Host
	Nodes  []*lab.Host
	Pool   *x509.CertPool // the platform's authority
	CA     string         // file of it

	Pushed bool // the probe is in the registry
	// ProbeLayout is the folder with the probe's image, ProbeV1 the image; once PushProbe was called.
	ProbeLayout string
	ProbeV1     v1.Image
}

// Start brings a datacenter up, which goes with the test. With MULTIPAAS_LAB=DIR
// it is the one that stands in DIR, and it stays.
func Start(t testing.TB, name string) *Datacenter {
	t.Helper()
	var d *Datacenter
	if dir := os.Getenv("MULTIPAAS_LAB"); dir != "" {
		d = in(t, func(binary string) *lab.Lab {
			l, err := lab.Open(dir, t.Logf)
			if err == nil {
				err = l.SetBinary(binary)
			}
			if err != nil {
				t.Fatal(err)
			}
			return l
		})
	} else {
		d = New(t, name)
	}
	d.up(t)
	d.Server = d.Lab.Host("server")
	d.Nodes = []*lab.Host{d.Lab.Host("node1"), d.Lab.Host("node2")}
	d.Trust(t)
	d.people(t)
	return d
}

// New is a datacenter without hosts, which goes with the test: for tests that
// make the platform themselves.
func New(t testing.TB, name string) *Datacenter {
	t.Helper()
	d := in(t, func(binary string) *lab.Lab { return lab.ForTest(t, lab.Options{Name: name, Binary: binary}) })
	return d
}

func in(t testing.TB, open func(binary string) *lab.Lab) *Datacenter {
	t.Helper()
	root, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	d := &Datacenter{Root: root, Binary: filepath.Join(root, "dist", "multipaas")}
	if _, err := os.Stat(d.Binary); err != nil {
		t.Fatalf("%v: make build makes it", err)
	}
	if os.Geteuid() != 0 {
		t.Fatal("this needs root: hosts are made of namespaces")
	}
	d.Lab = open(d.Binary)
	d.Dir = d.Lab.Dir()
	d.CA = filepath.Join(d.Dir, datacenter.CAFile)
	return d
}

// Trust takes the platform's authority from the server, once it is there.
func (d *Datacenter) Trust(t testing.TB) {
	t.Helper()
	pem, err := os.ReadFile(d.Server.Data("pki", "ca.crt"))
	if err == nil {
		err = os.WriteFile(d.CA, pem, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	d.Pool = x509.NewCertPool()
	if !d.Pool.AppendCertsFromPEM(pem) {
		t.Fatalf("%s holds no certificate", d.CA)
	}
}

// repository is the folder that holds the project: the one with go.mod.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod here or above: run it in the project")
		}
		dir = filepath.Dir(dir)
	}
}

// up brings it up, as `lab up` does.
func (d *Datacenter) up(t testing.TB) {
	t.Helper()
	began := time.Now()
	var said strings.Builder
	_, err := datacenter.OnLab(t.Context(), d.Lab, d.Binary, datacenter.Usual, func(format string, args ...any) {
		fmt.Fprintf(&said, format+"\n", args...)
	})
	if err != nil {
		d.Logs(t)
		t.Fatalf("bring a datacenter up: %v\n%s", err, said.String())
	}
	t.Logf("the datacenter came up in %s", time.Since(began).Round(time.Second))
}

// people makes the users that `lab up` does not.
func (d *Datacenter) people(t testing.TB) {
	t.Helper()
	word := filepath.Join(d.Dir, "password")
	if err := os.WriteFile(word, []byte("correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := d.MP(t, Rival, "session", "--check"); r.Code != 0 {
		d.Make(t, datacenter.Admin, Rival, "owner@beta.example", "register", "beta", "--email", "owner@beta.example")
		d.Must(t, Rival, "accounts", "use", "beta")
		if r := d.MP(t, Rival, "org", "create", "ops"); r.Code != 0 && r.Code != 4 {
			t.Fatal(r)
		}
		d.Must(t, Rival, "org", "use", "ops")
	}
	if r := d.MP(t, Developer, "session", "--check"); r.Code != 0 {
		d.Make(t, datacenter.Owner, Developer, "dev@acme.example", "users", "create", "dev@acme.example")
		d.Must(t, datacenter.Owner, "org", "users", "add", "web", "dev@acme.example")
		d.Must(t, Developer, "ws", "use", "shop", "--account", "acme", "--organization", "web")
	}
}

// Make has by make a user with the command args, unless he is there, and logs him in
// as who: he sets the password of the file "password", of his own.
func (d *Datacenter) Make(t testing.TB, by, who, email string, args ...string) {
	t.Helper()
	first, own := filepath.Join(d.Dir, datacenter.FirstPassword), filepath.Join(d.Dir, "password")
	made := d.MP(t, by, append(args, "--password-file", first)...)
	if made.Code != 0 && made.Code != 4 {
		t.Fatal(made)
	}
	d.Must(t, who, "init", d.URL(), "--ca", d.CA)
	if made.Code == 4 && d.MP(t, who, "login", email, "--password-file", own).Code == 0 {
		return // he was settled before
	}
	d.Must(t, who, "login", email, "--password-file", first, "--new-password-file", own)
}

func (d *Datacenter) URL() string { return fmt.Sprintf("https://%s:7443", d.Server.Address()) }

// Kubeconfig is that of acme/web/shop, for its owner.
func (d *Datacenter) Kubeconfig() string { return filepath.Join(d.Dir, datacenter.KubeconfigFile) }

// KubeconfigFor writes the kubeconfig of a workspace for somebody.
func (d *Datacenter) KubeconfigFor(t testing.TB, who, workspace string) string {
	t.Helper()
	file := filepath.Join(d.Dir, "kubeconfig-"+who)
	d.Must(t, who, "cluster", "config-kubectl", workspace, "--file", file)
	return file
}

// BeginBox begins to make beta's workspace, a single machine, with etcd as
// datastore.
func (d *Datacenter) BeginBox(t testing.TB) {
	t.Helper()
	if r := d.MP(t, Rival, "ws", "create", "box", "--machines", "1", "--cpu", "1", "--memory", "2Gi", "--disk", "4Gi",
		"--datastore", "etcd", "--no-wait"); r.Code != 0 && r.Code != 4 {
		t.Fatal(r)
	}
	d.Must(t, Rival, "ws", "use", "box")
}

// Box waits for beta's workspace and returns its kubeconfig.
func (d *Datacenter) Box(t testing.TB) string {
	t.Helper()
	file := filepath.Join(d.Dir, "kubeconfig-"+Rival)
	if _, err := os.Stat(file); err == nil {
		return file
	}
	wait.For(t, wait.Patience, "workspace box is Ready", func(context.Context) error {
		r := d.MP(t, Rival, "ws", "show", "box", "-o", "json")
		var ws struct{ Status struct{ Phase string } }
		if err := json.Unmarshal([]byte(r.Out), &ws); err != nil {
			return errors.New(r.String())
		}
		if ws.Status.Phase != "Ready" {
			return fmt.Errorf("it is %s", ws.Status.Phase)
		}
		return nil
	})
	return d.KubeconfigFor(t, Rival, "box")
}
