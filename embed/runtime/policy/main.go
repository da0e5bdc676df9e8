// Command policy is a CNI plugin, the last of a machine's chain. It notes whose
// address a pod has and returns once the rules that NetworkPolicies ask for hold
// for it, so that no pod sends or gets a packet before.
//
// Parties: containerd runs it, with the pod's name in CNI_ARGS; package
// embed/kube/policy, in the machine's kube-proxy, reads the notes in DIR/pods and answers
// at DIR/policy.sock. A pod's end is no more than a note that goes: it never waits.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// patience is a little longer than what kube-proxy takes to say why not.
const patience = 25 * time.Second

type config struct {
	types.NetConf
	Dir string `json:"dir"`
}

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: check}, version.All, "CNI plugin policy of multipaas")
}

func load(args *skel.CmdArgs) (config, error) {
	var c config
	if err := json.Unmarshal(args.StdinData, &c); err != nil {
		return c, fmt.Errorf("read network configuration: %w", err)
	}
	if c.Dir == "" {
		return c, errors.New("network configuration: no dir")
	}
	if c.RawPrevResult == nil {
		return c, nil
	}
	return c, version.ParsePrevResult(&c.NetConf)
}

// resident is a pod of this machine.
type resident struct {
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	UID       string     `json:"uid"`
	Address   netip.Addr `json:"address"`
}

func add(args *skel.CmdArgs) error {
	c, err := load(args)
	if err != nil {
		return err
	}
	if c.PrevResult == nil {
		return errors.New("no result of the plugins before this one")
	}
	result, err := current.NewResultFromResult(c.PrevResult)
	if err != nil {
		return err
	}
	r := resident{}
	for part := range strings.SplitSeq(args.Args, ";") {
		switch name, value, _ := strings.Cut(part, "="); name {
		case "K8S_POD_NAMESPACE":
			r.Namespace = value
		case "K8S_POD_NAME":
			r.Name = value
		case "K8S_POD_UID":
			r.UID = value
		}
	}
	for _, ip := range result.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok && a.Unmap().Is4() {
			r.Address = a.Unmap()
		}
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	file := note(c, args)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return err
	}
	if err := ask(c.Dir, args.ContainerID); err != nil {
		return err
	}
	return types.PrintResult(c.PrevResult, c.CNIVersion)
}

func note(c config, args *skel.CmdArgs) string { return filepath.Join(c.Dir, "pods", args.ContainerID) }

// ask asks until there is an answer: on a machine that starts, the other side may
// come later, and while kube-proxy starts again it is away.
func ask(dir, id string) error {
	end := time.Now().Add(patience)
	for {
		answer, err := askOnce(dir, id, end)
		switch {
		case err == nil && answer == "ok":
			return nil
		case err == nil:
			return errors.New(answer)
		case time.Until(end) < 0:
			return fmt.Errorf("kube-proxy, which makes NetworkPolicies hold, does not answer: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func askOnce(dir, id string, end time.Time) (string, error) {
	conn, err := net.DialTimeout("unix", filepath.Join(dir, "policy.sock"), time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(end); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, id); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line), err
}

func del(args *skel.CmdArgs) error {
	c, err := load(args)
	if err != nil {
		return err
	}
	if err := os.Remove(note(c, args)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// Only word of it: whoever is away reads the notes when it is back.
	if conn, err := net.DialTimeout("unix", filepath.Join(c.Dir, "policy.sock"), time.Second); err == nil {
		fmt.Fprintln(conn)
		_ = conn.Close()
	}
	return nil
}

func check(args *skel.CmdArgs) error {
	c, err := load(args)
	if err != nil {
		return err
	}
	_, err = os.Stat(note(c, args))
	return err
}
