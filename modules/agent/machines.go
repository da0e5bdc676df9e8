package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/wire"
)

// MachineNetworks gives machines their places in networks. Implemented by
// modules/network. All calls are idempotent and may block for seconds.
type MachineNetworks interface {
	// AttachMachine returns the file of the machine's network namespace. The
	// network must be attached.
	AttachMachine(ctx context.Context, m wire.Machine) (netns string, err error)
	DetachMachine(ctx context.Context, uid string) error
	// Machines lists the UIDs of machines that have a place in some network.
	Machines() ([]string, error)
}

// Runner runs machines. Implemented by modules/machine. All calls are idempotent
// and may block for as long as a machine takes to start or stop; calls for
// different machines may be concurrent.
type Runner interface {
	Ensure(ctx context.Context, m wire.Machine, netns string, keys wire.MachineKeyPairs) error
	Remove(ctx context.Context, uid string) error
	// List returns what is there, running or not.
	List(ctx context.Context) ([]wire.MachineReport, error)
}

// Endpoints opens the platform's endpoints inside machines. Implemented by
// modules/linklocal.
type Endpoints interface {
	// SetState tells names and resolvers, which may change. It does not block.
	SetState(s *wire.State)
	// Open listens in the namespace; open already is no error.
	Open(ctx context.Context, m wire.Machine, workspace, netns string) error
	Close(uid string)
}

// MachinesConfig is what drives machines.
type MachinesConfig struct {
	Log       *slog.Logger
	Client    *Client // asks for the machines' certificates, and knows where to keep them
	Networks  MachineNetworks
	Runner    Runner
	Endpoints Endpoints
}

// Machines drives machines: each gets its place in its network, the endpoints in
// there, its certificates, and is run.
func Machines(cfg MachinesConfig) Driver { return machines{cfg} }

type machines struct{ MachinesConfig }

var _ Taker = machines{}

// machinesEvery is how often machines are looked at though nothing has changed:
// their certificates may be due.
const machinesEvery = time.Hour

func (machines) Kind() string { return "machine" }

// Take tells endpoints of every state, also of one that has no machine ensured:
// what an operator closed is closed at once.
func (d machines) Take(s *wire.State) { d.Endpoints.SetState(s) }

func (d machines) Wanted(s *wire.State) []Item {
	workspaces := map[string]string{}
	for _, n := range s.Networks {
		workspaces[n.ID] = n.Workspace
	}
	var items []Item
	for _, m := range s.Machines {
		items = append(items, Item{
			Key:       m.UID,
			Workspace: m.NetworkID,
			Needs:     []Ref{{networkKind, m.NetworkID}},
			Every:     machinesEvery,
			Remove:    m.Remove,
			Ensure:    func(ctx context.Context) error { return d.ensure(ctx, m, workspaces[m.NetworkID]) },
		})
	}
	return items
}

func (d machines) ensure(ctx context.Context, m wire.Machine, workspace string) error {
	netns, err := d.Networks.AttachMachine(ctx, m)
	if err != nil {
		return err
	}
	if err := d.Endpoints.Open(ctx, m, workspace, netns); err != nil {
		return err
	}
	keys, err := d.certificates(ctx, m)
	if err != nil {
		return fmt.Errorf("certificates of machine %s: %w", m.Name, err)
	}
	return d.Runner.Ensure(ctx, m, netns, keys)
}

func (d machines) Remove(ctx context.Context, uid string) error {
	d.Endpoints.Close(uid)
	if err := d.Runner.Remove(ctx, uid); err != nil {
		return err
	}
	failpoint.Reach("agent/machine-removed")
	if err := d.Networks.DetachMachine(ctx, uid); err != nil {
		return err
	}
	failpoint.Reach("agent/network-removed")
	if err := os.RemoveAll(d.keys(uid)); err != nil {
		return fmt.Errorf("remove keys of machine %s: %w", uid, err)
	}
	failpoint.Reach("agent/keys-removed")
	return nil
}

