package appliance

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance/config"
	"github.com/multipaas/multipaas/appliance/logs"
	"github.com/multipaas/multipaas/modules/registry"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/workspace"
)

var testMachine = Machine{Hostname: "Server1.example", Addresses: []LinkAddr{
	{"eth0", netip.MustParseAddr("192.0.2.10")},
	{"eth0", netip.MustParseAddr("fe80::1")},
	{"mpu-00002a", netip.MustParseAddr("10.99.0.1")},
}}

func load(t *testing.T, text string, env []string, flags map[string]string) (File, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(config.Sources{File: file, Env: env, Flags: flags})
}

func TestEmptyConfigIsValid(t *testing.T) {
	f, err := load(t, "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := f.Complete(testMachine)
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if got, want := c.Name, "server1"; got != want {
		t.Errorf("name: got %q, want %q", got, want)
	}
	if got, want := c.Address.String(), "192.0.2.10"; got != want {
		t.Errorf("address: got %s, want %s", got, want)
	}
	if got, want := c.Plan.Plane.String()+" "+c.Plan.DNS.String(), "172.30.0.1 10.43.0.10"; got != want {
		t.Errorf("plan: got %s, want %s", got, want)
	}
}

func addressesOf(texts string) (all []netip.Addr) {
	for _, text := range strings.Fields(texts) {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

// TestDoor: of the names that a server is given, those that it has itself lead pods to its
// front door.
func TestDoor(t *testing.T) {
	f, err := load(t, "domain: Paas.Example.\naddress: 192.0.2.10\nserver_names: [cloud.example, 198.51.100.7, 203.0.113.9, 192.0.2.10]\nlisten: {https: \"192.0.2.10:8443\"}\n", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := testMachine
	m.Addresses = append(slices.Clone(m.Addresses), LinkAddr{"eth1", netip.MustParseAddr("198.51.100.7")})
	c := f.Complete(m)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("198.51.100.7")} // the other one is a router's
	if !slices.Equal(c.own, want) {
		t.Errorf("addresses %v, want %v", c.own, want)
	}
	for own, want := range map[string]string{
		"": "[192.0.2.10]", "198.51.100.7": "[192.0.2.10 198.51.100.7]", "203.0.113.9": "[192.0.2.10 203.0.113.9]", // it has moved here
		"10.0.0.1 192.0.2.10": "[192.0.2.10]",
	} {
		if got := fmt.Sprint(c.service(addressesOf(own))); got != want {
			t.Errorf("a server with %q is at %s, want %s", own, got, want)
		}
	}
	// One listens for apps by HTTPS; both have all the rest.
	if got, want := fmt.Sprint(c.listeners(want)), "[192.0.2.10:7443 198.51.100.7:7443 192.0.2.10:6443 198.51.100.7:6443 192.0.2.10:5000 198.51.100.7:5000 "+
		"192.0.2.10:80 198.51.100.7:80 192.0.2.10:8443]"; got != want {
		t.Errorf("listeners %s, want %s", got, want)
	}
	if got, want := c.frontDoor(want).Names, []string{"api.paas.example", "registry.paas.example", "*.k8s.paas.example", "*.*.*.*.paas.example", "cloud.example"}; !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
	if got, want := c.frontDoor(want).Loose, []string{"*.paas.example", "cloud.example"}; !slices.Equal(got, want) {
		t.Errorf("names for older agents %q, want %q", got, want)
	}
	one := ListenSettings{API: "192.0.2.10:7443", Kubernetes: "192.0.2.10:6443", Registry: "192.0.2.10:5000", HTTP: "192.0.2.10:80", HTTPS: "192.0.2.10:443"}
	none := c.Listen
	none.HTTP = "198.51.100.7:80"
	for leads, listen := range map[string]ListenSettings{"[192.0.2.10]": c.Listen, "[192.0.2.10 198.51.100.7]": none, "[192.0.2.10] ": one} {
		x := c
		x.Listen = listen
		if got := fmt.Sprint(x.frontDoor(want).Addresses); got != strings.TrimSpace(leads) {
			t.Errorf("who listens at %v is found at %s, want %s", listen, got, leads)
		}
	}
	c.Plan.Nodes = netip.MustParsePrefix("198.51.100.0/24")
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "198.51.100.7") {
		t.Errorf("an address within the workspaces' networks: %v", err)
	}
}

func TestOrderOfSources(t *testing.T) {
	text := "domain: file.example\nname: file\nlog:\n  level: warn\nlisten: {api: \":1\"}\n"
	f, err := load(t, text,
		[]string{"MULTIPAAS_NAME=env", "MULTIPAAS_LOG_LEVEL=error", "MULTIPAAS_SERVER_NAMES=a, b", "MULTIPAAS_JOIN_TOKEN=x"},
		map[string]string{"log.level": "debug"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ what, got, want string }{
		{"default", f.DataDir, "/var/lib/multipaas"},
		{"file over default", f.Domain, "file.example"},
		{"file leaves its neighbours", f.Listen.HTTPS, ":443"},
		{"env over file", f.Name, "env"},
		{"env list", strings.Join(f.ServerNames, "+"), "a+b"},
		{"flag over env", f.Log.Level, "debug"},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, c.got, c.want)
		}
	}
	// Every type of field, in and below a section.
	f, err = load(t, "limits: {users: 9, apps: 8}\n", []string{
		"MULTIPAAS_LIMITS_USERS=5", "MULTIPAAS_LIMITS_CPU=7", "MULTIPAAS_WORKSPACES_DATASTORE_LIMIT=512", "MULTIPAAS_PAYLOAD_KEYS=/etc/keys",
		"MULTIPAAS_REGISTRY_UPSTREAMS=[{name: docker.io}, {name: quay.io, url: \"https://mirror.example\"}]",
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := f.Limits.Limits(), (resource.Limits{
		Users:         5,
		Organizations: 50,
		Workspaces:    25,
		Machines:      100,
		Apps:          8,
		MilliCPU:      7000,
		MemoryBytes:   1600 << 30,
		DiskBytes:     10 << 40,
		ImageBytes:    200 << 30,
		Volumes:       1000,
		VolumeBytes:   10 << 40,
		Snapshots:     1000,
		DatabaseBytes: 10 << 30,
	}); got != want {
		t.Errorf("limits: got %+v, want %+v", got, want)
	}
	if f.Workspaces.DatastoreLimit != 512 || len(f.RegistryUpstreams) != 2 || f.RegistryUpstreams[1].URL != "https://mirror.example" {
		t.Errorf("got %+v, %+v", f.Workspaces, f.RegistryUpstreams)
	}
	if f.PayloadKeys != nil { // that variable names a file: see embed/payload
		t.Errorf("payload_keys: got %v", f.PayloadKeys)
	}
	for variable, want := range map[string]string{
		"MULTIPAAS_LIMITS_USERS=five":             `MULTIPAAS_LIMITS_USERS: "five": is not a number: write digits only`,
		"MULTIPAAS_REGISTRY_UPSTREAMS=docker.io":  "MULTIPAAS_REGISTRY_UPSTREAMS: line 1: `docker.io` is a text; write a list",
		"MULTIPAAS_REGISTRY_UPSTREAMS=[{nam: x}]": `MULTIPAAS_REGISTRY_UPSTREAMS: line 1: "nam": unknown field; have name, url`,
	} {
		if _, err := load(t, "", []string{variable}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n got %v\nwant %s", variable, err, want)
		}
	}
	if _, err := load(t, "", nil, map[string]string{"nope": "x"}); err == nil || !strings.Contains(err.Error(), "log.level") {
		t.Errorf("unknown flag: got %v, want an error that names the settings", err)
	}
}

func TestFileMistakes(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"blocked_networks: [192.0.2.0/24]\n", `line 1: "blocked_networks" is called egress.deny now`},
		{"data_dirr: /x\n", `config.yaml: line 1: "data_dirr": unknown field; have data_dir,`},
		{"\nlog: {levle: x}\n", `line 2: "levle": unknown field; have level, format`},
		{"limits: {user: 5}\n", `line 1: "user": unknown field; have users, organizations, workspaces,`},
		{"workspaces: {datastore_limits: 5}\n", `"datastore_limits": unknown field; have nodes, pods,`},
		{"registry_upstreams: [{nam: x}]\n", `"nam": unknown field; have name, url,`},
		{"limits: {users: many}\n", "line 1: `many` is a text; write a number"},
		{"registry_upstreams: {name: x}\n", "line 1: is fields; write a list"},
		{"log: debug\n", "line 1: `debug` is a text; write fields (level, format)"},
		{"server_names: x\n", "line 1: `x` is a text; write a list"},
		{"name: [a]\n", "line 1: is a list; write a text"},
		{"name: a\nname: b\n", `mapping key "name" already defined at line 1`},
		{"name: a\n---\nname: b\n", "more than one YAML document"},
		{"name: [\n", "config.yaml: line 1:"},
	} {
		_, err := load(t, c.text, nil, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q:\n got %v\nwant %s", c.text, err, c.want)
		}
	}
	_, err := load(t, "one: 1\nname: ok\ntwo: 2\n", nil, nil)
	if err == nil || !strings.Contains(err.Error(), `"one"`) || !strings.Contains(err.Error(), `"two"`) {
		t.Errorf("got %v, want both mistakes at once", err)
	}
	if _, err := Load(config.Sources{File: filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("a file that was asked for and is not there: no error")
	}
	if _, err := Load(config.Sources{File: filepath.Join(t.TempDir(), "none"), Optional: true}); err != nil {
		t.Errorf("a file that need not be there: %v", err)
	}
}

func TestEveryMistakeAtOnce(t *testing.T) {
	f := Defaults()
	f.DataDir = "relative"
	f.RunDir = "/" + strings.Repeat("x", 100)
	f.Name = "Not A Name"
	f.Address = "127.0.0.1"
	f.Domain = "-.example"
	f.ServerNames = []string{"ok.example", "no:1"}
	f.Listen.API = "7443"
	f.Listen.HTTP = ":443"
	f.Registration = "maybe"
	f.AdminEmail = "me"
	f.Workspaces = workspace.Settings{Nodes: "10.42.0.0/24", Pods: "10.42.0.0/16", Services: "10.43.0.0/16", Datastore: "mysql"}
	f.Egress = EgressSettings{Mode: "closed", Allow: []string{"10.0.0.1/8", "x"}, Deny: []string{"::/0"}}
	f.UpstreamDNS = []string{"dns.example"}
	f.KubernetesVersions = []string{"v1.36.3"}
	f.PayloadKeys = []string{"short"}
	f.RegistryUpstreams = []registry.UpstreamSettings{{Name: "bad name", URL: "ftp://x", CAFile: "ca", Username: "u"}}
	f.Log = logs.Settings{Level: "loud", Format: "xml"}
	if err := config.Parse([]byte("limits: {users: -1, workspaces: 0, cpu: x, memory: much, disk: -1Gi}\n"), &f, "limits"); err != nil {
		t.Fatal(err)
	}
	err := f.Complete(testMachine).Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, field := range []string{
		"data_dir", "run_dir", "name", "address", "domain", "server_names[1]", "listen.api", "listen.https", "registration",
		"admin_email", "workspaces.nodes", "workspaces.datastore", "limits.users", "limits.workspaces", "limits.memory", "egress.mode", "egress.allow[0]", "egress.allow[1]", "egress.deny[0]", "upstream_dns[0]",
		"kubernetes_versions[0]", "payload_keys[0]", "registry_upstreams[0].name", "registry_upstreams[0].url",
		"registry_upstreams[0].ca_file", "registry_upstreams[0].username", "log.level", "log.format",
	} {
		if !strings.Contains("\n"+err.Error(), "\n"+field+": \"") {
			t.Errorf("no word about %s", field)
		}
	}
	var limits []string
	for line := range strings.Lines(err.Error()) {
		if field, ok := strings.CutPrefix(line, "limits."); ok {
			field, _, _ = strings.Cut(field, ":")
			limits = append(limits, field)
		}
		if parts := strings.Split(line, ": "); len(parts) < 4 {
			t.Errorf("not field, value, what is wrong and remedy: %s", line)
		}
	}
	if got, want := strings.Join(limits, " "), "users workspaces cpu memory disk"; got != want {
		t.Errorf("mistakes of a section: got %s, want them in its order: %s", got, want)
	}
}

func TestAddressIsNeverGuessed(t *testing.T) {
	two := testMachine
	two.Addresses = append(slices.Clone(two.Addresses), LinkAddr{"eth1", netip.MustParseAddr("198.51.100.7")})
	err := Defaults().Complete(two).Validate()
	if err == nil || !strings.Contains(err.Error(), "192.0.2.10 (eth0), 198.51.100.7 (eth1)") {
		t.Errorf("got %v, want both candidates", err)
	}
	err = Defaults().Complete(Machine{Hostname: "n"}).Validate()
	if err == nil || !strings.Contains(err.Error(), "no global IPv4 address") {
		t.Errorf("got %v, want a word about the missing address", err)
	}
}

func TestDiff(t *testing.T) {
	f := Defaults()
	if got, err := config.Diff(f, Defaults()); err != nil || got != "# all default\n" {
		t.Errorf("got %q, %v", got, err)
	}
	f.Name = "n1"
	f.Log.Level = "debug"
	f.RegistryUpstreams = []registry.UpstreamSettings{{Name: "docker.io", URL: "https://mirror.example"}}
	*f.Limits.List[0].Value.(*int64) = 7
	text, err := config.Diff(f, Defaults())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, "data_dir") || strings.Contains(text, "format") || !strings.Contains(text, "limits:\n    users: 7\nreg") {
		t.Errorf("not what differs:\n%s", text)
	}
	back := Defaults()
	if err := config.Parse([]byte(text), &back, "diff"); err != nil {
		t.Fatal(err)
	}
	got, _ := config.Print(back)
	want, _ := config.Print(f)
	if got != want {
		t.Errorf("what was printed reads back as\n%s\nwant\n%s", got, want)
	}
}

// FuzzParse: no text makes the parser panic, and what it accepts can be printed
// and read again, and completed and judged.
func FuzzParse(f *testing.F) {
	full, err := config.Print(Defaults())
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		"", full, "name: a\nname: b\n", "log: {level: debug}\n", "registry_upstreams:\n- name: docker.io\n  url: https://x\n",
		"egress: {mode: open, allow: [10.0.0.0/8, 10.0.0.1/8]}\n", "workspaces: {nodes: 0.0.0.0/0}\n", "a: &a [*a]\n", "---\n---\n", "address: ::1\n", "\xff",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file := Defaults()
		if config.Parse(data, &file, "fuzz") != nil {
			return
		}
		_ = file.Complete(testMachine).Validate()
		if _, err := config.Diff(file, Defaults()); err != nil {
			t.Errorf("diff: %v", err)
		}
		text, err := config.Print(file)
		if err != nil {
			t.Fatalf("print: %v", err)
		}
		again := Defaults()
		if err := config.Parse([]byte(text), &again, "again"); err != nil {
			t.Errorf("what was printed can't be read: %v\n%s", err, text)
		}
	})
}
