// Command coredns is upstream's CoreDNS, with a configuration to which a tenant may
// add what he likes in the ConfigMap kube-system/coredns-custom: keys that end in
// .server are further server blocks, those that end in .override go into the
// cluster's own.
//
//	coredns -conf FILE     upstream's, reading the folder "custom" beside FILE
//	coredns check FOLDER   says whether the Corefile on its standard input, with the
//	                       files in FOLDER/custom, can be read
//
// It promises that nothing in there takes the cluster's names away (see package
// custom); an event of the ConfigMap says what was left out. Nothing imports this.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	_ "github.com/coredns/coredns/core/plugin"
	"github.com/coredns/coredns/coremain"

	"github.com/multipaas/multipaas/embed/runtime/dns/custom"
)

// runFolder is where what is in force is kept; it outlives the process, not the pod.
// Without it, this is upstream's CoreDNS.
const runFolder = "/run/coredns"

// patience is what one check has.
const patience = 20 * time.Second

func main() {
	if len(os.Args) == 3 && os.Args[1] == "check" {
		if err := check(os.Args[2], os.Stdin); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	if i := slices.Index(os.Args, "-conf"); i > 0 && i+1 < len(os.Args) {
		if st, err := os.Stat(runFolder); err == nil && st.IsDir() {
			c := custom.New(custom.Config{Corefile: os.Args[i+1], From: filepath.Join(filepath.Dir(os.Args[i+1]), "custom"),
				Dir: runFolder, Check: checkByChild, Tell: tellByEvent})
			// Upstream's own way to name a Corefile would be a second one.
			os.Args = slices.Delete(os.Args, i, i+2)
			caddy.RegisterCaddyfileLoader("custom", caddy.LoaderFunc(func(string) (caddy.Input, error) {
				contents, err := c.Load()
				return input(runFolder, contents), err
			}))
		}
	}
	coremain.Run()
}

// check reads a Corefile as at a start, to the point where servers would listen.
func check(dir string, from io.Reader) error {
	contents, err := io.ReadAll(from)
	if err != nil {
		return err
	}
	corefile := input(dir, contents)
	if err := caddy.ValidateAndExecuteDirectives(corefile, nil, true); err != nil {
		return err
	}
	return servedTwice(corefile)
}

// servedTwice says which zone two server blocks serve, which CoreDNS finds out only
// when it starts.
func servedTwice(corefile caddy.Input) error {
	blocks, err := caddyfile.Parse(corefile.Path(), bytes.NewReader(corefile.Body()), nil)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, b := range blocks {
		if _, ok := b.Tokens["bind"]; ok {
			continue // at addresses of its own
		}
		for _, key := range b.Keys {
			key = strings.ToLower(strings.TrimPrefix(key, "dns://"))
			zone, port, err := net.SplitHostPort(key)
			if err != nil {
				zone, port = key, "53"
			}
			zone = strings.TrimSuffix(zone, ".") + "."
			if seen[zone+" "+port] {
				return fmt.Errorf("two server blocks serve %s at port %s", zone, port)
			}
			seen[zone+" "+port] = true
		}
	}
	return nil
}

// input is a Corefile whose imports are relative to dir.
func input(dir string, contents []byte) caddy.Input {
	return caddy.CaddyfileInput{Contents: bytes.Clone(contents), Filepath: filepath.Join(dir, "Corefile"), ServerTypeName: "dns"}
}

// checkByChild checks in a process of its own: what plugins set up for a
// configuration that isn't run would stay.
func checkByChild(dir string, corefile []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "check", dir)
	cmd.Stdin = bytes.NewReader(corefile)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("not done after %s", patience)
	}
	lines := strings.Split(strings.TrimSpace(string(out[:min(len(out), 64<<10)])), "\n")
	// The last line is the error; of a panic the first that isn't a log's.
	said := lines[len(lines)-1]
	for _, l := range lines {
		if strings.HasPrefix(l, "panic:") {
			said = l
		}
	}
	return errors.New(strings.ReplaceAll(cmp.Or(said, err.Error()), dir+"/custom/1", ""))
}
