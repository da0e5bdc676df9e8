package payload

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// fuzzKey is always the same, so that a corpus stays good.
func fuzzKey() (ed25519.PublicKey, ed25519.PrivateKey) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	return key.Public().(ed25519.PublicKey), key
}

func keysOf(keys ...ed25519.PublicKey) []ed25519.PublicKey { return keys }

// call runs the command as main would.
func call(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	app := &cli.App{
		Commands: []*cli.Command{Command()}, Writer: &out, ErrWriter: &errs,
		ExitErrHandler: func(*cli.Context, error) {},
	}
	err := app.Run(append([]string{"multipaas", "payload"}, args...))
	if err == nil {
		return out.String(), errs.String(), 0
	}
	code = 1
	var coder cli.ExitCoder
	if errors.As(err, &coder) {
		code = coder.ExitCode()
	}
	return out.String(), errs.String() + err.Error(), code
}

func TestCommand(t *testing.T) {
	dir := t.TempDir()
	key, keys := filepath.Join(dir, "site.key"), filepath.Join(dir, "keys")
	public, stderr, code := call("key", "new", key)
	if code != 0 {
		t.Fatalf("key new: %d %s", code, stderr)
	}
	if info, _ := os.Stat(key); info.Mode() != 0o600 {
		t.Errorf("the private key has mode %v", info.Mode())
	}
	if shown, _, _ := call("key", "show", key); shown != public {
		t.Errorf("key show: %q, want %q", shown, public)
	}
	if _, stderr, code := call("key", "new", key); code != 1 || !strings.Contains(stderr, "never overwritten") {
		t.Errorf("key new over a key: %d %s", code, stderr)
	}
	if err := os.WriteFile(keys, []byte(public), 0o644); err != nil {
		t.Fatal(err)
	}
	elf := buildSelf(t, "")
	sources := writeTree(t, testFiles())
	folder := strings.TrimSuffix(sources[0].File, sources[0].Path)
	out := filepath.Join(dir, "out")
	if _, stderr, code := call("pack", "--elf", elf, "--key", key, "--out", out, folder); code != 0 {
		t.Fatalf("pack: %d %s", code, stderr)
	}
	if stdout, stderr, code := call("verify", "--file", out, "--keys", keys); code != 0 || !strings.Contains(stdout, "6 files") {
		t.Errorf("verify: %d %s%s", code, stdout, stderr)
	}
	if _, stderr, code := call("add", "--file", out, "--keys", keys, "--key", key, key+"=images/extra"); code != 0 {
		t.Errorf("add: %d %s", code, stderr)
	}
	stdout, _, _ := call("ls", "--file", out, "--keys", keys, "-o", "json")
	var files []listedFile
	if err := json.Unmarshal([]byte(stdout), &files); err != nil || len(files) != 7 {
		t.Errorf("ls -o json: %v, %d files: %s", err, len(files), stdout)
	}
	if stdout, _, _ := call("ls", "--file", out, "--keys", keys); !strings.Contains(stdout, "images/extra") {
		t.Errorf("ls: %s", stdout)
	}

	for _, test := range []struct {
		want string
		code int
		args []string
	}{
		{"carries no payload", 1, []string{"verify", "--file", elf, "--keys", keys}},
		{"trusts no key", 1, []string{"verify", "--file", out, "--keys", "/dev/null"}},
		{"no such file", 1, []string{"ls", "--file", filepath.Join(dir, "none"), "--keys", keys}},
		{"--output", 2, []string{"ls", "-o", "yaml"}},
		{"flag provided but not defined", 2, []string{"ls", "--color"}},
		{"SOURCE=PATH", 2, []string{"add", "--key", key, "file"}},
		{"--key", 2, []string{"add", elf + "=x"}},
		{"not a private key", 1, []string{"add", "--key", keys, elf + "=x"}},
		{"not an ELF", 1, []string{"pack", "--elf", keys, "--key", key, "--out", out, folder}},
		{"carries no payload", 1, []string{"pack", "--elf", elf, "--out", out, elf}},
		{"not a relative", 1, []string{"add", "--file", out, "--keys", keys, "--key", key, key + "=../x"}},
	} {
		if _, stderr, code := call(test.args...); code != test.code || !strings.Contains(stderr, test.want) {
			t.Errorf("%v: exit %d, %q; want %d, %q", test.args, code, stderr, test.code, test.want)
		}
	}
	// What failed left the file as it was.
	if _, stderr, code := call("verify", "--file", out, "--keys", keys); code != 0 {
		t.Errorf("verify after failures: %d %s", code, stderr)
	}
}