func (d machines) List(ctx context.Context) ([]string, error) {
	running, err := d.Runner.List(ctx)
	if err != nil {
		return nil, err
	}
	placed, err := d.Networks.Machines()
	if err != nil {
		return nil, err
	}
	keys, err := os.ReadDir(d.keys(""))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	there := map[string]bool{}
	for _, m := range running {
		there[m.UID] = true
	}
	for _, uid := range placed {
		there[uid] = true
	}
	for _, k := range keys {
		there[k.Name()] = true
	}
	return slices.Sorted(maps.Keys(there)), nil
}

func (d machines) Report(
	ctx context.Context,
	s *wire.State,
	progress func(string) Progress,
	r *wire.Report,
) (fallen []string, err error) {
	there, err := d.Runner.List(ctx)
	if err != nil {
		return nil, err
	}
	seen := map[string]wire.MachineReport{}
	for _, m := range there {
		seen[m.UID] = m
	}
	for _, m := range s.Machines {
		p := progress(m.UID)
		rep, ok := seen[m.UID]
		switch {
		case p.Removed:
			rep = wire.MachineReport{Removed: true}
		case !ok:
			rep.Message = "not started yet"
		}
		rep.Key, rep.UID = m.Key, m.UID
		if p.Problem != "" {
			rep.Message = p.Problem
		}
		if p.Ready && !rep.Running && !m.Remove {
			fallen = append(fallen, m.UID)
		}
		r.Machines = append(r.Machines, rep)
	}
	return fallen, nil
}

// keysFolder has a folder for the keys of each machine.
const keysFolder = "machines"

// keys is the folder of a machine's keys; of no machine, the one of all.
func (d machines) keys(uid string) string { return filepath.Join(d.Client.dir, keysFolder, uid) }

// certificates returns the machine's certificates, asking the server for new
// ones when there are none or two thirds of their life are over. When the server
// can't be reached, old ones are used as long as they are there.
func (d machines) certificates(ctx context.Context, m wire.Machine) (wire.MachineKeyPairs, error) {
	file := filepath.Join(d.keys(m.UID), "certificates.json")
	var c wire.MachineKeyPairs
	data, err := os.ReadFile(file)
	have := err == nil && json.Unmarshal(data, &c) == nil
	if have {
		renew := false
		for _, cert := range [][]byte{c.KubeletClient, c.KubeletServing, c.KubeProxy} {
			due, err := pki.NeedsRenewal(cert, time.Now())
			renew = renew || due || err != nil
		}
		if !renew {
			return c, nil
		}
	}
	fresh, err := d.askCertificates(ctx, m)
	if err != nil {
		if have {
			d.Log.Warn("renew certificates of machine; going on with the old ones", "machine", m.Name, "err", err)
			return c, nil
		}
		return c, err
	}
	failpoint.Reach("agent/certificates-signed")
	if data, err = json.Marshal(fresh); err != nil {
		return c, err
	}
	if err := os.MkdirAll(d.keys(m.UID), 0o700); err != nil {
		return c, err
	}
	if err := atomicfile.Write(file, data, 0o600); err != nil {
		return c, err
	}
	failpoint.Reach("agent/certificates-kept")
	return fresh, nil
}

func (d machines) askCertificates(ctx context.Context, m wire.Machine) (c wire.MachineKeyPairs, err error) {
	req := wire.MachineCertificatesRequest{Machine: m.Key}
	for _, k := range []struct{ key, csr *[]byte }{
		{&c.KubeletClientKey, &req.KubeletClient},
		{&c.KubeletServingKey, &req.KubeletServing},
		{&c.KubeProxyKey, &req.KubeProxy},
	} {
		if *k.key, *k.csr, err = pki.NewKeyCSR(); err != nil {
			return c, err
		}
	}
	return c, d.Client.call(ctx, http.MethodPost, "/v1/agent/machine-certificates", req, &c.MachineCertificates)
}
