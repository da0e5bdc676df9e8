package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/client-go/util/flowcontrol"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/internal/reconcile"
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
	// FirstUID is the host's user that is root in the machine. It may be another than
	// the server gave it: 0, where the host can't do better.
	FirstUID(m wire.Machine) (uint32, error)
	Ensure(ctx context.Context, m wire.Machine, netns string, keys wire.MachineKeyPairs) error
	Remove(ctx context.Context, uid string) error
	// List returns what is there, running or not.
	List(ctx context.Context) ([]wire.MachineReport, error)
}

// Endpoints opens the platform's endpoints inside machines. Implemented by
// modules/linklocal.
type Endpoints interface {
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
func Machines(cfg MachinesConfig) Driver {
	return machines{cfg, flowcontrol.NewBackOff(minPause, maxPause)}
}

type machines struct {
	MachinesConfig
	// falls are pauses before machines that ended by themselves are started again:
	// twice as long each time, and forgotten in twice the longest without a fall.
	falls *flowcontrol.Backoff
}

const (
	// machinesEvery is how often machines are looked at though nothing has changed:
	// their certificates may be due.
	machinesEvery = time.Hour
	// From the tenth fall in a row on, the pause is the longest: a start takes a core
	// for some seconds, which is then a hundredth of its time.
	minPause = time.Second
	maxPause = 5 * time.Minute
)

const machineKind = "machine"

func (machines) Kind() string { return machineKind }

// life is what a machine's falls are counted for: with another spec it may stay.
func life(m wire.Machine) string {
	return fmt.Sprintf("%s %s %+v", m.UID, m.KubernetesVersion, m.Spec)
}

// pause is how long after its last fall the machine is started again, 0 if that
// has passed.
func (d machines) pause(m wire.Machine) time.Duration {
	if d.falls.IsInBackOffSinceUpdate(life(m), time.Now()) {
		return d.falls.Get(life(m))
	}
	return 0
}

func (d machines) Wanted(s *wire.State) []Item {
	workspaces := map[string]string{}
	for _, n := range s.Networks {
		workspaces[n.ID] = n.Workspace
	}
	var items []Item
	for _, m := range s.Machines {
		item := Item{
			Key:       m.UID,
			Workspace: m.NetworkID,
			Needs:     []Ref{{networkKind, m.NetworkID}},
			Every:     machinesEvery,
			Ensure:    func(ctx context.Context) error { return d.ensure(ctx, m, workspaces[m.NetworkID]) },
		}
		if m.Remove {
			item.Remove = func(ctx context.Context) error { return d.Drop(ctx, m.UID) }
		}
		items = append(items, item)
	}
	return items
}

func (d machines) ensure(ctx context.Context, m wire.Machine, workspace string) error {
	if pause := d.pause(m); pause > 0 {
		return reconcile.Expected(fmt.Errorf("it ended by itself and is started again after %v", pause))
	}
	first, err := d.Runner.FirstUID(m)
	if err != nil {
		return fmt.Errorf("users of machine %s: %w", m.Name, err)
	}
	m.Spec.FirstUID = first
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

func (d machines) Drop(ctx context.Context, uid string) error {
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
	for _, m := range running {
		placed = append(placed, m.UID)
	}
	for _, k := range keys {
		placed = append(placed, k.Name())
	}
	slices.Sort(placed)
	return slices.Compact(placed), nil
}

func (d machines) Report(
	ctx context.Context,
	s *wire.State,
	progress func(string) Progress,
	r *Report,
) (fallen []string, err error) {
	there, err := d.Runner.List(ctx)
	if err != nil {
		return nil, err
	}
	d.falls.GC()
	seen := map[string]wire.MachineReport{}
	for _, m := range there {
		seen[m.UID] = m
		hold(r, cmp.Or(m.NetworkID, wire.HoldsUnknown))
	}
	for _, m := range s.Machines {
		p := progress(m.UID)
		hold(r, m.NetworkID)
		rep, ok := seen[m.UID]
		switch {
		case p.Removed:
			rep = wire.MachineReport{Removed: true}
		case !ok:
			rep.Message = "not started" // as the driver says of one that it begins with: that is no news
		}
		rep.Key, rep.UID = m.Key, m.UID
		if p.Ready() && !rep.Running && !m.Remove {
			if !rep.Unseen {
				d.falls.Next(life(m), time.Now())
			}
			fallen = append(fallen, m.UID)
		}
		if pause := d.pause(m); pause > 0 && !rep.Running && !m.Remove {
			rep.Message += fmt.Sprintf("; it is started again after %v", pause)
		} else if p.Problem != "" {
			rep.Message = p.Problem
		}
		r.Machines = append(r.Machines, rep)
	}
	return fallen, nil
}

// keysFolder has a folder for the keys of each machine.
const keysFolder = "machines"

// Traces are what an agent keeps in dir: the keys of machines.
func Traces(dir string) inventory.Traces {
	return inventory.Traces{Folders: []inventory.OwnedFolder{{Dir: filepath.Join(dir, keysFolder), Owner: inventory.Machine}}}
}

// keys is the folder of a machine's keys; of no machine, the one of all.
func (d machines) keys(uid string) string { return filepath.Join(d.Client.dir, keysFolder, uid) }

// certificates returns the machine's certificates, asking the server for new ones
// when there are none, or they are not this machine's, or it is time. When the
// server can't be reached, old ones are used as long as they are there.
func (d machines) certificates(ctx context.Context, m wire.Machine) (wire.MachineKeyPairs, error) {
	file := filepath.Join(d.keys(m.UID), "certificates.json")
	var c wire.MachineKeyPairs
	data, err := os.ReadFile(file)
	have := err == nil && json.Unmarshal(data, &c) == nil
	if have && named(c.KubeletClient, m.UID) && named(c.KubeProxy, m.UID) && keptSince(file) < wire.MachineCertificateRenew {
		return c, nil
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
	if err := os.MkdirAll(d.keys(m.UID), 0o700); err != nil {
		return c, err
	}
	if err := atomicfile.WriteJSON(file, fresh); err != nil {
		return c, err
	}
	failpoint.Reach("agent/certificates-kept")
	return fresh, nil
}

// named says whether a certificate names the machine of this UID.
func named(certPEM []byte, uid string) bool {
	cert, err := pki.ParseCertificate(certPEM)
	return err == nil && slices.Contains(cert.Subject.Organization, wire.MachineUIDPrefix+uid)
}

// keptSince is how long ago a file was written, by the clock of this host, which
// may differ from the one that a certificate's times are of. A time to come is long
// ago: the clock was set.
func keptSince(file string) time.Duration {
	info, err := os.Stat(file)
	if err != nil || info.ModTime().After(time.Now()) {
		return math.MaxInt64
	}
	return time.Since(info.ModTime())
}

func (d machines) askCertificates(ctx context.Context, m wire.Machine) (c wire.MachineKeyPairs, err error) {
	req := wire.MachineCertificatesRequest{Machine: m.Key, UID: m.UID}
	for _, k := range []struct{ key, csr *[]byte }{
		{&c.KubeletClientKey, &req.KubeletClient},
		{&c.KubeletServingKey, &req.KubeletServing},
		{&c.KubeProxyKey, &req.KubeProxy},
	} {
		if *k.key, *k.csr, err = pki.NewKeyCSR(); err != nil {
			return c, err
		}
	}
	return c, d.Client.call(ctx, wire.MachineCertificatesPath, req, &c.MachineCertificates)
}
