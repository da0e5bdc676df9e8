package client

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

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
	}
	if configDir != "" {
		exec.Env = []api.ExecEnvVar{{Name: "MP_CONFIG", Value: configDir}}
	}
	conf := api.NewConfig()
	conf.CurrentContext = access.Context
	conf.Clusters[access.Context] = &api.Cluster{
		Server: access.Server, TLSServerName: access.ServerName, CertificateAuthorityData: []byte(access.CA),
	}
	conf.AuthInfos[user] = &api.AuthInfo{Exec: exec}
	conf.Contexts[access.Context] = &api.Context{Cluster: access.Context, AuthInfo: user, Namespace: t.Namespace}
	return clientcmd.Write(*conf)
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
