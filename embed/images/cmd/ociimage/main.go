// Command ociimage makes one of the payload's images as an OCI layout and
// prints its digest. The build calls it; see package images.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/multipaas/multipaas/embed/images"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	spec := images.Spec{}
	flags := flag.NewFlagSet("ociimage", flag.ContinueOnError)
	out := flags.String("out", "", "OCI layout `folder` to make")
	flags.StringVar(&spec.Name, "name", "", "the image's full `reference`")
	flags.StringVar(&spec.RootTar, "root", "", "tar `archive` of a root file system")
	flags.StringVar(&spec.User, "user", "", "`uid:gid` it runs as")
	flags.Func("file", "`SOURCE:PATH[:MODE]` of a file to put in (repeatable)", func(text string) error {
		file, err := parseFile(text)
		spec.Files = append(spec.Files, file)
		return err
	})
	flags.Func("entrypoint", "a word of the `command` that runs (repeatable)", func(text string) error {
		spec.Entrypoint = append(spec.Entrypoint, text)
		return nil
	})
	flags.Func("port", "a `port/protocol` it listens on (repeatable)", func(text string) error {
		spec.Ports = append(spec.Ports, text)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if *out == "" || spec.Name == "" || flags.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "ociimage: give --out, --name and one of --root or --file, nothing else; see --help")
		return 2
	}
	digest, err := images.Write(spec, *out)
	if err != nil {
		fmt.Fprintln(os.Stderr, "ociimage:", err)
		return 1
	}
	fmt.Println(digest)
	return 0
}

// parseFile reads SOURCE:PATH[:MODE]; without a mode the file is executable.
func parseFile(text string) (images.File, error) {
	parts := strings.Split(text, ":")
	file := images.File{Mode: 0o755}
	switch len(parts) {
	case 3:
		mode, err := strconv.ParseUint(parts[2], 8, 32)
		if err != nil || mode > 0o777 {
			return file, fmt.Errorf("mode %q: give permission bits in octal, like 644", parts[2])
		}
		file.Mode = fs.FileMode(mode)
	case 2:
	default:
		return file, errors.New("give SOURCE:PATH or SOURCE:PATH:MODE")
	}
	file.Source, file.Path = parts[0], parts[1]
	return file, nil
}
