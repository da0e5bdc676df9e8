package api_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/api"
	"github.com/multipaas/multipaas/modules/client"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/internal/archive"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/wait"
)

// carrier has the file of each snapshot, and takes that of each volume. Each try ends early, well and badly in turn.
type carrier struct {
	file []byte
	made func(*resource.Volume) // called when all of a volume's file is there

	mu    sync.Mutex
	tries int
	got   []byte
	hook  func() // called at each try
}

const carried = 800_000

func (c *carrier) try() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tries++; c.hook != nil {
		c.hook()
	}
	return c.tries
}

func (c *carrier) Export(_ context.Context, _ *resource.Snapshot, from int64, w io.Writer, deadline func(time.Time) error) error {
	n := c.try()
	if n%4 == 0 {
		return &access.Refusal{Reason: access.ErrExists, Text: "Not now."}
	}
	rest := c.file[from:]
	if _, err := w.Write(rest[:min(len(rest), carried)]); err != nil || len(rest) == 0 {
		return errors.Join(err, deadline(time.Time{}))
	}
	if n%3 == 0 {
		return errors.New("cut off here")
	}
	return deadline(time.Time{})
}

func (c *carrier) BeginImport(context.Context, *resource.Volume) (string, int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return "some", int64(len(c.got)), nil
}

func (c *carrier) Import(_ context.Context, v *resource.Volume, id string, in io.Reader, _ func(time.Time) error) error {
	n := c.try()
	got, err := io.ReadAll(io.LimitReader(in, carried))
	c.mu.Lock()
	c.got = append(c.got, got...)
	whole := len(c.got) == len(c.file)
	c.mu.Unlock()
	switch {
	case err != nil || id != "some":
		return fmt.Errorf("%s: %w", id, err)
	case whole:
		c.made(v)
		return nil
	case n%2 == 0:
		panic("cut off here")
	}
	return &access.Refusal{Reason: access.ErrExists, Text: "Not now: its host has ended it."}
}

