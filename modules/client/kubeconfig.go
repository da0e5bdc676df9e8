package client

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientauth "k8s.io/client-go/pkg/apis/clientauthentication/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/modules/resource"
)

// execVersion is the version of the exec plugin's protocol.
const execVersion = "client.authentication.k8s.io/v1"

// kubeconfig is a configuration of one context that holds no secret: it calls
// executable for a token. configDir is set where MP_CONFIG is.
func kubeconfig(t Target, access resource.KubeAccess, executable, configDir string) ([]byte, error) {
	user := access.Context + "-user"
	exec := &api.ExecConfig{
		APIVersion: execVersion,
		Command:    executable,
		Args: []string{"mp", "kube-credential",
			"--account", t.Account, "--organization", t.Organization, "--workspace", t.Workspace},
		InstallHint:     "multipaas is not where it was when this file was written: run 'mp cluster config-kubectl' again",
		InteractiveMode: api.NeverExecInteractiveMode,
		// The workspace's own authority tells it from a later one of its name.
		ProvideClusterInfo: true,
	}
	if configDir != "" {
		exec.Env = []api.ExecEnvVar{{Name: "MP_CONFIG", Value: configDir}}
	}
	conf := api.NewConfig()
	conf.CurrentContext = access.Context
	if u, err := url.Parse(access.Server); err == nil && u.Hostname() == access.ServerName {
		access.ServerName = "" // it is the one that is asked for anyway
	}
	conf.Clusters[access.Context] = &api.Cluster{
		Server: access.Server, TLSServerName: access.ServerName, CertificateAuthorityData: []byte(access.CA),
	}
	conf.AuthInfos[user] = &api.AuthInfo{Exec: exec}
	conf.Contexts[access.Context] = &api.Context{Cluster: access.Context, AuthInfo: user, Namespace: t.Namespace}
	return clientcmd.Write(*conf)
}

// nameTimeout bounds how long the plane's name is tried: a network without it waits so
// long at most.
const nameTimeout = 3 * time.Second

// byName is the URL that reaches the plane by its own name, or "" if that leads
// nowhere from here, or elsewhere. With it, clients that know no tls-server-name get
// along, as do those that are given a server beside the file and then forget it.
func byName(ctx context.Context, access resource.KubeAccess) string {
	u, err := url.Parse(access.Server)
	roots := x509.NewCertPool()
	if err != nil || access.ServerName == "" || !roots.AppendCertsFromPEM([]byte(access.CA)) {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, nameTimeout)
	defer cancel()
	at := net.JoinHostPort(access.ServerName, cmp.Or(u.Port(), "443"))
	conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}).DialContext(ctx, "tcp", at)
	if err != nil {
		return ""
	}
	conn.Close()
	u.Host = at
	return u.String()
}

func (c *call) configKubectl() error {
	t, err := c.placeArg(inWorkspace)
	if err != nil {
		return err
	}
	var access resource.KubeAccess
	if err := c.get(t.at(inWorkspace, "kube"), &access); err != nil {
		return err
	}
	if server := byName(c.Context.Context, access); server != "" {
		access.Server = server
	}
	name := strings.ReplaceAll(t.String(), "/", "-")
	access.Context = cmp.Or(access.Context, name)
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's own file: %w", err)
	}
	configDir := ""
	if os.Getenv("MP_CONFIG") != "" {
		configDir = c.dir // absolute, whatever kubectl's folder is
	}
	data, err := kubeconfig(t, access, executable, configDir)
	if err != nil {
		return err
	}
	file := c.String("file")
	if file == "-" {
		_, err := c.out.Write(data)
		return err
	}
	if file == "" {
		home := os.Getenv("HOME")
		if home == "" {
			return usagef("give --file FILE", "there is no home folder to write the kubeconfig into")
		}
		// Names hold '-' themselves; that two places make one file name is rare
		// and only costs writing the file again.
		file = filepath.Join(home, ".kube", "config-"+name)
	}
	if file, err = filepath.Abs(file); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	if err := atomicfile.Write(file, data, 0o600); err != nil {
		return err
	}
	c.note("Wrote the kubeconfig of %s, context %s. To use it in this shell:", t, access.Context)
	_, err = fmt.Fprintf(c.out, "export KUBECONFIG=%s\n", shellQuote(file))
	return err
}

// safeInShell are the characters that no shell takes for anything else.
const safeInShell = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@%,"

