package payload

import (
	"cmp"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/appliance/atomicfile"
)

// Exit codes of the commands.
const (
	exitFailed = 1
	exitUsage  = 2
)

// Command is `payload` with all that stands below it, for main to mount.
func Command() *cli.Command {
	fileFlag := &cli.StringFlag{Name: "file", Usage: "the `EXECUTABLE` that carries the payload (default: this program)"}
	keysFlag := &cli.StringFlag{Name: "keys", Usage: "a `FILE` of more trusted keys, one per line (also " + KeysVariable +
		", default " + DefaultKeysFile + ")"}
	keyFlag := &cli.StringFlag{Name: "key", Usage: "the `FILE` with the private key to sign with"}
	return &cli.Command{
		Name:  "payload",
		Usage: "show, check and repack the files carried inside this file",
		Subcommands: []*cli.Command{
			command(list, &cli.Command{
				Name: "ls", Usage: "list the files",
				Flags: []cli.Flag{fileFlag, keysFlag,
					&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "table", Usage: "table, json or name"}},
			}),
			command(verify, &cli.Command{
				Name: "verify", Usage: "check the signature and the sum of every file",
				Flags: []cli.Flag{fileFlag, keysFlag},
			}),
			command(add, &cli.Command{
				Name: "add", Usage: "add files or folders and sign anew", ArgsUsage: "SOURCE=PATH...",
				Description: "Puts each SOURCE (a file or a folder of this machine) under PATH into the payload, in the\n" +
					"place of what stood there under the same path, and signs the whole with the key.\n\n" +
					"   multipaas payload add --key site.key --out multipaas-site ./postgres=images/postgres",
				Flags: []cli.Flag{fileFlag, keysFlag, keyFlag,
					&cli.StringFlag{Name: "out", Usage: "the `EXECUTABLE` to write (default: the one it was read from)"}},
			}),
			command(pack, &cli.Command{
				Name: "pack", Usage: "put a payload behind an executable", ArgsUsage: "FOLDER|ARCHIVE",
				Description: "Makes a payload of all files of FOLDER and signs it with the key, or takes a signed ARCHIVE\n" +
					"(or an executable that carries one) as it is. With --zip it writes the archive alone.",
				Flags: []cli.Flag{keyFlag,
					&cli.StringFlag{Name: "elf", Usage: "the `EXECUTABLE` to put it behind (default: this program)"},
					&cli.StringFlag{Name: "out", Usage: "the `FILE` to write", Required: true},
					&cli.BoolFlag{Name: "zip", Usage: "write the archive alone"}},
			}),
			{
				Name: "key", Usage: "make and show keys to sign with",
				Subcommands: []*cli.Command{
					command(newKey, &cli.Command{Name: "new", Usage: "make a private key and print its public one", ArgsUsage: "FILE"}),
					command(showKey, &cli.Command{Name: "show", Usage: "print the public key of a private one", ArgsUsage: "FILE"}),
				},
			},
		},
	}
}

// command makes cmd do run. An error of run that has no exit code gets exitFailed.
func command(run cli.ActionFunc, cmd *cli.Command) *cli.Command {
	cmd.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return usagef("%v", err) }
	cmd.Action = func(c *cli.Context) error {
		err := run(c)
		if _, ok := err.(cli.ExitCoder); ok || err == nil {
			return err
		}
		return cli.Exit("payload: "+strings.TrimPrefix(err.Error(), "payload: "), exitFailed)
	}
	return cmd
}

func usagef(format string, args ...any) error {
	return cli.Exit("payload: "+fmt.Sprintf(format, args...), exitUsage)
}

// openFor opens the payload that the flags name.
func openFor(c *cli.Context) (*Payload, error) {
	keys, err := TrustedKeys(c.String("keys"))
	if err != nil {
		return nil, err
	}
	if file := c.String("file"); file != "" {
		return Open(file, keys...)
	}
	return Self(keys...)
}

// openSigned is openFor, but for a folder.
func openSigned(c *cli.Context) (*Payload, error) {
	p, err := openFor(c)
	if err == nil && p.dir != "" {
		return nil, usagef("%s is a plain folder, which nobody signed: list it with ls", p.dir)
	}
	return p, err
}

// listedFile is a file as `ls -o json` shows it.
type listedFile struct {
	File
	Packed uint64 `json:"packed"`
}

