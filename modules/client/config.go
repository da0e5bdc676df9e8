package client

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
)

// Config is what `mp init` and the `use` verbs remember, in config.json. It
// holds no secret.
type Config struct {
	Server string `json:"server"`
	// CA is the platform's authority in PEM: the only one that is trusted.
	CA      string `json:"ca"`
	Context Target `json:"context"`
	// Output is the -o of commands that get none.
	Output string `json:"output,omitempty"`
}

// Session is a login, in session.json, mode 0600. The token is only ever sent
// to Server.
type Session struct {
	Server    string    `json:"server"`
	Token     string    `json:"token"`
	User      string    `json:"user"`
	ExpiresAt time.Time `json:"expiresAt"`
}

// Target is the place in the tenancy tree that commands work on. A level is
// only set if those above it are.
type Target struct {
	Account      string `json:"account,omitempty"`
	Organization string `json:"organization,omitempty"`
	Workspace    string `json:"workspace,omitempty"`
	Namespace    string `json:"namespace,omitempty"`
}

// levels are the names in t, from the top.
func (t *Target) levels() []*string {
	return []*string{&t.Account, &t.Organization, &t.Workspace, &t.Namespace}
}

// with lays over on top of t. A level that changes takes those below it away:
// the workspace of one organization means nothing in another.
func (t Target) with(over Target) Target {
	levels := t.levels()
	for i, name := range over.levels() {
		if *name == "" || *name == *levels[i] {
			continue
		}
		*levels[i] = *name
		for _, below := range levels[i+1:] {
			*below = ""
		}
	}
	return t
}

// String is "acme/web/shop", as far as it is set.
func (t Target) String() string {
	return strings.TrimRight(t.Account+"/"+t.Organization+"/"+t.Workspace, "/")
}

// configDir is the user's folder: MP_CONFIG, or multipaas below
// XDG_CONFIG_HOME, or below ~/.config. It may not exist yet.
func (p *program) configDir() (string, error) {
	if dir := os.Getenv("MP_CONFIG"); dir != "" {
		return filepath.Abs(dir)
	}
	if dir := os.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "multipaas"), nil
	}
	home := os.Getenv("HOME")
	if home == "" {
		return "", failf("set MP_CONFIG to a folder of your own", "there is no home folder to keep the configuration in")
	}
	return filepath.Join(home, ".config", "multipaas"), nil
}

func writeConfig(dir string, c *Config) error {
	return writeJSON(filepath.Join(dir, "config.json"), c)
}

// readSession reads the session for server, or nil if there is none: not
// logged in, or logged in to another server.
func readSession(dir, server string) (*Session, error) {
	s := &Session{}
	err := readJSON(filepath.Join(dir, "session.json"), s, true)
	if errors.Is(err, fs.ErrNotExist) || err == nil && s.Server != server {
		return nil, nil
	}
	return s, err
}

func writeSession(dir string, s *Session) error {
	return writeJSON(filepath.Join(dir, "session.json"), s)
}

// dropSession forgets the login and every token that came from it.
func dropSession(dir string) error {
	return errors.Join(os.RemoveAll(filepath.Join(dir, "session.json")), os.RemoveAll(filepath.Join(dir, "cache")))
}

// maxStateFile bounds what is read: a CA bundle is 2 KB, a token less.
const maxStateFile = 1 << 20

// cacheFile is where what is known of something is kept for a while. The name
// tells servers apart, too.
func (c *call) cacheFile(kind, about string) string {
	sum := sha256.Sum256([]byte(c.config.Server + "\x00" + about))
	return filepath.Join(c.dir, "cache", kind, hex.EncodeToString(sum[:16])+".json")
}

func readJSON(path string, into any, secret bool) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if secret && info.Mode().Perm()&0o077 != 0 {
		return failf("run 'chmod 600 "+path+"', and 'mp logout' if somebody may have read it", "%s holds a secret and others may read it", path)
	}
	if info.Size() > maxStateFile {
		return failf("remove it and run 'mp init' again", "%s is too large to be ours", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return failf("remove it and run 'mp init' again", "%s is damaged: %v", path, err)
	}
	return nil
}

// writeJSON writes path whole, for the user alone, and makes its folder.
func writeJSON(path string, v any) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(path, append(data, '\n'), 0o600)
}

// serverURL checks what the user gave as the server's address and brings it
// into one form.
func serverURL(text string) (string, error) {
	const remedy = "give it like https://multipaas.example:7443"
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", usagef(remedy, "%q is not an address: %v", text, err)
	case u.Scheme != "https":
		return "", usagef(remedy, "%q does not begin with https://", text)
	case u.Hostname() == "":
		return "", usagef(remedy, "%q does not name a host", text)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/":
		return "", usagef(remedy, "%q has more than a host and a port", text)
	}
	return "https://" + u.Host, nil
}