// shellQuote quotes s for a shell where it needs that.
func shellQuote(s string) string {
	special := func(r rune) bool { return !strings.ContainsRune(safeInShell, r) }
	if s != "" && !strings.ContainsFunc(s, special) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func (p *program) kubeCredentialCommand() *command {
	return &command{
		name: "kube-credential", usage: "print a short-lived token for a workspace's Kubernetes API",
		about: `kubectl calls this, as the file of 'mp cluster config-kubectl' says. It prints an
ExecCredential of client.authentication.k8s.io/v1 and keeps the token, for you alone,
until half of its lifetime is over.`,
		examples: []string{"mp kube-credential --account acme --organization web --workspace shop"},
		flags:    placeFlags(inWorkspace),
		run:      (*call).kubeCredential,
	}
}

// cachedToken is a token kept for the next call of kubectl: a call without it
// takes a request, and kubectl may run many times a second.
type cachedToken struct {
	resource.KubeToken
	// ReuseUntil is half way to the end of life.
	ReuseUntil time.Time `json:"reuseUntil"`
	// Authority is the hash of the workspace's own; "" if the caller did not say. One
	// that was deleted and made anew under its name refuses the old token.
	Authority string `json:"authority,omitempty"`
}

func (c *call) kubeCredential() error {
	authority, err := readExecInfo(os.Getenv("KUBERNETES_EXEC_INFO"))
	if err != nil {
		return err
	}
	t, err := c.need(inWorkspace)
	if err != nil {
		return err
	}
	r, err := c.remote() // without a session there is no token, cached or not
	if err != nil {
		return err
	}
	file := c.tokenFile(t)
	var cached cachedToken
	if err := readJSON(file, &cached, true); err == nil && cached.Authority == authority && time.Now().Before(cached.ReuseUntil) {
		return c.writeExecCredential(cached.KubeToken)
	}
	var token resource.KubeToken
	if err := r.do(c.Context.Context, http.MethodPost, t.at(inWorkspace, "kube", "credential"), nil, &token); err != nil {
		return err
	}
	cached = cachedToken{KubeToken: token, Authority: authority, ReuseUntil: time.Now().Add(time.Until(token.ExpiresAt) / 2)}
	if err := writeJSON(file, cached); err != nil {
		c.note("mp: the token is not kept for the next time: %v", err)
	}
	return c.writeExecCredential(token)
}

// tokenFile is where the token for the workspace t is kept.
func (c *call) tokenFile(t Target) string { return c.cacheFile("kube", t.at(inWorkspace)) }

// dropKubeToken forgets the token for t, if that is a workspace.
func (c *call) dropKubeToken(t Target) error {
	if t.Workspace == "" || t.Namespace != "" {
		return nil
	}
	return os.RemoveAll(c.tokenFile(t))
}

// readExecInfo refuses a caller that speaks another version of the protocol. It
// returns the hash of the authority of the workspace that the token is for, if the
// caller says which it is.
func readExecInfo(info string) (authority string, err error) {
	if info == "" {
		return "", nil // typed by hand
	}
	var cred clientauth.ExecCredential
	if err := json.Unmarshal([]byte(info), &cred); err != nil {
		return "", usagef("it is set by kubectl", "KUBERNETES_EXEC_INFO is not understood: %v", err)
	}
	if cred.APIVersion != execVersion || cred.Kind != "ExecCredential" {
		return "", usagef("write the kubeconfig again with 'mp cluster config-kubectl'",
			"the caller wants %s %s, not %s", cred.APIVersion, cred.Kind, execVersion)
	}
	if c := cred.Spec.Cluster; c != nil && len(c.CertificateAuthorityData) > 0 {
		sum := sha256.Sum256(c.CertificateAuthorityData)
		authority = hex.EncodeToString(sum[:16])
	}
	return authority, nil
}

// credentialMargin is how long before its end a token is no longer used. client-go
// asks for another when it has expired, and one that ends on its way to the plane, or by
// a clock that is ahead, is answered 401: client-go does not ask again.
const credentialMargin = time.Minute

func (c *call) writeExecCredential(token resource.KubeToken) error {
	expires := metav1.NewTime(token.ExpiresAt.Add(-credentialMargin))
	data, err := json.Marshal(clientauth.ExecCredential{
		TypeMeta: metav1.TypeMeta{APIVersion: execVersion, Kind: "ExecCredential"},
		Status:   &clientauth.ExecCredentialStatus{ExpirationTimestamp: &expires, Token: token.Token},
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.out, "%s\n", data)
	return err
}
