package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// renew signs a new certificate for a node that still has a good one.
func (h *Hub) renew(_ context.Context, node *resource.Node, req wire.JoinRequest) (res wire.JoinResponse, err error) {
	res.CA = h.cfg.CA.CertPEM()
	res.Certificate, err = h.sign(req.CSR, node)
	return res, err
}

// machineCertificates signs for a machine that is placed on the asking node.
// Names and use come from the platform's own records, never from the request.
func (h *Hub) machineCertificates(
	ctx context.Context,
	node *resource.Node,
	req wire.MachineCertificatesRequest,
) (*wire.MachineCertificates, error) {
	m, err := store.Of[resource.Machine](h.cfg.Store).Get(ctx, req.Machine)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalidKey) || (err == nil && m.Spec.Node != node.Name) {
		return nil, refuse(http.StatusNotFound, "machine %q is not on node %s", req.Machine, node.Name)
	} else if err != nil {
		return nil, err
	}
	keys, err := store.Of[resource.WorkspaceKeys](h.cfg.Store).Get(ctx, m.WorkspaceKey())
	if err != nil {
		return nil, err
	}
	ca, err := pki.ParseCA(keys.CACert, keys.CAKey)
	if err != nil {
		return nil, fmt.Errorf("authority of workspace %s: %w", m.WorkspaceKey(), err)
	}
	address, _ := h.cfg.Plan.Machine(m.Spec.Index)
	user := "system:node:" + m.Name
	var out wire.MachineCertificates
	for _, c := range []struct {
		csr []byte
		req pki.Request
		to  *[]byte
	}{
		// Names as kubeadm gives them (Kubernetes docs, PKI certificates and requirements).
		{req.KubeletClient, pki.Request{CommonName: user, Organizations: []string{"system:nodes"}, Client: true}, &out.KubeletClient},
		{req.KubeletServing, pki.Request{CommonName: user, Organizations: []string{"system:nodes"}, Server: true, Hosts: []string{m.Name, address.String()}}, &out.KubeletServing},
		{req.KubeProxy, pki.Request{CommonName: "system:kube-proxy", Client: true}, &out.KubeProxy},
	} {
		if *c.to, err = ca.Sign(c.csr, c.req); err != nil {
			return nil, unusable(err)
		}
	}
	return &out, nil
}
