package agent

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/faultpoint"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/wire"
)

func (a *Agent) machineDir(uid string) string { return filepath.Join(a.cfg.Dir, "machines", uid) }

// certificates returns the machine's certificates, asking the server for new
// ones when there are none or two thirds of their life are over. When the server
// can't be reached, old ones are used as long as they are there.
func (a *Agent) certificates(ctx context.Context, m wire.Machine) (Certificates, error) {
	file := filepath.Join(a.machineDir(m.UID), "certificates.json")
	var c Certificates
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
	fresh, err := a.askCertificates(ctx, m)
	if err != nil {
		if have {
			a.cfg.Log.Warn("renew certificates of machine; going on with the old ones", "machine", m.Name, "error", err)
			return c, nil
		}
		return c, err
	}
	faultpoint.Reach("agent/certificates-signed")
	if data, err = json.Marshal(fresh); err != nil {
		return c, err
	}
	if err := os.MkdirAll(a.machineDir(m.UID), 0o700); err != nil {
		return c, err
	}
	if err := atomicfile.Write(file, data, 0o600); err != nil {
		return c, err
	}
	faultpoint.Reach("agent/certificates-kept")
	return fresh, nil
}

func (a *Agent) askCertificates(ctx context.Context, m wire.Machine) (c Certificates, err error) {
	req := wire.MachineCertificatesRequest{Machine: m.Key}
	for _, k := range []struct{ key, csr *[]byte }{
		{&c.KubeletClientKey, &req.KubeletClient}, {&c.KubeletServingKey, &req.KubeletServing}, {&c.KubeProxyKey, &req.KubeProxy}} {
		if *k.key, *k.csr, err = pki.NewKeyCSR(); err != nil {
			return c, err
		}
	}
	return c, a.client.call(ctx, http.MethodPost, "/v1/agent/machine-certificates", req, &c.MachineCertificates)
}

// renewLoop looks once an hour whether certificates are due: the node's own,
// and those of machines, which are then handed to the running machines.
func (a *Agent) renewLoop(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		if err := a.client.renew(ctx); err != nil && ctx.Err() == nil {
			a.cfg.Log.Warn("renew this node's certificate", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		a.mu.Lock()
		if a.state != nil {
			for _, m := range a.state.Machines {
				a.queue.Add(m.UID)
			}
		}
		a.mu.Unlock()
	}
}
