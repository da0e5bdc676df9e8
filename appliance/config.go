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
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/multipaas/multipaas/appliance/config"
	"github.com/multipaas/multipaas/appliance/logs"
	"github.com/multipaas/multipaas/appliance/paths"
	"github.com/multipaas/multipaas/modules/network"
	"github.com/multipaas/multipaas/modules/registry"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/modules/workspace"
)

// File is the configuration as an operator writes it: a YAML file, all of it
// optional. Load makes one, Complete makes a Config of it.
type File struct {
	DataDir      string         `yaml:"data_dir" doc:"folder for everything that is kept"`
	RunDir       string         `yaml:"run_dir" doc:"folder for sockets and what else goes with a reboot"`
	Name         string         `yaml:"name" doc:"this machine on the platform; empty: its host name"`
	Address      string         `yaml:"address" doc:"its address on the platform's network; empty: its only global IPv4 address"`
	Domain       string         `yaml:"domain" doc:"domain below which apps are reached"`
	ServerNames  []string       `yaml:"server_names" doc:"more names and addresses of this server; clients are told the first"`
	Listen       ListenSettings `yaml:"listen" doc:"where a server listens, each :PORT or ADDRESS:PORT"`
	Registration string         `yaml:"registration" doc:"who makes accounts: sysadmin, or open for everybody"`
	AdminEmail   string         `yaml:"admin_email" doc:"the first sysadmin; empty: admin@DOMAIN"`

	Workspaces workspace.Settings `yaml:"workspaces" doc:"what all workspaces get"`
	Limits     LimitSettings      `yaml:"limits" doc:"the most an account may have, unless set for it: mp accounts set"`

	Egress EgressSettings `yaml:"egress" doc:"where tenants may go beyond the platform; the same on all machines"`

	RegistryUpstreams []registry.UpstreamSettings `yaml:"registry_upstreams" doc:"registries from which machines pull through ours"`

	UpstreamDNS        []string `yaml:"upstream_dns" doc:"DNS servers for names outside, ADDRESS[:PORT]; empty: there are none"`
	KubernetesVersions []string `yaml:"kubernetes_versions" doc:"versions to offer, newest last; empty: all of the payload"`
	PayloadKeys        []string `yaml:"payload_keys" env:"-" doc:"more public keys that may sign a payload"`

	Log logs.Settings `yaml:"log" doc:"what is logged, and how"`
}

// What egress.mode may be.
const (
	egressPublic = "public"
	egressOpen   = "open"
)

// EgressSettings say where tenants may go. Their packets leave by the host's own
// address: who trusts hosts by address trusts every tenant.
type EgressSettings struct {
	Mode  string   `yaml:"mode" doc:"public: not to private networks; open: to those too, but for those that a host is in"`
	Allow []string `yaml:"allow" doc:"networks that tenants reach all the same; a host's own address never"`
	Deny  []string `yaml:"deny" doc:"networks that tenants never reach"`
}

// Check says what is wrong with them.
func (s EgressSettings) Check(fail func(field, value, wrong, remedy string)) {
	if s.Mode != egressPublic && s.Mode != egressOpen {
		fail("mode", s.Mode, "unknown", "choose public or open")
	}
}

// Defaults is the configuration of an empty file.
func Defaults() File {
	return File{
		DataDir: paths.DefaultData,
		RunDir:  paths.DefaultRun,
		// .internal is reserved for private use: no such name is ever on the
		// internet.
		Domain: "paas.internal",
		Listen: ListenSettings{
			API:        ":7443",
			Kubernetes: ":6443",
			Registry:   ":5000",
			HTTP:       ":80",
			HTTPS:      ":443",
		},
		Registration: "sysadmin",
		Egress:       EgressSettings{Mode: egressPublic},
		Workspaces:   workspace.DefaultSettings(),
		Limits:       defaultLimits(),
		Log:          logs.DefaultSettings(),
	}
}

func (f File) paths() paths.Paths { return paths.Paths{Data: f.DataDir, Run: f.RunDir} }

// Load reads a configuration: the defaults, over them what the sources say. All
// mistakes are reported at once.
func Load(from config.Sources) (File, error) {
	f := Defaults()
	return f, config.Load(&f, from)
}

// ListenSettings say where a server listens.
type ListenSettings struct {
	API        string `yaml:"api" doc:"the API, for mp and for nodes"`
	Kubernetes string `yaml:"kubernetes" doc:"the Kubernetes API of every workspace"`
	Registry   string `yaml:"registry" doc:"the image registry"`
	HTTP       string `yaml:"http" doc:"apps, by HTTP"`
	HTTPS      string `yaml:"https" doc:"apps, by HTTPS"`
}

func (s ListenSettings) all() []string {
	return []string{s.API, s.Kubernetes, s.Registry, s.HTTP, s.HTTPS}
}

