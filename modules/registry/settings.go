package registry

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/distribution/reference"
)

// UpstreamSettings are what an operator writes about an upstream.
type UpstreamSettings struct {
	Name         string `yaml:"name" doc:"its name as it stands in image references: docker.io, or HOST:PORT"`
	URL          string `yaml:"url" doc:"where it answers, https://HOST[:PORT][/PREFIX]; empty: at its name"`
	CAFile       string `yaml:"ca_file" doc:"PEM file of who signs its certificate; empty: whom this machine trusts"`
	Username     string `yaml:"username" doc:"as whom to log in; empty: without a login"`
	PasswordFile string `yaml:"password_file" doc:"file with the password or access token"`
}

var upstreamName = regexp.MustCompile("^" + reference.DomainRegexp.String() + "$")

// Check says what is wrong with s.
func (s UpstreamSettings) Check(fail func(field, value, wrong, remedy string)) {
	if !upstreamName.MatchString(s.Name) || s.Name != strings.ToLower(s.Name) {
		fail("name", s.Name, "not a registry's name", "write it as it stands in image references, docker.io for one")
	}
	if at, err := url.Parse(s.URL); s.URL != "" &&
		(err != nil || at.Host == "" || at.Scheme != "https" && at.Scheme != "http" || at.User != nil || at.RawQuery != "") {
		fail("url", s.URL, "not the URL of a registry", "write it as https://HOST[:PORT], credentials in username and password_file")
	}
	for _, f := range []struct{ name, value string }{{"ca_file", s.CAFile}, {"password_file", s.PasswordFile}} {
		if f.value != "" && !filepath.IsAbs(f.value) {
			fail(f.name, f.value, "not an absolute path", "write it from the root")
		}
	}
	if (s.Username == "") != (s.PasswordFile == "") {
		fail("username", s.Username, "goes with password_file", "set both or none")
	}
}

// Open reads the files that s names.
func (s UpstreamSettings) Open() (u Upstream, err error) {
	u = Upstream{Name: s.Name, URL: s.URL, Username: s.Username}
	if s.CAFile != "" {
		if u.CA, err = os.ReadFile(s.CAFile); err != nil {
			return u, fmt.Errorf("registry upstream %s: %w", s.Name, err)
		}
	}
	if s.PasswordFile != "" {
		password, err := os.ReadFile(s.PasswordFile)
		if err != nil {
			return u, fmt.Errorf("registry upstream %s: %w", s.Name, err)
		}
		u.Password = strings.TrimSpace(string(password))
	}
	return u, nil
}
