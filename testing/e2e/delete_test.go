package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/multipaas/multipaas/testing/wait"
)

// testDelete deletes all, from the leaves to the root, and looks for what was
// left behind.
func testDelete(t *testing.T, d *suite) {
	d.Answers(t)
	id := func(who, name string) string {
		var workspace struct{ Status struct{ ID string } }
		err := json.Unmarshal([]byte(d.Must(t, who, "ws", "show", name, "-o", "json")), &workspace)
		if err != nil || workspace.Status.ID == "" {
			t.Fatalf("workspace %s: %+v %v", name, workspace, err)
		}
		return workspace.Status.ID
	}
	box, shop := id(rival, "box"), id(owner, "shop")

	t.Run("app", func(t *testing.T) {
		d.Must(t, owner, "apps", "delete", "hello", "--yes", "--timeout", "5m")
		if got := d.Kubectl(t, "get", "deploy,service,pods", "-A", "-o", "name"); strings.Contains(got, "hello") {
			t.Errorf("left in the cluster:\n%s", got)
		}
		c := d.Client()
		wait.For(t, wait.Patience, "its host name is nobody's", func(ctx context.Context) error {
			if _, err := d.Hello(ctx, c); err == nil {
				return errors.New("it answers")
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+appHost+"/", nil)
			if err != nil {
				return err
			}
			resp, err := c.Do(req)
			if err != nil {
				return err
			}
			resp.Body.Close()
			if resp.StatusCode < 400 {
				return fmt.Errorf("over HTTP it answers %s", resp.Status)
			}
			return nil
		})
	})
	t.Run("workspaces", func(t *testing.T) {
		d.Must(t, rival, "ws", "delete", "box", "--yes", "--no-wait")
		d.Must(t, owner, "ws", "delete", "shop", "--yes", "--timeout", "5m")
		wait.For(t, wait.Patience, "box is gone", func(context.Context) error {
			if r := d.MP(t, rival, "ws", "show", "box"); r.Code != exitNotFound {
				return errors.New(r.String())
			}
			return nil
		})
		for _, h := range d.Lab.Hosts() {
			nothingLeft(t, h)
		}
		for _, id := range []string{box, shop} {
			if _, err := os.Stat(d.Server.Data("planes", id)); err == nil {
				t.Errorf("the folder of plane %s is still there", id)
			}
		}
		d.forgotten(t, box, shop)
	})
	t.Run("organizations and accounts", func(t *testing.T) {
		if r := d.MP(t, owner, "org", "delete", "web", "--yes"); r.Code != exitConflict || !strings.Contains(r.Err, "probe") {
			t.Errorf("with an image: %s; want exit %d", r, exitConflict)
		}
		d.Must(t, owner, "images", "delete", "probe", "--yes")
		d.Must(t, rival, "images", "delete", "probe", "--yes")
		d.Must(t, owner, "org", "delete", "web", "--yes")
		if r := d.MP(t, owner, "org", "delete", "lab", "--yes"); r.Code != 0 && r.Code != exitNotFound {
			t.Error(r)
		}
		d.Must(t, rival, "org", "delete", "ops", "--yes")
		d.Must(t, owner, "accounts", "delete", "acme", "--yes")
		d.Must(t, rival, "accounts", "delete", "beta", "--yes")
		if got := strings.TrimSpace(d.Must(t, admin, "accounts", "list", "-o", "name")); got != "" {
			t.Errorf("accounts are left: %q", got)
		}
		wait.For(t, wait.Patience, "no repository is left", func(context.Context) error {
			return filepath.WalkDir(d.Server.Data("registry"), func(path string, _ fs.DirEntry, err error) error {
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
				if parent := filepath.Base(filepath.Dir(path)); parent == "acme" || parent == "beta" {
					return errors.New(path)
				}
				return nil
			})
		})
	})
}

// forgotten checks that no key of the platform's etcd names a workspace, and
// none stands below its plane's prefix.
func (d *suite) forgotten(t *testing.T, ids ...string) {
	t.Helper()
	client := d.Etcd(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	all, err := client.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	if len(all.Kvs) == 0 {
		t.Fatal("etcd is empty: the test looks in the wrong place")
	}
	for _, kv := range all.Kvs {
		for _, id := range append(ids, "acme/web/shop", "beta/ops/box") {
			if strings.Contains(string(kv.Key), id) && !strings.Contains(string(kv.Key), "/tasks/") {
				t.Errorf("left in etcd: %s", kv.Key)
			}
		}
	}
	users, err := client.UserList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range users.Users {
		if slices.ContainsFunc(ids, func(id string) bool { return strings.Contains(user, id) }) {
			t.Errorf("left in etcd: user %s", user)
		}
	}
}