// Check says what is wrong with s.
func (s ListenSettings) Check(fail func(field, value, wrong, remedy string)) {
	seen := map[string]string{}
	for _, l := range []struct{ field, value string }{
		{"api", s.API},
		{"kubernetes", s.Kubernetes},
		{"registry", s.Registry},
		{"http", s.HTTP},
		{"https", s.HTTPS},
	} {
		host, port, err := net.SplitHostPort(l.value)
		n, perr := strconv.Atoi(port)
		if _, aerr := netip.ParseAddr(host); err != nil || perr != nil || n < 1 || n > 65535 || host != "" && aerr != nil {
			fail(l.field, l.value, "not an address to listen on", "write :PORT or ADDRESS:PORT, the port from 1 to 65535")
			continue
		}
		if other, taken := seen[port]; taken {
			fail(l.field, l.value, "the same port as listen."+other, "give each its own")
		}
		seen[port] = l.field
	}
}

// Config is the configuration of a machine, complete: the file, filled in, and
// what it says, read. Only Complete makes one; what it holds can be used as it
// stands once Validate has returned nil.
type Config struct {
	File
	Paths          paths.Paths
	Plan           wire.Plan
	Datastore      resource.Datastore
	DatastoreLimit int64 // bytes; 0: embed/plane's default

	// In place of the texts of the same names in the file.
	Address     netip.Addr
	Limits      resource.Limits // of one account
	Egress      network.Egress
	UpstreamDNS []netip.AddrPort
	PayloadKeys []ed25519.PublicKey

	errs []error // what Complete could not read
	// own are, of the addresses by which clients reach this machine, those that it had at
	// its start, for Validate. Which lead to its front door service says, as they change.
	own []netip.Addr
}

// Complete fills in what f leaves open and reads what it says. What it can't
// read it leaves for Validate to report, so that all mistakes show at once.
func (f File) Complete(m Machine) Config {
	f.Domain = strings.ToLower(strings.TrimSuffix(f.Domain, "."))
	if f.Name == "" {
		// Only the first label: node names are labels, host names may be longer.
		f.Name, _, _ = strings.Cut(strings.ToLower(m.Hostname), ".")
	}
	if f.AdminEmail == "" {
		f.AdminEmail = "admin@" + f.Domain
	}
	c := Config{
		File:           f,
		Paths:          f.paths(),
		Plan:           f.Workspaces.Plan(),
		Datastore:      resource.Datastore(f.Workspaces.Datastore),
		DatastoreLimit: f.Workspaces.DatastoreLimit << 20,
		Limits:         f.Limits.Limits(),
	}
	c.Address = c.completeAddress(f.Address, m)
	c.own = []netip.Addr{c.Address}
	for _, n := range f.ServerNames {
		// Others are a router's: what goes there leaves the platform.
		a, err := netip.ParseAddr(n)
		if err == nil && a != c.Address && slices.ContainsFunc(m.candidates(), func(l LinkAddr) bool { return l.Address == a }) {
			c.own = append(c.own, a)
		}
	}
	c.Egress = network.Egress{
		Private: f.Egress.Mode == egressOpen,
		Allow:   completeList(&c, "egress.allow", f.Egress.Allow, config.ParseNetwork),
		Deny:    completeList(&c, "egress.deny", f.Egress.Deny, config.ParseNetwork),
	}
	c.UpstreamDNS = completeList(&c, "upstream_dns", f.UpstreamDNS, parseDNS)
	c.PayloadKeys = completeList(&c, "payload_keys", f.PayloadKeys, parsePublicKey)
	return c
}

// completeList reads each text of a list; parse says what is wrong with one, and
// what to do.
func completeList[T any](c *Config, field string, texts []string, parse func(string) (v T, wrong, remedy string)) (all []T) {
	for i, text := range texts {
		v, wrong, remedy := parse(text)
		if wrong != "" {
			c.fail(fmt.Sprintf("%s[%d]", field, i), text, wrong, remedy)
			continue
		}
		all = append(all, v)
	}
	return all
}

// parseDNS reads the address of a DNS server, with or without a port.
func parseDNS(text string) (ap netip.AddrPort, wrong, remedy string) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(addr, 53), "", ""
	}
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		return ap, "not an IP address", "write 10.0.0.53 or 10.0.0.53:53"
	}
	return ap, "", ""
}

