package client

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) initCommand() *command {
	return &command{
		name: "init", usage: "set the platform's address and pin its certificate authority", args: "SERVER",
		about: `Nothing is trusted blindly: give the authority's file, which the operator hands out, or
its fingerprint, the SHA-256 of its public key in hex, which is also the last part of
a join token. With neither, the fingerprint is shown on a terminal for you to compare.
The session and the chosen place are kept if server and authority stay the same.`,
		examples: []string{
			"mp init https://multipaas.example:7443 --ca ca.crt",
			"mp init https://multipaas.example:7443 --ca-hash 6b1f...",
		},
		flags: flags(
			&cli.StringFlag{Name: "ca", Usage: "pin the authority in `FILE`, PEM"},
			&cli.StringFlag{Name: "ca-hash", Usage: "pin the authority with this `FINGERPRINT`"},
			&cli.StringFlag{Name: "default-output", Usage: "remember `FORMAT` for commands without -o"}),
		run: (*call).initServer,
	}
}

func (c *call) initServer() error {
	server, err := serverURL(c.arg(0))
	if err != nil {
		return err
	}
	conf, err := c.conf()
	if err != nil {
		return err
	}
	ca, err := c.authority(server)
	if err != nil {
		return err
	}
	r, err := newRemote(server, ca)
	if err != nil {
		return err
	}
	defer r.close()
	var info resource.Info
	if err := r.do(c.Context.Context, http.MethodGet, apiPath("info"), nil, &info); err != nil {
		return err
	}
	if conf.Server != server || conf.CA != string(ca) {
		// Another platform: neither the place nor the session means anything there.
		conf.Context = Target{}
		if err := dropSession(c.dir); err != nil {
			return err
		}
	}
	conf.Server, conf.CA = server, string(ca)
	if o := c.String("default-output"); o != "" {
		if conf.Output, err = checkOutput("--default-output", o); err != nil {
			return err
		}
	}
	if err := writeConfig(c.dir, conf); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "Using %s (MultiPaaS %s, apps below %s).\n", server, printable(info.Version), printable(info.Domain))
	return nil
}

// authority finds the PEM of the authority to pin, proven in one of the three
// ways.
func (c *call) authority(server string) ([]byte, error) {
	if file := c.String("ca"); file != "" {
		return authorityIn(file)
	}
	pin := strings.ToLower(strings.ReplaceAll(c.String("ca-hash"), ":", ""))
	if pin == "" && !c.interactive() {
		return nil, usagef("give --ca FILE or --ca-hash FINGERPRINT; the operator has them", "nothing says that %s is the right server", server)
	}
	if raw, err := hex.DecodeString(pin); pin != "" && (err != nil || len(raw) != sha256.Size) {
		return nil, usagef("it is 64 hex digits", "--ca-hash %q is not a SHA-256", c.String("ca-hash"))
	}
	ca, err := unprovenAuthority(c.Context.Context, server)
	if err != nil {
		return nil, err
	}
	cert, err := pki.ParseCertificate(ca)
	if err != nil {
		return nil, err
	}
	hash := pki.KeyHash(cert)
	if pin != "" {
		if subtle.ConstantTimeCompare([]byte(pin), []byte(hash)) != 1 {
			return nil, &failure{text: fmt.Sprintf("the authority of %s has the fingerprint %s, not the given one", server, hash), remedy: "do not go on before you know why: somebody may stand between you and the server", code: ExitDenied}
		}
		return ca, nil
	}
	fmt.Fprintf(c.err, "The authority of %s has the fingerprint\n\n  %s\n\n", server, hash)
	return ca, c.confirm("Is this what the operator told you?", "")
}

// authorityIn reads the PEM of an authority from a file.
func authorityIn(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, usagef("give the CA file of the platform", "read the authority: %v", err)
	}
	return onlyCertificates(data, file)
}

// unprovenAuthority asks a server, whoever it is, for its authority. Nothing
// else is believed and nothing secret is sent; what comes back counts only once
// its fingerprint has been compared, and every later connection is checked
// against it.
func unprovenAuthority(ctx context.Context, server string) ([]byte, error) {
	r := remoteWithTLS(server, &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})
	defer r.close()
	var info resource.Info
	if err := r.do(ctx, http.MethodGet, apiPath("info"), nil, &info); err != nil {
		return nil, err
	}
	return onlyCertificates([]byte(info.CA), server)
}

// onlyCertificates keeps the first certificate of data. More would be trusted
// without anybody having compared them.
func onlyCertificates(data []byte, from string) ([]byte, error) {
	cert, err := pki.ParseCertificate(data)
	switch {
	case err != nil:
		return nil, failf("give the CA file of the platform", "read the authority from %s: %v", from, err)
	case !cert.IsCA:
		return nil, failf("give the CA file of the platform", "the certificate from %s is not an authority", from)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), nil
}
