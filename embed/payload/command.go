package payload

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
)

// Exit codes of the commands.
const (
	exitFailed = 1
	exitUsage  = 2
)

// Command is `payload` with all that stands below it, for main to mount.
func Command() *cli.Command {
	fileFlag := &cli.StringFlag{Name: "file", Usage: "the `EXECUTABLE` that carries the payload (default: this program)"}
	keysFlag := &cli.StringFlag{Name: "keys", Usage: "a `FILE` of more trusted keys, one per line (also " + KeysVariable + ", default " + DefaultKeysFile + ")"}
	keyFlag := &cli.StringFlag{Name: "key", Usage: "the `FILE` with the private key to sign with"}
	return &cli.Command{
		Name:  "payload",
		Usage: "show, check and repack the files carried inside this file",
		Subcommands: []*cli.Command{
			{
				Name: "ls", Usage: "list the files",
				Flags:  []cli.Flag{fileFlag, keysFlag, &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "table", Usage: "table, json or name"}},
				Action: list, OnUsageError: usageError,
			},
			{
				Name: "verify", Usage: "check the signature and the sum of every file",
				Flags:  []cli.Flag{fileFlag, keysFlag},
				Action: verify, OnUsageError: usageError,
			},
			{
				Name: "add", Usage: "add files or folders and sign anew", ArgsUsage: "SOURCE=PATH...",
				Description: "Puts each SOURCE (a file or a folder of this machine) under PATH into the payload, in the\n" +
					"place of what stood there under the same path, and signs the whole with the key.\n\n" +
					"   multipaas payload add --key site.key --out multipaas-site ./postgres=images/postgres",
				Flags: []cli.Flag{fileFlag, keysFlag, keyFlag,
					&cli.StringFlag{Name: "out", Usage: "the `EXECUTABLE` to write (default: the one it was read from)"}},
				Action: add, OnUsageError: usageError,
			},
			{
				Name: "pack", Usage: "put a payload behind an executable", ArgsUsage: "FOLDER|ARCHIVE",
				Description: "Makes a payload of all files of FOLDER and signs it with the key, or takes a signed ARCHIVE\n" +
					"(or an executable that carries one) as it is. With --zip it writes the archive alone.",
				Flags: []cli.Flag{keyFlag,
					&cli.StringFlag{Name: "elf", Usage: "the `EXECUTABLE` to put it behind (default: this program)"},
					&cli.StringFlag{Name: "out", Usage: "the `FILE` to write", Required: true},
					&cli.BoolFlag{Name: "zip", Usage: "write the archive alone"}},
				Action: pack, OnUsageError: usageError,
			},
			{
				Name: "key", Usage: "make and show keys to sign with",
				Subcommands: []*cli.Command{
					{Name: "new", Usage: "make a private key and print its public one", ArgsUsage: "FILE", Action: newKey, OnUsageError: usageError},
					{Name: "show", Usage: "print the public key of a private one", ArgsUsage: "FILE", Action: showKey, OnUsageError: usageError},
				},
			},
		},
	}
}

func usageError(_ *cli.Context, err error, _ bool) error { return usagef("%v", err) }

func usagef(format string, args ...any) error {
	return cli.Exit("payload: "+fmt.Sprintf(format, args...), exitUsage)
}

func failed(err error) error {
	text := err.Error()
	if !strings.HasPrefix(text, "payload: ") {
		text = "payload: " + text
	}
	return cli.Exit(text, exitFailed)
}

// openFor opens the payload that the flags name.
func openFor(c *cli.Context) (*Payload, error) {
	keys, err := TrustedKeys(c.String("keys"))
	if err != nil {
		return nil, failed(err)
	}
	var p *Payload
	if file := c.String("file"); file != "" {
		p, err = Open(file, keys...)
	} else {
		p, err = Self(keys...)
	}
	if err != nil {
		return nil, failed(err)
	}
	return p, nil
}

// listedFile is a file as `ls -o json` shows it.
type listedFile struct {
	Path       string `json:"path"`
	Size       int64  `json:"size"`
	Packed     uint64 `json:"packed"`
	SHA256     string `json:"sha256"`
	Executable bool   `json:"executable"`
}

func list(c *cli.Context) error {
	if c.NArg() > 0 {
		return usagef("ls takes no arguments")
	}
	output := c.String("output")
	if output != "table" && output != "json" && output != "name" {
		return usagef("--output %q: have table, json and name", output)
	}
	p, err := openFor(c)
	if err != nil {
		return err
	}
	defer p.Close()
	if p.dir != "" {
		return usagef("%s is a plain folder: list it with ls", p.dir)
	}
	files := make([]listedFile, 0, len(p.manifest.Files))
	for _, file := range p.manifest.Files {
		files = append(files, listedFile{file.Path, file.SizeBytes, p.entries[file.Path].CompressedSize64, file.SHA256, file.Executable})
	}
	return printFiles(c.App.Writer, output, files)
}

