// Command self unpacks the file named by its argument from its own payload
// below the folder that is the other one, and prints it.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/multipaas/multipaas/embed/payload"
)

func main() { os.Exit(run(os.Args[1], os.Args[2])) }

func run(path, dataDir string) int {
	keys, err := payload.TrustedKeys("")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p, err := payload.Self(keys...)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer p.Close()
	root, err := p.Unpack(context.Background(), dataDir, path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	data, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	os.Stdout.Write(data)
	return 0
}
