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

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(path, dataDir string) error {
	keys, err := payload.TrustedKeys("")
	if err != nil {
		return err
	}
	p, err := payload.Self(keys...)
	if err != nil {
		return err
	}
	defer p.Close()
	root, err := p.Unpack(context.Background(), dataDir, path)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(root, path))
	os.Stdout.Write(data)
	return err
}
