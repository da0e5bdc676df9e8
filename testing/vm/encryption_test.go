package vm_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/vm"
)

// TestEncryptedVolumes runs what encrypts volumes where the kernel has dm-crypt, in a machine of its own, and within
// the bounds of the node's unit: the tests of appliance/diskimage, and a volume's life over a reboot.
func TestEncryptedVolumes(t *testing.T) {
	if os.Getenv("MULTIPAAS_LONG") == "" {
		t.Skip("it takes four minutes")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, node := bare(ctx, t, "appliance/diskimage", "modules/volume")
	if err := node.Wake(ctx); err != nil {
		t.Fatal(err)
	}
	out := confinedRun(ctx, t, node, "/opt/multipaas/diskimage.test -test.v -test.timeout=20m -test.run=TestSealed|TestEncrypted",
		"MULTIPAAS_LONG=1", "MULTIPAAS_PAYLOAD=/opt/multipaas", "TMPDIR="+data)
	if !strings.Contains(out, "--- PASS: TestEncrypted") {
		t.Fatalf("Debian's kernel has dm-crypt, and it was not run: %s", out)
	}

	// What modules/volume's own tests take as a step.
	step := func(do, dir, more string, size int64) {
		t.Helper()
		text, err := json.Marshal(map[string]any{"Do": do, "Dir": dir, "Root": more, "Machines": data + "/m", "SizeBytes": size})
		if err != nil {
			t.Fatal(err)
		}
		confinedRun(ctx, t, node, "/opt/multipaas/volume.test", "MULTIPAAS_TEST_STEP="+string(text))
	}
	const (
		tools, pool  = data + "/m", data + "/pool"
		volume, size = pool + "/0a1b-volume", 400 << 20
	)
	step("unpack", data+"/images", "/opt/multipaas/images/storage", 0)
	step("encrypted ensure", pool, tools, size-100<<20)
	fill := "yes in plain text | head -c 20000000 >" + volume + "/mount/file; sync; sha256sum <" + volume + "/mount/file"
	sum := must(ctx, t, node, "sh", "-c", fill)
	step("encrypted ensure", pool, tools, size) // it grows
	if err := node.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	if got := must(ctx, t, node, "sh", "-c", "ls "+volume+"/mount; losetup -a"); got != "" {
		t.Errorf("after a reboot, before the volume is asked for: %s", got)
	}
	step("encrypted ensure", pool, tools, size)
	if got := must(ctx, t, node, "sh", "-c", "sha256sum <"+volume+"/mount/file"); got != sum {
		t.Errorf("after a reboot it holds %s, want %s", got, sum)
	}
	free := must(ctx, t, node, "stat", "-f", "-c", "%b %S", volume+"/mount")
	var blocks, bytes int64
	if _, err := fmt.Sscan(free, &blocks, &bytes); err != nil || blocks*bytes < size*7/10 || blocks*bytes > size {
		t.Errorf("its file system has %s blocks and bytes, want nearly %d bytes; %v", free, int64(size), err)
	}
	if found := must(ctx, t, node, "sh", "-c", "grep -c -e 'in plain text' -e XFSB -e 'kkkkkkkk' "+volume+"/disk.img; true"); found != "0" {
		t.Errorf("%s lines of what it holds can be read from its image", found)
	}
	step("remove", pool, "", 0)
	left := must(ctx, t, node, "sh", "-c", "ls /dev/mapper; losetup -a; ls -d "+volume+"; true")
	if strings.TrimSpace(left) != "control" {
		t.Errorf("once it is removed there is %s", left)
	}
}

const unit = "multipaas-node.service"

// bare makes two machines with a disk that has the image for storage, what runs containers, the node's unit and the tests of packages
// as programs. They are off.
func bare(ctx context.Context, t *testing.T, packages ...string) (server, node *vm.VM) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "mpvm") // see make
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	files := filepath.Join(dir, "files")
	payload := filepath.Join(root, "dist", "payload")
	if err := os.CopyFS(filepath.Join(files, "images", "storage"), os.DirFS(filepath.Join(payload, "images", "storage"))); err != nil {
		t.Fatalf("%v: make test-vm makes it", err)
	}
	for _, program := range []string{"runc", "init"} {
		put(t, filepath.Join(payload, "runtime", program), filepath.Join(files, "runtime", program))
	}
	put(t, filepath.Join(root, "installer", "units", unit), filepath.Join(files, unit))
	for _, pkg := range packages {
		build := exec.CommandContext(ctx, "go", "test", "-c", "-o", filepath.Join(files, filepath.Base(pkg)+".test"), "./"+pkg)
		build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	disk := filepath.Join(dir, "disk")
	if err := vm.NewDisk(ctx, disk, files); err != nil {
		t.Fatal(err)
	}
	server, node, err = vm.Pair(ctx, dir, vm.Image(filepath.Join(root, ".cache", "vm")), vm.Booted(filepath.Join(root, ".cache", "vm-booted")), disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Cut)
	t.Cleanup(node.Cut)
	return server, node
}

// confinedRun runs a program of the second disk to its end, as the node's unit would have it run, and returns
// what it has said.
func confinedRun(ctx context.Context, t *testing.T, v *vm.VM, program string, env ...string) string {
	t.Helper()
	out, err := confined(ctx, v, program, env...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func confined(ctx context.Context, v *vm.VM, program string, env ...string) (string, error) {
	text := "[Service]\nType=oneshot\nRestart=no\nRestartForceExitStatus=\nExecStart=\nExecStart=" + program + "\n"
	for _, e := range env {
		text += "Environment='" + e + "'\n"
	}
	dropIn := "/run/systemd/system/" + unit + ".d/step.conf"
	if err := v.Write(ctx, dropIn, text); err != nil {
		return "", err
	}
	r, err := v.Run(ctx, "", "sh", "-c", "cp /opt/multipaas/"+unit+" /run/systemd/system/ && systemctl daemon-reload && "+
		"date +%s >/run/since && systemctl start "+unit+"; code=$?; journalctl --sync; "+
		"journalctl --no-pager -q -o cat -u "+unit+" --since @$(cat /run/since); exit $code")
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s: %s", program, r)
	}
	return r.Out, err
}
