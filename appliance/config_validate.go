package appliance

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/multipaas/multipaas/appliance/logs"
	"github.com/multipaas/multipaas/modules/resource"
)

// PublicKey is an ed25519 key that may sign a payload.
type PublicKey = ed25519.PublicKey

// ParsePublicKey reads a key of 32 bytes in hex or base64.
func ParsePublicKey(s string) (PublicKey, error) {
	for _, decode := range []func(string) ([]byte, error){hex.DecodeString, base64.StdEncoding.DecodeString, base64.RawURLEncoding.DecodeString} {
		if key, err := decode(s); err == nil && len(key) == ed25519.PublicKeySize {
			return key, nil
		}
	}
	return nil, errors.New("not an ed25519 public key (32 bytes in hex or base64)")
}

// fail notes one mistake: the field, its value, what is wrong, what to do.
func (c *Config) fail(field, value, wrong, remedy string) {
	c.errs = append(c.errs, mistake(field, value, wrong, remedy))
}

func mistake(field, value, wrong, remedy string) error {
	return fmt.Errorf("%s: %q: %s: %s", field, value, wrong, remedy)
}

var (
	label   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	version = regexp.MustCompile(`^1\.[0-9]{1,2}$`)
)

func isDomain(s string) bool {
	if len(s) > 200 { // leaves room for app.workspace.organization.account
		return false
	}
	for l := range strings.SplitSeq(s, ".") {
		if !label.MatchString(l) {
			return false
		}
	}
	return true
}

// Validate says all that is wrong with c, each with its field, value and
// remedy. It changes nothing.
func (c Config) Validate() error {
	errs := slices.Clone(c.errs)
	fail := func(field, value, wrong, remedy string) {
		errs = append(errs, mistake(field, value, wrong, remedy))
	}
	for _, d := range []struct{ field, value string }{{"data_dir", c.Paths.Data}, {"run_dir", c.Paths.Run}} {
		if !filepath.IsAbs(d.value) || filepath.Clean(d.value) == "/" {
			fail(d.field, d.value, "not an absolute path of a folder", "write it from the root, /var/lib/multipaas for one")
		}
	}
	// A socket's path has 107 bytes; the longest of ours adds some 40.
	if len(c.Paths.Run) > 60 {
		fail("run_dir", c.Paths.Run, "longer than 60 bytes, too long for sockets below it", "choose a shorter one")
	}
	if !label.MatchString(c.Name) {
		fail("name", c.Name, "not a name", "use at most 63 of a-z, 0-9 and -, beginning and ending with a letter or digit")
	}
	if c.Address.IsValid() && (!c.Address.Is4() || !c.Address.IsGlobalUnicast()) {
		fail("address", c.Address.String(), "not a global IPv4 address", "other machines must reach it: set the one on the platform's network")
	}
	if !isDomain(c.Domain) {
		fail("domain", c.Domain, "not a domain name", "use names of a-z, 0-9 and - with dots between")
	}
	for i, n := range c.ServerNames {
		if _, err := netip.ParseAddr(n); err != nil && !isDomain(n) {
			fail(fmt.Sprintf("server_names[%d]", i), n, "neither a name nor an IP address", "write it without a port")
		}
	}
	if !slices.Contains([]string{"sysadmin", "open"}, c.Registration) {
		fail("registration", c.Registration, "unknown", "use sysadmin (only he makes accounts) or open (anybody may register)")
	}
	if a, err := mail.ParseAddress(c.AdminEmail); err != nil || a.Address != c.AdminEmail {
		fail("admin_email", c.AdminEmail, "not an e-mail address", "write it as name@example")
	}
	if !slices.Contains([]resource.Datastore{resource.Kine, resource.Etcd}, c.Datastore) {
		fail("workspaces.datastore", string(c.Datastore), "unknown", "use kine or etcd")
	}
	// A cluster with its addons takes 4 MiB; etcd and SQLite are not made for more than 8 GiB.
	if l := c.DatastoreLimit; l != 0 && (l < 16<<20 || l > 8<<30) {
		fail("workspaces.datastore_limit", strconv.FormatInt(l>>20, 10), "not a size that works", "use 16 to 8192 (MiB), or 0 for the default")
	}
	for i, v := range c.KubernetesVersions {
		if !version.MatchString(v) {
			fail(fmt.Sprintf("kubernetes_versions[%d]", i), v, "not a minor version", "write it as \"1.36\"")
		}
	}
	if _, err := logs.ParseLevel(c.Log.Level); err != nil {
		fail("log.level", c.Log.Level, "unknown", "use "+strings.Join(logs.Levels(), ", "))
	}
	if !slices.Contains(logs.Formats(), c.Log.Format) {
		fail("log.format", c.Log.Format, "unknown", "use "+strings.Join(logs.Formats(), ", "))
	}
	errs = append(errs, c.validateListen()...)
	errs = append(errs, c.validatePlan()...)
	errs = append(errs, c.validateUpstreams()...)
	return errors.Join(errs...)
}