func list(c *cli.Context) error {
	output := c.String("output")
	if output != "table" && output != "json" && output != "name" {
		return usagef("--output %q: have table, json and name", output)
	}
	p, err := openSigned(c)
	if err != nil {
		return err
	}
	defer p.Close()
	files := make([]listedFile, 0, len(p.manifest.Files))
	for _, file := range p.manifest.Files {
		files = append(files, listedFile{file, p.entries[file.Path].CompressedSize64})
	}
	switch output {
	case "json":
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(files)
	case "name":
		for _, file := range files {
			fmt.Fprintln(c.App.Writer, file.Path)
		}
		return nil
	}
	table := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PATH\tSIZE\tPACKED\tSHA256")
	for _, file := range files {
		fmt.Fprintf(table, "%s\t%d\t%d\t%.12s\n", file.Path, file.SizeBytes, file.Packed, file.SHA256)
	}
	return table.Flush()
}

func verify(c *cli.Context) error {
	p, err := openSigned(c)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Verify(c.Context); err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "%s: %d files, %d MB, payload %s: good\n",
		p.name, len(p.manifest.Files), p.manifest.TotalBytes()>>20, p.id[:16])
	return nil
}

func add(c *cli.Context) error {
	var sources []Source
	for _, arg := range c.Args().Slice() {
		file, path, ok := strings.Cut(arg, "=")
		if !ok || file == "" || path == "" {
			return usagef("add: %q: give SOURCE=PATH, like ./postgres=images/postgres", arg)
		}
		some, err := Sources(file, path)
		if err != nil {
			return err
		}
		if len(some) == 0 {
			return usagef("add: %s: an empty folder", file)
		}
		sources = append(sources, some...)
	}
	key, err := keyFor(c)
	if err != nil {
		return err
	}
	p, err := openFor(c)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := Add(c.Context, p, cmp.Or(c.String("out"), p.name), key, sources); err != nil {
		return err
	}
	return warnUntrusted(c, key)
}

func pack(c *cli.Context) error {
	input, out, program := c.Args().First(), c.String("out"), cmp.Or(c.String("elf"), "/proc/self/exe")
	info, err := os.Stat(input)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		if c.Bool("zip") {
			return usagef("pack: --zip goes with a folder")
		}
		return Pack(program, input, out)
	}
	key, err := keyFor(c)
	if err != nil {
		return err
	}
	sources, err := Sources(input, "")
	if err != nil {
		return err
	}
	write := func(w io.Writer) error { return WriteZip(c.Context, w, key, nil, sources) }
	if c.Bool("zip") {
		err = atomicfile.WriteFunc(out, 0o644, write)
	} else {
		err = writeExecutable(program, out, write)
	}
	if err != nil {
		return err
	}
	return warnUntrusted(c, key)
}

// keyFor reads the key that --key names.
func keyFor(c *cli.Context) (ed25519.PrivateKey, error) {
	file := c.String("key")
	if file == "" {
		return nil, usagef("%s: give the private key to sign with by --key; `multipaas payload key new FILE` makes one", c.Command.Name)
	}
	return ReadKey(file)
}

// warnUntrusted says what to do when this program would refuse what was signed.
func warnUntrusted(c *cli.Context, key ed25519.PrivateKey) error {
	keys, err := TrustedKeys(c.String("keys"))
	if err != nil {
		return err
	}
	public := key.Public().(ed25519.PublicKey)
	if len(keys) > 0 && !slices.ContainsFunc(keys, func(k ed25519.PublicKey) bool { return k.Equal(public) }) {
		fmt.Fprintf(c.App.ErrWriter, "note: this key is not linked into the program; machines trust it once %s (or the file in %s) has the line\n%s\n",
			DefaultKeysFile, KeysVariable, FormatPublicKey(public))
	}
	return nil
}

func newKey(c *cli.Context) error {
	key, err := CreateKey(c.Args().First())
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already: a key is never overwritten", c.Args().First())
	}
	return printPublic(c, key, err)
}

func showKey(c *cli.Context) error {
	key, err := ReadKey(c.Args().First())
	return printPublic(c, key, err)
}

func printPublic(c *cli.Context, key ed25519.PrivateKey, err error) error {
	if err == nil {
		_, err = fmt.Fprintln(c.App.Writer, FormatPublicKey(key.Public().(ed25519.PublicKey)))
	}
	return err
}
