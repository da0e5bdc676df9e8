package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// Bootstrap sees to it that there is a sysadmin. On the first start it makes
// one with that e-mail address and a random password and writes both to file, mode 0600, as
// {"email": …, "password": …}. If there is any sysadmin it does nothing: it
// never brings back one who was deleted.
//
// The file comes first: killed between the two, the next start finds no user
// and writes the file anew. The other way round, nobody would know the password
// of a user who is there.
func (id *Identity) Bootstrap(ctx context.Context, file, email string) error {
	address, err := Email(email)
	if err != nil {
		return fmt.Errorf("bootstrap sysadmin: %w", err)
	}
	found := false
	err = each(ctx, store.Of[resource.User](id.store), "", func(u *resource.User) error {
		found = found || u.Spec.Sysadmin || u.Name == address
		return nil
	})
	if err != nil || found {
		return err
	}
	password := randomText(18) // 144 bits
	content, err := json.MarshalIndent(map[string]string{"email": address, "password": password}, "", "  ")
	if err != nil {
		return err
	}
	first := &resource.User{Spec: resource.UserSpec{DisplayName: "First sysadmin", Sysadmin: true}}
	ops, err := id.newUser(ctx, address, password, first)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(file, append(content, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the first sysadmin's credentials: %w", err)
	}
	failpoint.Reach("bootstrap/admin-file-written")
	err = id.store.Commit(ctx, ops...)
	if errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrConflict) {
		// Another server was faster; its file is the right one.
		id.log.Info("another server made the first sysadmin", "user", address)
		return nil
	}
	if err != nil {
		return fmt.Errorf("create the first sysadmin: %w", err)
	}
	failpoint.Reach("bootstrap/admin-made")
	id.log.Info("made the first sysadmin", "user", address, "file", file)
	return nil
}
