package plane

import (
	"errors"
	"fmt"
	"path/filepath"
)

// validate says everything that is wrong with the configuration.
func (c *Config) validate() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for name, value := range map[string]string{"binary": c.Binary, "dir": c.Dir} {
		if value == "" {
			wrong("%s: not set", name)
		}
	}
	if !c.Plan.Services.IsValid() || !c.Plan.Services.Addr().Is4() || c.Plan.Services.Bits() > 28 {
		wrong("plan: services %s: want an IPv4 network of 16 addresses or more", c.Plan.Services)
	}
	if !c.Plan.Machines.IsValid() || !c.Plan.Machines.Addr().Is4() {
		wrong("plan: machines %s: want an IPv4 network", c.Plan.Machines)
	}
	if !c.Plan.Plane.Is4() {
		wrong("plan: plane %s: want an IPv4 address", c.Plan.Plane)
	}
	for name, key := range map[string][]byte{
		"CA certificate": c.Keys.CACert, "CA key": c.Keys.CAKey,
		"front proxy CA certificate": c.Keys.FrontProxyCACert, "front proxy CA key": c.Keys.FrontProxyCAKey,
		"signing CA certificate": c.Keys.SigningCACert, "signing CA key": c.Keys.SigningCAKey,
		"service account key": c.Keys.ServiceAccountKey,
	} {
		if len(key) == 0 {
			wrong("keys: no %s", name)
		}
	}
	if n := len(c.Keys.EncryptionKey); n != 32 {
		wrong("keys: encryption key of %d bytes, want 32", n)
	}
	if c.Datastore.MaxBytes < 0 {
		wrong("datastore: a limit of %d bytes", c.Datastore.MaxBytes)
	}
	switch c.Datastore.Kind {
	case Kine:
	case Etcd:
		if len(c.Datastore.Etcd.Endpoints) == 0 || c.Datastore.Etcd.Prefix == "" {
			wrong("datastore: etcd needs endpoints and a prefix")
		}
	default:
		wrong("datastore: %q: have %s, %s", c.Datastore.Kind, Kine, Etcd)
	}
	if c.StorageSocket != "" && filepath.Dir(c.StorageSocket) != filepath.Clean(c.Dir) {
		wrong("storage socket %s: want it in %s, which the plane sees", c.StorageSocket, c.Dir)
	}
	if c.OIDC.Issuer != "" && (c.OIDC.DiscoveryURL == "" || c.OIDC.Audience == "") {
		wrong("oidc: issuer without discovery URL or audience")
	}
	return errors.Join(append(errs, checkLevel(c.PodSecurity))...)
}
