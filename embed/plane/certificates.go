package plane

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/multipaas/multipaas/appliance/pki"
)

// frontProxyName is the only name that may speak for others to the API server
// and to aggregated ones.
const frontProxyName = "front-proxy-client"

// certificates writes the authorities' files and returns what keeps the leaf
// certificates valid. API server and client-go read their files again.
func (p *Plane) certificates() ([]*pki.Renewer, error) {
	ca, err := pki.ParseCA(p.cfg.Keys.CACert, p.cfg.Keys.CAKey)
	if err != nil {
		return nil, fmt.Errorf("workspace's authority: %w", err)
	}
	frontProxyCA, err := pki.ParseCA(p.cfg.Keys.FrontProxyCACert, p.cfg.Keys.FrontProxyCAKey)
	if err != nil {
		return nil, fmt.Errorf("front proxy's authority: %w", err)
	}
	// The cluster signs what its admins approve, any name and address, by an
	// authority of its own: a client of the platform, which trusts the
	// workspace's only, can't be shown a server that a tenant has signed.
	signingCA, err := pki.ParseCA(p.cfg.Keys.SigningCACert, p.cfg.Keys.SigningCAKey)
	if err != nil {
		return nil, fmt.Errorf("signing authority: %w", err)
	}
	for name, data := range map[string][]byte{
		"ca.crt":              ca.CertPEM(),
		"front-proxy-ca.crt":  frontProxyCA.CertPEM(),
		"client-ca.crt":       slices.Concat(ca.CertPEM(), signingCA.CertPEM()),
		"signing-ca.crt":      signingCA.CertPEM(),
		"signing-ca.key":      p.cfg.Keys.SigningCAKey,
		"service-account.key": p.cfg.Keys.ServiceAccountKey,
	} {
		if err := p.write(filepath.Join("pki", name), data); err != nil {
			return nil, err
		}
	}

	client := func(name string, groups ...string) pki.Request {
		return pki.Request{CommonName: name, Organizations: groups, Client: true}
	}
	var renewers []*pki.Renewer
	for _, c := range []struct {
		name    string
		ca      *pki.CA
		request pki.Request
	}{
		{"apiserver", ca, pki.Request{CommonName: "kube-apiserver", Server: true, Hosts: p.serverNames()}},
		{"kubelet-client", ca, client("kube-apiserver-kubelet-client", "system:masters")},
		{"usage", ca, client(usageUser)},
		{"storage", ca, client(storageUser)},
		{"controller-manager", ca, client("system:kube-controller-manager")},
		{"scheduler", ca, client("system:kube-scheduler")},
		{"platform", ca, client(platformUser, "system:masters")},
		{"front-proxy-client", frontProxyCA, client(frontProxyName)},
	} {
		renewers = append(renewers, pki.NewRenewer(pki.RenewerConfig{
			Name:     p.cfg.ID + "/" + c.name,
			Issue:    pki.IssueFrom(c.ca, c.request),
			CertFile: p.path("pki", c.name+".crt"),
			KeyFile:  p.path("pki", c.name+".key"),
			GID:      p.cfg.UID,
			Accept:   pki.SameRequest(c.ca, c.request),
			Log:      p.cfg.Log,
		}))
	}
	return renewers, nil
}

// serverNames are all names and addresses that clients know the API server by.
func (p *Plane) serverNames() []string {
	names := []string{
		"127.0.0.1", p.cfg.Plan.Plane.String(), p.cfg.Plan.Services.Masked().Addr().Next().String(),
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}
	names = append(names, p.cfg.ServerNames...)
	slices.Sort(names)
	return slices.Compact(names)
}
