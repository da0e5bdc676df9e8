package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// sanity is upstream's own suite for CSI drivers, against the real services: the
// controller's at the socket of the workspace's plane, the node's in the kubelet of one of
// its machines.
func (d *trial) sanity(t *testing.T) {
	h := d.Nodes[0]
	root := d.machineRoot(t, h)
	// It asks for volumes anywhere, and for all of them here.
	d.Must(t, datacenter.Admin, "nodes", "cordon", d.Nodes[1].Name())
	defer d.Must(t, datacenter.Admin, "nodes", "uncordon", d.Nodes[1].Name())
	planes, err := filepath.Glob(d.Server.Root("var/lib/multipaas/planes/*/storage.sock"))
	if err != nil || len(planes) == 0 {
		t.Fatalf("no plane has a socket for volumes: %v", err)
	}
	var owner *syscall.Stat_t
	pods := filepath.Join(root, "var/lib/kubelet/pods")
	if info, err := os.Stat(pods); err != nil {
		t.Fatal(err)
	} else {
		owner = info.Sys().(*syscall.Stat_t)
	}
	outside := func(path string) string { return filepath.Join(root, path) }

	cfg := sanity.NewTestConfig()
	cfg.Address = "unix://" + filepath.Join(root, "var/lib/kubelet/plugins/storage.multipaas.internal/csi.sock")
	cfg.ControllerAddress = "unix://" + d.shopSocket(t, planes)
	cfg.TestVolumeSize, cfg.TestVolumeExpandSize = 320*mib, 512*mib
	cfg.IdempotentCount = 2
	// In the folder of a pod that runs: a kubelet takes those away that are of none.
	name, err := os.ReadFile(filepath.Join(root, "etc/multipaas/hostname"))
	if err != nil {
		t.Fatal(err)
	}
	pod := strings.Fields(d.Kubectl(t, "get", "pods", "-A", "--field-selector", "spec.nodeName="+strings.TrimSpace(string(name)),
		"-o", "jsonpath={.items[*].metadata.uid}"))
	if len(pod) == 0 {
		t.Fatalf("no pod runs on %s", name)
	}
	own := filepath.Join("/var/lib/kubelet/pods", pod[0], "sanity")
	cfg.TargetPath, cfg.StagingPath = own+"/volumes", own+"/staging"
	cfg.CreateTargetDir = func(path string) (string, error) {
		for _, dir := range []string{own, path} {
			if err := os.MkdirAll(outside(dir), 0o700); err != nil {
				return "", err
			}
			if err := os.Chown(outside(dir), int(owner.Uid), int(owner.Gid)); err != nil {
				return "", err
			}
		}
		return path, nil
	}
	cfg.RemoveTargetPath = func(path string) error { return os.RemoveAll(outside(own)) }
	cfg.CreateStagingDir = cfg.CreateTargetDir
	cfg.RemoveStagingPath = cfg.RemoveTargetPath
	cfg.CheckPath = func(path string) (sanity.PathKind, error) {
		switch info, err := os.Stat(outside(path)); {
		case errors.Is(err, fs.ErrNotExist):
			return sanity.PathIsNotFound, nil
		case errors.Is(err, fs.ErrPermission): // a shared volume is there: FUSE answers who is in the machine, and nobody else
			return sanity.PathIsDir, nil
		case err != nil:
			return "", err
		case info.IsDir():
			return sanity.PathIsDir, nil
		default:
			return sanity.PathIsFile, nil
		}
	}
	wait.For(t, wait.Patience, "what was deleted before is gone: it counts volumes", func(context.Context) error {
		if out := d.Must(t, datacenter.Owner, "volumes", "list", "-o", "name"); strings.TrimSpace(out) != "" {
			return fmt.Errorf("listed: %s", out)
		}
		return nil
	})
	began := time.Now()
	gomega.RegisterFailHandler(ginkgo.Fail)
	for _, class := range []string{"local", "shared", "local blocks"} {
		cfg, name := cfg, class
		if class, blocks := strings.CutSuffix(class, " blocks"); blocks {
			cfg.TestVolumeAccessType, name = "block", class
		}
		cfg.TestVolumeParameters = map[string]string{"class": name}
		ginkgo.Describe("class "+class, func() {
			t.Cleanup(sanity.GinkgoTest(&cfg).Finalize)
		})
	}
	ginkgo.RunSpecs(t, "both classes")
	d.check(t, !t.Failed(), "upstream's suite has failed")
	t.Logf("upstream's suite took %s", time.Since(began).Round(time.Second))
}

// machineRoot is the root folder of a machine of acme/web/shop on a host, as seen here.
func (d *trial) machineRoot(t *testing.T, h *lab.Host) string {
	t.Helper()
	for pid := range d.Processes(t, h, "/opt/multipaas/init --config") {
		root := h.Root("proc", pid, "root")
		if name, err := os.ReadFile(filepath.Join(root, "etc/multipaas/hostname")); err == nil && strings.HasPrefix(string(name), "shop-") {
			return root
		}
	}
	t.Fatalf("no machine of shop on %s", h.Name())
	return ""
}

// shopSocket is the socket of the plane of acme/web/shop: the one that knows its machine.
func (d *trial) shopSocket(t *testing.T, sockets []string) string {
	t.Helper()
	id := strings.TrimSpace(d.Must(t, "tenant", "workspaces", "show", "shop", "-o", "json"))
	for _, s := range sockets {
		if folder := filepath.Base(filepath.Dir(s)); strings.Contains(id, fmt.Sprintf("%q", folder)) {
			return s
		}
	}
	t.Fatalf("none of %v is of shop : %s", sockets, id)
	return ""
}