// TestFiles: what the client writes is the file of a snapshot with its end, and what it sends is that, however often both are cut
// off, and the client itself.
func TestFiles(t *testing.T) {
	c := &carrier{}
	s := newSite(t, func(cfg *api.Config) { cfg.Files = c })
	s.people()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.server.Certificate().Raw})
	if err := errors.Join(os.WriteFile(at("ca.crt"), ca, 0o600), os.WriteFile(at("password"), []byte(password), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MP_CONFIG", at("config"))
	for key, value := range map[string]string{"ACCOUNT": "acme", "ORGANIZATION": "web", "WORKSPACE": "shop"} {
		t.Setenv("MP_"+key, value)
	}
	mp := func(ctx context.Context, args ...string) (code int, said string) {
		t.Helper()
		var out bytes.Buffer
		code = client.Main(ctx, args, strings.NewReader(""), &out, &out)
		return code, out.String()
	}
	must := func(args ...string) string {
		t.Helper()
		code, said := mp(t.Context(), args...)
		if code != 0 {
			t.Fatalf("mp %s: %d: %s", strings.Join(args, " "), code, said)
		}
		return said
	}
	must("init", s.server.URL, "--ca", at("ca.crt"))
	must("login", dev, "--password-file", at("password"))

	about, err := archive.JSON(archive.AboutName, time.Now(), archive.About{Format: archive.Format, SizeBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	c.file = append(about, bytes.Repeat([]byte("0123456789abcdef"), 1<<17)...)
	// Its host makes the snapshot.
	snapshots, volumes := store.Of[resource.Snapshot](s.store), store.Of[resource.Volume](s.store)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	made := make(chan string, 1)
	go func() {
		defer close(made)
		wait.For(t, wait.Patience, "a snapshot is asked for", func(context.Context) error {
			all, _, err := snapshots.List(t.Context(), "acme/web/shop", "", 0)
			for _, one := range all {
				if until := one.Spec.Until; until == nil || time.Until(*until) < time.Hour || one.Spec.Volume != "data" {
					continue
				}
				_, err := snapshots.Modify(t.Context(), one.Key(), func(now *resource.Snapshot) error {
					now.Status.SizeBytes = 1 << 30
					return nil
				})
				made <- one.Key()
				return err
			}
			return errors.Join(err, errors.New("there is none"))
		})
	}()
	c.hook = func() {
		if c.tries == 2 {
			stop() // as by Ctrl-C
		}
	}
	code, said := mp(ctx, "volumes", "export", "data", at("data.tar"))
	if code != client.ExitInterrupted || !strings.Contains(said, "same command") {
		t.Errorf("interrupted: %d: %s", code, said)
	}
	taken := <-made
	if _, err := os.Stat(at("data.tar")); err == nil {
		t.Error("what is not whole has the name of what is")
	}
	if code, said := mp(t.Context(), "volumes", "export", "before", at("data.tar")); code == 0 || !strings.Contains(said, "something else") {
		t.Errorf("of another: %d: %s", code, said)
	}
	// What was not on the disk when the power went is fetched again.
	part, err := os.OpenFile(at("data.tar.part"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = part.WriteString("rubbish")
	}
	if err := errors.Join(err, part.Close()); err != nil {
		t.Fatal(err)
	}
	must("volumes", "export", "data", at("data.tar"))
	data, err := os.ReadFile(at("data.tar"))
	if err != nil || !bytes.HasPrefix(data, c.file) {
		t.Fatalf("%d octets are there of %d: %v", len(data), len(c.file), err)
	}
	if sum := fmt.Sprintf("%x", sha256.Sum256(c.file)); !bytes.Contains(data[len(c.file):], []byte(sum)) {
		t.Errorf("its end is %q", data[len(c.file):])
	}
	if left, err := filepath.Glob(at("*.part*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if one, err := snapshots.Get(t.Context(), taken); err != nil || !one.Deleting() {
		t.Errorf("the snapshot stays: %v", err)
	}
	if code, said := mp(t.Context(), "volumes", "export", "data", at("data.tar")); code == 0 || !strings.Contains(said, "is there already") {
		t.Errorf("once more: %d: %s", code, said)
	}

	// What can't be is said at once, and why.
	lost := &resource.Snapshot{InWorkspace: resource.NewInWorkspace("acme/web/shop", "lost"), Spec: resource.SnapshotSpec{Volume: "data"}}
	lost.Status.Conditions.Set(resource.Condition{Type: resource.SnapshotReady, Status: resource.False, Final: true, Message: "its disk is lost"})
	if err := snapshots.Create(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	if code, said := mp(t.Context(), "volumes", "export", "lost", at("lost.tar")); code == 0 || !strings.Contains(said, "its disk is lost") {
		t.Errorf("one that is lost: %d: %s", code, said)
	}
	late := &resource.Snapshot{InWorkspace: resource.NewInWorkspace("acme/web/shop", "late"), Spec: resource.SnapshotSpec{Volume: "data"}}
	late.Status.Conditions.Set(resource.Condition{Type: resource.SnapshotReady, Status: resource.False, Message: "its host is full"})
	if err := snapshots.Create(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	not := s.want(http.StatusConflict, dev, "GET", inShop+"/snapshots/late/content", "").problem(t)
	if not.Code != "not-ready" || !strings.Contains(not.Detail, "not made yet: its host is full.") {
		t.Errorf("one that is not made: %+v", not)
	}
	// And back.
	c.file = data
	c.made = func(v *resource.Volume) {
		_, err := volumes.Modify(t.Context(), v.Key(), func(now *resource.Volume) error {
			now.Status.SizeBytes, now.Status.Phase = 1<<30, resource.Ready
			now.Status.Conditions.Set(resource.Condition{Type: resource.VolumeReady, Status: resource.True, Reason: "Ready"})
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	for name, change := range map[string]func([]byte) []byte{
		"cut off":     func(d []byte) []byte { return d[:len(d)/2] },
		"no such one": func(d []byte) []byte { return d[3:] },
	} {
		if err := os.WriteFile(at("bad.tar"), change(bytes.Clone(data)), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, said := mp(t.Context(), "volumes", "import", at("bad.tar"), "bad"); code == 0 {
			t.Errorf("%s: %s", name, said)
		}
	}
	if said := must("volumes", "import", at("data.tar"), "fresh"); !strings.Contains(said, "is ready") || !bytes.Equal(c.got, data) {
		t.Errorf("%d octets came of %d: %s", len(c.got), len(data), said)
	}
	if v, err := volumes.Get(t.Context(), "acme/web/shop/fresh"); err != nil || !v.Spec.Import || v.Spec.SizeBytes != 1<<30 {
		t.Errorf("the volume is %+v, %v", v, err)
	}
	c.got = nil
	must("volumes", "import", at("data.tar"), "files", "--class", "shared", "--replicas", "3")
	if v, err := volumes.Get(t.Context(), "acme/web/shop/files"); err != nil || !v.Spec.Import || v.Spec.Class != resource.SharedVolume || v.Spec.Replicas != 3 {
		t.Errorf("the shared volume is %+v, %v", v, err)
	}
	if code, said := mp(t.Context(), "volumes", "import", at("data.tar"), "data"); code == 0 || !strings.Contains(said, "is there already") {
		t.Errorf("into one that is there: %d: %s", code, said)
	}
}