func printFiles(w io.Writer, output string, files []listedFile) error {
	switch output {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(files)
	case "name":
		for _, file := range files {
			fmt.Fprintln(w, file.Path)
		}
		return nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PATH\tSIZE\tPACKED\tSHA256")
	for _, file := range files {
		fmt.Fprintf(table, "%s\t%d\t%d\t%.12s\n", file.Path, file.Size, file.Packed, file.SHA256)
	}
	return table.Flush()
}

func verify(c *cli.Context) error {
	if c.NArg() > 0 {
		return usagef("verify takes no arguments")
	}
	p, err := openFor(c)
	if err != nil {
		return err
	}
	defer p.Close()
	if p.dir != "" {
		return usagef("%s is a plain folder, which nobody signed", p.dir)
	}
	if err := p.Verify(c.Context); err != nil {
		return failed(err)
	}
	fmt.Fprintf(c.App.Writer, "%s: %d files, %d MB, payload %s: good\n",
		p.name, len(p.manifest.Files), p.manifest.TotalBytes()>>20, p.id[:16])
	return nil
}

func add(c *cli.Context) error {
	if c.NArg() == 0 {
		return usagef("add: say what to add as SOURCE=PATH, like ./postgres=images/postgres")
	}
	var sources []Source
	for _, arg := range c.Args().Slice() {
		file, path, ok := strings.Cut(arg, "=")
		if !ok || file == "" || path == "" {
			return usagef("add: %q: give SOURCE=PATH, like ./postgres=images/postgres", arg)
		}
		some, err := Sources(file, path)
		if err != nil {
			return failed(err)
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
	out := c.String("out")
	if out == "" {
		out = p.name
	}
	if err := Add(c.Context, p, out, key, sources); err != nil {
		return failed(err)
	}
	return warnUntrusted(c, key)
}

func pack(c *cli.Context) error {
	if c.NArg() != 1 {
		return usagef("pack: give one folder or archive")
	}
	input, out := c.Args().First(), c.String("out")
	info, err := os.Stat(input)
	if err != nil {
		return failed(err)
	}
	program := c.String("elf")
	if program == "" {
		program = "/proc/self/exe"
	}
	if !info.IsDir() {
		if c.Bool("zip") {
			return usagef("pack: --zip goes with a folder")
		}
		if err := Pack(program, input, out); err != nil {
			return failed(err)
		}
		return nil
	}
	key, err := keyFor(c)
	if err != nil {
		return err
	}
	sources, err := Sources(input, "")
	if err != nil {
		return failed(err)
	}
	if c.Bool("zip") {
		err = replace(out, 0o644, func(w io.Writer) error { return WriteZip(c.Context, w, key, sources) })
	} else {
		err = PackSources(c.Context, program, out, key, sources)
	}
	if err != nil {
		return failed(err)
	}
	return warnUntrusted(c, key)
}

// keyFor reads the key that --key names.
func keyFor(c *cli.Context) (ed25519.PrivateKey, error) {
	file := c.String("key")
	if file == "" {
		return nil, usagef("%s: give the private key to sign with by --key; `multipaas payload key new FILE` makes one", c.Command.Name)
	}
	key, err := ReadKey(file)
	if err != nil {
		return nil, failed(err)
	}
	return key, nil
}

// warnUntrusted says what to do when this program would refuse what was signed.
func warnUntrusted(c *cli.Context, key ed25519.PrivateKey) error {
	public := key.Public().(ed25519.PublicKey)
	keys, err := TrustedKeys(c.String("keys"))
	if err != nil {
		return failed(err)
	}
	for _, trusted := range keys {
		if trusted.Equal(public) {
			return nil
		}
	}
	if len(keys) > 0 {
		fmt.Fprintf(c.App.ErrWriter, "note: this key is not linked into the program; machines trust it once %s (or the file in %s) has the line\n%s\n",
			DefaultKeysFile, KeysVariable, FormatPublicKey(public))
	}
	return nil
}

func newKey(c *cli.Context) error {
	if c.NArg() != 1 {
		return usagef("key new: give the file to make")
	}
	key, err := CreateKey(c.Args().First())
	if errors.Is(err, os.ErrExist) {
		return failed(fmt.Errorf("%s is there already: a key is never overwritten", c.Args().First()))
	}
	if err != nil {
		return failed(err)
	}
	fmt.Fprintln(c.App.Writer, FormatPublicKey(key.Public().(ed25519.PublicKey)))
	return nil
}

func showKey(c *cli.Context) error {
	if c.NArg() != 1 {
		return usagef("key show: give the file of a private key")
	}
	key, err := ReadKey(c.Args().First())
	if err != nil {
		return failed(err)
	}
	fmt.Fprintln(c.App.Writer, FormatPublicKey(key.Public().(ed25519.PublicKey)))
	return nil
}
