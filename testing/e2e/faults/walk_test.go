package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/appliance"
	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/lab"
)

const (
	admin = datacenter.Admin
	owner = datacenter.Owner
)

// attach and detach are the steps of a network on any host.
var (
	attach = []string{"network/attach/namespace-made", "network/attach/rules-set", "network/attach/bridge-made",
		"network/attach/vxlan-made", "network/attach/uplink-made"}
	detach = []string{"network/detach/links-removed", "network/detach/rules-removed", "network/detach/namespace-removed"}
)

// TestWalk goes through all points, on a platform of its own. The operations
// come in an order in which each finds what it needs and few processes run: most
// points of the server are gone through before it has a plane to start each time.
// All that was made is gone at the end.
func TestWalk(t *testing.T) {
	t.Parallel() // with TestFaults
	defer total.tell(t)
	s := newSuite(dctest.New(t, "walk"))
	s.Server = s.host(t, "server")
	s.Nodes = []*lab.Host{s.host(t, "node1"), s.host(t, "node2")}
	var before map[string]inventory.Inventory
	for _, p := range []part{
		{"bootstrap", walkBootstrap},
		{"people", func(t *testing.T, s *suite) {
			makePeople(t, s)
			before = s.MustInventories(t)
		}},
		{"accounts", walkAccounts},
		{"images", walkImages},
		{"join", walkJoin},
		{"create", walkCreate},
		{"machine", walkMachine},
		{"apps", walkApps},
		{"volumes", walkVolumes},
		{"scale", walkScale},
		{"renew", walkRenew},
		{"leave", walkLeave},
		{"delete", walkDelete},
	} {
		if !s.run(t, p) {
			t.FailNow() // the next begin where it ends
		}
	}
	t.Run("all points", func(t *testing.T) {
		for _, p := range appliance.Failpoints() {
			if !s.points[p.Name] && !slices.Contains(storagePoints, p.Name) {
				t.Errorf("not walked: %s", p.Name)
			}
		}
	})
	s.staysOnce(t, before)
	s.nothingIsLeft(t, before)
}

// staysOnce adds to the inventories what a host makes once and keeps: the files
// that its program carries, the image of its machines. One of each: a second one has leaked.
func (s *suite) staysOnce(t *testing.T, before map[string]inventory.Inventory) {
	t.Helper()
	for host, now := range s.MustInventories(t) {
		was := before[host]
		for _, pattern := range []string{"/var/lib/multipaas/images/*[0-9a-f]", "/var/lib/multipaas/payload/trees/*"} {
			fits := func(i inventory.Item) bool {
				ok, err := filepath.Match(pattern, i.Name)
				return err == nil && ok && !strings.HasSuffix(i.Name, ".partial")
			}
			if at := slices.IndexFunc(now.Items, fits); at >= 0 && !slices.ContainsFunc(was.Items, fits) {
				was.Items = append(was.Items, now.Items[at])
			}
		}
		before[host] = was
	}
}

