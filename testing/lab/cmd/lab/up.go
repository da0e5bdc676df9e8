package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/testing/datacenter"
)

const builtBinary = "dist/multipaas"

// up brings a datacenter up, or goes on where a former up ended.
func up(ctx context.Context, dir string) error {
	began := time.Now()
	binary, err := filepath.Abs(builtBinary)
	if err != nil {
		return err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return err
	}
	l, err := open(ctx, dir, binary)
	if err != nil {
		return err
	}
	spec := datacenter.Usual
	spec.Volumes = true
	d, err := datacenter.OnLab(ctx, l, binary, spec, say)
	if err != nil {
		return fmt.Errorf("%w\n\n%s", err, lookAround(dir))
	}
	return finish(d, dir, time.Since(began))
}

// envFile stands beside the lab's folder: .lab/up.env.
func envFile(dir string) string { return filepath.Clean(dir) + ".env" }

func removeEnv(dir string) error {
	if err := os.Remove(envFile(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// finish says how to reach what is there.
func finish(d *datacenter.Datacenter, dir string, took time.Duration) error {
	address := d.Server.Address().String()
	ca, kubeconfig := d.Desk.Path(datacenter.CAFile), d.Desk.Path(datacenter.KubeconfigFile)
	config := func(who string) string { return d.Desk.Path("mp-" + who) }
	vars := []struct{ key, value string }{
		{"URL", "https://" + datacenter.AppHost}, {"ADDRESS", address}, {"CA", ca},
		{"KUBECONFIG", kubeconfig}, {"MP_CONFIG", config(datacenter.Owner)},
	}
	var env strings.Builder
	for _, v := range vars {
		fmt.Fprintf(&env, "%s=%s\n", v.key, v.value)
	}
	if err := atomicfile.Write(envFile(dir), []byte(env.String()), 0o644); err != nil {
		return err
	}
	fmt.Printf("\nThe datacenter is up (%s).\n\n%s\nThe same stands in %s. What to try next:\n\n", took.Round(time.Second), env.String(), envFile(dir))
	curl := fmt.Sprintf("curl --cacert %s --resolve %s:443:%s https://%[2]s/", ca, datacenter.AppHost, address)
	fmt.Printf("  %[1]s\n  %[1]snotes -d 'both instances see this'; %[1]snotes\n", curl)
	fmt.Printf("  KUBECONFIG=%s %s kubectl get nodes,pods,pvc -A\n", kubeconfig, builtBinary)
	fmt.Printf("  MP_CONFIG=%s %s mp apps list\n", config(datacenter.Owner), builtBinary)
	fmt.Printf("  MP_CONFIG=%s %s mp volumes list\n", config(datacenter.Owner), builtBinary)
	fmt.Printf("  MP_CONFIG=%s %s mp nodes list    # as the sysadmin\n", config(datacenter.Admin), builtBinary)
	fmt.Print(whatNext(dir))
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