func (c *Config) completeAddress(s string, m Machine) netip.Addr {
	if s != "" {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			c.fail("address", s, "not an IP address",
				"write the address of this machine on the platform's network, without a port or a length")
		}
		return addr
	}
	// Never by the default route: it may lead to a network that has nothing to
	// do with the platform, and platforms without one are what we are made for.
	all := m.candidates()
	switch len(all) {
	case 1:
		return all[0].Address
	case 0:
		c.fail("address", s, "this machine has no global IPv4 address", "give it one, or set address")
		return netip.Addr{}
	}
	var names []string
	for _, a := range all {
		names = append(names, fmt.Sprintf("%s (%s)", a.Address, a.Link))
	}
	c.fail("address", s, "this machine has more than one: "+strings.Join(names, ", "),
		"set address to the one on the platform's network")
	return netip.Addr{}
}

// fail notes one mistake: the field, its value, what is wrong, what to do.
func (c *Config) fail(field, value, wrong, remedy string) {
	c.errs = append(c.errs, config.Mistake(field, value, wrong, remedy))
}

// Validate says all that is wrong with c, each with its field, value and
// remedy. It changes nothing.
func (c Config) Validate() error {
	errs := append(slices.Clone(c.errs), config.Check(c.File))
	if c.Address.IsValid() {
		if !c.Address.Is4() || !c.Address.IsGlobalUnicast() {
			errs = append(errs, config.Mistake("address", c.Address.String(), "not a global IPv4 address",
				"other machines must reach it: set the one on the platform's network"))
		}
		for _, n := range []struct {
			field string
			p     netip.Prefix
		}{{"nodes", c.Plan.Nodes}, {"pods", c.Plan.Pods}, {"services", c.Plan.Services}} {
			for _, own := range c.own {
				if n.p.Contains(own) {
					errs = append(errs, config.Mistake("workspaces."+n.field, n.p.String(),
						"holds this machine's own address "+own.String(), "use a network that your site does not"))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// Check says what is wrong with the settings of f that are in no section.
func (f File) Check(fail func(field, value, wrong, remedy string)) {
	for _, d := range []struct{ field, value string }{{"data_dir", f.DataDir}, {"run_dir", f.RunDir}} {
		if !filepath.IsAbs(d.value) || filepath.Clean(d.value) == "/" {
			fail(d.field, d.value, "not an absolute path of a folder", "write it from the root, /var/lib/multipaas for one")
		}
	}
	// A socket's path has 107 bytes; the longest of ours adds some 40.
	if len(f.RunDir) > 60 {
		fail("run_dir", f.RunDir, "longer than 60 bytes, too long for sockets below it", "choose a shorter one")
	}
	if len(f.DataDir) > 75 { // below it planes/000000/storage.sock, 28 bytes
		fail("data_dir", f.DataDir, "longer than 75 bytes, too long for sockets below it", "choose a shorter one")
	}
	if !label.MatchString(f.Name) {
		fail("name", f.Name, "not a name", "use at most 63 of a-z, 0-9 and -, beginning and ending with a letter or digit")
	}
	if !isDomain(f.Domain) {
		fail("domain", f.Domain, "not a domain name", "use names of a-z, 0-9 and - with dots between")
	}
	for i, n := range f.ServerNames {
		if _, err := netip.ParseAddr(n); err != nil && !isDomain(n) {
			fail(fmt.Sprintf("server_names[%d]", i), n, "neither a name nor an IP address", "write it without a port")
		}
	}
	if !slices.Contains([]string{"sysadmin", "open"}, f.Registration) {
		fail("registration", f.Registration, "unknown", "use sysadmin (only he makes accounts) or open (anybody may register)")
	}
	if a, err := mail.ParseAddress(f.AdminEmail); err != nil || a.Address != f.AdminEmail {
		fail("admin_email", f.AdminEmail, "not an e-mail address", "write it as name@example")
	}
	for i, v := range f.KubernetesVersions {
		if !version.MatchString(v) {
			fail(fmt.Sprintf("kubernetes_versions[%d]", i), v, "not a minor version", "write it as \"1.36\"")
		}
	}
	seen := map[string]bool{}
	for i, u := range f.RegistryUpstreams {
		if seen[u.Name] {
			fail(fmt.Sprintf("registry_upstreams[%d].name", i), u.Name, "is there twice", "name each registry once")
		}
		seen[u.Name] = true
	}
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

// parsePublicKey reads a key of 32 bytes in hex or base64, with or without the
// "ed25519:" that `multipaas payload ls` shows before it.
func parsePublicKey(text string) (key ed25519.PublicKey, wrong, remedy string) {
	text = strings.TrimPrefix(text, "ed25519:")
	for _, decode := range []func(string) ([]byte, error){
		hex.DecodeString, base64.StdEncoding.DecodeString, base64.RawURLEncoding.DecodeString,
	} {
		if key, err := decode(text); err == nil && len(key) == ed25519.PublicKeySize {
			return key, "", ""
		}
	}
	return nil, "not an ed25519 public key (32 bytes in hex or base64)", "`multipaas payload ls` shows the key of a payload"
}
