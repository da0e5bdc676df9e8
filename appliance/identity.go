package appliance

import (
	"context"

	"github.com/multipaas/multipaas/appliance/lifecycle"
	"github.com/multipaas/multipaas/modules/identity"
	"github.com/multipaas/multipaas/modules/store"
)

// addIdentity adds who knows the users, once there is a first one: a sysadmin,
// with a file that says how he logs in.
func (s *server) addIdentity(from part[*store.Store]) part[*identity.Identity] {
	n := &needs{}
	id := identity.New(identity.Config{
		Store:           from.of(n),
		Issuer:          s.url(),
		RegistryService: s.registryName(),
		CAKeyHash:       s.ca.KeyHash(),
		Log:             s.part("identity"),
	})
	known := add(s.graph, "identity", n, id)
	n = &needs{}
	known.of(n)
	admin := add(s.graph, "first-admin", n, lifecycle.Task(func(ctx context.Context) error {
		return id.Bootstrap(ctx, s.cfg.Paths.BootstrapAdmin(), s.cfg.AdminEmail)
	}))
	return part[*identity.Identity]{id, admin.nodes}
}

// checkFirstAdmin looks whether the first sysadmin's password is still that of the
// file.
func (s *server) checkFirstAdmin(id *identity.Identity) func(context.Context) {
	return func(ctx context.Context) {
		file := s.cfg.Paths.BootstrapAdmin()
		s.problems.Update(identity.PasswordInFile, file, id.CheckBootstrap(ctx, file, s.cfg.AdminEmail))
	}
}