func (c Config) validateListen() (errs []error) {
	seen := map[string]string{}
	for _, l := range []struct{ field, value string }{
		{"listen.api", c.Listen.API}, {"listen.kubernetes", c.Listen.Kubernetes}, {"listen.registry", c.Listen.Registry},
		{"listen.http", c.Listen.HTTP}, {"listen.https", c.Listen.HTTPS},
	} {
		host, port, err := net.SplitHostPort(l.value)
		n, perr := strconv.Atoi(port)
		if _, aerr := netip.ParseAddr(host); err != nil || perr != nil || n < 1 || n > 65535 || host != "" && aerr != nil {
			errs = append(errs, mistake(l.field, l.value, "not an address to listen on", "write :PORT or ADDRESS:PORT, the port from 1 to 65535"))
			continue
		}
		if other, taken := seen[port]; taken {
			errs = append(errs, mistake(l.field, l.value, "the same port as "+other, "give each its own"))
		}
		seen[port] = l.field
	}
	return errs
}

func (c Config) validatePlan() (errs []error) {
	p := c.Plan
	if !p.Nodes.IsValid() {
		return nil // said already
	}
	// Machines take .10 and up, hosts' gateways the upper half from 2048 on.
	for _, r := range []struct {
		field  string
		prefix netip.Prefix
		bits   int
		why    string
	}{
		{"workspaces.nodes", p.Nodes, 20, "machines and hosts would not fit"},
		{"workspaces.pods", p.Pods, 16, "254 machines with 254 pods each would not fit"},
		{"workspaces.services", p.Services, 24, "services would not fit"},
	} {
		if r.prefix.Bits() > r.bits {
			errs = append(errs, mistake(r.field, r.prefix.String(), "too small: "+r.why, fmt.Sprintf("use a /%d or larger", r.bits)))
		}
	}
	nets := []struct {
		field  string
		prefix netip.Prefix
	}{{"workspaces.nodes", p.Nodes}, {"workspaces.pods", p.Pods}, {"workspaces.services", p.Services}}
	for i, a := range nets {
		if c.Address.IsValid() && a.prefix.Contains(c.Address) {
			errs = append(errs, mistake(a.field, a.prefix.String(), "holds this machine's own address "+c.Address.String(), "use a network that your site does not"))
		}
		for _, b := range nets[i+1:] {
			if a.prefix.Overlaps(b.prefix) {
				errs = append(errs, mistake(a.field, a.prefix.String(), fmt.Sprintf("overlaps %s %s", b.field, b.prefix), "use networks apart from each other"))
			}
		}
	}
	return errs
}

func (c Config) validateUpstreams() (errs []error) {
	seen := map[string]bool{}
	for i, u := range c.RegistryUpstreams {
		field := fmt.Sprintf("registry_upstreams[%d].", i)
		host, port, err := net.SplitHostPort(u.Name)
		if err != nil {
			host, port = u.Name, ""
		}
		if _, perr := strconv.ParseUint(port, 10, 16); !isDomain(host) || port != "" && perr != nil {
			errs = append(errs, mistake(field+"name", u.Name, "not a registry's name", "write it as it stands in image references, docker.io for one"))
		}
		if seen[u.Name] {
			errs = append(errs, mistake(field+"name", u.Name, "is there twice", "name each registry once"))
		}
		seen[u.Name] = true
		if at, err := url.Parse(u.URL); err != nil || at.Host == "" || at.Scheme != "https" && at.Scheme != "http" || at.User != nil || at.RawQuery != "" {
			errs = append(errs, mistake(field+"url", u.URL, "not the URL of a registry", "write it as https://HOST[:PORT], credentials in username and password_file"))
		}
		for _, f := range []struct{ name, value string }{{"ca_file", u.CAFile}, {"password_file", u.PasswordFile}} {
			if f.value != "" && !filepath.IsAbs(f.value) {
				errs = append(errs, mistake(field+f.name, f.value, "not an absolute path", "write it from the root"))
			}
		}
		if (u.Username == "") != (u.PasswordFile == "") {
			errs = append(errs, mistake(field+"username", u.Username, "goes with password_file", "set both or none"))
		}
	}
	return errs
}
