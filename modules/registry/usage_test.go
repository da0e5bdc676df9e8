package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/opencontainers/go-digest"

	"github.com/multipaas/multipaas/testing/wait"
)

// counted is what the files of an account come to.
func counted(t *testing.T, r *Registry, account string) int64 {
	t.Helper()
	u, err := r.usageOf("nobody") // for its seed
	if err != nil {
		t.Fatal(err)
	}
	all := newTally(u.seed)
	uploads, err := r.walk(account, &all)
	if err != nil {
		t.Fatal(err)
	}
	n := all.bytes
	for _, up := range uploads {
		n += max(up.size, blobFloor)
	}
	return n
}

// TestUsageIsTheCount: after whatever was pushed, the running total is what the files come to.
func TestUsageIsTheCount(t *testing.T) {
	p := newPlatform(t)
	r, host := start(t, p, func(c *Config) { c.Limit = func(string) int64 { return 1 << 40 } })
	repos := []string{"acme/web/a", "acme/web/b/c/d", "acme/ops/e"}
	var access []map[string]any
	for _, repo := range repos {
		access = append(access, map[string]any{"type": "repository", "name": repo, "actions": []string{"pull", "push", "delete"}})
	}
	ann := asUser(t, p, host, p.sign(jwt.Claims{}, access))
	ann.pushBlob(repos[0], "{}", emptyConfig)
	u, err := r.usageOf("acme")
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	check := func(what string) {
		t.Helper()
		if got, want := u.used(), counted(t, r, "acme"); got != want {
			t.Fatalf("%s: the running total is %d, the files come to %d", what, got, want)
		}
	}
	check("the first blob")
	for i := range 60 {
		repo, from := repos[rnd.IntN(len(repos))], repos[rnd.IntN(len(repos))]
		content := fmt.Sprint("content ", rnd.IntN(6), strings.Repeat("x", rnd.IntN(3)*40000))
		d := digest.FromString(content)
		if rnd.IntN(2) == 0 {
			content += " by another digest"
			d = digest.SHA512.FromString(content)
		}
		what := ""
		switch rnd.IntN(6) {
		case 0:
			what = "push in one request"
			ann.pushBlob(repo, content, d)
		case 1:
			what = "mount"
			ann.do("POST", "/v2/"+repo+"/blobs/uploads/?mount="+url.QueryEscape(d.String())+"&from="+from, nil)
		case 2:
			what = "begin"
			ann.do("POST", "/v2/"+repo+"/blobs/uploads/", nil)
		case 3:
			what = "push in two"
			_, header, _ := ann.do("POST", "/v2/"+repo+"/blobs/uploads/", nil)
			_, header, _ = ann.do("PATCH", header.Get("Location"), strings.NewReader(content))
			check("the first half")
			ann.do("PUT", header.Get("Location")+"&digest="+url.QueryEscape(d.String()), nil)
		case 4:
			what = "cancel"
			_, header, _ := ann.do("POST", "/v2/"+repo+"/blobs/uploads/", nil)
			ann.do("DELETE", header.Get("Location"), nil)
		case 5:
			what = "manifest"
			ann.do("POST", "/v2/"+repo+"/blobs/uploads/?mount="+emptyConfig.String()+"&from="+repos[0], nil)
			subject := digest.Digest("")
			if rnd.IntN(2) == 0 {
				subject = digest.FromString(fmt.Sprint(rnd.IntN(3)))
			}
			ann.pushManifest(repo, []string{"", "1", "2"}[rnd.IntN(3)], manifestOf(fmt.Sprint("a/", rnd.IntN(3)), emptyConfig, subject, ""))
		}
		check(fmt.Sprint(i, ": ", what))
	}
	// A restart counts the same.
	again, err := New(Config{Dir: r.cfg.Dir, Limit: r.cfg.Limit})
	if err != nil {
		t.Fatal(err)
	}
	if u, err := again.usageOf("acme"); err != nil || u.used() != counted(t, r, "acme") {
		t.Errorf("after a restart: %v, %v", u.used(), err)
	}
	// All goes; nothing is left, and nothing counts.
	for _, repo := range repos {
		if err := r.Delete(t.Context(), repo, ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if u, err := r.usageOf("acme"); err != nil || u.used() != 0 {
		t.Errorf("after all was deleted: %d, %v", u.used(), err)
	}
}

// TestManySmallThings: neither blobs of a byte, nor names of one blob, nor tags of one
// manifest, nor names of repositories are free.
func TestManySmallThings(t *testing.T) {
	p := newPlatform(t)
	var limit atomic.Int64
	r, host := start(t, p, func(c *Config) { c.Limit = func(string) int64 { return limit.Load() } })
	ann := asUser(t, p, host, p.scope("acme/web/x", "pull", "push"))
	ann.pushBlob("acme/web/x", "{}", emptyConfig)
	manifest := manifestOf("a", emptyConfig, "", "")
	ann.pushManifest("acme/web/x", "", manifest)
	for what, once := range map[string]func(i int) (int, string){
		"blobs": func(i int) (int, string) {
			content := fmt.Sprint(i)
			status, _, body := ann.do("POST", "/v2/acme/web/x/blobs/uploads/?digest="+digest.FromString(content).String(), strings.NewReader(content), "Content-Type", "application/octet-stream")
			return status, body
		},
		"tags": func(i int) (int, string) {
			status, _, body := ann.do("PUT", fmt.Sprint("/v2/acme/web/x/manifests/t", i), strings.NewReader(manifest), "Content-Type", manifestTypes[1])
			return status, body
		},
		"names": func(i int) (int, string) {
			name := fmt.Sprint("acme/web/n", i)
			both := asUser(t, p, host, p.sign(jwt.Claims{}, []map[string]any{
				{"type": "repository", "name": "acme/web/x", "actions": []string{"pull"}},
				{"type": "repository", "name": name, "actions": []string{"pull", "push"}},
			}))
			status, _, body := both.do("POST", "/v2/"+name+"/blobs/uploads/?from=acme/web/x&mount="+emptyConfig.String(), nil)
			return status, body
		},
		"cancelled uploads of deep names": func(i int) (int, string) {
			name := fmt.Sprint("acme/web/d", i, "/a/b/c/d/e/f")
			one := asUser(t, p, host, p.scope(name, "pull", "push"))
			status, header, body := one.do("POST", "/v2/"+name+"/blobs/uploads/", nil)
			one.do("DELETE", header.Get("Location"), nil)
			return status, body
		},
	} {
		limit.Store(counted(t, r, "acme") + 1<<20)
		n := 0
		for ; n < 100; n++ {
			if status, body := once(n); status == http.StatusForbidden && strings.Contains(body, "account acme may keep") {
				break
			} else if status >= 300 {
				t.Fatalf("%s: %d %s", what, status, body)
			}
		}
		if n == 0 || n > 64 {
			t.Errorf("%s: %d in a MiB, want some twenty", what, n)
		}
	}
	// What was deleted counts no longer, though nobody has collected; as soon as it may be
	// counted again.
	limit.Store(1 << 20)
	if err := r.RemoveAll(t.Context(), "acme", "web"); err != nil {
		t.Fatal(err)
	}
	wait.For(t, wait.Patience, "there is room", func(context.Context) error {
		status, _, body := ann.do("POST", "/v2/acme/web/x/blobs/uploads/", nil)
		if status != http.StatusAccepted {
			return errors.New(body)
		}
		return nil
	})
}

func TestUploadsAreBounded(t *testing.T) {
	p := newPlatform(t)
	r, host := start(t, p, nil)
	ann := asUser(t, p, host, p.scope("acme/web/x", "pull", "push"))
	begin := func(a *asker, path string) (int, string) {
		status, header, _ := a.do("POST", "/v2/"+path+"/blobs/uploads/", nil)
		return status, header.Get("Location")
	}
	last := ""
	for i := range maxUploads {
		status, location := begin(ann, "acme/web/x")
		if status != 202 {
			t.Fatalf("upload %d: %d", i, status)
		}
		last = location
	}
	for range 3 {
		if status, _, body := ann.do("POST", "/v2/acme/web/x/blobs/uploads/", nil); status != http.StatusTooManyRequests || !strings.Contains(body, "100 uploads") {
			t.Errorf("one too many: %d %s", status, body)
		}
	}
	if status, _ := begin(asUser(t, p, host, p.scope("acme/ops/x", "push")), "acme/ops/x"); status != 202 {
		t.Errorf("another organization: %d", status)
	}
	// Also after a restart, which finds them.
	again, err := New(Config{Dir: r.cfg.Dir})
	if err != nil {
		t.Fatal(err)
	}
	u, err := again.usageOf("acme")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.begin("acme", "web"); err == nil {
		t.Error("after a restart: one more")
	}
	if status, _, _ := ann.do("DELETE", last, nil); status != 204 {
		t.Errorf("cancel: %d", status)
	}
	status, location := begin(ann, "acme/web/x")
	if status != 202 {
		t.Errorf("after one was cancelled: %d", status)
	}
	// One that nobody goes on with makes room.
	u, err = r.usageOf("acme")
	if err != nil {
		t.Fatal(err)
	}
	u.mu.Lock()
	for _, up := range u.uploads {
		if !strings.Contains(location, filepath.Base(up.dir)) {
			up.last = time.Now().Add(-uploadIdle)
		}
	}
	u.mu.Unlock()
	if status, _ := begin(ann, "acme/web/x"); status != 202 {
		t.Errorf("though others rest: %d", status)
	}
	if status, _, body := ann.do("PUT", location+"&digest="+emptyConfig.String(), strings.NewReader("{}")); status != 201 {
		t.Errorf("the one that does not rest: %d %s", status, body)
	}
	if left, err := os.ReadDir(filepath.Join(r.repositoryDir("acme/web/x"), "_uploads")); err != nil || len(left) != maxUploads-1 {
		t.Errorf("%d uploads are left, %v", len(left), err)
	}
}

// TestSlowPush: a push that waits for its client takes nothing from others of its account,
// and keeps the collector from nothing.
func TestSlowPush(t *testing.T) {
	p := newPlatform(t)
	r, host := start(t, p, nil)
	r.share = 1
	ann := asUser(t, p, host, p.scope("acme/web/x", "pull", "push"))
	_, header, _ := ann.do("POST", "/v2/acme/web/x/blobs/uploads/", nil)
	body, client := io.Pipe()
	done := make(chan int, 1)
	go func() {
		status, _, _ := ann.do("PATCH", header.Get("Location"), body)
		done <- status
	}()
	if _, err := client.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil { // it is under way
		t.Fatal(err)
	}
	ann.pushBlob("acme/web/x", "{}", emptyConfig)
	if _, err := r.Collect(t.Context()); err != nil {
		t.Errorf("Collect while a client is slow: %v", err)
	}
	client.Close()
	if status := <-done; status != 202 {
		t.Errorf("the slow push: %d", status)
	}
}

func TestFloorOfFiles(t *testing.T) {
	for all, want := range map[uint64]uint64{0: 0, 1000: 50, 1 << 30: 50_000} {
		if got := floorFiles(all); got != want {
			t.Errorf("of %d files %d are kept, want %d", all, got, want)
		}
	}
}
