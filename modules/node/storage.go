package node

import (
	"context"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// storageCertificate signs for a node by what other hosts with shared volumes know it. Every node may
// have one; which of them may have a volume, the volume says.
func (h *Hub) storageCertificate(
	_ context.Context,
	node *resource.Node,
	req wire.JoinRequest,
) (res wire.JoinResponse, err error) {
	res.CA = h.cfg.Storage.CertPEM()
	res.Certificate, err = h.cfg.Storage.Sign(req.CSR,
		pki.Request{CommonName: node.UID, Client: true, Server: true, Life: wire.StorageCertificateLife})
	if err != nil {
		return res, unusable(err)
	}
	return res, nil
}