// host makes and boots a host on which nothing runs yet.
func (s *suite) host(t *testing.T, name string) *lab.Host {
	t.Helper()
	h, err := s.Lab.AddHost(t.Context(), name)
	if err == nil {
		err = h.Boot(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// walkBootstrap starts the first server of a platform.
func walkBootstrap(t *testing.T, s *suite) {
	h := s.Server
	s.services[h.Name()] = lab.Service{Name: "multipaas", Args: []string{"multipaas", "server", "--address", h.Address().String(), "--domain", datacenter.Domain}}
	for _, point := range []string{"file/written", "pki/key-written", "bootstrap/platform-authority-made", "bootstrap/etcd-root-made",
		"bootstrap/etcd-closed", "bootstrap/admin-file-written", "bootstrap/admin-made"} {
		s.start(t, h, point)
		s.dies(t, h, point)
	}
	s.start(t, h, "")
	s.reaches(t, "who reads the file can log in", func(ctx context.Context) error {
		out, err := h.Run(ctx, "multipaas", "token", "list", "--server", s.URL(),
			"--credentials", "/var/lib/multipaas/bootstrap-admin.json", "--ca", "/var/lib/multipaas/pki/ca.crt")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	inv, err := s.Inventory(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range inv.Items {
		if i.Detail == "temporary file" {
			s.leaking(t, "%s", i.Name)
		}
	}
}

// makePeople logs the sysadmin in, makes an owner with an organization, an image
// that stays, and a node that nothing happens to.
func makePeople(t *testing.T, s *suite) {
	s.Trust(t)
	people := &datacenter.Datacenter{
		Server: datacenter.LabHost(s.Server),
		Desk:   datacenter.Here{Binary: s.Binary, Dir: s.Dir},
	}
	for _, do := range []func(context.Context) error{people.MakeAccount, people.MakeOrganization} {
		if err := do(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "password"), []byte("correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Login(t, auth, datacenter.OwnerEmail, filepath.Join(s.Dir, datacenter.OwnerPassword))
	if err := s.push(t, ownImage(t), "kept"); err != nil {
		t.Fatal(err)
	}
	h := s.Nodes[0]
	s.services[h.Name()] = s.JoinService(h, h.Name(), s.Token(t).Token)
	s.start(t, h, "")
	s.reaches(t, "the node joins", s.nodeIs(t, h.Name(), "Ready"))
}

// walkAccounts makes and deletes accounts, organizations, users and tokens.
func walkAccounts(t *testing.T, s *suite) {
	word := filepath.Join(s.Dir, "password")
	there := func(want bool, name string, args ...string) func(context.Context) error {
		return func(context.Context) error {
			r := s.MP(t, admin, append(args, "-o", "name")...)
			if r.Code != 0 {
				return errors.New(r.String())
			}
			if got := strings.Contains("\n"+r.Out, "\n"+name+"\n"); got != want {
				return fmt.Errorf("%s is there: %v, want %v: %s", name, got, want, r.Out)
			}
			return nil
		}
	}
	s.walk(t, operation{name: "account create", on: s.Server, again: true, points: []string{"account/create/committed", "store/committed"},
		ask:     s.mp(t, admin, "register", "walked", "--email", "owner@walked.example", "--password-file", word),
		reached: there(true, "walked", "accounts", "list")})
	s.walk(t, operation{name: "organization create", on: s.Server, again: true, points: []string{"store/committed"},
		ask: s.mp(t, admin, "org", "create", "ops", "--account", "walked")})
	s.walk(t, operation{name: "organization delete", on: s.Server, again: true,
		points:  []string{"organization/delete/marked", "organization/delete/roles-dropped", "organization/delete/images-removed"},
		ask:     s.gone(t, admin, "org", "delete", "ops", "--account", "walked", "--yes"),
		reached: there(false, "ops", "org", "list", "--account", "walked")})
	s.walk(t, operation{name: "account delete", on: s.Server, again: true,
		points:  []string{"account/delete/marked", "account/delete/roles-dropped"},
		ask:     s.gone(t, admin, "accounts", "delete", "walked", "--yes"),
		reached: there(false, "walked", "accounts", "list")})
	s.walk(t, operation{name: "user delete", on: s.Server, again: true,
		points:  []string{"user/delete/credential-removed", "user/delete/sessions-ended", "user/delete/roles-removed"},
		ask:     s.gone(t, admin, "users", "delete", "owner@walked.example", "--yes"),
		reached: there(false, "owner@walked.example", "users", "list")})
	s.walk(t, operation{name: "token", on: s.Server, again: true, points: []string{"token/create/committed"},
		ask: func() error {
			r := s.token(t, "create", "--role", "node", "--ttl", "1h")
			if r.Code != 0 {
				return errors.New(r.String())
			}
			return nil
		}})
	for id := range strings.Lines(s.token(t, "list", "-o", "name").Out) {
		if r := s.token(t, "rm", strings.TrimSpace(id), "--yes"); r.Code != 0 {
			t.Error(r)
		}
	}
}

func (s *suite) token(t *testing.T, args ...string) dctest.Result {
	t.Helper()
	return dctest.Run(t, []string{"MP_CONFIG=" + s.Dir + "/mp-" + admin}, "", append([]string{s.Binary, "token"}, args...)...)
}

// auth is the file with the owner's login at the registry.
const auth = "auth-acme"

// push pushes an image as the owner does; skopeo does not try again by itself,
// so a kill ends it.
func (s *suite) push(t *testing.T, i image, name string) error {
	t.Helper()
	r := s.Skopeo(t, auth, "copy", "--retry-times", "0", "oci:"+i.layout+":walked", "docker://"+s.Image("acme/web", name))
	if r.Code != 0 {
		return errors.New(r.String())
	}
	return nil
}

// pull pulls an image whole, by its digests.
func (s *suite) pull(t *testing.T, name string) error {
	t.Helper()
	r := dctest.Run(t, []string{"REGISTRY_AUTH_FILE=" + filepath.Join(s.Dir, auth)}, "", "skopeo", "--insecure-policy", "copy",
		"--src-cert-dir", filepath.Join(s.Dir, "certs"), "docker://"+s.Image("acme/web", name), "dir:"+t.TempDir())
	if r.Code != 0 {
		return errors.New(r.String())
	}
	return nil
}

// walkImages pushes an image, deletes it, and has its blobs collected.
func walkImages(t *testing.T, s *suite) {
	own := ownImage(t)
	s.walk(t, operation{name: "push", on: s.Server, again: true,
		points:  []string{"image/push/upload-begun", "image/push/blob-received", "image/push/blob-committed", "image/push/manifest-put"},
		ask:     func() error { return s.push(t, own, "walked") },
		reached: func(context.Context) error { return s.pull(t, "walked") }})
	s.walk(t, operation{name: "delete", on: s.Server, again: true, points: []string{"image/delete/one-removed"},
		ask: s.gone(t, owner, "images", "delete", "walked:1", "--yes"),
		reached: func(context.Context) error {
			r := s.MP(t, owner, "images", "list", "-o", "name")
			if r.Code != 0 || strings.Contains(r.Out, "walked") {
				return errors.New(r.String())
			}
			return nil
		}})
	t.Run("collect", func(t *testing.T) {
		if err := s.AgeRegistry(3 * 24 * time.Hour); err != nil {
			t.Fatal(err)
		}
		s.walk(t, operation{name: "garbage", on: s.Server, points: []string{"image/collect/marked", "image/collect/one-removed"},
			reached: func(context.Context) error {
				// The other image stays; of this one nothing does.
				if err := s.pull(t, "kept"); err != nil {
					return err
				}
				return s.collected(own)
			}})
	})
}

// walkApps deploys an app in the workspace, and takes it away.
func walkApps(t *testing.T, s *suite) {
	host := "walked.shop.web.acme." + datacenter.Domain
	answers := func(ctx context.Context) error {
		_, err := s.get(ctx, "https://"+host+"/")
		return err
	}
	deploy := s.mp(t, owner, "apps", "deploy", "walked", "--image", "multipaas.internal/hello:1", "--port", "8080", "--no-wait")
	s.walk(t, operation{name: "deploy", on: s.Server, again: true,
		points: []string{"app/deploy/committed", "app/deploy/service-applied", "app/deploy/deployment-applied", "app/deploy/route-made",
			"certificate/locked", "certificate/stored", "certificate/stored@2"},
		ask: deploy, reached: answers})
	s.walk(t, operation{name: "delete", on: s.Server, again: true,
		points: []string{"app/delete/marked", "app/delete/route-removed", "app/delete/objects-deleted"},
		ask:    s.gone(t, owner, "apps", "delete", "walked", "--yes", "--no-wait"),
		reached: func(ctx context.Context) error {
			if r := s.MP(t, owner, "apps", "show", "walked"); r.Code != exitNotFound {
				return errors.New(r.String())
			}
			r := s.Kube(t, s.Kubeconfig(), "", "get", "deploy,service,pods", "-A", "-o", "name")
			if r.Code != 0 || strings.Contains(r.Out, "walked") {
				return errors.New(r.String())
			}
			return nil
		}})
}

// walkVolumes makes volumes, by people and by claims, has pods use one, and takes them away,
// while the server dies and then their host's agent.
func walkVolumes(t *testing.T, s *suite) {
	h, kubeconfig := s.walked(), s.Kubeconfig()
	shown := func(kind, name, phase string) func(context.Context) error {
		return func(context.Context) error {
			r := s.MP(t, owner, kind, "show", name, "-o", "json")
			if phase == "" && r.Code == exitNotFound {
				return nil
			}
			if phase == "" || r.Code != 0 || !strings.Contains(r.Out, fmt.Sprintf("%q: %q", "phase", phase)) {
				return fmt.Errorf("want phase %q: %s", phase, r)
			}
			return nil
		}
	}
	is := func(name, phase string) func(context.Context) error { return shown("volumes", name, phase) }
	apply := func(manifests string) func() error {
		return func() error {
			if r := s.Kube(t, kubeconfig, manifests, "apply", "-f", "-"); r.Code != 0 {
				return errors.New(r.String())
			}
			return nil
		}
	}
	create := s.mp(t, owner, "volumes", "create", "walked", "--size", "320Mi", "--no-wait")
	s.walk(t, operation{name: "made", on: s.Server, points: []string{"storage/volume/placed"}, ask: create, reached: is("walked", "Ready")})
	const claim = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: walked}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 320Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: walked}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "multipaas.internal/hello:1", volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: walked}}]
`
	runs := func(context.Context) error {
		r := s.Kube(t, kubeconfig, "", "get", "pod", "walked", "-o", "jsonpath={.status.phase}")
		if r.Out != "Running" {
			return errors.New(r.String())
		}
		return nil
	}
	s.walk(t, operation{name: "claimed", on: s.Server, points: []string{"storage/volume/recorded"}, ask: apply(claim), reached: runs})
	s.walkAgentAfter(t, "made by the host", s.mp(t, owner, "volumes", "create", "second", "--size", "320Mi", "--no-wait"),
		"volume/make/recorded", "volume/make/mounted", "volume/attach/folder-made")
	s.reaches(t, "it is ready", is("second", "Ready"))
	s.walkAgentAfter(t, "grown", s.mp(t, owner, "volumes", "resize", "second", "--size", "400Mi", "--no-wait"), "disk/file-grown")
	// Where disks share blocks nothing is copied; where a lab stands they hardly do.
	s.walkAgentAfter(t, "snapshot made", s.mp(t, owner, "volumes", "snapshot", "second", "kept", "--no-wait"),
		"volume/snapshot/recorded", "disk/copy-frozen")
	s.reaches(t, "it is ready", shown("snapshots", "kept", "Ready"))
	s.walk(t, operation{name: "snapshot deleted", on: s.Server, points: []string{"storage/snapshot/removed"},
		ask: s.gone(t, owner, "snapshots", "delete", "kept", "--yes", "--no-wait"), reached: shown("snapshots", "kept", "")})
	s.walkAgentAfter(t, "removed", s.mp(t, owner, "volumes", "delete", "second", "--purge", "--yes", "--no-wait"),
		"volume/remove/shut-down", "volume/remove/unmounted", "volume/remove/disk-deleted")
	s.reaches(t, "it is gone", is("second", ""))
	s.reaches(t, "the claim is gone", func(context.Context) error { // the server has just come back
		if r := s.Kube(t, kubeconfig, "", "delete", "pod/walked", "pvc/walked", "--now", "--ignore-not-found"); r.Code != 0 {
			return errors.New(r.String())
		}
		return nil
	})
	s.walk(t, operation{name: "deleted", on: s.Server, points: []string{"storage/volume/removed"},
		ask: s.gone(t, owner, "volumes", "delete", "walked", "--purge", "--yes", "--no-wait"), reached: is("walked", "")})
	s.reaches(t, "nothing is left of them", func(context.Context) error {
		r := s.MP(t, owner, "volumes", "list", "-o", "name")
		left, _ := filepath.Glob(h.Data("volumes", "*"))
		if r.Code != 0 || strings.TrimSpace(r.Out) != "" || len(left) > 0 {
			return fmt.Errorf("%s, and on the host %v", r, left)
		}
		return nil
	})
}

// walkAgentAfter has the walked host's agent die at points on the way to what was asked while
// it was away.
func (s *suite) walkAgentAfter(t *testing.T, name string, ask func() error, points ...string) {
	t.Helper()
	s.kill(t, s.walked())
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	s.walkAgent(t, name, points...)
}

// walked is the host that joins, gets machines and leaves.
func (s *suite) walked() *lab.Host { return s.Nodes[1] }

// walkJoin lets a host join: first the server is killed, then the host.
func walkJoin(t *testing.T, s *suite) {
	h := s.walked()
	s.services[h.Name()] = s.JoinService(h, h.Name(), s.Token(t).Token)
	s.walk(t, operation{name: "server", on: s.Server, again: true, points: []string{"node/join/token-spent", "node/join/recorded", "node/join/signed"},
		ask: func() error {
			s.start(t, h, "node/join/answered")
			for s.pid(t, h) != 0 && s.pid(t, s.Server) != 0 {
				time.Sleep(50 * time.Millisecond)
			}
			return nil
		}})
	// A tree of a former version, which nothing runs from.
	old := h.Data("payload", "trees", "0123456789abcdef")
	if err := os.MkdirAll(old, 0o755); err != nil {
		t.Fatal(err)
	}
	s.walk(t, operation{name: "node", on: h,
		points: []string{"node/join/answered", "node/join/kept", "payload/file-unpacked", "payload/file-unpacked@3", "payload/files-unpacked",
			"payload/tree-linked", "payload/tree-pruned"},
		reached: s.nodeIs(t, h.Name(), "Ready")})
	if _, err := os.Stat(old); err == nil {
		s.leaking(t, "the tree of a former payload")
	}
}

func (s *suite) nodeIs(t *testing.T, name, phase string) func(context.Context) error {
	return func(context.Context) error {
		r := s.MP(t, admin, "nodes", "list", "-o", "json")
		if r.Code != 0 {
			return errors.New(r.String())
		}
		if got := s.NodeStates(t)[name]; got != phase {
			return fmt.Errorf("node %s is %q, want %q", name, got, phase)
		}
		return nil
	}
}

// walkCreate makes a workspace while the server is killed. The host of its
// machines sleeps meanwhile: its turn comes next.
func walkCreate(t *testing.T, s *suite) {
	s.Must(t, admin, "nodes", "cordon", "node1")
	points := []string{"workspace/create/allocated", "workspace/machine/placed"}
	points = append(points, attach...)
	points = append(points, "workspace/create/etcd-user-made", "workspace/create/files-written", "workspace/create/process-started",
		"workspace/create/plane-ready", "workspace/create/addon-applied", "workspace/create/addons-applied")
	asked := s.mp(t, owner, "ws", "create", "shop", "--machines", "2", "--cpu", "1", "--memory", "1Gi", "--disk", "5Gi", "--datastore", "etcd", "--no-wait")
	first := true
	s.walk(t, operation{name: "server", on: s.Server, points: points, ask: func() error {
		if !first {
			return nil
		}
		err := asked()
		// As soon as it is in the store, the agent may begin; it shall not yet.
		if first = false; s.pid(t, s.walked()) != 0 {
			s.kill(t, s.walked())
		}
		return err
	}, reached: func(context.Context) error {
		s.Must(t, owner, "ws", "use", "shop")
		return nil
	}})
	// Of another one, for the controllers may be faster than who dies: then there
	// would be nothing left to allocate.
	s.walk(t, operation{name: "asked", on: s.Server, points: []string{"workspace/create/committed"},
		ask:     s.mp(t, owner, "ws", "create", "draft", "--machines", "0", "--no-wait"),
		reached: s.phase(t, "draft", "Ready", 0)})
	s.Must(t, owner, "ws", "delete", "draft", "--yes")
}

// walkMachine has the two machines of the workspace made while their agent is
// killed.
func walkMachine(t *testing.T, s *suite) {
	h := s.walked()
	points := append([]string{"agent/state-kept"}, attach...)
	points = append(points, "network/machine/namespace-made", "network/machine/port-made", "network/machine/port-joined",
		"agent/certificates-signed", "agent/certificates-kept", "machine/start/recorded", "rootfs/unpacked",
		"disk/file-made", "disk/formatted", "disk/loop-attached", "machine/start/disk-mounted",
		"machine/start/root-mounted", "machine/start/group-made", "machine/start/bundle-written", "machine/start/container-running")
	s.walk(t, operation{name: "start", on: h, points: points, reached: s.phase(t, "shop", "Ready", 2)})
	kubeconfig := s.Kubeconfig()
	s.Must(t, owner, "cluster", "config-kubectl", "shop", "--file", kubeconfig)
	t.Run("pod", func(t *testing.T) {
		s.reaches(t, "cluster DNS runs", func(context.Context) error {
			r := s.Kube(t, kubeconfig, "", "rollout", "status", "-n", "kube-system", "deploy/coredns", "--timeout", "20s")
			if r.Code != 0 {
				return errors.New(r.String())
			}
			return nil
		})
	})
	s.acked(t, "etcd's server", kubeconfig, 2, func() {
		s.start(t, s.Server, "")
		s.answers(t)
	})
	s.acked(t, "etcd's server while it commits", kubeconfig, 1, func() {
		s.start(t, s.Server, "store/committed@3")
		s.dies(t, s.Server, "store/committed")
		s.start(t, s.Server, "")
		s.answers(t)
	})
}

// walkScale takes one machine away: the server dies on the way to it, then the
// agent while it does, then the server on the way back.
func walkScale(t *testing.T, s *suite) {
	h := s.walked()
	s.kill(t, h)
	s.walk(t, operation{name: "down", on: s.Server, points: []string{"workspace/scale/committed", "workspace/scale/machine-marked", "workspace/scale/machine-drained"},
		ask: s.mp(t, owner, "cluster", "scale", "shop", "--machines", "1", "--no-wait")})
	s.start(t, s.Server, "workspace/scale/node-deleted")
	s.answers(t)
	s.walkAgent(t, "agent", "machine/remove/processes-ended", "machine/remove/container-deleted", "machine/remove/unmounted", "agent/machine-removed",
		"network/machine/port-removed", "agent/network-removed", "agent/keys-removed")
	t.Run("up", func(t *testing.T) {
		s.dies(t, s.Server, "workspace/scale/node-deleted")
		s.start(t, s.Server, "workspace/scale/machine-deleted")
		s.dies(t, s.Server, "workspace/scale/machine-deleted")
		s.start(t, s.Server, "")
		s.answers(t)
		s.reaches(t, "one machine", s.phase(t, "shop", "Ready", 1))
	})
}

// walkAgent kills the walked host's agent at each point, while the server may
// itself wait for its death.
func (s *suite) walkAgent(t *testing.T, name string, points ...string) {
	t.Run(name, func(t *testing.T) {
		h := s.walked()
		for _, point := range points {
			s.start(t, h, point)
			s.dies(t, h, point)
		}
		s.start(t, h, "")
	})
}

// walkLeave takes the walked host out; its machine is made anew on another.
func walkLeave(t *testing.T, s *suite) {
	h := s.walked()
	s.Must(t, admin, "nodes", "uncordon", "node1")
	s.start(t, s.Server, "node/leave/marked")
	s.answers(t)
	if out, err := h.Run(t.Context(), "multipaas", "node", "leave"); err == nil {
		t.Errorf("leave went well while the server died: %s", out)
	}
	s.dies(t, s.Server, "node/leave/marked")
	t.Run("machines", func(t *testing.T) {
		s.start(t, s.Server, "node/leave/machine-marked")
		s.dies(t, s.Server, "node/leave/machine-marked")
		s.start(t, s.Server, "node/leave/deleted")
		s.answers(t)
		// On this host it is the last network, which takes the host's rules along.
		// Once its last machine is gone the server does not wait for that: it may
		// die before the agent, which then waits for it to come back.
		s.start(t, h, detach[0])
		s.dies(t, s.Server, "node/leave/deleted")
		s.start(t, s.Server, "")
		s.answers(t)
		s.dies(t, h, detach[0])
		for _, point := range append(slices.Clone(detach[1:]), "node/leave/cleaned") {
			s.start(t, h, point)
			s.dies(t, h, point)
		}
		s.start(t, h, "")
		s.reaches(t, "the agent ends", func(context.Context) error {
			if s.pid(t, h) != 0 {
				return errors.New("it runs")
			}
			return nil
		})
		if _, err := os.Stat(h.Data("node", "identity.json")); err == nil {
			s.losing(t, "the node has an identity still")
		}
		s.reaches(t, "the machine on another host", s.phase(t, "shop", "Ready", 1))
	})
}

// walkDelete takes the workspace away with an app in it, while the server is
// killed. An agent that loses its last network was walked as its host left.
func walkDelete(t *testing.T, s *suite) {
	s.Must(t, owner, "apps", "deploy", "going", "--image", "multipaas.internal/hello:1", "--port", "8080", "--no-wait")
	node := s.Nodes[0]
	s.kill(t, node)
	s.walk(t, operation{name: "mark", on: s.Server, points: []string{"workspace/delete/marked", "workspace/delete/machines-marked"},
		ask: s.gone(t, owner, "ws", "delete", "shop", "--yes", "--no-wait")})
	s.kill(t, node)
	s.start(t, s.Server, "workspace/delete/plane-stopped")
	s.answers(t)
	s.start(t, node, "")
	t.Run("plane", func(t *testing.T) {
		s.dies(t, s.Server, "workspace/delete/plane-stopped")
		points := append([]string{"workspace/delete/etcd-user-removed", "workspace/delete/plane-removed"}, detach...)
		for _, point := range append(points, "workspace/delete/network-removed", "workspace/delete/committed") {
			s.start(t, s.Server, point)
			s.dies(t, s.Server, point)
		}
		s.start(t, s.Server, "")
		s.answers(t)
		s.reaches(t, "the workspace is gone", func(context.Context) error {
			if r := s.MP(t, owner, "ws", "show", "shop"); r.Code != exitNotFound {
				return errors.New(r.String())
			}
			return nil
		})
	})
}
