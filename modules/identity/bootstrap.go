package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/problem"
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
	ops, err := id.newUser(ctx, address, resource.Credential{InFile: true}, password, first)
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

// PasswordInFile is raised while CheckBootstrap says so.
var PasswordInFile = problem.Problem{
	Code:     "password-in-file",
	Title:    "The first sysadmin's password stands in a file",
	Severity: problem.Low,
	Text:     "Whoever can read the data directory, or a copy of it, is a sysadmin.",
	Remedy: "Log in with it and change it (`mp passwd`), or make a sysadmin for each person " +
		"(`mp users create --sysadmin`) and delete this one.",
}

// bootstrapFor is how long the first sysadmin's password may be the one in the
// file. It works on: what sets the platform up reads it there, and a platform
// whose only sysadmin is locked out is lost.
const bootstrapFor = 24 * time.Hour

// CheckBootstrap returns an error while the password of the first sysadmin has
// been the one in file for longer than it should.
func (id *Identity) CheckBootstrap(ctx context.Context, file, email string) error {
	address, err := Email(email)
	if err != nil {
		return nil //nolint:nilerr // then Bootstrap has made none
	}
	c, err := store.Of[resource.Credential](id.store).Get(ctx, address)
	if err != nil { // or the store does not answer, which is a problem of its own
		return nil //nolint:nilerr // as it says
	}
	if !c.InFile || id.now().Sub(c.CreatedAt) < bootstrapFor {
		return nil
	}
	return fmt.Errorf("the password of %s is still the one that was written to %s", address, file)
}
